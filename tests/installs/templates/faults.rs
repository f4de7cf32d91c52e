//! What may befall a template, its making and its copying: time is lost, and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGKILL;

use super::bench::{Bench, By, Guest, MIB, Shape};
use crate::common::live::Dice;
use crate::common::running::{Family, Running};
use crate::common::{Node, log_of, text, tool};

/// A node with a template, and what it is worth.
fn with_template() -> (Bench, Guest, PathBuf) {
    let bench = Bench::new();
    let unpacked = bench.guest("unpacked", Shape::SMALL, By::Tar);
    bench.guest("first", Shape::SMALL, By::Template);
    let kept = bench.node.path().join("kept.img");
    fs::copy(bench.template(), &kept).unwrap();
    (bench, unpacked, kept)
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_damaged_template_is_told_of_and_replaced_and_the_guest_is_whole() {
    let (bench, unpacked, kept) = with_template();
    let template = bench.template();
    let bytes = fs::metadata(&template).unwrap().len();
    let damages: [(&str, &dyn Fn()); 8] = [
        ("a byte of its data", &|| flip(&template, bytes / 2)),
        ("the first byte of its data", &|| flip(&template, 4096)),
        ("a byte of its index", &|| flip(&template, bytes - 40)),
        ("a byte of its header", &|| flip(&template, 3)),
        ("a length in its header", &|| flip(&template, 31)),
        ("all but its half", &|| {
            File::options().write(true).open(&template).unwrap().set_len(bytes / 2).unwrap()
        }),
        ("all", &|| File::options().write(true).open(&template).unwrap().set_len(0).unwrap()),
        ("its last byte", &|| {
            File::options().write(true).open(&template).unwrap().set_len(bytes - 1).unwrap()
        }),
    ];
    for (what, damage) in damages {
        fs::copy(&kept, &template).unwrap();
        damage();
        let verify = bench.node.command(&["cache", "verify"]).output().unwrap();
        assert_eq!(verify.status.code(), Some(1), "{what}: {}", log_of(&verify));
        let verdict = format!("{}  DAMAGED", template.file_name().unwrap().to_str().unwrap());
        assert!(text(&verify.stdout).contains(&verdict), "{what}: {}", log_of(&verify));
        let list = bench.cache(&["list", "--json"]);
        assert!(list.contains(template.to_str().unwrap()), "{what}: {list}");

        let guest = bench.guest("guest", Shape::SMALL, By::Template);
        let warning = guest.log.lines().find(|line| line.contains("warning: ")).unwrap_or_default();
        assert!(warning.contains(template.to_str().unwrap()), "{what}: {}", guest.log);
        guest.check();
        bench.assert_equal(&unpacked, &guest, what);
        // It is gone, or a good one is in its place.
        bench.cache(&["verify"]);
    }
    bench.node.assert_nothing_left();
}

#[test]
fn what_stands_in_the_place_of_a_template_is_in_nobodys_way() {
    let (bench, unpacked, _) = with_template();
    let template = bench.template();
    let precious = bench.node.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let there: [(&str, &dyn Fn()); 4] = [
        ("a directory", &|| {
            fs::create_dir(&template).unwrap();
            fs::write(template.join("file"), "").unwrap();
        }),
        ("a link to a file", &|| symlink(&precious, &template).unwrap()),
        ("a link to nowhere", &|| symlink("/nowhere/at/all", &template).unwrap()),
        ("a pipe", &|| drop(tool("mkfifo", &[template.to_str().unwrap()]))),
    ];
    for (what, put) in there {
        if fs::symlink_metadata(&template).is_ok_and(|meta| meta.is_dir()) {
            fs::remove_dir_all(&template).unwrap();
        } else {
            let _ = fs::remove_file(&template);
        }
        put();
        for command in ["list", "verify", "prune"] {
            let run = Running::start(bench.node.command(&["cache", command]));
            let ended = run.end_within(Duration::from_secs(20), Family::default());
            assert!(!ended.log.contains("panicked"), "{what}: {command}: {}", ended.log);
            // A verify says no.
            assert!(ended.status.success() || command == "verify", "{what}: {command}: {}", ended.log);
        }
        let _ = fs::remove_file(&template);
        if !template.exists() {
            put();
        }
        let guest = bench.guest("guest", Shape::SMALL, By::Template);
        assert!(guest.log.contains("warning: ") || guest.is_copy(), "{what}: {}", guest.log);
        guest.check();
        bench.assert_equal(&unpacked, &guest, what);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious", "{what}");
    }
    bench.node.assert_nothing_left();
}

#[test]
fn a_template_that_goes_while_it_is_copied_serves_to_the_end() {
    let (bench, unpacked, kept) = with_template();
    let template = bench.template();
    for further_ms in [0, 5, 20] {
        fs::copy(&kept, &template).unwrap();
        let disk = bench.node.disk("guest", Shape::SMALL.bytes);
        let mut run = Running::start(bench.command(&disk, Shape::SMALL, ""));
        run.wait_for(" s  wiping old signatures");
        std::thread::sleep(Duration::from_millis(further_ms));
        fs::remove_file(&template).unwrap();
        let ended = run.end(Family::default());
        assert!(ended.status.success(), "{}", ended.log);
        let guest = Guest::new(disk, Shape::SMALL, ended.log);
        assert!(guest.is_copy(), "{}", guest.log);
        guest.check();
        bench.assert_equal(&unpacked, &guest, "a template that went");
    }
    bench.node.assert_nothing_left();
}

/// Strikes creates at random moments; `before` brings the cache back to where each begins.
fn strike(bench: &Bench, shape: Shape, times: usize, before: impl Fn()) {
    let disk = bench.node.disk("struck", shape.bytes);
    let whole = || {
        before();
        let start = Instant::now();
        let guest = bench.install(&disk, shape, By::Template);
        assert!(guest.is_copy(), "{}", guest.log);
        (guest, start.elapsed())
    };
    let length_ms = whole().1.as_millis() as u64;
    let mut dice = Dice(std::process::id().into());
    for _ in 0..times {
        before();
        let moment = Duration::from_millis(dice.below(length_ms));
        // No older guest may be taken for what is being made.
        tool("wipefs", &["-qaf", disk.to_str().unwrap()]);
        let run = Running::start(bench.command(&disk, shape, ""));
        std::thread::sleep(moment);
        let ended = run.strike(SIGKILL);
        let what = format!("{shape:?} after {moment:?}:\n{}", ended.log);
        bench.node.assert_released(&ended);
        let probe = std::process::Command::new("blkid").arg("-p").arg(&disk).output().unwrap();
        let found = text(&probe.stdout);
        let installed = ended.status.success() || ended.log.contains(" s  writing the tree out");
        let may = probe.status.code() == Some(2)
            || (shape.style == "none" && found.contains("LABEL=\"incomplete\""));
        assert!(installed || may, "found {found} {what}");
        // What is there is whole, or prune removes it.
        bench.cache(&["prune"]);
        bench.cache(&["verify"]);
        let names: Vec<String> = bench.node.cache_files().into_iter().map(|file| file.0).collect();
        let known = |name: &String| {
            name.ends_with(".tar") || bench.templates().iter().any(|path| path.ends_with(name))
        };
        assert!(names.iter().all(known) && bench.templates().len() <= 1, "{names:?} {what}");
    }
    let guest = whole().0;
    guest.check();
    bench.assert_equal(&bench.guest("unpacked", shape, By::Tar), &guest, "after all that were struck");
    bench.node.assert_nothing_left();
}

fn strike_makers_and_copiers(times: usize) {
    let bench = Bench::new();
    let forget = || bench.templates().iter().for_each(|path| fs::remove_file(path).unwrap());
    for style in ["none", "gpt"] {
        let shape = Shape { style, ..Shape::SMALL };
        strike(&bench, shape, times, forget);
        forget();
        strike(&bench, shape, times, || {});
        forget();
    }
}

#[test]
fn a_create_killed_while_it_makes_or_copies_leaves_nothing_that_looks_whole() {
    strike_makers_and_copiers(3);
}

#[test]
#[ignore = "run by make test-full"]
fn hundreds_killed_while_they_make_or_copy_leave_nothing_that_looks_whole() {
    strike_makers_and_copiers(60);
}

/// A filesystem in the place of the node's cache.
struct CacheDisk<'a>(&'a Node);

