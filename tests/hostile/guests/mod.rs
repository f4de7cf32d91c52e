//! Guests that mean harm: trees whose links lead out of them, whose files are none, whose content is absurd, and that
//! change while the program works in them. Whatever they are, the node stays as it was, the program ends soon and
//! with little memory, its answer is clear, and nothing is left. Needs root.

mod bench;
mod canary;
mod import;
mod swap;
mod traps;
mod tree;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::running::{Family, Running, SOON};
use crate::common::small_guest::{Answer, Flavour, SmallDisk};
use crate::common::stepping::{GuestMount, step};
use bench::Bench;
use traps::{CONTENTS, Kind, LINKS, LOCKED, NODES, Place, Trap};
use tree::Tree;

#[test]
fn rename_follows_no_link_out_of_the_guest() {
    Bench::new().rename_all(&LINKS);
}

#[test]
fn rename_opens_no_pipe_device_or_socket_of_a_guest() {
    Bench::new().rename_all(&NODES);
}

#[test]
fn rename_is_bounded_whatever_the_guests_files_hold() {
    Bench::new().rename_all(&CONTENTS);
}

#[test]
fn rename_says_what_it_may_not_change() {
    Bench::new().rename_all(&LOCKED);
}

/// A short name that stands in a file as often as it can, and a new one as long as a name may be.
#[test]
fn rename_is_bounded_whatever_the_names_are() {
    let bench = Bench::new();
    let disk = bench.disk(Flavour::Ifupdown);
    {
        let mounted = disk.mount_writable();
        std::fs::write(mounted.path().join("etc/hostname"), "a\n").unwrap();
        let hosts = format!("127.0.0.1 {}\n", "a ".repeat((1 << 19) - 8));
        std::fs::write(mounted.path().join("etc/hosts"), hosts).unwrap();
    }
    let mut env = bench.node.recorded("rename", &disk.path);
    env.insert("OLD_INSTANCE_NAME".into(), "a.example.com".into());
    env.insert("INSTANCE_NAME".into(), format!("{}.example.com", "b".repeat(63)));
    bench.node.wait_until_detached();
    let answer = Answer::of(bench.node.verb("rename", &env));
    assert!(!answer.done && answer.last_lines().contains("/etc/hosts"), "{}", answer.log);
    bench.node.assert_nothing_left();
}

/// What is exchanged with a twin while the program works.
const EXCHANGED: [(&str, Kind, Flavour, Trap); 9] = [
    ("etc", Kind::Dir, Flavour::Ifupdown, Trap::AbsoluteLink),
    ("etc", Kind::Dir, Flavour::Networkd, Trap::UpwardLink),
    ("etc", Kind::Dir, Flavour::Netplan, Trap::Fifo),
    ("etc/hostname", Kind::File, Flavour::Ifupdown, Trap::AbsoluteLink),
    ("etc/hostname", Kind::File, Flavour::Ifupdown, Trap::Fifo),
    ("etc/hosts", Kind::File, Flavour::Ifupdown, Trap::UpwardLink),
    ("etc/hosts", Kind::File, Flavour::Ifupdown, Trap::WrongKind),
    ("etc/network/interfaces.d", Kind::Dir, Flavour::Ifupdown, Trap::AbsoluteLink),
    ("etc/systemd/network", Kind::Dir, Flavour::Networkd, Trap::UpwardLink),
];

/// Where the twin stands.
const TWIN: &str = "var/twin";

