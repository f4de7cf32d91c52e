//! What of an xfs is in use, with its log. The input is a byte that chooses the size of the disk, then its sectors. Where the
//! byte says so, checksums are made right: of superblock, headers, trees and records.
#![no_main]

#[path = "../common/sparse.rs"]
mod sparse;

use ganeti_instance_debootstrap::allocation::xfs;
use ganeti_instance_debootstrap::reader::checksum::Crc32c;
use ganeti_instance_debootstrap::reader::integers::{be16, be32};
use libfuzzer_sys::fuzz_target;
use sparse::{SECTOR, Sparse};

const SIZES: [u64; 8] = [4 << 20, 16 << 20, 32 << 20, 64 << 20, 300 << 20, 1 << 30, 1 << 40, 1 << 62];
const RECORD: u32 = 0xfeed_babe;
const RECORD_MAX_BYTES: usize = 256 << 10;

fuzz_target!(|input: &[u8]| {
    let Some((choice, records)) = input.split_first() else { return };
    let mut disk = Sparse::of(SIZES[usize::from(choice & 7)], records);
    if choice & 8 != 0 {
        make_checksums_right(&mut disk);
    }
    sparse::answer(&disk, xfs::map);
});

fn make_checksums_right(disk: &mut Sparse) {
    let Some(superblock) = disk.bytes(0, 512) else { return };
    let block_bytes = (be32(&superblock, 4) as usize).clamp(512, 64 << 10);
    let sector_bytes = usize::from(be16(&superblock, 102)).clamp(512, 32 << 10);
    let starts: Vec<(u64, [u8; 4])> = disk
        .sectors
        .iter()
        .map(|(number, bytes)| (*number, [bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    for (number, magic) in starts {
        let at = number * SECTOR;
        let (length, checksum_at) = match &magic {
            b"XFSB" => (sector_bytes, 224),
            b"XAGF" => (sector_bytes, 216),
            b"AB3B" => (block_bytes, 52),
            magic if u32::from_be_bytes(*magic) == RECORD => {
                make_record_right(disk, at);
                continue;
            }
            _ => continue,
        };
        if let Some(bytes) = disk.bytes(at, length) {
            let sum = Crc32c::start().and_without(&bytes, checksum_at..checksum_at + 4).finished();
            disk.write(at + checksum_at as u64, &sum.to_le_bytes());
        }
    }
}

/// Over the units of its header, as far as they are described, and its data.
fn make_record_right(disk: &mut Sparse, at: u64) {
    let Some(header) = disk.bytes(at, 512) else { return };
    let length = be32(&header, 12) as usize;
    let units = (be32(&header, 320) as usize).div_ceil(32 << 10).clamp(1, 8);
    if length > RECORD_MAX_BYTES {
        return;
    }
    let mut sum = Crc32c::start().and_without(&header[..328], 32..36);
    for unit in 1..length.div_ceil(32 << 10).min(units) {
        let Some(further) = disk.bytes(at + unit as u64 * SECTOR, 260) else { return };
        sum = sum.and(&further);
    }
    let Some(data) = disk.bytes(at + units as u64 * SECTOR, length) else { return };
    disk.write(at + 32, &sum.and(&data).finished().to_le_bytes());
}