impl<'a> CacheDisk<'a> {
    fn mount(node: &'a Node, args: &[&str]) -> CacheDisk<'a> {
        tool("mount", &[args, &[node.cache().to_str().unwrap()]].concat());
        CacheDisk(node)
    }
}

impl Drop for CacheDisk<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.cache()).status();
    }
}

#[test]
fn a_cache_disk_that_is_full_costs_the_template_alone() {
    let bench = Bench::new();
    let unpacked = bench.guest("unpacked", Shape::SMALL, By::Tar);
    let tar = bench.node.path().join("kept.tar");
    fs::hard_link(bench.tar(), &tar).unwrap();
    let tar_bytes = fs::metadata(&tar).unwrap().len();
    // From one without any room to one with room for everything, on the way out of memory's filesystem.
    for (room_mib, made) in [(1, false), (40, false), (90, false), (2000, true)] {
        let size = format!("size={}", tar_bytes + room_mib * MIB);
        let mounted = CacheDisk::mount(&bench.node, &["-t", "tmpfs", "-o", &size, "none"]);
        fs::copy(&tar, bench.tar()).unwrap();
        tool("touch", &["-r", tar.to_str().unwrap(), bench.tar().to_str().unwrap()]);
        let guest = bench.guest("guest", Shape::SMALL, By::Template);
        assert_eq!(guest.is_copy(), made, "{room_mib} MiB: {}", guest.log);
        assert_eq!(guest.log.contains("warning: no template: "), !made, "{room_mib} MiB: {}", guest.log);
        assert_eq!(bench.templates().len(), usize::from(made));
        guest.check();
        bench.assert_equal(&unpacked, &guest, &format!("{room_mib} MiB"));
        bench.node.wait_until_detached();
        drop(mounted);
    }
    bench.node.assert_nothing_left();
}

