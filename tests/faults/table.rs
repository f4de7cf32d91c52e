//! What an admin sees when a node breaks: a table with a row per fault. Each is made on a node of its own; then the
//! exit status, the error at the end of the log word for word, the disk, and what is left are looked at.
//! Needs root and no network. `FAULT=words make test TESTS=faults::table` runs the rows whose name has these words.

use std::any::Any;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{BlockDevice, GIB, Mounted, Node, log_of, root_offset, tool};
use After::{Any as Whatever, Blank, Installed, Untouched};
use flate2::{Compression, write::GzEncoder};
use nix::mount::{MsFlags, mount};

const MIB: u64 = 1 << 20;

/// A way in which a node breaks, and how the program takes it.
struct Fault {
    name: &'static str,
    disk: After,
    make: fn(&Node) -> Case,
    /// INSTALLED, or else the log from its last `error: ` to its end, word for word. `*` is anything within a line,
    /// NODE the node's directory, N the number of a loop device, a process or a port.
    log: &'static str,
}

/// What must be true of the disk, which had a filesystem on it before.
enum After {
    /// No byte was written.
    Untouched,
    /// `blkid -p` finds nothing, at its start and where a root would be.
    Blank,
    Installed,
    /// There is none, or it is of no interest.
    Any,
}

impl After {
    fn assert(&self, disk: &Path, before: &Content) {
        match self {
            Untouched => assert_eq!(content(disk), *before, "the disk was written to"),
            Blank => {
                for offset in [0, MIB, 128 * MIB] {
                    let mut blkid = Command::new("blkid");
                    let probe = blkid.args(["-p", "-O", &offset.to_string()]).arg(disk).output().unwrap();
                    assert_eq!(
                        (probe.status.code(), log_of(&probe)),
                        (Some(2), String::new()),
                        "at {offset}"
                    );
                }
                assert_eq!(content(disk).1, before.1, "the disk's size");
            }
            Installed => {
                let root = Mounted::at(disk, root_offset(disk));
                assert_eq!(root.read("etc/hostname"), "lg1.example.com\n");
                assert_eq!(root.read("etc/resolv.conf"), "search example.com\n");
            }
            Whatever => {}
        }
    }
}

/// A run of the program, and what must live until it ends; dropped in this order.
struct Case {
    command: Command,
    disk: PathBuf,
    held: Vec<Box<dyn Any>>,
}

impl Case {
    fn hold(mut self, thing: impl Any) -> Case {
        self.held.push(Box::new(thing));
        self
    }

    fn param(mut self, name: &str, value: &str) -> Case {
        self.command.env(format!("OSP_{name}"), value);
        self
    }
}

const INSTALLED: &str = "* s  lg1.example.com is installed";
const FULL: &str = "
error: installing lg1.example.com
  the root filesystem is full
  unpacking NODE/cache/cache-trixie-*.tar
  unpacking /big
  writing its data
  No space left on device (os error 28)
hint: give the instance a larger disk, or set fewer extra_pkgs";

const NO_RELEASE: &str = "
error: debootstrap --arch * trixie /run/ganeti-instance-debootstrap/bootstrap http://127.0.0.1:N/debian: exit status 1
    | I: Retrieving InRelease
    | I: Retrieving Release
    | E: Failed getting release file http://127.0.0.1:N/debian/dists/trixie/Release
hint: check that the mirror can be reached, and has the suite";
const DAMAGED: &str = "
error: the cache file NODE/cache/base-trixie-*.tar is damaged: sha256:*, its manifest says sha256:*
hint: rm NODE/cache/base-trixie-*.tar; the next create makes it anew, or `cache build` does now";
const HELD_OPEN: &str = "
error: installing lg1.example.com
  unmounting /run/ganeti-instance-debootstrap/target
  Device or resource busy (os error 16)
hint: a process that a hook left running holds the guest's files open";

const fn row(name: &'static str, disk: After, make: fn(&Node) -> Case, log: &'static str) -> Fault {
    Fault { name, disk, make, log }
}

