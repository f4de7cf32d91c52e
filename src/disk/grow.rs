//! A table that came from a smaller disk: the last partition takes the room behind it, the copy of a GPT moves to the end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use gptman::GPT;

use super::SECTOR_BYTES;
use super::foreign::{Part, TableKind};

/// Partitions end at multiples of this, as every tool leaves them.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Where an MBR's entries stand in sector 0, and the sectors of each in them.
const MBR_ENTRIES_AT: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;
const MBR_SECTORS_AT: usize = 12;

/// A part that is larger now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    pub start_bytes: u64,
    pub size_bytes: u64,
}

/// Fits a table to a disk of `size_bytes`; all of it but sector 0 stands on `disk` already, and that is in `sector`. `last`
/// is the part that lies last and is to grow. Returns its new size; None where there is no room for it.
pub fn grow_table(
    disk: &File,
    size_bytes: u64,
    kind: Option<TableKind>,
    last: Option<&Part>,
    sector: &mut [u8; SECTOR_BYTES as usize],
) -> Result<Option<Growth>> {
    match kind {
        None => Ok(last.map(|part| Growth { start_bytes: part.start_bytes, size_bytes })),
        Some(TableKind::Gpt) => grow_gpt(disk, size_bytes, last, sector),
        Some(TableKind::Msdos) => Ok(grow_mbr(size_bytes, last, sector)),
    }
}

fn grow_gpt(
    disk: &File,
    size_bytes: u64,
    last: Option<&Part>,
    sector: &mut [u8; SECTOR_BYTES as usize],
) -> Result<Option<Growth>> {
    let context = "moving the copy of the partition table";
    let mut io = disk;
    let mut gpt = GPT::find_from(&mut io).context(context)?;
    let sector_bytes = gpt.sector_size;
    let old_copy =
        gpt.header.backup_lba.checked_mul(sector_bytes).filter(|at| *at < size_bytes - SECTOR_BYTES);
    gpt.header.update_from(&mut io, sector_bytes).context(context)?;
    let end = (gpt.header.last_usable_lba + 1) * sector_bytes / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    let growth = last.and_then(|part| {
        let size_bytes = end.checked_sub(part.start_bytes).filter(|size| *size > part.size_bytes)?;
        gpt[part.number?].ending_lba = end / sector_bytes - 1;
        Some(Growth { start_bytes: part.start_bytes, size_bytes })
    });
    if let Some(at) = old_copy.filter(|at| *at >= ALIGNMENT_BYTES) {
        disk.write_all_at(&[0; SECTOR_BYTES as usize], at).context(context)?;
    }
    gpt.write_into(&mut io).context(context)?;
    disk.sync_all().context(context)?;
    // The protective entry covers the disk as far as it can count.
    let sectors = u32::try_from(size_bytes / sector_bytes - 1).unwrap_or(u32::MAX);
    for entry in
        sector[MBR_ENTRIES_AT..510].chunks_exact_mut(MBR_ENTRY_BYTES).filter(|entry| entry[4] == 0xee)
    {
        entry[MBR_SECTORS_AT..].copy_from_slice(&sectors.to_le_bytes());
    }
    Ok(growth)
}

/// A primary partition that lies last; sectors are counted in 32 bits.
fn grow_mbr(
    size_bytes: u64,
    last: Option<&Part>,
    sector: &mut [u8; SECTOR_BYTES as usize],
) -> Option<Growth> {
    let part = last.filter(|part| part.number.is_some_and(|number| (1..=4).contains(&number)))?;
    let end = size_bytes.min(u64::from(u32::MAX) * SECTOR_BYTES) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    let size_bytes = end.checked_sub(part.start_bytes).filter(|size| *size > part.size_bytes)?;
    let at = MBR_ENTRIES_AT + (part.number? as usize - 1) * MBR_ENTRY_BYTES + MBR_SECTORS_AT;
    let sectors = u32::try_from(size_bytes / SECTOR_BYTES).ok()?;
    sector[at..at + 4].copy_from_slice(&sectors.to_le_bytes());
    Some(Growth { start_bytes: part.start_bytes, size_bytes })
}
