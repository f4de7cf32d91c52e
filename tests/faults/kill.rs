//! Runs that are killed on their way leave nothing held, and no disk that looks installed; and many runs at once do
//! not harm each other.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::guest::Firmware;
use crate::common::running::{Ended, Family, Running};
use crate::common::{
    BlockDevice, GIB, Mounted, Node, fsck, killed_with_us, log_of, root_offset, text, tiny_mirror, tool,
};
use nix::sys::signal::Signal::{self, SIGINT, SIGKILL, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const SIGNALS: [Signal; 3] = [SIGKILL, SIGTERM, SIGINT];
const NAME: &str = "lg1.example.com";

/// Every create unpacks its tree; tests/installs/templates strikes those that copy.
const UNPACKING: &str = "templates = 0\n";

/// Settings of a suite whose bootstrap takes two seconds.
fn tiny() -> String {
    format!("{UNPACKING}{}", tiny_mirror::tiny())
}

/// A node with the shared tree.
fn with_tree() -> Node {
    let node = Node::debian_without_templates();
    node.config(UNPACKING);
    node
}

/// A disk and how it is to be made.
struct Target<'a> {
    node: &'a Node,
    disk: PathBuf,
    style: &'static str,
    filesystem: &'static str,
}

impl Target<'_> {
    fn create(&self) -> Command {
        let mut env = self.node.recorded("create", &self.disk);
        env.insert("DEBUG_LEVEL".into(), "1".into());
        env.insert("OSP_PARTITION_STYLE".into(), self.style.into());
        env.insert("OSP_FILESYSTEM".into(), self.filesystem.into());
        self.node.verb("create", &env)
    }

    /// Where the root begins, whether there is a table or not.
    fn root(&self) -> u64 {
        match self.style {
            "gpt" => 128 << 20,
            "msdos" => 1 << 20,
            _ => 0,
        }
    }

    /// What blkid finds at an offset: nothing, or the values of these tags.
    fn blkid(&self, offset: u64) -> String {
        let offset = offset.to_string();
        let args = ["-p", "-O", &offset, "-o", "value", "-s", "LABEL", "-s", "TYPE", "-s", "PTTYPE"];
        let output = Command::new("blkid").args(args).arg(&self.disk).output().unwrap();
        // 2: nothing was found; 8: more than one thing.
        match output.status.code() {
            Some(2) => String::new(),
            _ => format!("{} {}", output.status, text(&output.stdout).replace('\n', " ")),
        }
    }

    /// Wants that a run that was struck kept its promises: nothing is held, the cache is as it was, the disk does
    /// not look installed.
    fn assert_harmless(&self, ended: &Ended, cache: &[(String, u64, u64)]) {
        self.node.assert_released(ended);
        let log = &ended.log;
        let now = self.node.cache_files();
        // A create that comes so far has published its tree.
        assert!(now == cache || log.contains(" s  publishing it"), "{cache:?} became {now:?}\n{log}");
        let caught = ended.status.signal() != Some(SIGKILL as i32);
        let disk = self.blkid(0);
        if ended.status.success() {
            self.assert_installed();
        } else if !log.contains(" s  wiping old signatures") {
            // The disk is as it was.
        } else if caught {
            assert!(log.contains("the disk is wiped"), "{log}");
            let root = self.blkid(self.root());
            assert!(disk.is_empty() && root.is_empty(), "found {disk:?}, and {root:?} at the root\n{log}");
        } else if !log.contains(" s  personalising") {
            let may = disk.is_empty() || (self.style == "none" && disk.contains(" incomplete "));
            assert!(may, "found {disk:?}\n{log}");
        }
    }

    /// What a BIOS would run.
    fn boot_code(&self) -> [u8; 440] {
        let mut code = [0; 440];
        fs::File::open(&self.disk).unwrap().read_exact_at(&mut code, 0).unwrap();
        code
    }

    /// What two kinds of firmware say to it.
    fn assert_does_not_boot(&self) {
        for firmware in [Firmware::SeaBios, Firmware::Ovmf] {
            firmware.assert_finds_nothing(&self.disk);
        }
    }

    fn assert_installed(&self) {
        if self.style != "none" {
            assert_eq!(root_offset(&self.disk), self.root());
        }
        fsck(&self.disk, self.root(), self.filesystem);
        let root = Mounted::at(&self.disk, self.root());
        assert_eq!(root.read("etc/hostname"), format!("{NAME}\n"));
    }

    /// The next create works on what the struck one left.
    fn assert_next_works(&self) {
        let output = self.create().output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
        self.assert_installed();
    }

    /// Lets a create come to a point of its log and a little further, and strikes.
    fn strike_at(&self, command: Command, point: &str, further_ms: u64, signal: Signal) {
        let cache = self.node.cache_files();
        let mut run = Running::start(command);
        run.wait_for(point);
        sleep(Duration::from_millis(further_ms));
        let ended = run.strike(signal);
        // When all is on the disk and only flushed, a signal that is caught finds a success.
        let over = ended.status.success() && ended.log.contains(" s  flushing");
        let struck = ended.status.signal() == Some(signal as i32) || over;
        assert!(struck, "{signal} at {point:?}, {}\n{}", ended.status, ended.log);
        self.assert_harmless(&ended, &cache);
    }
}

