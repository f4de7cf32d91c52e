//! The MBR: four entries in sector 0, and a chain of tables in an extended partition. All its sectors have 512 bytes.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Partition, SECTOR, read_sector};
use crate::reader::Region;
use crate::reader::integers::le32;

/// Logical partitions in an MBR; Linux numbers a few dozen at most.
const LOGICAL_MAX: usize = 60;

/// Where the disk has its signature, of which PARTUUIDs are made.
const DISK_SIGNATURE: Range<usize> = 440..444;
/// The end of every sector with a table.
pub(super) const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const SIGNATURE_AT: usize = 510;
const TABLE_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
/// The active partition of a BIOS.
const ACTIVE: u8 = 0x80;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Where the bytes of an entry of sector 0 are; numbers begin at 1.
fn place(number: u32) -> Range<usize> {
    let at = TABLE_AT + (number as usize - 1) * ENTRY_BYTES;
    at..at + ENTRY_BYTES
}

/// One entry of an MBR.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    active: u8,
    kind: u8,
    /// Cylinder, head and sector of the first and the last sector: zeros, but for the entry that stands for a GPT.
    chs: [[u8; 3]; 2],
    start: u32,
    sectors: u32,
}

impl Entry {
    /// An entry of a new table. What 32 bits cannot count is cut off; layouts refuse such a disk.
    pub fn new(is_active: bool, kind: u8, start: u64, sectors: u64) -> Entry {
        let count = |sectors: u64| u32::try_from(sectors).unwrap_or(u32::MAX);
        let active = if is_active { ACTIVE } else { 0 };
        Entry { active, kind, chs: [[0; 3]; 2], start: count(start), sectors: count(sectors) }
    }

    /// The entry that stands for a GPT (UEFI specification, table 5.4) on a disk of `disk_sectors`.
    pub fn protective(disk_sectors: u64) -> Entry {
        let chs = [[0x00, 0x02, 0x00], [0xff, 0xff, 0xff]];
        Entry { chs, ..Entry::new(false, PROTECTIVE, 1, disk_sectors - 1) }
    }

    fn read(bytes: &[u8]) -> Entry {
        Entry {
            active: bytes[0],
            kind: bytes[4],
            chs: [[bytes[1], bytes[2], bytes[3]], [bytes[5], bytes[6], bytes[7]]],
            start: le32(bytes, 8),
            sectors: le32(bytes, 12),
        }
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0] = self.active;
        bytes[1..4].copy_from_slice(&self.chs[0]);
        bytes[4] = self.kind;
        bytes[5..8].copy_from_slice(&self.chs[1]);
        bytes[8..12].copy_from_slice(&self.start.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sectors.to_le_bytes());
    }

    pub fn is_empty(&self) -> bool {
        self.kind == 0
    }

    pub fn is_plausible(&self) -> bool {
        self.active & 0x7f == 0 && (self.is_empty() || (self.start > 0 && self.sectors > 0))
    }

    /// Whether it stands for a GPT.
    pub fn is_protective(&self) -> bool {
        self.kind == PROTECTIVE
    }

    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    pub fn start_bytes(&self) -> u64 {
        u64::from(self.start) * SECTOR
    }

    /// As a partition of a disk of `size_bytes`; `base` is the sector from which its start is counted.
    fn partition(&self, number: u32, base: u64, size_bytes: u64) -> Result<Partition> {
        let start_bytes = base * SECTOR + self.start_bytes();
        let length = u64::from(self.sectors) * SECTOR;
        ensure!(
            start_bytes + length <= size_bytes,
            "partition {number} ends at byte {}, the disk at {size_bytes}",
            start_bytes + length
        );
        Ok(Partition { number, start_bytes, size_bytes: length })
    }
}

/// The four entries; `None` without the sector's signature.
pub fn entries(sector: &[u8; SECTOR as usize]) -> Option<[Entry; 4]> {
    let signed = sector[SIGNATURE_AT..] == SIGNATURE;
    signed.then(|| std::array::from_fn(|index| Entry::read(&sector[place(index as u32 + 1)])))
}

/// A first sector with these entries, each with its number, and no boot code.
pub fn sector(disk_signature: [u8; 4], entries: &[(u32, Entry)]) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    sector[DISK_SIGNATURE].copy_from_slice(&disk_signature);
    sector[SIGNATURE_AT..].copy_from_slice(&SIGNATURE);
    for (number, entry) in entries {
        entry.write(&mut sector[place(*number)]);
    }
    sector
}

/// Gives an MBR another signature of its disk; returns the old one and the new one.
pub fn renew_mbr(sector: &mut [u8; SECTOR as usize], new: impl FnOnce(u32) -> u32) -> (u32, u32) {
    let old = le32(sector, DISK_SIGNATURE.start);
    let new = new(old);
    sector[DISK_SIGNATURE].copy_from_slice(&new.to_le_bytes());
    (old, new)
}

/// Changes how many sectors an entry has.
pub fn resize(sector: &mut [u8; SECTOR as usize], number: u32, sectors: u32) {
    let bytes = &mut sector[place(number)];
    Entry { sectors, ..Entry::read(bytes) }.write(bytes);
}

/// Reads primary and logical partitions.
pub fn read(disk: &Region<'_>, primary: &[Entry; 4]) -> Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(primary).filter(|(_, entry)| !entry.is_empty()) {
        let partition = entry.partition(number, 0, disk.size_bytes())?;
        if !entry.is_extended() {
            partitions.push(partition);
            continue;
        }
        ensure!(extended.is_none(), "the partition table has two extended partitions");
        extended = Some(*entry);
    }
    if let Some(extended) = extended {
        read_logical(disk, &extended, &mut partitions)?;
    }
    Ok(partitions)
}

/// Follows the chain of tables in an extended partition. Each begins after the one before, so the chain ends.
fn read_logical(disk: &Region<'_>, extended: &Entry, partitions: &mut Vec<Partition>) -> Result<()> {
    let start = u64::from(extended.start);
    let end = start + u64::from(extended.sectors);
    let mut at = start;
    for number in 5.. {
        let sector = read_sector(disk, at * SECTOR)?;
        let Some([logical, link, _, _]) = entries(&sector) else {
            // An extended partition that was never divided.
            ensure!(at == start, "the chain of logical partitions breaks off at sector {at}");
            return Ok(());
        };
        if !logical.is_empty() {
            let partition = logical.partition(number, at, disk.size_bytes())?;
            // To a loop device no length is all that follows.
            ensure!(logical.sectors > 0, "partition {number} has no sectors");
            let last = at + u64::from(logical.start) + u64::from(logical.sectors);
            ensure!(
                logical.start > 0 && last <= end,
                "partition {number} lies outside the extended partition"
            );
            partitions.push(partition);
        }
        if link.is_empty() {
            return Ok(());
        }
        let next = start + u64::from(link.start);
        ensure!(link.is_extended(), "the chain of logical partitions breaks off at sector {at}");
        ensure!(next > at && next < end, "the chain of logical partitions leads from sector {at} to {next}");
        ensure!(number as usize - 4 < LOGICAL_MAX, "there are more than {LOGICAL_MAX} logical partitions");
        at = next;
    }
    Ok(())
}