impl Bench {
    /// A guest with a twin of a place, which is a trap.
    fn with_twin(&self, (path, kind, flavour, trap): (&'static str, Kind, Flavour, Trap)) -> SmallDisk {
        let disk = self.disk(flavour);
        let place = Place { path, kind, flavour, concerned: true };
        trap.make(&disk.mount_writable().path().join(TWIN), &place, &self.canary);
        disk
    }

    /// Wants that a run under which the tree changed did no harm.
    fn assert_harmless(
        &self,
        disk: &SmallDisk,
        (before, look): (&Tree, &canary::Look),
        moved: &str,
        log: &str,
    ) {
        assert!(!log.contains("panicked"), "{log}");
        self.canary.assert_untouched(look, log);
        self.node.assert_nothing_left();
        Tree::of(disk.mount().path()).assert_nothing_unfinished(before, moved, log);
        crate::common::fsck(&disk.path, disk.root_at, "ext4");
    }
}

#[test]
fn rename_does_no_harm_where_the_tree_changes_between_any_two_of_its_steps() {
    let bench = Bench::new();
    let mut exchanged = 0;
    for case in EXCHANGED {
        // From the second stop on as well: then each look sees what the other saw not.
        for phase in [0, 1] {
            let disk = bench.with_twin(case);
            let before = Tree::of(disk.mount().path());
            let look = bench.canary.look();
            let mut count = 0;
            let stepped = step(disk.rename_command(&bench.node), |GuestMount { tree, .. }, stop| {
                count += usize::from(stop >= phase && swap::exchange(tree, case.0, TWIN));
            });
            let log = format!("{case:?}, {count} exchanges at {} stops\n{}", stepped.stops, stepped.log);
            assert!(matches!(stepped.status, Some(0 | 1)), "{:?}: {log}", stepped.status);
            assert!(count > 10, "{log}");
            bench.assert_harmless(&disk, (&before, &look), case.0, &log);
            exchanged += count;
        }
    }
    assert!(exchanged > 1000, "{exchanged}");
}

#[test]
fn rename_does_no_harm_where_the_tree_changes_once_at_any_of_its_steps() {
    let bench = Bench::new();
    for case in [EXCHANGED[0], EXCHANGED[3]] {
        let mut at = 0;
        loop {
            let disk = bench.with_twin(case);
            let before = Tree::of(disk.mount().path());
            let look = bench.canary.look();
            let mut count = 0;
            let stepped = step(disk.rename_command(&bench.node), |GuestMount { tree, .. }, stop| {
                count += usize::from(stop == at && swap::exchange(tree, case.0, TWIN));
            });
            let log = format!("{case:?}, exchanged at stop {at} of {}\n{}", stepped.stops, stepped.log);
            assert!(matches!(stepped.status, Some(0 | 1)), "{:?}: {log}", stepped.status);
            bench.assert_harmless(&disk, (&before, &look), case.0, &log);
            if at >= stepped.stops {
                assert!(at > 30, "{log}");
                break;
            }
            at += 13;
        }
    }
}

#[test]
fn rename_does_no_harm_where_its_unfinished_files_are_exchanged() {
    let bench = Bench::new();
    let disk = bench.disk(Flavour::Ifupdown);
    let before = Tree::of(disk.mount().path());
    let look = bench.canary.look();
    let outside = bench.canary.tree().join("etc/hostname");
    let mut stolen = 0;
    let stepped = step(disk.rename_command(&bench.node), |GuestMount { tree, .. }, stop| {
        for entry in walkdir::WalkDir::new(tree.join("etc")).into_iter().flatten() {
            let is_file = entry.file_type().is_file();
            if is_file && entry.file_name().to_string_lossy().starts_with(".tmp-") {
                std::fs::rename(entry.path(), tree.join(format!("var/stolen{stop}"))).unwrap();
                std::os::unix::fs::symlink(&outside, entry.path()).unwrap();
                stolen += 1;
            }
        }
    });
    assert!(stolen > 1, "{}", stepped.log);
    bench.assert_harmless(&disk, (&before, &look), "etc", &stepped.log);
}

#[test]
fn rename_does_no_harm_where_the_tree_changes_all_the_time() {
    let bench = Bench::new();
    for case in EXCHANGED {
        let mut exchanged = 0;
        for _ in 0..5 {
            let disk = bench.with_twin(case);
            let before = Tree::of(disk.mount().path());
            let look = bench.canary.look();
            let running = Running::start(disk.rename_command(&bench.node));
            let (pid, over) = (running.pid(), AtomicBool::new(false));
            let ended = std::thread::scope(|scope| {
                let writer = scope.spawn(|| swap::keep_exchanging(pid, case.0, TWIN, &over));
                let ended = running.end_within(SOON, Family::default());
                over.store(true, Ordering::Relaxed);
                exchanged += writer.join().unwrap();
                ended
            });
            assert!(matches!(ended.status.code(), Some(0 | 1)), "{}: {}", ended.status, ended.log);
            bench.assert_harmless(&disk, (&before, &look), case.0, &ended.log);
        }
        assert!(exchanged > 100, "{exchanged} exchanges, {case:?}");
    }
}
