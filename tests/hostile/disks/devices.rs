//! A filesystem that says it has one device, and has parts on another one that the node knows: no byte of the other one is
//! written, and none is read into a message.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::btrfs_devices::{FLAGS_AT, SUPERBLOCKS, pair, rename_device, set_in_superblocks};
use crate::common::small_guest::{Answer, Flavour, plant};
use crate::common::{BlockDevice, Mounted, Node, digest, tool};

fn rename(node: &Node, disk: &Path) -> Answer {
    Answer::of(node.verb("rename", &node.recorded("rename", disk)))
}

#[test]
fn a_btrfs_that_has_parts_on_another_device_is_refused_and_the_other_one_stays_as_it_was() {
    let node = Node::bare();
    for (metadata, data) in [("raid1", "raid1"), ("dup", "raid0"), ("single", "single")] {
        let [one, other] = pair(&node, metadata, data);
        // The node knows the other device, as udev makes every node know its btrfs.
        let known = BlockDevice::over(&other, &[]);
        tool("btrfs", &["device", "scan", known.0.to_str().unwrap()]);
        let before = [digest(&one), digest(&other)];
        let answer = rename(&node, &one);
        assert!(!answer.done, "{data}: {}", answer.log);
        assert!(answer.log.contains("reaches for another one"), "{data}: {}", answer.log);
        assert_eq!([digest(&one), digest(&other)], before, "{data}: {}", answer.log);
        tool("btrfs", &["device", "scan", "--forget", known.0.to_str().unwrap()]);
        drop(known);
        node.assert_nothing_left();
        for disk in [one, other] {
            fs::remove_file(disk).unwrap();
        }
    }
}

#[test]
fn a_btrfs_that_names_another_device_than_its_own_is_refused() {
    let node = Node::bare();
    for (in_device_item, refusal) in
        [(true, "names another device than its own"), (false, "a part of it lies on another device")]
    {
        let disk = node.disk("d", 128 << 20);
        tool("mkfs.btrfs", &["-q", "-f", disk.to_str().unwrap()]);
        plant(Mounted::with(&disk, "loop,noatime").path(), Flavour::Ifupdown);
        rename_device(&disk, in_device_item);
        let before = digest(&disk);
        let answer = rename(&node, &disk);
        assert!(!answer.done && answer.log.contains(refusal), "{}", answer.log);
        assert_eq!(digest(&disk), before, "{}", answer.log);
        node.assert_nothing_left();
        fs::remove_file(disk).unwrap();
    }
}

#[test]
fn a_btrfs_of_a_kind_that_others_may_share_is_refused() {
    const SEEDING: u64 = 1 << 32;
    let node = Node::bare();
    let disk = node.disk("d", 128 << 20);
    tool("mkfs.btrfs", &["-q", "-f", disk.to_str().unwrap()]);
    plant(Mounted::with(&disk, "loop,noatime").path(), Flavour::Ifupdown);
    set_in_superblocks(&disk, FLAGS_AT, 1 | SEEDING);
    let before = digest(&disk);
    let answer = rename(&node, &disk);
    assert!(!answer.done && digest(&disk) == before, "{}", answer.log);
    node.assert_nothing_left();
}

#[test]
fn a_btrfs_whose_uuid_was_changed_is_served() {
    let node = Node::bare();
    let disk = node.disk("d", 128 << 20);
    tool("mkfs.btrfs", &["-q", "-f", disk.to_str().unwrap()]);
    plant(Mounted::with(&disk, "loop,noatime").path(), Flavour::Ifupdown);
    tool("btrfstune", &["-f", "-m", disk.to_str().unwrap()]);
    let answer = rename(&node, &disk);
    assert!(answer.done, "{}", answer.log);
    let mut incompatible = [0; 8];
    File::open(&disk).unwrap().read_exact_at(&mut incompatible, SUPERBLOCKS[0] + 0xbc).unwrap();
    assert!(u64::from_le_bytes(incompatible) & 0x400 != 0, "it has a UUID of its metadata");
    node.assert_nothing_left();
}
