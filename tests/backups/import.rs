//! import: what dump(8) wrote of real filesystems becomes disks of every layout, and what is no whole backup leaves
//! none. Needs root, loop devices, and the tools of the packages attr, dump, fdisk, rsync.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::common::running::{Family, Running};
use crate::common::{
    BlockDevice, GIB, Mounted, Node, assert_every_release_reads, digest, fsck, log_of, root_offset, text,
    tool,
};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM};

const MIB: u64 = 1 << 20;

/// What the recorded imports call the instance that the backup is of, and the new one.
const OLD: &str = "lg1new.example.com";
const NEW: &str = "lg1imp.example.com";

const SETTINGS: &str = "defaults = \"1\"\nboot = \"no\"\n";

/// What import writes in a system, and nothing else: same mode and owner, another content.
const REPAIRED: [&str; 2] = [">fc.t...... boot/grub/grub.cfg", ">fc.t...... etc/fstab"];

/// What is looked at of a system, and of what a filesystem holds.
const SYSTEM: &str = r#"
mkdir -p etc/network bin boot/grub usr/lib home/user && ln -s bin sbin && printf '#!\n' > bin/sh && chmod 755 bin/sh
echo lg1new.example.com > etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 lg1new.example.com lg1new\n' > etc/hosts
printf 'auto lo\n' > etc/network/interfaces
cat > etc/fstab <<'END'
# <file system> <mount point> <type> <options> <dump> <pass>
UUID=0b4a4ba0-5eb8-4aa2-9bb8-f1ea4a8c0c17 / ext4 errors=remount-ro,noatime 0 1
/dev/sdb none swap sw 0 0
nas:/srv /srv nfs ro,noauto 0 0
END
echo "linux /vmlinuz root=UUID=0b4a4ba0-5eb8-4aa2-9bb8-f1ea4a8c0c17 ro quiet" > boot/grub/grub.cfg
chmod 644 etc/* boot/grub/grub.cfg && chmod 600 etc/hosts
head -c 3M /dev/urandom > usr/lib/large && ln usr/lib/large home/user/hard
truncate -s 4M usr/lib/hole && printf end >> usr/lib/hole
chown 1000:1001 home/user home/user/hard && chmod 2750 home/user && setfattr -n user.note -v mine home/user/hard
mkfifo -m 600 home/fifo && mknod home/null c 1 3 && touch -d 2001-02-03 usr/lib etc/* boot/grub/grub.cfg
"#;

/// Makes a tree by a script, and a backup of it: what dump(8) writes of a filesystem that holds it.
fn backup(node: &Node, name: &str, size: &str, script: &str) -> PathBuf {
    let (tree, image) = (node.path().join(name), node.path().join(format!("{name}.img")));
    fs::create_dir(&tree).unwrap();
    bash(&tree, script);
    tool("mke2fs", &["-q", "-t", "ext4", "-d", tree.to_str().unwrap(), image.to_str().unwrap(), size]);
    dump(&image)
}

fn bash(dir: &Path, script: &str) {
    let done = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{}", log_of(&done));
}

fn dump(image: &Path) -> PathBuf {
    let (device, stream) = (BlockDevice::over(image, &["-r"]), image.with_extension("dump"));
    tool("dump", &["-0", "-q", "-f", stream.to_str().unwrap(), device.0.to_str().unwrap()]);
    stream
}

/// The recorded import of a disk, with OS parameters.
fn import_env(node: &Node, disk: &Path, parameters: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut env = node.recorded("import", disk);
    for name in ["IMPORT_DEVICE", "IMPORT_DISK_PATH"] {
        env.insert(name.into(), disk.display().to_string());
    }
    env.extend(
        parameters.iter().map(|(name, value)| (format!("OSP_{}", name.to_uppercase()), (*value).into())),
    );
    env
}

/// Runs import as noded does, with a pipe that brings `stream`.
fn import(node: &Node, env: &BTreeMap<String, String>, stream: &Path) -> Output {
    let mut source =
        Command::new("cat").arg(stream).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let output = node.verb("import", env).stdin(source.stdout.take().unwrap()).output().unwrap();
    source.wait().unwrap();
    assert_eq!(text(&output.stdout), "", "stdout is not the log's");
    node.assert_nothing_left();
    output
}

/// The same, and wants it to succeed; returns its log.
fn imported(node: &Node, env: &BTreeMap<String, String>, stream: &Path) -> String {
    let output = import(node, env, stream);
    let log = log_of(&output);
    assert!(output.status.success(), "{log}");
    log
}

/// The same, and wants it refused: exit status 1, and the end of its log from the error on.
fn refused(node: &Node, env: &BTreeMap<String, String>, stream: &Path) -> String {
    let output = import(node, env, stream);
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let at = log.rfind("error: ").unwrap_or_else(|| panic!("no error in {log}"));
    log[at..].to_owned()
}

/// What rsync finds different in the root of a disk, one line each.
fn differences(tree: &Path, root: &Mounted) -> Vec<String> {
    let (tree, copy) = (format!("{}/", tree.display()), format!("{}/", root.path().display()));
    // Which of the two is the root's own is no question.
    let options = ["-ncaHAXi", "--numeric-ids", "--delete", "--exclude=/lost+found", "--omit-dir-times"];
    let found = tool("rsync", &[&options[..], &[tree.as_str(), copy.as_str()]].concat());
    // The size of a text that has another UUID in it may have changed or not.
    found.lines().map(|line| line.replacen(">fcs", ">fc.", 1)).collect()
}

fn root_of(disk: &Path, style: &str) -> u64 {
    if style == "none" { 0 } else { root_offset(disk) }
}

fn uuid_at(disk: &Path, offset: u64) -> String {
    let offset = offset.to_string();
    let value = ["-p", "-O", offset.as_str(), "-s", "UUID", "-o", "value"];
    tool("blkid", &[&value[..], &[disk.to_str().unwrap()]].concat()).trim().to_owned()
}

/// Wants that nothing on a disk looks like anything: at its start, and where a root would be.
fn assert_blank(disk: &Path, bytes: u64, log: &str) {
    for offset in [0, MIB, 128 * MIB] {
        let mut blkid = Command::new("blkid");
        let probe = blkid.args(["-p", "-O", &offset.to_string()]).arg(disk).output().unwrap();
        assert_eq!((probe.status.code(), log_of(&probe)), (Some(2), String::new()), "at {offset}\n{log}");
    }
    assert_eq!(fs::metadata(disk).unwrap().len(), bytes, "the disk's size");
}

/// A disk with something on it.
fn used_disk(node: &Node, name: &str, bytes: u64) -> PathBuf {
    let disk = node.disk(name, bytes);
    tool("mke2fs", &["-q", "-t", "ext4", "-L", "precious", disk.to_str().unwrap()]);
    disk
}

#[test]
fn a_backup_comes_back_on_every_layout_and_filesystem() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = backup(&node, "system", "64M", SYSTEM);
    for style in ["gpt", "msdos", "none"] {
        for filesystem in ["ext4", "xfs", "btrfs"] {
            let what = format!("{style} {filesystem}");
            let disk = used_disk(&node, "disk", GIB);
            let env = import_env(&node, &disk, &[("partition_style", style), ("filesystem", filesystem)]);
            let log = imported(&node, &env, &dump);
            assert!(log.ends_with(&format!("  disk 0 of {NEW} is imported\n")), "{log}");
            let offset = root_of(&disk, style);
            fsck(&disk, offset, filesystem);
            if filesystem == "ext4" {
                assert_every_release_reads(&disk, offset);
            }
            let root = Mounted::at(&disk, offset);
            let different = differences(&node.path().join("system"), &root);
            assert_eq!(different, REPAIRED, "{what}");
            let uuid = uuid_at(&disk, offset);
            let options = if filesystem == "ext4" { "errors=remount-ro,noatime 0 1" } else { "defaults 0 0" };
            let old = fs::read_to_string(node.path().join("system/etc/fstab")).unwrap();
            let line = "UUID=0b4a4ba0-5eb8-4aa2-9bb8-f1ea4a8c0c17 / ext4 errors=remount-ro,noatime 0 1";
            assert_eq!(
                root.read("etc/fstab"),
                old.replace(line, &format!("UUID={uuid} / {filesystem} {options}"))
            );
            assert_eq!(
                root.read("boot/grub/grub.cfg"),
                format!("linux /vmlinuz root=UUID={uuid} ro quiet\n")
            );
            let hole = fs::metadata(root.path().join("usr/lib/hole")).unwrap();
            assert!(hole.blocks() * 512 < MIB, "a hole stays one: {} blocks", hole.blocks());
        }
    }
}

#[test]
fn the_disk_for_data_gets_no_fstab_no_loader_and_no_swap() {
    let node = Node::bare();
    // A loader would need a cached tree, and there is none.
    node.config("defaults = \"1\"\nboot = \"bios\"\nswap = \"256M\"\n");
    for (name, script) in [("data", "mkdir -p srv/files && echo one > srv/files/1"), ("system", SYSTEM)] {
        let dump = backup(&node, name, "64M", script);
        let first = used_disk(&node, "first", 256 * MIB);
        let untouched = digest(&first);
        // Too small for a system.
        let disk = used_disk(&node, "second", 200 * MIB);
        let mut env = node.recorded("import-full-disk1", &first);
        env.insert("INSTANCE_HV_kernel_path".into(), String::new());
        env.insert("HYPERVISOR".into(), "kvm".into());
        for variable in ["DISK_1_PATH", "IMPORT_DEVICE", "IMPORT_DISK_PATH"] {
            env.insert(variable.into(), disk.display().to_string());
        }
        let log = imported(&node, &env, &dump);
        assert!(log.contains("disk 1 of lg2imp.example.com"), "{log}");
        assert_eq!(digest(&first), untouched, "disk 0 is another run's");
        let table = tool("sfdisk", &["--dump", disk.to_str().unwrap()]);
        assert!(!table.contains("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"), "a swap partition:\n{table}");
        let mut boot_code = [1; 440];
        File::open(&disk).unwrap().read_exact_at(&mut boot_code, 0).unwrap();
        assert_eq!(boot_code, [0; 440], "boot code");
        let root = Mounted::at(&disk, root_offset(&disk));
        assert_eq!(differences(&node.path().join(name), &root), <[String; 0]>::default(), "{name}");
    }
}

#[test]
fn swap_of_a_size_is_a_partition_and_a_line_of_fstab() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = backup(&node, "system", "64M", SYSTEM);
    for (style, number) in [("gpt", 3), ("msdos", 2)] {
        let disk = used_disk(&node, "disk", GIB);
        imported(&node, &import_env(&node, &disk, &[("swap", "256M"), ("partition_style", style)]), &dump);
        let offset =
            swap_offset(&disk).unwrap_or_else(|| panic!("{style}: no swap among {number} partitions"));
        let probe = ["-p", "-O", &offset.to_string(), "-s", "TYPE", "-o", "value", disk.to_str().unwrap()];
        assert_eq!(tool("blkid", &probe), "swap\n", "{style}");
        let root = Mounted::at(&disk, root_offset(&disk));
        let fstab = root.read("etc/fstab");
        assert!(fstab.contains(&format!("\nUUID={} none swap sw 0 0\n", uuid_at(&disk, offset))), "{fstab}");
        assert!(!fstab.contains("/dev/sdb"), "the old one is gone: {fstab}");
    }
}

#[test]
fn what_its_owner_locked_is_fitted_to_the_disk_and_locked_again() {
    let node = Node::bare();
    node.config(SETTINGS);
    backup(&node, "system", "64M", SYSTEM);
    let image = node.path().join("system.img");
    let locks = [("+i", "etc/fstab"), ("+a", "boot/grub/grub.cfg"), ("+i", "boot/grub"), ("+i", "etc")];
    {
        let mounted = Mounted::with(&image, "loop");
        for (lock, path) in locks {
            tool("chattr", &[lock, mounted.path().join(path).to_str().unwrap()]);
        }
    }
    let disk = used_disk(&node, "disk", GIB);
    imported(&node, &import_env(&node, &disk, &[("suite", "trixie")]), &dump(&image));
    let offset = root_offset(&disk);
    let root = Mounted::at(&disk, offset);
    let uuid = uuid_at(&disk, offset);
    assert!(root.read("etc/fstab").contains(&format!("UUID={uuid} / ext4 ")));
    assert!(root.read("boot/grub/grub.cfg").contains(&format!("root=UUID={uuid} ro quiet")));
    for (lock, path) in locks {
        let listed = tool("lsattr", &["-d", root.path().join(path).to_str().unwrap()]);
        assert!(listed.split(' ').next().unwrap().contains(&lock[1..]), "{path}: {listed}");
    }
}

/// The first byte of the partition whose type is swap.
fn swap_offset(disk: &Path) -> Option<u64> {
    let json = tool("sfdisk", &["--json", disk.to_str().unwrap()]);
    let table: serde_json::Value = serde_json::from_str(&json).unwrap();
    let types = ["0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "82"];
    let partitions = table["partitiontable"]["partitions"].as_array().unwrap();
    let swap = partitions.iter().find(|p| types.contains(&p["type"].as_str().unwrap()))?;
    Some(swap["start"].as_u64().unwrap() * 512)
}

#[test]
fn a_disk_too_small_for_the_backup_says_so_and_is_wiped() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump =
        backup(&node, "system", "512M", &format!("{SYSTEM} head -c 300M /dev/urandom > usr/lib/larger"));
    for (style, filesystem) in [("gpt", "ext4"), ("msdos", "btrfs"), ("none", "ext4")] {
        let disk = used_disk(&node, "disk", 256 * MIB);
        let env = import_env(&node, &disk, &[("partition_style", style), ("filesystem", filesystem)]);
        let error = refused(&node, &env, &dump);
        let mut lines = error.lines();
        assert_eq!(lines.next(), Some(format!("error: importing disk 0 of {NEW}").as_str()), "{error}");
        assert_eq!(lines.next(), Some("  the root filesystem is full"), "{error}");
        let hint = "hint: give the instance a larger disk; the backup holds more than this one";
        assert_eq!(lines.next_back(), Some(hint), "{error}");
        assert_blank(&disk, 256 * MIB, &error);
    }
}

#[test]
fn what_is_no_backup_is_refused_before_the_disk_is_touched() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = fs::read(backup(&node, "system", "64M", SYSTEM)).unwrap();
    let random = fs::read(node.path().join("system/usr/lib/large")).unwrap();
    let disk = used_disk(&node, "disk", 256 * MIB);
    let untouched = digest(&disk);
    let mut swapped = dump[..64 << 10].to_vec();
    swapped[24..28].reverse();
    let mut damaged = dump.clone();
    damaged[500] ^= 1;
    let image = BlockDevice::over(&node.path().join("system.img"), &["-r"]);
    let (path, ctime) = (node.path().join("incremental"), "Sat Jan  3 00:00:00 2004");
    tool("dump", &["-1", "-T", ctime, "-q", "-f", path.to_str().unwrap(), image.0.to_str().unwrap()]);
    let incremental = fs::read(path).unwrap();
    drop(image);
    let accepted = "hint: import takes a backup of this program, a level 0 dump(8) of ext2, ext3 or ext4, a raw disk, or a \
                    tar of a root tree; plain or as gzip, zstd or xz\n";
    let unknown =
        format!("error: the backup is of no known format: it begins with \"ssh: connect to \"\n{accepted}");
    for (name, bytes, says) in [
        (
            "empty",
            &b""[..],
            "error: the backup is empty: standard input ended before its first byte\n\
             hint: whoever was to send it failed first; its log says why\n",
        ),
        ("text", b"ssh: connect to host node2: no route\n", &unknown),
        ("random", &random, accepted),
        (
            "qcow2",
            b"QFI\xfb\0\0\0\x03\0\0\0\0",
            "error: the backup is a qcow2 image, which is not accepted\n\
             hint: make a raw disk of it: qemu-img convert -O raw\n",
        ),
        (
            "zip",
            b"PK\x03\x04\x14\0\0\0",
            "error: the backup is a zip archive, which is not accepted\n\
             hint: unpack it first, or pack it as gzip, zstd or xz\n",
        ),
        ("short", &dump[..500], "error: the dump was cut: it ends in its first header, after 500 bytes"),
        ("damaged", &damaged, "error: reading the first header of the dump\n  its checksum is "),
        ("incremental", &incremental, "error: the dump is incremental (level 1), which is not supported"),
        ("strange", &swapped, "big-endian"),
    ] {
        let path = node.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = refused(&node, &import_env(&node, &disk, &[]), &path);
        assert!(error.contains(says), "{name}:\n{error}");
        assert!(error.lines().count() <= 4, "{name}:\n{error}");
        assert_eq!(digest(&disk), untouched, "{name}");
    }
}

#[test]
fn a_backup_that_is_cut_short_or_followed_by_ruin_leaves_no_disk() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = fs::read(backup(&node, "system", "64M", SYSTEM)).unwrap();
    let cut = |at: usize| dump[..at].to_vec();
    let mut ruined = cut(dump.len() / 2);
    ruined.extend(fs::read(node.path().join("system/usr/lib/large")).unwrap());
    for (style, bytes) in [
        ("gpt", cut(1024)),
        ("none", cut(30 << 10)),
        ("msdos", cut(dump.len() / 3 + 77)),
        ("none", cut(dump.len() / 2)),
        ("gpt", cut(dump.len() * 9 / 10)),
        ("gpt", ruined),
    ] {
        let (length, path) = (bytes.len(), node.path().join("cut"));
        fs::write(&path, bytes).unwrap();
        let disk = used_disk(&node, "disk", GIB);
        let error = refused(&node, &import_env(&node, &disk, &[("partition_style", style)]), &path);
        assert!(error.starts_with(&format!("error: importing disk 0 of {NEW}\n")), "{length}:\n{error}");
        let hint = "hint: the backup is damaged or no backup; export it again";
        assert_eq!(error.lines().next_back(), Some(hint), "{length}:\n{error}");
        assert_blank(&disk, GIB, &error);
    }
}

fn pipe() -> (File, File) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

/// A stream that begins and then stalls: who writes it lives, and writes no more.
fn stalled(node: &Node, env: &BTreeMap<String, String>, beginning: Vec<u8>) -> (Running, File) {
    let (reader, mut writer) = pipe();
    let mut command = node.verb("import", env);
    command.stdin(reader);
    let running = Running::start(command);
    let feeder = spawn(move || {
        writer.write_all(&beginning).unwrap();
        writer
    });
    (running, feeder.join().unwrap())
}

#[test]
fn a_signal_ends_an_import_whose_stream_stalls_at_once() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = fs::read(backup(&node, "system", "64M", SYSTEM)).unwrap();
    let half = &dump[..dump.len() / 2];
    for style in ["gpt", "msdos", "none"] {
        for signal in [SIGTERM, SIGKILL] {
            let disk = used_disk(&node, "disk", GIB);
            let env = import_env(&node, &disk, &[("partition_style", style)]);
            let (mut running, writer) = stalled(&node, &env, half.to_vec());
            running.wait_for("restoring the tree");
            // It has taken most of what there is, and waits for more.
            sleep(Duration::from_millis(300));
            let log = strike(&node, running, signal);
            if signal == SIGTERM {
                assert!(log.contains("the disk is wiped"), "{log}");
            }
            if signal == SIGKILL && style == "none" {
                let label = ["-p", "-s", "LABEL", "-o", "value", disk.to_str().unwrap()];
                assert_eq!(tool("blkid", &label), "incomplete\n", "{log}");
            } else if signal == SIGKILL {
                // There is no table that says where a root would be.
                let probe = Command::new("blkid").arg("-p").arg(&disk).output().unwrap();
                assert_eq!((probe.status.code(), log_of(&probe)), (Some(2), String::new()), "{log}");
            } else {
                assert_blank(&disk, GIB, &log);
            }
            drop(writer);
        }
    }
    // Before the first byte nothing is touched.
    for signal in [SIGTERM, SIGKILL] {
        let disk = used_disk(&node, "disk", 256 * MIB);
        let untouched = digest(&disk);
        let (mut running, writer) = stalled(&node, &import_env(&node, &disk, &[]), Vec::new());
        running.wait_for("from a backup");
        sleep(Duration::from_millis(300));
        strike(&node, running, signal);
        assert_eq!(digest(&disk), untouched);
        drop(writer);
    }
}

/// Ends a run by a signal and wants it gone at once, with all that it held; returns its log.
fn strike(node: &Node, running: Running, signal: Signal) -> String {
    let start = Instant::now();
    let ended = running.strike(signal);
    let seconds = start.elapsed().as_secs();
    assert_eq!(ended.status.signal(), Some(signal as i32), "{}", ended.log);
    // The stream stalls for ever.
    assert!(seconds < 60, "it took {seconds} s\n{}", ended.log);
    node.assert_released(&ended);
    ended.log
}

#[test]
fn two_imports_at_once_do_not_meet() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = backup(&node, "system", "64M", SYSTEM);
    let disks = ["one", "two"].map(|name| used_disk(&node, name, GIB));
    let start = |disk: &PathBuf| {
        let mut verb = node.verb("import", &import_env(&node, disk, &[("swap", "64M")]));
        verb.stdin(File::open(&dump).unwrap()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for (child, disk) in disks.each_ref().map(start).into_iter().zip(&disks) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
        let root = Mounted::at(disk, root_offset(disk));
        assert_eq!(differences(&node.path().join("system"), &root), REPAIRED);
        assert!(root.read("etc/fstab").contains(&uuid_at(disk, root_offset(disk))));
    }
    assert_ne!(uuid_at(&disks[0], root_offset(&disks[0])), uuid_at(&disks[1], root_offset(&disks[1])));
    node.assert_nothing_left();
}

#[test]
fn a_dry_run_prints_the_plan_and_reads_nothing() {
    let node = Node::bare();
    node.config(SETTINGS);
    let disk = used_disk(&node, "disk", 256 * MIB);
    let untouched = digest(&disk);
    let (mut reader, mut writer) = pipe();
    writer.write_all(b"a backup").unwrap();
    drop(writer);
    let mut verb = node.verb("import", &import_env(&node, &disk, &[("swap", "64M")]));
    let output = verb.arg("--dry-run").stdin(reader.try_clone().unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    let plan = text(&output.stdout);
    let expected = format!(
        "instance    {NEW}, disk 0\n\
         disk        {} (file, 256 MiB)\n\
         backup      on standard input, of which a dry run reads nothing; what it holds decides:\n\
         a disk      comes back in its own layout if it had at most 256 MiB; on a larger disk what lies last grows\n\
         identity    that of the guest that was backed up\n\
         a tree      gets a new layout, gpt, and a new ext4\n",
        disk.display()
    );
    assert!(plan.starts_with(&expected), "{plan}");
    for part in [" 1 root ", " 2 swap       64 MiB", "no loader"] {
        assert!(plan.contains(part), "{part}:\n{plan}");
    }
    for create_only in ["release", "console", "network", "hooks", "access"] {
        assert!(!plan.contains(create_only), "{create_only}:\n{plan}");
    }
    let mut left = String::new();
    reader.read_to_string(&mut left).unwrap();
    assert_eq!(left, "a backup", "nothing was read");
    assert_eq!(digest(&disk), untouched);
    node.assert_nothing_left();
}

#[test]
fn memory_does_not_grow_with_the_number_of_files() {
    let node = Node::bare();
    node.config(SETTINGS);
    let image = node.disk("many.img", GIB);
    tool("mke2fs", &["-q", "-t", "ext4", "-N", "120000", image.to_str().unwrap()]);
    // In the image alone: in a directory of the machine's own they would take minutes.
    let root = Mounted::with(&image, "loop");
    let script = "mkdir -p etc srv && cd srv && for d in $(seq 100); do mkdir $d; \
                  seq 0 999 | split -l 1 -d -a 3 - $d/a-file-with-a-name-; done";
    bash(root.path(), script);
    drop(root);
    let dump = dump(&image);
    let disk = used_disk(&node, "disk", 3 * GIB);
    let mut command = node.verb("import", &import_env(&node, &disk, &[]));
    command.stdin(File::open(&dump).unwrap());
    let running = Running::start(command);
    let family = Family::of(running.pid());
    // It wants the peak below 64 MiB.
    let ended = running.end(family);
    assert!(ended.status.success(), "{}", ended.log);
    fsck(&disk, root_offset(&disk), "ext4");
    let root = Mounted::at(&disk, root_offset(&disk));
    assert_eq!(fs::read_dir(root.path().join("srv/77")).unwrap().count(), 1000);
    assert_eq!(root.read("srv/100/a-file-with-a-name-999"), "999\n");
    let entries = walkdir::WalkDir::new(root.path().join("srv")).into_iter().count();
    assert_eq!(entries, 1 + 100 + 100_000);
}

#[test]
fn a_sparse_file_that_is_larger_than_the_disk_stays_sparse() {
    let node = Node::bare();
    node.config(SETTINGS);
    let script = "truncate -s 10G image && for at in 0 4000000000 9999999999; do \
                  printf here | dd of=image bs=1 seek=$at conv=notrunc status=none; done";
    let dump = backup(&node, "sparse", "64M", script);
    let disk = used_disk(&node, "disk", GIB);
    imported(&node, &import_env(&node, &disk, &[]), &dump);
    fsck(&disk, root_offset(&disk), "ext4");
    let root = Mounted::at(&disk, root_offset(&disk));
    let image = File::open(root.path().join("image")).unwrap();
    let meta = image.metadata().unwrap();
    assert_eq!(meta.len(), 10 * GIB);
    assert!(meta.blocks() * 512 < MIB, "{} blocks", meta.blocks());
    for at in [0, 4_000_000_000, 9_999_999_999] {
        let mut here = [0; 6];
        image.read_exact_at(&mut here, at).unwrap();
        assert_eq!(&here, b"here\0\0", "at {at}");
    }
}

#[test]
fn rename_after_the_import_gives_the_new_name() {
    let node = Node::bare();
    node.config(SETTINGS);
    let dump = backup(&node, "system", "64M", SYSTEM);
    for style in ["gpt", "none"] {
        let disk = used_disk(&node, "disk", GIB);
        imported(&node, &import_env(&node, &disk, &[("partition_style", style)]), &dump);
        let offset = root_of(&disk, style);
        assert_eq!(Mounted::at(&disk, offset).read("etc/hostname"), format!("{OLD}\n"), "the name stays");
        let output = node.verb("rename", &node.recorded("rename-after-import", &disk)).output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
        fsck(&disk, offset, "ext4");
        let root = Mounted::at(&disk, offset);
        assert_eq!(root.read("etc/hostname"), format!("{NEW}\n"));
        assert_eq!(root.read("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 lg1imp.example.com lg1imp\n");
        assert_eq!(root.mode("etc/hosts"), 0o600, "as it was");
        drop(root);
        node.assert_nothing_left();
    }
}

#[test]
fn a_small_disk_that_export_wrote_keeps_its_own_layout() {
    let node = Node::bare();
    // With these a new system would not fit.
    node.config(SETTINGS);
    backup(&node, "data", "64M", "mkdir -p srv && seq 1000 > srv/numbers");
    let (old, stream) = (node.path().join("data.img"), node.path().join("stream"));
    let mut env = node.recorded("export", &old);
    for name in ["EXPORT_DEVICE", "EXPORT_DISK_PATH"] {
        env.insert(name.into(), old.display().to_string());
    }
    let output = node.verb("export", &env).stdout(File::create(&stream).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    let disk = node.disk("disk", 64 * MIB);
    imported(&node, &import_env(&node, &disk, &[]), &stream);
    fsck(&disk, 0, "ext4");
    assert_eq!(differences(&node.path().join("data"), &Mounted::at(&disk, 0)), <[String; 0]>::default());
}