fn empty(node: &Node) {
    for (name, ..) in node.cache_files() {
        fs::remove_file(node.cache().join(name)).unwrap();
    }
}

fn target<'a>(node: &'a Node, style: &'static str, filesystem: &'static str) -> Target<'a> {
    let disk = node.disk(&format!("{style}-{filesystem}"), GIB);
    Target { node, disk, style, filesystem }
}

/// The command in a mount namespace where mke2fs, when it has made its filesystem, waits.
fn with_slow_mkfs(node: &Node, command: &Command) -> Command {
    let (real, slow) = (node.path().join("mke2fs"), node.path().join("slow-mke2fs"));
    fs::copy("/usr/sbin/mke2fs", &real).unwrap();
    let script = format!("#!/bin/sh\n{} \"$@\" && exec sleep 100\n", real.display());
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let mut wrapped = Command::new("unshare");
    let enter = format!("mount --bind {} /usr/sbin/mke2fs && exec \"$0\" \"$@\"", slow.display());
    wrapped.args(["--mount", "sh", "-c", &enter]).arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.current_dir(command.get_current_dir().unwrap());
    wrapped
}

#[test]
#[ignore = "run by make test-full"]
fn a_create_struck_at_any_point_holds_nothing_and_installs_nothing() {
    let node = with_tree();
    let hook = node.etc().join("hooks/hook");
    for (style, signals) in [("gpt", &SIGNALS[..]), ("none", &SIGNALS[..2])] {
        let target = target(&node, style, "ext4");
        for signal in signals {
            // Each begins with a disk that looks installed, but for the first.
            for (point, further_ms) in [(" attached, ", 0), ("...  unpacking", 100), (" s  unpacking", 0)] {
                target.strike_at(target.create(), point, further_ms, *signal);
            }
            target.assert_next_works();
            target.strike_at(with_slow_mkfs(&node, &target.create()), "+ mke2fs", 1000, *signal);
            target.strike_at(target.create(), " s  personalising", 0, *signal);
            target.assert_next_works();
            // It leaves a process and a mount of its own, and is at work when the signal comes.
            let at_work =
                "setsid sleep 1000 & mount -t tmpfs x $TARGET/mnt; yes > $TARGET/root/y & echo at work; wait";
            node.hook("hook", &format!("#!/bin/sh\n{at_work}\n"));
            target.strike_at(target.create(), "at work", 50, *signal);
            // Much is to be flushed after it.
            node.hook("hook", "#!/bin/sh\nhead -c 300M /dev/urandom > $TARGET/root/dirty\n");
            target.strike_at(target.create(), " s  running 1 hooks", 20, *signal);
            fs::remove_file(&hook).unwrap();
            target.assert_next_works();
        }
    }
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn no_firmware_starts_what_a_struck_create_leaves() {
    let mut node = Node::bootable(crate::common::SUITE);
    node.config(UNPACKING);
    node.env.insert("HYPERVISOR".into(), "kvm".into());
    let hook = node.etc().join("hooks/hook");
    for (style, point, signal) in [
        ("gpt", "...  unpacking", SIGKILL),
        ("gpt", " s  preparing the loader", SIGKILL),
        ("msdos", "at work", SIGTERM),
        ("gpt", "at work", SIGINT),
        ("gpt", "at work", SIGKILL),
    ] {
        let target = target(&node, style, "ext4");
        // What stood there before does boot.
        target.assert_next_works();
        node.hook("hook", "#!/bin/sh\necho at work\nsleep 100\n");
        target.strike_at(target.create(), point, 50, signal);
        fs::remove_file(&hook).unwrap();
        if signal == SIGKILL && point == "at work" {
            // The table is there, for the hooks; a BIOS runs whatever code stands in its sector, which is none.
            Firmware::Ovmf.assert_finds_nothing(&target.disk);
            assert!(target.boot_code().iter().all(|byte| *byte == 0));
        } else {
            target.assert_does_not_boot();
        }
    }
    node.assert_nothing_left();
}

/// A tool that prints and prints fills the log, and whoever was to read that has stopped.
#[test]
fn a_signal_is_heard_where_nobody_reads_the_log() {
    let node = Node::bare();
    fs::write(node.legacy_defaults(), "while :; do echo y; done\n").unwrap();
    let disk = node.disk("disk", GIB);
    let mut command = node.verb("create", &node.recorded("create", &disk));
    let mut run = killed_with_us(&mut command).stderr(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_secs(1));
    assert!(run.try_wait().unwrap().is_none(), "it does not wait");
    kill(Pid::from_raw(run.id() as i32), SIGTERM).unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > Duration::from_secs(20) {
            run.kill().unwrap();
            run.wait().unwrap();
            panic!("it does not hear the signal");
        }
        sleep(Duration::from_millis(5));
    };
    assert_eq!(status.signal(), Some(SIGTERM as i32), "{status}");
    node.assert_nothing_left();
}

