//! A table that came from a smaller disk: the last partition takes the room behind it, the copy of a GPT moves to the end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::gpt::{Gpt, entry};
use super::{Partition, TableKind, mbr};
use crate::filesystem::SECTOR_BYTES;
use crate::reader::{Budget, Region};

/// Partitions end at multiples of this, as every tool leaves them.
const ALIGNMENT_BYTES: u64 = 1 << 20;

type Sector = [u8; SECTOR_BYTES as usize];

/// A part that is larger now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    pub start_bytes: u64,
    pub size_bytes: u64,
}

impl Growth {
    /// A partition that takes the room up to `end_bytes`. `None` if there is no room.
    fn of(partition: Partition, end_bytes: u64) -> Option<Growth> {
        let end = end_bytes / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
        let start_bytes = partition.start_bytes;
        let size_bytes = end.checked_sub(start_bytes).filter(|size| *size > partition.size_bytes)?;
        Some(Growth { start_bytes, size_bytes })
    }

    fn end_bytes(&self) -> u64 {
        self.start_bytes + self.size_bytes
    }
}

/// Fits a table to a disk of `size_bytes`. All of the disk but sector 0 is on `disk` already, and that is in `sector`.
/// `last` is the partition that lies last and is to grow. Returns its new size, or `None` if there is no room for it.
pub fn grow_table(
    disk: &File,
    size_bytes: u64,
    kind: TableKind,
    last: Option<Partition>,
    sector: &mut Sector,
) -> Result<Option<Growth>> {
    match kind {
        TableKind::Gpt => {
            grow_gpt(disk, size_bytes, last, sector).context("moving the copy of the partition table")
        }
        TableKind::Msdos => Ok(grow_mbr(size_bytes, last, sector)),
    }
}

fn grow_gpt(
    disk: &File,
    size_bytes: u64,
    last: Option<Partition>,
    sector: &mut Sector,
) -> Result<Option<Growth>> {
    // A table that is not as tools make it stays as it is: whatever is odd about it, it is what was backed up.
    let budget = Budget::of_disk(size_bytes);
    let Some(mut table) = Gpt::primary(&Region::new(disk, &budget, 0, size_bytes)) else { return Ok(None) };
    let sector_bytes = table.sector_bytes;
    let sectors = size_bytes / sector_bytes;
    let old_lba = table.other_lba();
    // Where a partition lies, there never was a copy of this table.
    let old_copy = old_lba.checked_mul(sector_bytes).filter(|_| !table.covers(old_lba));
    let Some(usable) = table.place(sectors) else { return Ok(None) };
    let usable_end = usable.end * sector_bytes;
    let growth = last.and_then(|partition| Growth::of(partition, usable_end));
    if let (Some(growth), Some(partition)) = (growth, last) {
        let Some(bytes) = table.entry_mut(partition.number) else { return Ok(None) };
        let last_lba = growth.end_bytes() / sector_bytes - 1;
        bytes[entry::LAST_LBA..entry::LAST_LBA + 8].copy_from_slice(&last_lba.to_le_bytes());
    }
    // Nothing is written before it is checked.
    if !table.is_sound(&usable) {
        return Ok(None);
    }
    table.write_both(disk)?;
    if let Some(at) = old_copy.filter(|at| (ALIGNMENT_BYTES..usable_end).contains(at)) {
        disk.write_all_at(&[0; SECTOR_BYTES as usize], at)?;
    }
    disk.sync_all()?;
    cover_disk(sector, sectors);
    Ok(growth)
}

/// The protective entry of a GPT covers the disk as far as it can count.
fn cover_disk(sector: &mut Sector, disk_sectors: u64) {
    let sectors = u32::try_from(disk_sectors - 1).unwrap_or(u32::MAX);
    let entries = mbr::entries(sector).into_iter().flatten();
    for (number, _) in (1..).zip(entries).filter(|(_, entry)| entry.is_protective()) {
        mbr::resize(sector, number, sectors);
    }
}

/// Grows a primary partition that lies last; sectors are counted in 32 bits.
fn grow_mbr(size_bytes: u64, last: Option<Partition>, sector: &mut Sector) -> Option<Growth> {
    let part = last.filter(|part| (1..=4).contains(&part.number))?;
    // An extended partition without a logical one lies behind everything, too, and is no part.
    let mut entries = mbr::entries(sector)?.into_iter().filter(|entry| !entry.is_empty());
    if entries.any(|entry| entry.start_bytes() > part.start_bytes) {
        return None;
    }
    let growth = Growth::of(part, size_bytes.min(u64::from(u32::MAX) * SECTOR_BYTES))?;
    mbr::resize(sector, part.number, u32::try_from(growth.size_bytes / SECTOR_BYTES).ok()?);
    Some(growth)
}
