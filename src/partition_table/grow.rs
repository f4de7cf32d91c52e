//! A table that came from a smaller disk: the last partition takes the room behind it, the copy of a GPT moves to the end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use gptman::GPT;

use super::{Partition, TableKind};
use crate::filesystem::SECTOR_BYTES;
use crate::partition_table;

/// Partitions end at multiples of this, as every tool leaves them.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Where an MBR's entries stand in sector 0, and in them the start and number of each one's sectors.
const MBR_ENTRIES_AT: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;
const MBR_START_AT: usize = 8;
const MBR_SECTORS_AT: usize = 12;

/// A part that is larger now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    pub start_bytes: u64,
    pub size_bytes: u64,
}

/// Fits a table to a disk of `size_bytes`; all of it but sector 0 is on `disk` already, and that is in `sector`. `last`
/// is the partition that lies last and is to grow. Returns its new size; None where there is no room for it.
pub fn grow_table(
    disk: &File,
    size_bytes: u64,
    kind: TableKind,
    last: Option<Partition>,
    sector: &mut [u8; SECTOR_BYTES as usize],
) -> Result<Option<Growth>> {
    match kind {
        TableKind::Gpt => grow_gpt(disk, size_bytes, last, sector),
        TableKind::Msdos => Ok(grow_mbr(size_bytes, last, sector)),
    }
}

fn grow_gpt(
    disk: &File,
    size_bytes: u64,
    last: Option<Partition>,
    sector: &mut [u8; SECTOR_BYTES as usize],
) -> Result<Option<Growth>> {
    let context = "moving the copy of the partition table";
    let mut io = disk;
    // A table that only our own reader takes stays as it is: whatever is odd about it, it is what was backed up.
    let Some(sector_bytes) = partition_table::primary_gpt(disk, size_bytes) else { return Ok(None) };
    let Some(mut gpt) = refused(GPT::read_from(&mut io, sector_bytes)).context(context)? else {
        return Ok(None);
    };
    let entries_bytes =
        u64::from(gpt.header.number_of_partition_entries) * u64::from(gpt.header.size_of_partition_entry);
    if !gpt.header.is_primary() || size_bytes < 2 * entries_bytes + ALIGNMENT_BYTES {
        return Ok(None);
    }
    let old_lba = gpt.header.backup_lba;
    // Where a partition lies, there never was a copy of this table.
    let in_use = gpt.iter().any(|(_, p)| p.is_used() && (p.starting_lba..=p.ending_lba).contains(&old_lba));
    let old_copy = old_lba.checked_mul(sector_bytes).filter(|_| !in_use);
    gpt.header.update_from(&mut io, sector_bytes).context(context)?;
    let usable_end = (gpt.header.last_usable_lba + 1) * sector_bytes;
    let end = usable_end / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    let growth = last.and_then(|part| {
        let size_bytes = end.checked_sub(part.start_bytes).filter(|size| *size > part.size_bytes)?;
        gpt[part.number].ending_lba = end / sector_bytes - 1;
        Some(Growth { start_bytes: part.start_bytes, size_bytes })
    });
    // Nothing is written before it is checked.
    if refused(gpt.write_into(&mut io)).context(context)?.is_none() {
        return Ok(None);
    }
    if let Some(at) = old_copy.filter(|at| (ALIGNMENT_BYTES..usable_end).contains(at)) {
        disk.write_all_at(&[0; SECTOR_BYTES as usize], at).context(context)?;
    }
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

/// None where the table is not to its reader's taste; what cannot be read or written is an error.
fn refused<T>(answer: gptman::Result<T>) -> Result<Option<T>, gptman::Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(
            error @ (gptman::Error::Io(_) | gptman::Error::Deserialize(_) | gptman::Error::Seserialize(_)),
        ) => Err(error),
        Err(_) => Ok(None),
    }
}

