//! What of an ext2, ext3 or ext4 filesystem is in use, with its journal. The input is a byte that chooses the size of the disk,
//! then its sectors. The checksum of the superblock is made right where the byte says so.
#![no_main]

#[path = "../common/sparse.rs"]
mod sparse;

use ganeti_instance_debootstrap::allocation::ext4;
use ganeti_instance_debootstrap::reader::checksum::Crc32c;
use libfuzzer_sys::fuzz_target;
use sparse::Sparse;

const SIZES: [u64; 8] = [1 << 18, 1 << 20, 2 << 20, 4 << 20, 24 << 20, 300 << 20, 1 << 40, 1 << 62];
const SUPERBLOCK: u64 = 1024;
const CHECKSUM: usize = 0x3fc;

fuzz_target!(|input: &[u8]| {
    let Some((choice, records)) = input.split_first() else { return };
    let mut disk = Sparse::of(SIZES[usize::from(choice & 7)], records);
    if choice & 8 != 0 {
        let superblock = disk.bytes(SUPERBLOCK, CHECKSUM).expect("a superblock");
        let sum = Crc32c::start().and(&superblock).value();
        disk.write(SUPERBLOCK + CHECKSUM as u64, &sum.to_le_bytes());
    }
    sparse::answer(&disk, ext4::map);
});
