//! A disk that reaches for another one, on Debian's own kernel: udev makes that kernel know every btrfs of the node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::btrfs_devices::{FLAGS_AT, pair, rename_device, set_in_superblocks};
use crate::common::guest::{Firmware, Guest};
use crate::common::small_guest::{Flavour, NEW_NAME, OLD_NAME, plant};
use crate::common::{GIB, Mounted, Node, PROGRAM, digest, root_offset, tool};

/// A btrfs of one device with a guest on it.
fn single(node: &Node, name: &str) -> PathBuf {
    single_with(node, name, &[])
}

fn single_with(node: &Node, name: &str, options: &[&str]) -> PathBuf {
    let disk = node.disk(name, 128 << 20);
    tool("mkfs.btrfs", &[&["-q", "-f"], options, &[disk.to_str().unwrap()]].concat());
    plant(Mounted::with(&disk, "loop,noatime").path(), Flavour::Ifupdown);
    disk
}

/// Makes a disk the newer one of two with the same UUID.
fn live_on(disk: &Path) {
    let mounted = Mounted::with(disk, "loop,noatime");
    for number in 0..20 {
        fs::write(mounted.path().join("etc/number"), number.to_string()).unwrap();
        tool("sync", &["-f", mounted.path().to_str().unwrap()]);
    }
}

/// Puts the program on a node's disk, with a script that renames the instance on a device as Ganeti would.
fn equip(node: &Node, disk: &Path) {
    let root = Mounted::with(disk, &format!("loop,offset={}", root_offset(disk)));
    fs::copy(PROGRAM, root.path().join("usr/local/bin/program")).unwrap();
    let env: BTreeMap<String, String> = node.recorded("rename", Path::new("@disk@"));
    let words: Vec<String> = env.iter().map(|(name, value)| format!("'{name}={value}'")).collect();
    let words = words.join(" ").replace("'DISK_0_PATH=@disk@'", "DISK_0_PATH=\"$1\"");
    fs::write(root.path().join("root/rename"), format!("env -i {words} /usr/local/bin/program rename\n"))
        .unwrap();
}

/// What the rename of a refused disk says, in the order of the disks.
fn refused(node: &Node) -> Vec<(PathBuf, &'static str)> {
    const SEEDING: u64 = 1 << 32;
    let mut disks = Vec::new();
    for (metadata, data) in [("raid1", "raid1"), ("dup", "raid0")] {
        let [one, other] = pair(node, metadata, data).map(|disk| {
            let own = disk.with_file_name(format!("{data}-{}", disk.file_name().unwrap().to_str().unwrap()));
            fs::rename(&disk, &own).unwrap();
            own
        });
        disks.push((one, "reaches for another one"));
        // The other one is no guest's here: it is what must stay as it is.
        disks.push((other, ""));
    }
    for (name, in_item, refusal) in
        [("item", true, "names another device than its own"), ("stripe", false, "lies on another device")]
    {
        let disk = single(node, name);
        rename_device(&disk, in_item);
        disks.push((disk, refusal));
    }
    let seeding = single(node, "seeding");
    set_in_superblocks(&seeding, FLAGS_AT, 1 | SEEDING);
    disks.push((seeding, "are not known"));
    disks
}

#[test]
fn a_kernel_that_knows_all_btrfs_of_the_node_writes_no_other_one() {
    let node = Node::bootable("trixie");
    let host = node.disk("host", 3 * GIB);
    node.create(&node.kvm(&host, &[("suite", "trixie")]));
    equip(&node, &host);
    let refused = refused(&node);
    let served = single(&node, "served");
    tool("btrfstune", &["-f", "-m", served.to_str().unwrap()]);
    let disks: Vec<&Path> =
        refused.iter().map(|(disk, _)| disk.as_path()).chain([served.as_path()]).collect();
    let before: Vec<_> = disks.iter().map(|disk| digest(disk)).collect();
    let drives: Vec<String> = disks
        .iter()
        .map(|disk| format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()))
        .collect();
    let options: Vec<&str> = drives.iter().flat_map(|drive| ["-drive", drive]).collect();
    let mut guest = Guest::boot(Firmware::SeaBios, &host, &options);
    guest.login(None);
    let letters = || (b'b'..=b'z').map(|letter| format!("/dev/vd{}", char::from(letter)));
    guest.run("modprobe -a btrfs loop && udevadm trigger --settle --subsystem-match=block");
    assert!(guest.run("udevadm info /dev/vdc").contains("ID_BTRFS_READY="), "udev asked the kernel about it");
    for (device, (disk, refusal)) in letters().zip(&refused).filter(|(_, (_, refusal))| !refusal.is_empty()) {
        let (status, log) = guest.try_run(&format!("sh rename {device}"));
        assert!(status == 1 && log.contains(refusal), "{}: {status}\n{log}", disk.display());
    }
    let device = letters().nth(refused.len()).unwrap();
    guest.run(&format!("sh rename {device}"));
    assert_eq!(guest.run("losetup -a; findmnt -rno TARGET -t btrfs || :"), "");
    guest.power_off();
    for (index, disk) in disks.iter().enumerate() {
        let is_same = digest(disk) == before[index];
        assert_eq!(is_same, *disk != served, "{}", disk.display());
    }
    let root = Mounted::with(&served, "loop,ro");
    assert_eq!(root.read("etc/hostname").replace(NEW_NAME, OLD_NAME), format!("{OLD_NAME}\n"));
    assert!(root.read("etc/hostname").contains(NEW_NAME));
    drop(root);
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn a_disk_with_the_uuid_of_another_one_is_renamed_itself_or_refused() {
    namesakes("trixie");
}

/// The kernel of bookworm takes two devices with one UUID for parts of one filesystem.
#[test]
#[ignore = "run by make test-full"]
fn a_disk_with_the_uuid_of_another_one_is_renamed_itself_or_refused_by_older_kernels() {
    namesakes("bookworm");
}

/// Another guest's disk has the filesystem's UUID, and is newer: one that was made for it, and a copy.
fn namesakes(suite: &str) {
    const UUID: &str = "11111111-2222-4333-8444-555555555555";
    let node = Node::bootable(suite);
    let host = node.disk("host", 3 * GIB);
    node.create(&node.kvm(&host, &[("suite", suite)]));
    equip(&node, &host);
    let own = single_with(&node, "own", &["-U", UUID]);
    let other = single_with(&node, "other", &["-U", UUID]);
    let copy = node.path().join("disks/copy");
    fs::copy(&own, &copy).unwrap();
    [&other, &copy].into_iter().for_each(|disk| live_on(disk));
    for namesake in [&other, &copy] {
        let before = digest(namesake);
        let disks =
            [&own, namesake].map(|disk| format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
        let mut guest = Guest::boot(Firmware::SeaBios, &host, &["-drive", &disks[0], "-drive", &disks[1]]);
        guest.login(None);
        guest.run("modprobe -a btrfs loop && udevadm trigger --settle --subsystem-match=block");
        guest.run("sh scan /dev/vdc >/dev/null 2>&1 & sleep 1");
        for _ in 0..4 {
            let (status, log) = guest.try_run("sh rename /dev/vdb");
            assert!(status == 0 || log.contains("error: "), "{log}");
            assert!(!log.contains("stack backtrace"), "{log}");
        }
        guest.run("kill %1; losetup -a");
        guest.power_off();
        assert!(digest(namesake) == before, "{}", namesake.display());
    }
    node.assert_nothing_left();
}