/// Whoever looks at a device for a while (a monitor, an administrator) keeps it from detaching.
#[test]
#[ignore = "run by make test-full"]
fn another_opener_of_the_loop_device_is_waited_for_and_named() {
    let node = with_tree();
    let target = target(&node, "gpt", "ext4");
    for (seconds, survived) in [(3, true), (40, false)] {
        let mut run = Running::start(target.create());
        run.wait_for(" attached, ");
        let line = run.log.lines().last().unwrap();
        let device = line.split(' ').find(|word| word.starts_with("/dev/loop")).unwrap();
        let script = format!("exec 3< {device}; exec sleep {seconds}");
        let mut opener = Command::new("bash").args(["-c", &script]).spawn().unwrap();
        let name = format!("by process {} (", opener.id());
        let ended = run.end(Family::default());
        assert_eq!(ended.status.code(), Some(if survived { 0 } else { 1 }), "{}", ended.log);
        assert_eq!(ended.log.contains(&name), !survived, "{}", ended.log);
        if !survived {
            assert!(
                ended.log.lines().last().unwrap().starts_with("hint: end what holds the device"),
                "{}",
                ended.log
            );
            opener.kill().unwrap();
        }
        opener.wait().unwrap();
        node.assert_released(&ended);
    }
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn a_bootstrap_struck_at_any_point_leaves_the_cache_as_it_was() {
    let node = Node::bare();
    node.config(&tiny());
    let target = target(&node, "gpt", "ext4");
    for signal in SIGNALS {
        for point in [
            "+ mke2fs",
            "I: Retrieving tiny",
            "I: Extracting tiny",
            "I: Configuring tiny",
            " s  scrubbing the tree", // packing follows
            " s  packing the tree",   // flushing and publishing follow
        ] {
            target.strike_at(target.create(), point, 5, signal);
        }
        target.assert_next_works();
        assert_eq!(node.cache_files().len(), 2, "{:?}", node.cache_files());
        empty(&node);
    }
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn a_real_bootstrap_struck_leaves_the_cache_as_it_was() {
    for (bootstrapper, strikes) in [
        (
            "debootstrap",
            [
                ("I: Retrieving apt ", SIGINT),
                ("I: Extracting apt", SIGTERM),
                ("I: Extracting dpkg", SIGKILL),
                ("I: Configuring libc6", SIGKILL),
            ],
        ),
        (
            "mmdebstrap",
            [
                ("I: downloading packages with apt", SIGINT),
                ("I: extracting archives", SIGTERM),
                ("I: installing essential packages", SIGKILL),
                ("I: installing remaining packages", SIGKILL),
            ],
        ),
    ] {
        let node = Node::bare();
        node.config(&format!("{UNPACKING}bootstrapper = \"{bootstrapper}\"\n"));
        let target = target(&node, "gpt", "ext4");
        for (point, signal) in strikes {
            target.strike_at(target.create(), point, 0, signal);
            assert!(node.cache_files().is_empty(), "{:?}", node.cache_files());
        }
        node.assert_nothing_left();
    }
}

#[test]
#[ignore = "run by make test-full"]
fn a_publication_cut_short_is_whole_or_nothing_and_prune_removes_it() {
    let node = Node::bare();
    node.config(&tiny());
    for refresh in [false, true] {
        for _ in 0..4 {
            if !refresh {
                empty(&node);
            }
            let before = node.cache_files();
            let tars =
                || node.cache_files().into_iter().filter(|file| file.0.ends_with(".tar")).collect::<Vec<_>>();
            // On a busy machine it may be there before its line is read.
            let known = tars();
            let mut run = Running::start(node.command(&["cache", if refresh { "refresh" } else { "build" }]));
            run.wait_for(" s  packing the tree");
            // The moment when the tar gets its name.
            let start = Instant::now();
            while tars() == known {
                assert!(start.elapsed() < Duration::from_secs(60), "no tar appears");
            }
            let ended = run.strike(SIGKILL);
            node.assert_released(&ended);
            let list = node.command(&["cache", "list"]).output().unwrap();
            assert!(list.status.success(), "{}", log_of(&list));
            let prune = node.command(&["cache", "prune"]).output().unwrap();
            assert!(prune.status.success(), "{}", log_of(&prune));
            let now = node.cache_files();
            let pair = now.len() == 2 && now[0].0.ends_with(".tar") && now[1].0.ends_with(".toml");
            assert!(pair || now == before, "{before:?} became {now:?}");
            let verify = node.command(&["cache", "verify"]).output().unwrap();
            assert!(verify.status.success(), "{}", log_of(&verify));
        }
        target(&node, "gpt", "ext4").assert_next_works();
        let now = node.cache_files();
        assert_eq!(now.len(), 2, "{now:?}");
    }
    node.assert_nothing_left();
}

/// A number below `limit`, another one each time.
fn random(limit: u64) -> u64 {
    let mut bytes = [0u8; 8];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    u64::from_ne_bytes(bytes) % limit
}

/// Strikes creates at random moments of their life, and now and then looks whether the next one works.
fn strike_at_random(node: &Node, times: usize, mut before_each: impl FnMut()) {
    let targets = [("gpt", "ext4"), ("none", "ext4"), ("msdos", "btrfs"), ("none", "xfs")]
        .map(|(s, f)| target(node, s, f));
    // How long a create takes: the last one that nobody struck.
    let mut length_ms = 0;
    for (count, target) in targets.iter().cycle().take(times).enumerate() {
        before_each();
        if count % 5 == 0 {
            let start = Instant::now();
            target.assert_next_works();
            length_ms = start.elapsed().as_millis() as u64;
            before_each();
        }
        let cache = node.cache_files();
        let (signal, moment) = (SIGNALS[random(3) as usize], Duration::from_millis(random(length_ms)));
        let mut run = Running::start(target.create());
        run.log = format!("{signal} after {moment:?}, {} {}\n", target.style, target.filesystem);
        sleep(moment);
        target.assert_harmless(&run.strike(signal), &cache);
    }
    targets.iter().for_each(Target::assert_next_works);
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn fifty_creates_struck_at_random_moments_are_harmless() {
    strike_at_random(&with_tree(), 35, || {});
    let node = Node::bare();
    node.config(&tiny());
    strike_at_random(&node, 15, || empty(&node));
}

#[test]
#[ignore = "run by make test-full"]
fn a_child_that_is_not_yet_bound_to_us_ends_with_us() {
    let node = with_tree();
    node.hook("hook", "#!/bin/sh\nsleep 1000\n");
    let target = target(&node, "gpt", "ext4");
    // The child of a fork is held before it asks for its parent-death signal, as init, which has no parent to see.
    let (source, library) = (node.path().join("p.c"), node.path().join("p.so"));
    let reached = node.path().join("reached");
    let code = "#include <fcntl.h>\n#include <stdlib.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
                int prctl(int op, long a, long b, long c, long d) {\n\
                if (op == 1 && getppid() == 0) { creat(getenv(\"REACHED\"), 0600); sleep(1); }\n\
                return syscall(SYS_prctl, op, a, b, c, d); }\n";
    fs::write(&source, code).unwrap();
    tool("cc", &["-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap()]);
    let mut command = target.create();
    command.env("LD_PRELOAD", &library).env("REACHED", &reached);
    let run = Running::start(command);
    let start = Instant::now();
    while !reached.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no hook is started");
        sleep(Duration::from_millis(1));
    }
    let ended = run.strike(SIGKILL);
    sleep(Duration::from_secs(2));
    node.assert_released(&ended);
}

#[test]
#[ignore = "run by make test-full"]
fn who_waits_for_a_bootstrap_that_is_killed_takes_over() {
    let node = Node::bare();
    node.config(&tiny());
    let (first, second) = (target(&node, "gpt", "ext4"), target(&node, "none", "ext4"));
    let mut holder = Running::start(first.create());
    holder.wait_for("I: Retrieving tiny");
    let mut waiter = Running::start(second.create());
    waiter.wait_for(&format!("waiting for process {} (", holder.pid()));
    nix::sys::signal::kill(holder.pid(), SIGKILL).unwrap();
    let ended = waiter.end(Family::default());
    assert!(ended.status.success() && ended.log.contains("I: Retrieving tiny"), "{}", ended.log);
    second.assert_installed();
    assert_eq!(node.cache_files().len(), 2, "{:?}", node.cache_files());
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn who_stops_waiting_and_who_prunes_leaves_the_lock_to_its_holder() {
    let node = Node::bare();
    node.config(&tiny());
    let (first, second) = (target(&node, "gpt", "ext4"), target(&node, "none", "ext4"));
    for stopped in [true, false] {
        let mut holder = Running::start(first.create());
        holder.wait_for("I: Retrieving tiny");
        let waiting = format!("waiting for process {} (", holder.pid());
        if stopped {
            let mut waiter = Running::start(second.create());
            waiter.wait_for(&waiting);
            let ended = waiter.strike(SIGTERM);
            assert_eq!(ended.status.signal(), Some(SIGTERM as i32), "{}", ended.log);
        } else {
            // It may wait, too.
            let mut prune = Running::start(node.command(&["cache", "prune"]));
            prune.wait_for("");
        }
        let mut third = Running::start(second.create());
        third.wait_for(&waiting);
        for run in [holder, third] {
            let ended = run.end(Family::default());
            assert!(ended.status.success(), "{}", ended.log);
        }
        assert_eq!(node.cache_files().len(), 2, "{:?}", node.cache_files());
        empty(&node);
    }
    node.assert_nothing_left();
}

/// Starts creates of different instances at once, some of them of a variant; each must arrive.
fn create_at_once(node: &Node, count: usize, variant: impl Fn(usize) -> &'static str) -> Vec<String> {
    let runs: Vec<(String, PathBuf, Running)> = (0..count)
        .map(|n| {
            let (name, disk) = (format!("i{n}.example.com"), node.disk(&format!("{n}"), GIB));
            let mut env = node.recorded("create", &disk);
            env.insert("INSTANCE_NAME".into(), name.clone());
            env.insert("OS_VARIANT".into(), variant(n).into());
            let run = Running::start(node.verb("create", &env));
            (name, disk, run)
        })
        .collect();
    // All have ended before one is judged.
    let ended: Vec<_> = runs.into_iter().map(|(n, d, run)| (n, d, run.end(Family::default()))).collect();
    let arrived = ended.into_iter().map(|(name, disk, ended)| {
        assert!(ended.status.success(), "{name}\n{}", ended.log);
        fsck(&disk, root_offset(&disk), "ext4");
        assert_eq!(Mounted::at(&disk, root_offset(&disk)).read("etc/hostname"), format!("{name}\n"));
        fs::remove_file(&disk).unwrap();
        ended.log
    });
    arrived.collect()
}

#[test]
#[ignore = "run by make test-full"]
fn five_creates_at_once_without_a_cache_bootstrap_once() {
    let node = Node::bare();
    node.config(UNPACKING);
    let logs = create_at_once(&node, 5, |_| "default");
    assert_eq!(logs.iter().filter(|log| log.contains("bootstrapping trixie")).count(), 1, "{logs:#?}");
    assert_eq!(logs.iter().filter(|log| log.contains("waiting for process")).count(), 4, "{logs:#?}");
    assert_eq!(node.cache_files().len(), 2, "{:?}", node.cache_files());
    node.assert_nothing_left();
}

/// Beside no other test: they take all loop devices, and all of the machine.
mod alone {
    use super::*;

    /// More loop devices than the driver was loaded with are in use.
    #[test]
    #[ignore = "run by make test-full"]
    fn the_loop_driver_grows_when_all_its_devices_are_taken() {
        let node = with_tree();
        let small = node.disk("small", 1 << 20);
        let devices = || {
            fs::read_dir("/sys/block")
                .unwrap()
                .flatten()
                .filter(|e| text(e.file_name().as_encoded_bytes()).starts_with("loop"))
                .count()
        };
        let count = devices();
        let _taken: Vec<BlockDevice> = (0..count).map(|_| BlockDevice::over(&small, &[])).collect();
        let logs = create_at_once(&node, 3, |_| "default");
        assert_eq!(logs.len(), 3);
        assert!(devices() > count, "{count} devices were enough");
        drop(_taken);
        node.assert_nothing_left();
    }

    #[test]
    #[ignore = "run by make test-full"]
    fn sixteen_creates_at_once_arrive_among_refreshes_and_prunes() {
        let node = with_tree();
        fs::write(node.etc().join("variants.list"), "tiny\n").unwrap();
        node.variant("tiny.toml", &tiny());
        let (base, over) = (node.cache_files(), AtomicBool::new(false));
        let until_over = |args: &[&str], after_each: &dyn Fn()| {
            while !over.load(Ordering::Relaxed) {
                let output = node.command(args).output().unwrap();
                assert!(output.status.success(), "{}", log_of(&output));
                after_each();
            }
        };
        let made = || {
            let list = text(&node.command(&["cache", "list"]).output().unwrap().stdout);
            assert_eq!(list.matches("ready").count(), 2, "what was refreshed is there:\n{list}");
        };
        std::thread::scope(|scope| {
            let helpers = [
                scope.spawn(|| until_over(&["cache", "refresh"], &made)),
                scope.spawn(|| until_over(&["cache", "prune"], &|| sleep(Duration::from_millis(20)))),
            ];
            // The first four use what is being refreshed and pruned.
            let creates =
                scope.spawn(|| create_at_once(&node, 16, |n| if n < 4 { "tiny" } else { "default" }));
            let done = creates.join();
            over.store(true, Ordering::Relaxed);
            helpers.into_iter().for_each(|helper| helper.join().unwrap());
            done.unwrap();
        });
        let now = node.cache_files();
        assert!(now.len() == 4 && base.iter().all(|file| now.contains(file)), "{base:?} became {now:?}");
        node.assert_nothing_left();
    }
}