#[rustfmt::skip]
const TOO_SMALL: &[Fault] = &[
    row("a tree that obviously cannot fit", Untouched, |node| {
        edit_manifest(node, "unpacked_bytes = ", "unpacked_bytes = 7000000000 # ");
        create(node)
    }, "
error: the tree needs 6.5 GiB, but the root filesystem of 895 MiB has room for 805.5 MiB only
hint: give the instance a larger disk, or set fewer extra_pkgs"),
    row("the disk is full at 10% of the unpack", Blank, |node| full_disk(node, 1000, "ext4"), FULL),
    row("the disk is full at 50% of the unpack", Blank, |node| full_disk(node, 200, "ext4"), FULL),
    row("the disk is full at 99% of the unpack", Blank, |node| full_disk(node, 101, "ext4"), FULL),
    row("the disk is full, xfs", Blank, |node| full_disk(node, 200, "xfs"), FULL),
    row("the disk is full, btrfs", Blank, |node| full_disk(node, 200, "btrfs"), FULL),
    row("the disk has no inode left", Blank, |node| {
        foreign_tar(node, &gzip(&files_of_a_tar(150_000)), 1, &gzip(&[0; 1024]));
        on_disk(node, &old_disk(node, 640 * MIB))
    }, "
error: installing lg1.example.com
  the root filesystem has no inode left
  unpacking NODE/cache/cache-trixie-*.tar
  unpacking /*
  No space left on device (os error 28)
hint: give the instance a larger disk, or set fewer extra_pkgs"),
    row("the filesystem below the disk is full", Blank, |node| {
        node.get_debian();
        let small = Mount::ext4(node, "disks", 200 * MIB);
        create(node).hold(small)
    }, "
error: installing lg1.example.com
  the filesystem of NODE/disks is full
  preparing NODE/disks/d: No space left on device (os error 28)
hint: make room in NODE/disks"),
    row("the filesystem below the disk is full, and the tree is unpacked", Blank, |node| {
        node.get_debian();
        node.config("templates = 0\n");
        let small = Mount::ext4(node, "disks", 200 * MIB);
        create(node).hold(small)
    }, "
error: installing lg1.example.com
  the filesystem of NODE/disks is full
  flushing /run/ganeti-instance-debootstrap/target: Input/output error (os error 5)
hint: make room in NODE/disks"),
];

/// The cache.
#[rustfmt::skip]
const CACHE: &[Fault] = &[
    row("the cache's filesystem is too small", Untouched, |node| {
        let small = Mount::new(&node.cache(), &["-t", "tmpfs", "-o", "size=64m", "none"]);
        create(node).hold(small)
    }, "
error: NODE/cache has 64 MiB free; a bootstrap needs 1 GiB
hint: `cache prune` removes what has expired; or make room there"),
    row("the cache's filesystem fills up in the bootstrap", Untouched, |node| {
        let small = Mount::ext4(node, "cache", 1200 * MIB);
        let script = node.path().join("script");
        fs::write(
            &script,
            "keyring /usr/share/keyrings/debian-archive-keyring.gpg\n\
             dd if=/dev/zero of=$TARGET/big bs=1M count=2000 conv=fsync status=none || exit 1\n",
        )
        .unwrap();
        mirror(node, &format!("http://127.0.0.1:1/debian {}", script.display())).hold(small)
    }, "
error: the filesystem of NODE/cache is full
hint: `cache prune` removes what has expired; or make room there"),
    row("a cache that cannot be written", Untouched, |node| {
        clear_cache(node);
        let read_only = read_only(&node.cache());
        create(node).hold(read_only)
    }, "
error: making a file in NODE/cache
  Read-only file system (os error 30)
hint: NODE/cache must be writable, or set generate_cache to false"),
    row("a tree in a cache that cannot be written", Installed, |node| {
        let read_only = read_only(&node.cache());
        create(node).hold(read_only)
    }, INSTALLED),
    row("a truncated cache file", Untouched, |node| {
        let tar = own_tar(node);
        let half = tar.metadata().unwrap().len() / 2;
        tar.set_len(half).unwrap();
        create(node)
    }, DAMAGED),
    row("a flipped bit in a cache file", Untouched, |node| {
        let tar = own_tar(node);
        let (mut byte, middle) = ([0], tar.metadata().unwrap().len() / 2);
        tar.read_exact_at(&mut byte, middle).unwrap();
        tar.write_all_at(&[byte[0] ^ 4], middle).unwrap();
        create(node)
    }, DAMAGED),
    row("another tar under a cache file's name", Untouched, |node| {
        let tar = own_tar(node);
        tar.set_len(0).unwrap();
        tar.write_all_at(&files_of_a_tar(100), 0).unwrap();
        create(node)
    }, DAMAGED),
    row("a truncated tar that was made by hand", Blank, |node| {
        foreign_tar(node, &files_of_a_tar(100), 1, &[]);
        create(node)
    }, "
error: installing lg1.example.com
  unpacking NODE/cache/cache-trixie-*.tar
  the archive ends without its end mark, after /99
hint: NODE/cache/cache-trixie-*.tar may be damaged; replace or remove it"),
    row("a tar that was made by hand and holds no system", Blank, |node| {
        foreign_tar(node, &files_of_a_tar(100), 1, &[0; 1024]);
        create(node)
    }, "
error: installing lg1.example.com
  unpacking NODE/cache/cache-trixie-*.tar
  it holds no system: /etc or /bin/sh is missing
hint: NODE/cache/cache-trixie-*.tar may be damaged; replace or remove it"),
    row("a corrupt manifest of another suite", Installed, |node| {
        fs::write(node.cache().join("base-sid-amd64-0.toml"), "suite = [").unwrap();
        create(node)
    }, INSTALLED),
    row("a corrupt seal", Untouched, |node| {
        foreign_tar(node, &files_of_a_tar(100), 1, &[0; 1024]);
        let seal = fs::read_dir(node.cache()).unwrap().flatten().map(|entry| entry.path());
        let tar = seal.into_iter().find(|path| path.to_string_lossy().contains("/cache-trixie-")).unwrap();
        fs::write(tar.with_extension("toml"), "suite = [\n").unwrap();
        create(node)
    }, "
error: reading the manifest NODE/cache/cache-trixie-*.toml
  unclosed array*
hint: rm NODE/cache/cache-trixie-*.toml; what it described can be made or sealed anew"),
];

/// The mirror.
#[rustfmt::skip]
const MIRROR: &[Fault] = &[
    row("a mirror that refuses", Untouched, |node| mirror(node, "http://127.0.0.1:1/debian"), NO_RELEASE),
    row("a mirror that hangs and dies", Untouched, |node| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let hung = listener.accept().unwrap();
            std::thread::sleep(Duration::from_secs(3));
            drop((listener, hung));
        });
        mirror(node, &format!("http://127.0.0.1:{port}/debian")).hold(server)
    }, NO_RELEASE),
    row("a mirror with a signature of a stranger", Untouched, |node| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Serves until the test ends.
        std::thread::spawn(move || {
            for mut peer in listener.incoming().flatten() {
                let mut request = [0; 4096];
                let count = peer.read(&mut request).unwrap_or(0);
                let answer = if String::from_utf8_lossy(&request[..count]).contains("/InRelease ") {
                    format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{FORGED}", FORGED.len())
                } else {
                    "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()
                };
                let _ = peer.write_all(answer.as_bytes());
            }
        });
        mirror(node, &format!("http://127.0.0.1:{port}/debian"))
    }, "
error: debootstrap --arch * trixie /run/ganeti-instance-debootstrap/bootstrap http://127.0.0.1:N/debian: exit status 1
    | I: Retrieving InRelease
    | I: Checking Release signature
    | E: Release signed by unknown key (key id A99515C8539E198A)
    |    The specified keyring * may be incorrect or out of date.
    |    You can find *
hint: set keyring = \"FILE\" with the keys of who signs there, or do not trust that mirror"),
    row("an unknown suite", Untouched, |node| create(node).param("SUITE", "trixy"), "
error: debootstrap --arch * trixy /run/ganeti-instance-debootstrap/bootstrap: exit status 1
    | E: No such script: /usr/share/debootstrap/scripts/trixy
hint: correct suite, or install a debootstrap that knows it: apt-get install debootstrap"),
];

/// Tools and devices of the node.
#[rustfmt::skip]
const TOOLS: &[Fault] = &[
    row("debootstrap is missing", Untouched,
        |node| mirror(node, "http://127.0.0.1:1/debian").hold(hidden(node, "debootstrap")), "
error: debootstrap is not installed on this node
hint: apt-get install debootstrap"),
    row("mmdebstrap is missing", Untouched, |node| {
        node.config("bootstrapper = \"mmdebstrap\"\nmirror = \"http://127.0.0.1:1/debian\"\n");
        create(node).hold(hidden(node, "mmdebstrap"))
    }, "
error: mmdebstrap is not installed on this node
hint: apt-get install mmdebstrap"),
    row("mke2fs is missing", Untouched, |node| create(node).hold(hidden(node, "mke2fs")), "
error: mke2fs is not installed on this node
hint: apt-get install e2fsprogs"),
    row("mkfs.xfs is missing", Untouched,
        |node| create(node).param("FILESYSTEM", "xfs").hold(hidden(node, "mkfs.xfs")), "
error: mkfs.xfs is not installed on this node
hint: apt-get install xfsprogs"),
    row("mkfs.btrfs is missing", Untouched,
        |node| create(node).param("FILESYSTEM", "btrfs").hold(hidden(node, "mkfs.btrfs")), "
error: mkfs.btrfs is not installed on this node
hint: apt-get install btrfs-progs"),
    row("mkswap is missing", Untouched, |node| {
        let disk = old_disk(node, GIB);
        let (device, swap) =
            (BlockDevice::over(&disk, &[]), BlockDevice::over(&node.disk("swap", 64 * MIB), &[]));
        let mut command = node.command(&["create", "-i", "old.example.com", "-b"]);
        command.arg(&device.0).arg("-s").arg(&swap.0);
        Case { command, disk, held: vec![] }.hold(device).hold(swap).hold(hidden(node, "mkswap"))
    }, "
error: mkswap is not installed on this node
hint: apt-get install util-linux"),
    row("bash is missing, and settings are shell", Untouched, |node| {
        fs::write(node.legacy_defaults(), "SUITE=trixie\n").unwrap();
        create(node).hold(hidden(node, "bash"))
    }, "
error: evaluating the shell settings
  bash is not installed on this node
hint: apt-get install bash"),
    row("qemu-img is missing", Whatever, |node| {
        let disk = node.path().join("disks/image.qcow2");
        let args = ["image", "--name", "a.example.com", "--size", "1G", "--format", "qcow2", "--output"];
        let mut command = node.command(&args);
        command.arg(&disk);
        Case { command, disk, held: vec![] }.hold(hidden(node, "qemu-img"))
    }, "
error: qemu-img is not installed on this node
hint: apt-get install qemu-utils"),
    row("/dev/loop-control is absent", Untouched, |node| {
        let disk = old_disk(node, GIB);
        let dev = node.path().join("dev");
        fs::create_dir(&dev).unwrap();
        tool(
            "sh",
            &["-c", &format!("cp -a /dev/null /dev/zero /dev/urandom /dev/loop[0-9] {}", dev.display())],
        );
        on_disk(node, &disk).hold(Mount::new(Path::new("/dev"), &["--bind", dev.to_str().unwrap()]))
    }, "
error: opening /dev/loop-control
  No such file or directory (os error 2)
hint: modprobe loop"),
];

/// Hooks.
#[rustfmt::skip]
const HOOKS: &[Fault] = &[
    row("a hook that exits 3", Blank, |node| hook(node, "echo said; exit 3"), "
error: installing lg1.example.com
  the hook NODE/etc/hooks/10-fault ended with exit status 3
    | said
hint: all that a hook printed stands in the log; `keep_failed = true` leaves the disk to look at"),
    row("a hook that leaves a daemon with open files in TARGET", Installed,
        |node| hook(node, "cd $TARGET; setsid sleep 60 > $TARGET/log 2>&1 &"), INSTALLED),
    row("the same daemon without hooks_namespace", Blank, daemon, HELD_OPEN),
    row("the same daemon on a disk that is all filesystem", Blank,
        |node| daemon(node).param("PARTITION_STYLE", "none"), HELD_OPEN),
    row("a hook that unmounts TARGET", Installed, |node| hook(node, "cd /; umount $TARGET"), INSTALLED),
    row("a hook that unmounts TARGET lazily, without hooks_namespace", Installed, |node| {
        node.config("hooks_namespace = false\n");
        hook(node, "cd /; umount -l $TARGET")
    }, INSTALLED),
    row("a hook that fills the disk", Blank,
        |node| hook(node, "dd if=/dev/zero of=$TARGET/big bs=1M 2>/dev/null"), "
error: installing lg1.example.com
  the hook NODE/etc/hooks/10-fault ended with exit status 1
hint: all that a hook printed stands in the log; `keep_failed = true` leaves the disk to look at"),
    row("a hook that fills the disk and does not mind", Installed,
        |node| hook(node, "dd if=/dev/zero of=$TARGET/big bs=1M; exit 0"), INSTALLED),
    row("a hook that writes to DISK_0_PATH", Installed,
        |node| hook(node, "printf BOOT | dd of=$DISK_0_PATH conv=notrunc status=none"), INSTALLED),
    row("a hook that truncates DISK_0_PATH", Blank, |node| hook(node, "printf BOOT > $DISK_0_PATH"), "
error: installing lg1.example.com
  a hook changed the size of NODE/disks/d from 1073741824 to * bytes
hint: a hook must not truncate $DISK_0_PATH: write with dd conv=notrunc, not with >"),
    row("a hook that kills its parent and all it sees", Installed,
        |node| hook(node, "kill -9 $PPID; kill -9 -1; exit 0"), INSTALLED),
];

/// The disk.
#[rustfmt::skip]
const DISK: &[Fault] = &[
    row("a disk that is absent", Whatever, |node| on_disk(node, &node.path().join("disks/none")), "
error: opening the disk NODE/disks/none
  No such file or directory (os error 2)
hint: gnt-instance activate-disks makes the disks of an instance appear on its node"),
    row("a disk that is none", Whatever, |node| on_disk(node, &node.etc()), "
error: NODE/etc is neither a file nor a block device
hint: `gnt-instance info` shows what the instance's disks are"),
    row("a disk that is too small", Untouched, |node| on_disk(node, &old_disk(node, 600 * MIB)), r#"
error: dividing NODE/disks/d
  the disk has 600 MiB (629145600 bytes), but partition_style gpt needs 639 MiB (670056960 bytes)
hint: partition_style is gpt (from the built-in default of defaults = "1"); give the instance another disk size, or set it to another style"#),
    row("a disk that is mounted", Untouched, |node| {
        let disk = old_disk(node, GIB);
        let device = BlockDevice::over(&disk, &[]);
        // Read-only: the mount itself writes nothing.
        let mounted = Mounted::with(&device.0, "ro");
        let path = device.0.clone();
        Case { disk, ..on_disk(node, &path) }.hold(mounted).hold(device)
    }, "
error: the disk /dev/loopN is in use: mounted on *
hint: shut the instance down, or unmount what is mounted from its disk"),
    row("a disk that is attached to a loop device", Untouched, |node| {
        let disk = old_disk(node, GIB);
        let device = BlockDevice::over(&disk, &[]);
        on_disk(node, &disk).hold(device)
    }, "
error: the disk NODE/disks/d is in use: attached as /dev/loopN
hint: find out who uses /dev/loopN; `losetup -d /dev/loopN` detaches it"),
    row("a disk that is locked", Untouched, |node| {
        let disk = old_disk(node, GIB);
        let file = File::open(&disk).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        on_disk(node, &disk).hold(file)
    }, "
error: the disk NODE/disks/d is locked by process N (faults-*)
hint: another installation of this instance may be running; wait for it, or end it"),
    row("a disk that somebody holds", Untouched, |node| {
        let disk = old_disk(node, GIB);
        let device = BlockDevice::over(&disk, &[]);
        let holder = File::options().read(true).custom_flags(nix::libc::O_EXCL).open(&device.0).unwrap();
        let path = device.0.clone();
        Case { disk, ..on_disk(node, &path) }.hold(holder).hold(device)
    }, "
error: the disk /dev/loopN is in use by process N (faults-*)
hint: shut the instance down, or unmount what is mounted from its disk"),
];

/// The rows that are to be tried out; a name that no row has is a mistake.
fn wanted(rows: &[Fault]) -> impl Iterator<Item = &Fault> {
    let wanted = std::env::var("FAULT").unwrap_or_default();
    let mut all = [TOO_SMALL, CACHE, MIRROR, TOOLS, HOOKS, DISK].into_iter().flatten();
    assert!(all.any(|row| row.name.contains(&wanted)), "no row has {wanted:?} in its name");
    rows.iter().filter(move |row| row.name.contains(&wanted))
}

/// Tries rows out, all of them also where some fail.
fn assert_each(rows: &[Fault]) {
    // All mounts below are seen by this thread and its children alone, and end with it.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let tried = wanted(rows).map(|row| {
        let start = std::time::Instant::now();
        let failed = catch_unwind(AssertUnwindSafe(|| try_out(row))).is_err();
        let verdict = if failed { "FAILED" } else { "ok" };
        let seconds = start.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stderr(), "{seconds:6.1} s  {verdict:6}  {}", row.name);
        (row.name, failed)
    });
    let failed: Vec<&str> = tried.filter(|(_, failed)| *failed).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_disk_that_is_too_small_is_told_of_and_nothing_is_left() {
    assert_each(TOO_SMALL);
}

#[test]
fn what_is_wrong_with_a_cache_is_told_and_nothing_is_left() {
    assert_each(CACHE);
}

#[test]
fn what_is_wrong_with_a_mirror_is_told_and_nothing_is_left() {
    assert_each(MIRROR);
}

#[test]
fn what_a_node_lacks_is_told_and_nothing_is_left() {
    assert_each(TOOLS);
}

#[test]
fn what_a_hook_does_is_told_and_nothing_is_left() {
    assert_each(HOOKS);
}

#[test]
fn what_is_wrong_with_a_disk_is_told_and_nothing_is_left() {
    assert_each(DISK);
}

fn try_out(row: &Fault) {
    let node = Node::new();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let Case { mut command, disk, held } = (row.make)(&node);
    let (files, content) = (files(&node), content(&disk));
    let output = command.output().unwrap();
    let log = log_of(&output);

    assert!(log.is_ascii(), "{log}");
    // debootstrap says so where arch-test(1) is installed.
    let said = log.lines().filter(|line| !line.ends_with("I: Target architecture can be executed"));
    let lines: Vec<String> = said.map(|line| plain(line, &node)).collect();
    let from = lines.iter().rposition(|line| line.starts_with("error: ")).unwrap_or(lines.len() - 1);
    let wanted: Vec<&str> = row.log.trim_start().lines().collect();
    let same = lines.len() - from == wanted.len()
        && lines[from..].iter().zip(&wanted).all(|(line, pattern)| matches(line, pattern));
    assert!(same, "expected\n{}\nat the end of\n{}", wanted.join("\n"), lines.join("\n"));
    assert_eq!(output.status.code(), Some(i32::from(row.log != INSTALLED)), "{log}");
    assert!(
        row.log == INSTALLED || wanted.last().unwrap().starts_with("hint: "),
        "an error names its remedy"
    );
    assert!(wanted.len() < 20, "Ganeti shows 20 lines");

    let mut after = self::files(&node);
    // A template that was made on the way is no trace: the next create copies it. The cache's lock files stay.
    after.retain(|file| files.contains(file) || !(file.contains("/template-") || file.contains(".lock\"")));
    assert_eq!(after, files, "files of the node");
    row.disk.assert(&disk, &content);
    drop(held);
    if disk.exists() {
        // What held it has no last word.
        row.disk.assert(&disk, &content);
    }
    assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), mounts);
    node.assert_nothing_left();
}

/// Paths and numbers that differ from run to run become names.
fn plain(line: &str, node: &Node) -> String {
    let mut line = line.trim_end().replace(node.path().to_str().unwrap(), "NODE");
    for before in ["/dev/loop", "process ", "127.0.0.1:"] {
        let mut parts = line.split(before);
        let mut shown = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            shown += &format!("{before}{}{rest}", if rest.len() < part.len() { "N" } else { "" });
        }
        line = shown;
    }
    line
}

fn matches(line: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => line == pattern,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(&rest[at..], after))
        }),
    }
}

/// Names, and what tells whether a file was written to; of the disks the names alone.
fn files(node: &Node) -> Vec<String> {
    let entries = ["cache", "etc", "os", "disks"].map(|dir| walkdir::WalkDir::new(node.path().join(dir)));
    let mut files: Vec<String> = entries
        .into_iter()
        .flatten()
        .map(|entry| {
            let (path, meta) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().metadata().unwrap());
            let name = path.file_name().unwrap().to_string_lossy();
            if path.starts_with(node.path().join("disks")) || meta.is_dir() {
                return format!("{path:?}");
            }
            // A template's time is that of its last use.
            let written = (!name.starts_with("template-")).then(|| (meta.mtime(), meta.mtime_nsec()));
            format!("{path:?} {} {} {written:?}", meta.ino(), meta.len())
        })
        .collect();
    files.sort();
    files
}

/// Of a disk file: its last change, length and blocks, and its first MiB.
type Content = ((i64, i64), u64, u64, Vec<u8>);

fn content(disk: &Path) -> Content {
    let Ok(meta) = fs::metadata(disk) else { return ((0, 0), 0, 0, Vec::new()) };
    let mut head = Vec::new();
    if meta.is_file() || meta.file_type().is_block_device() {
        File::open(disk).unwrap().take(MIB).read_to_end(&mut head).unwrap();
    }
    ((meta.mtime(), meta.mtime_nsec()), meta.len(), meta.blocks(), head)
}

/// A disk with something on it.
fn old_disk(node: &Node, bytes: u64) -> PathBuf {
    let disk = node.disk("d", bytes);
    tool("mke2fs", &["-q", "-F", "-t", "ext2", disk.to_str().unwrap()]);
    disk
}

fn on_disk(node: &Node, disk: &Path) -> Case {
    let env = node.recorded("create", disk);
    Case { command: node.verb("create", &env), disk: disk.into(), held: Vec::new() }
}

fn create(node: &Node) -> Case {
    on_disk(node, &old_disk(node, GIB))
}

fn hook(node: &Node, script: &str) -> Case {
    node.hook("10-fault", &format!("#!/bin/sh\n{script}\n"));
    create(node)
}

/// A hook whose daemon lives on.
fn daemon(node: &Node) -> Case {
    node.config("hooks_namespace = false\n");
    let pid = node.path().join("disks/pid");
    fs::write(&pid, "").unwrap();
    // It stays until the daemon has the disk: on a busy machine that takes a moment.
    let script = "(cd $TARGET; exec setsid sleep 60 > $TARGET/log 2>&1 < /dev/null) &\n\
                  until [ \"$(readlink /proc/$!/cwd)\" = $TARGET ]; do sleep 0.1; done\necho $! >";
    hook(node, &format!("{script} {}", pid.display())).hold(Daemon(pid))
}

/// A create that must bootstrap from `mirror`.
fn mirror(node: &Node, mirror: &str) -> Case {
    node.config(&format!("mirror = \"{mirror}\"\nbootstrapper = \"debootstrap\"\n"));
    create(node)
}

fn cache_file(node: &Node, ending: &str) -> PathBuf {
    let mut files = fs::read_dir(node.cache()).unwrap().flatten().map(|entry| entry.path());
    files.find(|path| path.to_string_lossy().ends_with(ending)).unwrap()
}

/// The cached tar, no link to the shared one any more.
fn own_tar(node: &Node) -> File {
    let path = cache_file(node, ".tar");
    let copy = path.with_extension("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn edit_manifest(node: &Node, from: &str, to: &str) {
    let path = cache_file(node, ".toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn clear_cache(node: &Node) {
    for entry in fs::read_dir(node.cache()).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
}

/// A tree that needs `percent` of the room that the smallest disk has.
fn full_disk(node: &Node, percent: u64, filesystem: &str) -> Case {
    let disk = node.disk("measure", 511 * MIB);
    tool(&format!("mkfs.{filesystem}"), &["-q", disk.to_str().unwrap()]);
    let free = {
        let mounted = Mounted::with(&disk, "loop");
        let fs = rustix::fs::statvfs(mounted.path()).unwrap();
        fs.f_bfree * fs.f_frsize
    };
    fs::remove_file(disk).unwrap();
    const PIECE: u64 = 16 * MIB;
    let bytes = free / 100 * percent / PIECE * PIECE + PIECE;
    let mut header = tar::Header::new_gnu();
    header.set_path("big").unwrap();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    // Members of a gzip file can be repeated: gigabytes cost nothing to make.
    foreign_tar(node, &gzip(header.as_bytes()), bytes / PIECE, &gzip(&vec![0; PIECE as usize]));
    on_disk(node, &old_disk(node, 640 * MIB)).param("FILESYSTEM", filesystem)
}

/// A tar made by hand comes before the one that is cached: `head`, then some times `piece`.
fn foreign_tar(node: &Node, head: &[u8], times: u64, piece: &[u8]) {
    let arch = tool("dpkg", &["--print-architecture"]);
    let mut file = File::create(node.cache().join(format!("cache-trixie-{}.tar", arch.trim()))).unwrap();
    file.write_all(head).unwrap();
    for _ in 0..times {
        file.write_all(piece).unwrap();
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Empty files, and no end mark.
fn files_of_a_tar(count: usize) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    (0..count)
        .flat_map(|n| {
            header.set_path(format!("{n}")).unwrap();
            header.set_cksum();
            header.as_bytes().to_vec()
        })
        .collect()
}

/// A mount in this thread's namespace.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, args: &[&str]) -> Mount {
        tool("mount", &[args, &[at.to_str().unwrap()]].concat());
        Mount(at.into())
    }

    /// An ext4 of `bytes` over a directory of the node.
    fn ext4(node: &Node, dir: &str, bytes: u64) -> Mount {
        let file = node.path().join(format!("{dir}.ext4"));
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let path = file.to_str().unwrap();
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", path]);
        let mount = Mount::new(&node.path().join(dir), &["-o", "loop", path]);
        fs::remove_dir(mount.0.join("lost+found")).unwrap();
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // By no tool: it would run from where it unmounts. What stays is found by who compares the mounts.
        let _ = nix::mount::umount(&self.0);
    }
}

fn read_only(dir: &Path) -> Mount {
    let mount = Mount::new(dir, &["--bind", dir.to_str().unwrap()]);
    tool("mount", &["-o", "remount,bind,ro", dir.to_str().unwrap()]);
    mount
}

/// Every directory of a search path without one tool in it.
fn hidden(node: &Node, program: &str) -> Vec<Mount> {
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
    let mut mounts = Vec::new();
    for dir in dirs {
        let file = dir.join(program);
        if file.symlink_metadata().is_err() {
            continue;
        }
        let name = format!("hidden{}", mounts.len());
        let [upper, work] = ["upper", "work"].map(|sub| node.path().join(&name).join(sub));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", dir.display(), upper.display(), work.display());
        mounts.push(Mount::new(&fs::canonicalize(dir).unwrap(), &["-t", "overlay", "-o", &options, "none"]));
        fs::remove_file(file).unwrap();
    }
    mounts
}

/// A process whose number stands in a file; killed when dropped.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).unwrap().trim().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is alive");
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

/// A release file with a good signature, by a key that nobody knows.
const FORGED: &str = "-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

Origin: Debian
Suite: stable
Codename: trixie
Architectures: amd64 arm64
Components: main
SHA256:
 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 main/binary-amd64/Packages
-----BEGIN PGP SIGNATURE-----

iHUEARYIAB0WIQR2yM5jyky36tLh30mplRXIU54ZigUCawBdlwAKCRCplRXIU54Z
ivfRAQDlNBNi0DglzW2D0n+EtGy6eJDZ3t95xqSlVfGVUzvkBAD+OEQOMOPc3Q5L
9wRtaNqzAAYWa9ycY0nrv0IyAGtqygc=
=v6Nn
-----END PGP SIGNATURE-----
";
