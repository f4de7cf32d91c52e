//! The MBR: four entries in sector 0, and a chain of tables in an extended partition.

use anyhow::{Result, ensure};

use super::{Partition, SECTOR, read_sector, u32_at};
use crate::reader::ReadAt;

/// Logical partitions in an MBR; Linux numbers a few dozen at most.
const LOGICAL_MAX: usize = 60;

pub(super) const TABLE_AT: usize = 446;
pub(super) const ENTRY_BYTES: usize = 16;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// One entry of an MBR; sectors of 512 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    active: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    pub fn is_empty(&self) -> bool {
        self.kind == 0
    }

    pub fn is_plausible(&self) -> bool {
        self.active & 0x7f == 0 && (self.is_empty() || (self.start > 0 && self.sectors > 0))
    }

    /// It stands for a GPT.
    pub fn is_protective(&self) -> bool {
        self.kind == PROTECTIVE
    }

    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// As a partition of a disk; `base` is where its start is counted from.
    fn partition(&self, number: u32, base: u64, size_bytes: u64) -> Result<Partition> {
        let start_bytes = (base + self.start) * SECTOR;
        let length = self.sectors * SECTOR;
        ensure!(
            start_bytes + length <= size_bytes,
            "partition {number} ends at byte {}, the disk at {size_bytes}",
            start_bytes + length
        );
        Ok(Partition { number, start_bytes, size_bytes: length })
    }
}

/// The four entries; None without the signature.
pub fn entries(sector: &[u8; SECTOR as usize]) -> Option<[Entry; 4]> {
    let entry = |index: usize| {
        let at = TABLE_AT + index * ENTRY_BYTES;
        let bytes = &sector[at..at + ENTRY_BYTES];
        Entry {
            active: bytes[0],
            kind: bytes[4],
            start: u32_at(bytes, 8).into(),
            sectors: u32_at(bytes, 12).into(),
        }
    };
    (sector[510..] == [0x55, 0xaa]).then(|| [entry(0), entry(1), entry(2), entry(3)])
}

/// Primary and logical partitions.
pub fn read(disk: &(impl ReadAt + ?Sized), size_bytes: u64, primary: &[Entry; 4]) -> Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(primary).filter(|(_, entry)| !entry.is_empty()) {
        let partition = entry.partition(number, 0, size_bytes)?;
        if !entry.is_extended() {
            partitions.push(partition);
            continue;
        }
        ensure!(extended.is_none(), "the partition table has two extended partitions");
        extended = Some(*entry);
    }
    if let Some(extended) = extended {
        read_logical(disk, size_bytes, &extended, &mut partitions)?;
    }
    Ok(partitions)
}

/// Follows the chain of tables in an extended partition: each begins behind the one before, so that it ends.
fn read_logical(
    disk: &(impl ReadAt + ?Sized),
    size_bytes: u64,
    extended: &Entry,
    partitions: &mut Vec<Partition>,
) -> Result<()> {
    let end = extended.start + extended.sectors;
    let mut at = extended.start;
    for number in 5.. {
        let sector = read_sector(disk, at * SECTOR)?;
        let Some([logical, link, _, _]) = entries(&sector) else {
            // An extended partition that was never divided.
            ensure!(at == extended.start, "the chain of logical partitions breaks off at sector {at}");
            return Ok(());
        };
        if !logical.is_empty() {
            let partition = logical.partition(number, at, size_bytes)?;
            // To a loop device no length is all that follows.
            ensure!(logical.sectors > 0, "partition {number} has no sectors");
            ensure!(
                logical.start > 0 && at + logical.start + logical.sectors <= end,
                "partition {number} lies outside the extended partition"
            );
            partitions.push(partition);
        }
        if link.is_empty() {
            return Ok(());
        }
        let next = extended.start + link.start;
        ensure!(link.is_extended(), "the chain of logical partitions breaks off at sector {at}");
        ensure!(next > at && next < end, "the chain of logical partitions leads from sector {at} to {next}");
        ensure!(number as usize - 4 < LOGICAL_MAX, "there are more than {LOGICAL_MAX} logical partitions");
        at = next;
    }
    Ok(())
}
