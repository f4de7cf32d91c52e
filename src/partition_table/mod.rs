//! Partition tables: GPT (UEFI specification, chapter 5) and MBR with logical partitions. Owns all that is known of them: the
//! layout of a new disk, reading, writing, growing, other identifiers. A table that contradicts itself, or reaches beyond
//! the disk, is an error and never a guess. Must not know what lies in a partition.

mod gpt;
mod grow;
pub mod layout;
mod mbr;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;

use anyhow::{Context, Error, Result, ensure};

pub use gpt::renew_gpt;
pub use grow::{Growth, grow_table};
pub use mbr::renew_mbr;
pub use write::{table_is_there, write_table};

use crate::reader::Region;

/// What is read at once; an MBR counts in these, whatever the disk has.
const SECTOR: u64 = 512;

/// Which kind of table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Gpt,
    Msdos,
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableKind::Gpt => "gpt",
            TableKind::Msdos => "msdos",
        })
    }
}

/// A partition: its number and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

/// A table that holds together: its partitions lie on the disk, and none in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub kind: TableKind,
    /// By number.
    pub partitions: Vec<Partition>,
}

/// Reads the table of a disk; `None` if it has none.
pub fn read(disk: &Region<'_>) -> Result<Option<Table>> {
    if disk.size_bytes() < 2 * SECTOR {
        return Ok(None);
    }
    let sector = read_sector(disk, 0)?;
    let Some(primary) = mbr::entries(&sector) else { return Ok(None) };
    // A boot sector without a table ends like an MBR; that of a filesystem may hold anything where the table would be.
    let plausible = primary.iter().all(|entry| entry.is_plausible());
    if !plausible || primary.iter().all(mbr::Entry::is_empty) {
        return Ok(None);
    }
    let table = if primary.iter().any(|entry| entry.is_protective()) {
        Table { kind: TableKind::Gpt, partitions: gpt::read(disk)? }
    } else {
        Table { kind: TableKind::Msdos, partitions: mbr::read(disk, &primary)? }
    };
    refuse_overlap(&table.partitions)?;
    Ok(Some(table))
}

/// Two owners of one sector: nothing that is read from it can be believed.
fn refuse_overlap(partitions: &[Partition]) -> Result<()> {
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|p| p.start_bytes);
    for pair in sorted.windows(2) {
        let end = pair[0].start_bytes + pair[0].size_bytes;
        ensure!(end <= pair[1].start_bytes, "partitions {} and {} overlap", pair[0].number, pair[1].number);
    }
    Ok(())
}

fn read_sector(disk: &Region<'_>, at: u64) -> Result<[u8; SECTOR as usize]> {
    let mut sector = [0u8; SECTOR as usize];
    disk.read_into(&mut sector, at)
        .map_err(Error::from)
        .with_context(|| format!("reading the partition table at byte {at}"))?;
    Ok(sector)
}
