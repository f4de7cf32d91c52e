//! The GPT at either end of a disk: read, and given other GUIDs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use super::{Partition, SECTOR, read_sector, u32_at};
use crate::reader::ReadAt;

/// Sectors that guests see: 512 bytes, or 4096 on some disks.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The UEFI specification asks for room for 128; nobody makes more than this.
const ENTRIES_MAX: u32 = 1024;
pub(super) const ENTRY_BYTES: u32 = 128;
const ENTRY_BYTES_MAX: u32 = 4096;
const HEADER_BYTES: u32 = 92;

/// The primary table, or the backup at the end of the disk where the primary is damaged.
pub fn read(disk: &(impl ReadAt + ?Sized), size_bytes: u64) -> Result<Vec<Partition>> {
    let mut damage = Vec::new();
    for sector_bytes in SECTOR_SIZES {
        let last = (size_bytes / sector_bytes).saturating_sub(1);
        for (which, lba) in [("primary", 1), ("backup", last)] {
            let header = read_header(disk, size_bytes, sector_bytes, lba);
            match header.and_then(|header| read_entries(disk, size_bytes, &header)) {
                Ok(partitions) => return Ok(partitions),
                Err(error) => damage.push(format!("{which} of {sector_bytes}-byte sectors: {error:#}")),
            }
        }
    }
    bail!("the disk is marked as GPT, but has no table that is whole ({})", damage.join("; "))
}

/// The sectors, in bytes, of a primary GPT that is whole, has room for partitions, and entries of the usual size: what
/// another reader can be let at.
pub fn primary_gpt(disk: &(impl ReadAt + ?Sized), size_bytes: u64) -> Option<u64> {
    let whole = |sector_bytes| {
        let header = read_header(disk, size_bytes, sector_bytes, 1).ok()?;
        read_entries(disk, size_bytes, &header).ok().map(|_| header)
    };
    let first = SECTOR_SIZES.into_iter().find_map(whole)?;
    (first.count > 0 && first.entry_bytes == ENTRY_BYTES).then_some(first.sector_bytes)
}

/// Gives a GPT, and its copy where that is whole, other GUIDs in place: the disk's and those of its partitions, each of
/// which `new` makes of the old one. What is not whole stays as it is, and is read by nobody.
pub fn renew_gpt(disk: &File, size_bytes: u64, mut new: impl FnMut(Uuid) -> Uuid) -> Result<()> {
    let old = read(disk, size_bytes)?;
    let mut renew = |bytes: &mut [u8]| {
        let uuid = Uuid::from_bytes_le(std::array::from_fn(|at| bytes[at]));
        bytes.copy_from_slice(&new(uuid).to_bytes_le());
    };
    for sector_bytes in SECTOR_SIZES {
        // Both are read before one is written: they may share their entries.
        let mut writes = Vec::new();
        for lba in [1, (size_bytes / sector_bytes).saturating_sub(1)] {
            let Ok(header) = read_header(disk, size_bytes, sector_bytes, lba) else { continue };
            let Ok(mut entries) = entries_bytes(disk, &header) else { continue };
            let used = entries.chunks_exact_mut(header.entry_bytes as usize).filter(|entry| is_used(entry));
            used.for_each(|entry| renew(&mut entry[16..32]));
            let mut sector = read_sector(disk, lba * sector_bytes)?;
            renew(&mut sector[56..72]);
            sector[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            sector[16..20].fill(0);
            let crc = crc32(&sector[..u32_at(&sector, 12) as usize]);
            sector[16..20].copy_from_slice(&crc.to_le_bytes());
            writes.extend([(header.entries_at, entries), (lba * sector_bytes, sector.to_vec())]);
        }
        for (at, bytes) in &writes {
            disk.write_all_at(bytes, *at)
                .with_context(|| format!("writing the partition table at byte {at}"))?;
        }
        if !writes.is_empty() {
            break;
        }
    }
    ensure!(read(disk, size_bytes)? == old, "the partition table lies over itself");
    Ok(())
}

/// What a header says of its entries, checked.
pub(super) struct Header {
    sector_bytes: u64,
    entries_at: u64,
    pub(super) entry_bytes: u32,
    count: u32,
    entries_crc: u32,
}

pub(super) fn read_header(
    disk: &(impl ReadAt + ?Sized),
    size_bytes: u64,
    sector_bytes: u64,
    lba: u64,
) -> Result<Header> {
    let sectors = size_bytes / sector_bytes;
    ensure!(lba > 0 && lba < sectors, "the disk is too small");
    let mut sector = read_sector(disk, lba * sector_bytes)?;
    ensure!(sector[..8] == *b"EFI PART", "no header");
    let header_bytes = u32_at(&sector, 12);
    ensure!((HEADER_BYTES..=SECTOR as u32).contains(&header_bytes), "a header of {header_bytes} bytes");
    let crc = u32_at(&sector, 16);
    sector[16..20].fill(0);
    ensure!(crc32(&sector[..header_bytes as usize]) == crc, "the header's checksum is wrong");
    ensure!(u64_at(&sector, 24) == lba, "the header says it stands at sector {}", u64_at(&sector, 24));
    let (entries_lba, count, entry_bytes) = (u64_at(&sector, 72), u32_at(&sector, 80), u32_at(&sector, 84));
    ensure!(
        entry_bytes.is_power_of_two() && (ENTRY_BYTES..=ENTRY_BYTES_MAX).contains(&entry_bytes),
        "entries of {entry_bytes} bytes"
    );
    ensure!(count <= ENTRIES_MAX, "{count} entries; at most {ENTRIES_MAX} are read");
    let bytes = u64::from(count) * u64::from(entry_bytes);
    let fits = entries_lba > 0
        && entries_lba < sectors
        && entries_lba * sector_bytes + bytes <= size_bytes
        && !(entries_lba..entries_lba + bytes.div_ceil(sector_bytes)).contains(&lba);
    ensure!(fits, "the entries are said to stand at sector {entries_lba}");
    let entries_at = entries_lba * sector_bytes;
    Ok(Header { sector_bytes, entries_at, entry_bytes, count, entries_crc: u32_at(&sector, 88) })
}

fn read_entries(disk: &(impl ReadAt + ?Sized), size_bytes: u64, header: &Header) -> Result<Vec<Partition>> {
    let bytes = entries_bytes(disk, header)?;
    let sectors = size_bytes / header.sector_bytes;
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(bytes.chunks_exact(header.entry_bytes as usize)) {
        if !is_used(entry) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        ensure!(
            first > 0 && first <= last && last < sectors,
            "partition {number} goes from sector {first} to {last}, the disk has {sectors}"
        );
        partitions.push(Partition {
            number,
            start_bytes: first * header.sector_bytes,
            size_bytes: (last - first + 1) * header.sector_bytes,
        });
    }
    Ok(partitions)
}

/// The entries as they stand there, with the right checksum.
pub(super) fn entries_bytes(disk: &(impl ReadAt + ?Sized), header: &Header) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; header.count as usize * header.entry_bytes as usize];
    disk.read_into(&mut bytes, header.entries_at).context("reading the entries")?;
    ensure!(crc32(&bytes) == header.entries_crc, "the entries' checksum is wrong");
    Ok(bytes)
}

/// A partition has a type.
pub(super) fn is_used(entry: &[u8]) -> bool {
    entry[..16].iter().any(|byte| *byte != 0)
}

pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