/// With the disk beside the cache, on a filesystem whose files can have blocks in common.
#[test]
fn a_disk_beside_the_cache_shares_its_blocks_and_is_the_same() {
    let bench = Bench::new();
    let unpacked = bench.guest("unpacked", Shape::SMALL, By::Tar);
    let tar = bench.node.path().join("kept.tar");
    fs::hard_link(bench.tar(), &tar).unwrap();
    for mkfs in ["mkfs.xfs", "mkfs.btrfs"] {
        let volume = bench.node.disk("volume", 4 << 30);
        tool(mkfs, &["-q", volume.to_str().unwrap()]);
        let mounted = CacheDisk::mount(&bench.node, &["-o", "loop", volume.to_str().unwrap()]);
        fs::copy(&tar, bench.tar()).unwrap();
        let disk = bench.node.cache().join("disk");
        fs::File::create(&disk).unwrap().set_len(Shape::SMALL.bytes).unwrap();
        let guest = bench.install(&disk, Shape::SMALL, By::Template);
        assert!(guest.is_copy(), "{}", guest.log);
        tool("sync", &["-f", disk.to_str().unwrap()]);
        let extents = tool("filefrag", &["-v", disk.to_str().unwrap()]);
        assert!(extents.lines().filter(|line| line.contains("shared")).count() > 3, "{mkfs}: {extents}");
        guest.check();
        bench.assert_equal(&unpacked, &guest, mkfs);
        drop(mounted);
        bench.node.wait_until_detached();
    }
    bench.node.assert_nothing_left();
}

/// It becomes full while a template is being made, whatever was said to be free.
#[test]
fn a_cache_disk_that_fills_while_a_template_is_made_costs_the_template_alone() {
    let bench = Bench::new();
    let unpacked = bench.guest("unpacked", Shape::SMALL, By::Tar);
    let image = bench.node.disk("cache", 700 * MIB);
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", image.to_str().unwrap()]);
    let kept = bench.node.path().join("kept.tar");
    fs::hard_link(bench.tar(), &kept).unwrap();
    let mounted = CacheDisk::mount(&bench.node, &["-o", "loop", image.to_str().unwrap()]);
    fs::copy(&kept, bench.tar()).unwrap();
    for leave_mib in [0, 10, 60] {
        let disk = bench.node.disk("guest", Shape::SMALL.bytes);
        let mut run = Running::start(bench.command(&disk, Shape::SMALL, ""));
        run.wait_for("making a template");
        let free = rustix::fs::statvfs(bench.node.cache()).unwrap();
        let filler = bench.node.cache().join("filler");
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(leave_mib * MIB);
        let full = File::create(&filler).unwrap();
        let _ = rustix::fs::fallocate(&full, rustix::fs::FallocateFlags::empty(), 0, bytes);
        drop(full);
        let ended = run.end(Family::default());
        fs::remove_file(filler).unwrap();
        assert!(ended.status.success(), "{leave_mib} MiB: {}", ended.log);
        let guest = Guest::new(disk, Shape::SMALL, ended.log);
        assert!(guest.is_copy() || guest.log.contains("warning: no template: "), "{}", guest.log);
        guest.check();
        bench.assert_equal(&unpacked, &guest, &format!("{leave_mib} MiB"));
        bench.cache(&["verify"]);
        bench.templates().iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    drop(mounted);
    bench.node.wait_until_detached();
    bench.node.assert_nothing_left();
}

#[test]
fn a_cache_that_cannot_be_written_still_serves() {
    let (bench, unpacked, _) = with_template();
    let cache = bench.node.cache();
    let read_only = || {
        let mounted = CacheDisk::mount(&bench.node, &["--bind", cache.to_str().unwrap()]);
        tool("mount", &["-o", "remount,bind,ro", cache.to_str().unwrap()]);
        mounted
    };
    let template = bench.template();
    for (what, there) in [("with a template", true), ("without one", false)] {
        if !there {
            fs::remove_file(&template).unwrap();
        }
        let mounted = read_only();
        let guest = bench.guest("guest", Shape::SMALL, By::Template);
        assert_eq!(guest.is_copy(), there, "{what}: {}", guest.log);
        guest.check();
        bench.assert_equal(&unpacked, &guest, what);
        drop(mounted);
        assert_eq!(bench.node.cache_files().len(), 1 + usize::from(there), "{:?}", bench.node.cache_files());
    }
    // A damaged one that cannot be removed.
    bench.guest("guest", Shape::SMALL, By::Template);
    flip(&template, 10 * MIB);
    let mounted = read_only();
    let guest = bench.guest("guest", Shape::SMALL, By::Template);
    assert!(!guest.is_copy() && guest.log.contains("warning: "), "{}", guest.log);
    bench.assert_equal(&unpacked, &guest, "a damaged one");
    drop(mounted);
    bench.node.assert_nothing_left();
}
