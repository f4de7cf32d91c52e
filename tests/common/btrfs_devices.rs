//! btrfs filesystems that say they have one device, and name another one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::bytes::{crc32c, read, write};
use super::small_guest::{Flavour, plant};
use super::{BlockDevice, Mounted, Node, tool};

/// Where a btrfs of this size has its superblocks.
pub const SUPERBLOCKS: [u64; 2] = [64 << 10, 64 << 20];
const DEVICES_AT: usize = 0x88;
pub const FLAGS_AT: usize = 0x38;

/// Changes a number in both superblocks, and makes their checksums right.
pub fn set_in_superblocks(disk: &Path, at: usize, value: u64) {
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

/// Two devices of one btrfs with a guest on it; the first one claims to be all of it.
pub fn pair(node: &Node, metadata: &str, data: &str) -> [PathBuf; 2] {
    let disks = ["one", "other"].map(|name| node.disk(name, 200 << 20));
    let [one, other] = disks.each_ref().map(|disk| BlockDevice::over(disk, &[]));
    let devices = [&one, &other].map(|device| device.0.to_str().unwrap().to_owned());
    tool("mkfs.btrfs", &["-q", "-f", "-m", metadata, "-d", data, &devices[0], &devices[1]]);
    tool("btrfs", &["device", "scan", &devices[0], &devices[1]]);
    plant(Mounted::with(&one.0, "noatime").path(), Flavour::Ifupdown);
    drop([one, other]);
    set_in_superblocks(&disks[0], DEVICES_AT, 1);
    disks
}

/// Changes the UUID of the device wherever the chunk tree names it, in the device's own item or in the stripes of chunks.
pub fn rename_device(disk: &Path, in_device_item: bool) {
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