/// A primary partition that lies last; sectors are counted in 32 bits.
fn grow_mbr(
    size_bytes: u64,
    last: Option<Partition>,
    sector: &mut [u8; SECTOR_BYTES as usize],
) -> Option<Growth> {
    let part = last.filter(|part| (1..=4).contains(&part.number))?;
    // An extended partition without a logical one lies behind everything, too, and is no part.
    let entries = sector[MBR_ENTRIES_AT..510].chunks_exact(MBR_ENTRY_BYTES);
    let starts = entries.filter(|entry| entry[4] != 0).map(|entry| le32(&entry[MBR_START_AT..]));
    if starts.max().is_some_and(|start| u64::from(start) * SECTOR_BYTES > part.start_bytes) {
        return None;
    }
    let end = size_bytes.min(u64::from(u32::MAX) * SECTOR_BYTES) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    let size_bytes = end.checked_sub(part.start_bytes).filter(|size| *size > part.size_bytes)?;
    let at = MBR_ENTRIES_AT + (part.number as usize - 1) * MBR_ENTRY_BYTES + MBR_SECTORS_AT;
    let sectors = u32::try_from(size_bytes / SECTOR_BYTES).ok()?;
    sector[at..at + 4].copy_from_slice(&sectors.to_le_bytes());
    Some(Growth { start_bytes: part.start_bytes, size_bytes })
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition_table;

    const OLD_BYTES: u64 = 8 << 20;
    const NEW_BYTES: u64 = 24 << 20;

    /// A disk with a GPT of a smaller one; `change` gets the table before it is written.
    fn disk(change: impl FnOnce(&mut GPT)) -> File {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(OLD_BYTES).unwrap();
        let mut gpt = GPT::new_from(&mut disk, SECTOR_BYTES, [1; 16]).unwrap();
        for (number, start) in [(1, 4096), (2, 2048)] {
            gpt[number] = gptman::GPTPartitionEntry {
                partition_type_guid: [7; 16],
                unique_partition_guid: [number as u8; 16],
                starting_lba: start,
                ending_lba: start + 2047,
                attribute_bits: 0,
                partition_name: "x".into(),
            };
        }
        change(&mut gpt);
        let entries = gpt.iter().map(|(_, entry)| entry.clone()).collect::<Vec<_>>();
        let count = gpt.header.number_of_partition_entries as usize;
        gpt.header.write_into(&mut disk, SECTOR_BYTES, &entries[..count.min(entries.len())]).unwrap();
        GPT::write_protective_mbr_into(&mut disk, SECTOR_BYTES).unwrap();
        disk.set_len(NEW_BYTES).unwrap();
        disk
    }

    fn grow(disk: &File) -> Result<Option<Growth>> {
        let new_bytes = disk.metadata().unwrap().len();
        let mut sector = [0; 512];
        disk.read_exact_at(&mut sector, 0).unwrap();
        let table = partition_table::read(disk, new_bytes).unwrap().unwrap();
        let last = table.partitions.iter().max_by_key(|part| part.start_bytes);
        grow_table(disk, new_bytes, table.kind, last.copied(), &mut sector)
    }

    #[test]
    fn the_last_partition_takes_the_room_behind_it() {
        let disk = disk(|_| {});
        let growth = grow(&disk).unwrap().unwrap();
        assert_eq!(growth, Growth { start_bytes: 2 << 20, size_bytes: (23 - 2) << 20 });
        let parts = partition_table::read(&disk, NEW_BYTES).unwrap().unwrap().partitions;
        assert_eq!(parts[0].size_bytes, growth.size_bytes);
    }

    #[test]
    fn the_copy_is_whole_however_little_is_added() {
        for added in [512, 4096, 16 << 10, 17 << 10, 1 << 20] {
            let disk = disk(|_| {});
            let new_bytes = OLD_BYTES + added;
            disk.set_len(new_bytes).unwrap();
            grow(&disk).unwrap();
            disk.write_all_at(&[0; 512], 512).unwrap();
            let parts = partition_table::read(&disk, new_bytes).unwrap().unwrap().partitions;
            assert_eq!(parts.len(), 2, "{added}");
        }
    }

    #[test]
    fn a_table_that_cannot_be_grown_stays_as_it_is() {
        type Change = fn(&mut GPT);
        let changes: [(&str, Change); 4] = [
            ("no entries", |gpt| gpt.header.number_of_partition_entries = 0),
            ("one GUID twice", |gpt| gpt[2].unique_partition_guid = gpt[1].unique_partition_guid),
            ("another revision", |gpt| gpt.header.revision = [9, 9, 1, 0]),
            ("a partition on the entries", |gpt| gpt[2].starting_lba = 3),
        ];
        for (what, change) in changes {
            let disk = disk(change);
            let before: Vec<u8> = head(&disk);
            assert_eq!(grow(&disk).unwrap(), None, "{what}");
            assert!(head(&disk) == before, "{what}");
        }
    }

    fn head(disk: &File) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}
