//! A filesystem that says it has one device, and has parts on another one that the node knows: no byte of the other one is
//! written, and none is read into a message.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::bytes::{crc32c, read, write};
use crate::common::small_guest::{Answer, Flavour, plant};
use crate::common::{BlockDevice, Mounted, Node, digest, tool};

const MIB: u64 = 1 << 20;
/// Where a btrfs of this size has its superblocks.
const SUPERBLOCKS: [u64; 2] = [64 << 10, 64 << 20];
const DEVICES_AT: usize = 0x88;
const FLAGS_AT: usize = 0x38;

/// Changes a number in both superblocks, and makes their checksums right.
fn set_in_superblocks(disk: &Path, at: usize, value: u64) {
    let file = File::options().read(true).write(true).open(disk).unwrap();
    for superblock in SUPERBLOCKS {
        let mut bytes: [u8; 4096] = read(&file, superblock);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let crc = !crc32c(&bytes[32..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        write(&file, superblock, &bytes);
    }
    file.sync_all().unwrap();
}

fn rename(node: &Node, disk: &Path) -> Answer {
    Answer::of(node.verb("rename", &node.recorded("rename", disk)))
}

/// Two devices of one btrfs with a guest on it; the first one claims to be all of it.
fn pair(node: &Node, metadata: &str, data: &str) -> [PathBuf; 2] {
    let disks = ["one", "other"].map(|name| node.disk(name, 200 * MIB));
    let [one, other] = disks.each_ref().map(|disk| BlockDevice::over(disk, &[]));
    let devices = [&one, &other].map(|device| device.0.to_str().unwrap().to_owned());
    tool("mkfs.btrfs", &["-q", "-f", "-m", metadata, "-d", data, &devices[0], &devices[1]]);
    tool("btrfs", &["device", "scan", &devices[0], &devices[1]]);
    plant(Mounted::with(&one.0, "noatime").path(), Flavour::Ifupdown);
    drop([one, other]);
    set_in_superblocks(&disks[0], DEVICES_AT, 1);
    disks
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

/// Changes the UUID of the device wherever the chunk tree names it, in the device's own item or in the stripes of chunks.
fn rename_device(disk: &Path, in_device_item: bool) {
    const NODE_BYTES: usize = 16 << 10;
    const CHUNK_TREE: [u8; 8] = 3u64.to_le_bytes();
    let mut bytes = fs::read(disk).unwrap();
    let superblock = SUPERBLOCKS[0] as usize;
    let of_superblock = |at: usize| bytes[superblock + at..][..16].to_vec();
    let (filesystem, device) = (of_superblock(0x20), of_superblock(0xc9 + 66));
    let mut changed = 0;
    for block in bytes.chunks_exact_mut(NODE_BYTES).skip(1) {
        if block[32..48] != filesystem || block[88..96] != CHUNK_TREE {
            continue;
        }
        for at in 101..=NODE_BYTES - 32 {
            // A device's item has the filesystem's UUID after that of the device.
            if block[at..at + 16] == device && (block[at + 16..at + 32] == filesystem) == in_device_item {
                block[at] ^= 1;
                changed += 1;
            }
        }
        let crc = !crc32c(&block[32..]);
        block[..4].copy_from_slice(&crc.to_le_bytes());
    }
    assert!(changed > 0);
    fs::write(disk, bytes).unwrap();
}

#[test]
fn a_btrfs_that_names_another_device_than_its_own_is_refused() {
    let node = Node::bare();
    for (in_device_item, refusal) in
        [(true, "names another device than its own"), (false, "a part of it lies on another device")]
    {
        let disk = node.disk("d", 128 * MIB);
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
    let disk = node.disk("d", 128 * MIB);
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
    let disk = node.disk("d", 128 * MIB);
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
