//! What of a btrfs is in use, with its log trees. The input is a byte that chooses the size of the disk, then its sectors. Where
//! the byte says so, checksums are made right: of the superblock, and of what bears its UUID.
#![no_main]

#[path = "../common/sparse.rs"]
mod sparse;

use ganeti_instance_debootstrap::allocation::btrfs;
use ganeti_instance_debootstrap::reader::checksum::Crc32c;
use ganeti_instance_debootstrap::reader::integers::le32;
use libfuzzer_sys::fuzz_target;
use sparse::{SECTOR, Sparse};

const SIZES: [u64; 8] = [2 << 20, 4 << 20, 64 << 20, 128 << 20, 300 << 20, 1 << 30, 1 << 40, 1 << 62];
const SUPERBLOCK: u64 = 64 << 10;

fuzz_target!(|input: &[u8]| {
    let Some((choice, records)) = input.split_first() else { return };
    let mut disk = Sparse::of(SIZES[usize::from(choice & 7)], records);
    if choice & 8 != 0 {
        make_checksums_right(&mut disk);
    }
    sparse::answer(&disk, btrfs::map);
});

fn make_checksums_right(disk: &mut Sparse) {
    let Some(superblock) = disk.bytes(SUPERBLOCK, 4096) else { return };
    let node_bytes = le32(&superblock, 0x94) as usize;
    let mut sums = vec![(SUPERBLOCK, Crc32c::of(&superblock[32..]))];
    if (4096..=65536).contains(&node_bytes) {
        for number in disk.sectors.keys().filter(|number| **number * SECTOR != SUPERBLOCK) {
            let node = disk.bytes(number * SECTOR, node_bytes);
            let node = node.filter(|node| node[32..48] == superblock[0x20..0x30]);
            sums.extend(node.map(|node| (number * SECTOR, Crc32c::of(&node[32..]))));
        }
    }
    sums.into_iter().for_each(|(at, sum)| disk.write(at, &sum.to_le_bytes()));
}
