//! The GPT at either end of a disk: its headers and entries, read, written and given other GUIDs. Offsets are those of the
//! UEFI specification, tables 5.5 and 5.6.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Error, Result, bail, ensure};
use uuid::Uuid;

use super::{Partition, SECTOR, read_sector};
use crate::reader::integers::{le32, le64};
use crate::reader::{Budget, Region};

/// Sectors that guests see: 512 bytes, or 4096 on some disks.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The UEFI specification asks for room for 128; nobody makes more than this.
const ENTRIES_MAX: u32 = 1024;
/// What everybody makes.
pub(super) const ENTRIES: u32 = 128;
pub(super) const ENTRY_BYTES: u32 = 128;
const ENTRY_BYTES_MAX: u32 = 4096;
const HEADER_BYTES: u32 = 92;
/// Version 1.0 of the header.
const REVISION: u32 = 0x0001_0000;
pub(super) const SIGNATURE: [u8; 8] = *b"EFI PART";

mod field {
    use std::ops::Range;

    pub const REVISION: usize = 8;
    pub const HEADER_BYTES: usize = 12;
    pub const HEADER_CRC: usize = 16;
    pub const OWN_LBA: usize = 24;
    pub const OTHER_LBA: usize = 32;
    pub const FIRST_USABLE: usize = 40;
    pub const LAST_USABLE: usize = 48;
    pub const DISK_GUID: Range<usize> = 56..72;
    pub const ENTRIES_LBA: usize = 72;
    pub const ENTRY_COUNT: usize = 80;
    pub const ENTRY_BYTES: usize = 84;
    pub const ENTRIES_CRC: usize = 88;
}

/// One entry's bytes, where they are used.
pub(super) mod entry {
    use std::ops::Range;

    pub const TYPE: Range<usize> = 0..16;
    pub const GUID: Range<usize> = 16..32;
    pub const FIRST_LBA: usize = 32;
    pub const LAST_LBA: usize = 40;
    pub const ATTRIBUTES: usize = 48;
    /// UTF-16, little endian.
    pub const NAME: Range<usize> = 56..128;
}

/// Reads the primary table, or the backup at the end of the disk if the primary is damaged.
pub fn read(disk: &Region<'_>) -> Result<Vec<Partition>> {
    let mut damage = Vec::new();
    for sector_bytes in SECTOR_SIZES {
        for (which, lba) in [("primary", 1), ("backup", last_lba(disk, sector_bytes))] {
            match Gpt::read(disk, sector_bytes, lba).and_then(|gpt| gpt.partitions(disk)) {
                Ok(partitions) => return Ok(partitions),
                Err(error) => damage.push(format!("{which} of {sector_bytes}-byte sectors: {error:#}")),
            }
        }
    }
    // A signal that ended a read is no damage.
    disk.look_at(0)?;
    bail!("the disk is marked as GPT, but has no table that is whole ({})", damage.join("; "))
}

/// Gives a GPT, and its copy where that is whole, other GUIDs in place: the disk's and those of its partitions, each of
/// which `new` makes of the old one. What is not whole stays as it is, and is read by nobody.
pub fn renew_gpt(disk: &File, size_bytes: u64, mut new: impl FnMut(Uuid) -> Uuid) -> Result<()> {
    let budget = Budget::of_disk(size_bytes);
    let region = Region::new(disk, &budget, 0, size_bytes);
    let old = read(&region)?;
    let mut renew = |bytes: &mut [u8]| {
        let uuid = Uuid::from_bytes_le(std::array::from_fn(|at| bytes[at]));
        bytes.copy_from_slice(&new(uuid).to_bytes_le());
    };
    for sector_bytes in SECTOR_SIZES {
        // Both are read before one is written: they may share their entries.
        let lbas = [1, last_lba(&region, sector_bytes)];
        let mut tables: Vec<Gpt> =
            lbas.iter().filter_map(|lba| Gpt::read(&region, sector_bytes, *lba).ok()).collect();
        for table in &mut tables {
            table.used_mut().for_each(|bytes| renew(&mut bytes[entry::GUID]));
            renew(&mut table.header[field::DISK_GUID]);
            table.seal();
        }
        for table in &tables {
            table.write(disk)?;
        }
        if !tables.is_empty() {
            break;
        }
    }
    ensure!(read(&region)? == old, "the partition table lies over itself");
    Ok(())
}

fn last_lba(disk: &Region<'_>, sector_bytes: u64) -> u64 {
    (disk.size_bytes() / sector_bytes).saturating_sub(1)
}

/// One of the two tables of a disk: a header, and the entries that it points to.
#[derive(Clone)]
pub(super) struct Gpt {
    pub sector_bytes: u64,
    header: [u8; SECTOR as usize],
    entries: Vec<u8>,
}

impl Gpt {
    /// The primary table of a new disk, without partitions. It has no place yet: [`Gpt::place()`] gives it one.
    pub fn new(disk_guid: Uuid) -> Gpt {
        let mut header = [0; SECTOR as usize];
        header[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        header[field::DISK_GUID].copy_from_slice(&disk_guid.to_bytes_le());
        let entries = vec![0; (ENTRIES * ENTRY_BYTES) as usize];
        let mut gpt = Gpt { sector_bytes: SECTOR, header, entries };
        gpt.put_u32(field::REVISION, REVISION);
        gpt.put_u32(field::HEADER_BYTES, HEADER_BYTES);
        gpt.put_u64(field::ENTRIES_LBA, 2);
        gpt.put_u32(field::ENTRY_COUNT, ENTRIES);
        gpt.put_u32(field::ENTRY_BYTES, ENTRY_BYTES);
        gpt
    }

    /// The table whose header is at a sector; both checksums are right, and the entries lie on the disk.
    pub fn read(disk: &Region<'_>, sector_bytes: u64, lba: u64) -> Result<Gpt> {
        let sectors = disk.size_bytes() / sector_bytes;
        ensure!(lba > 0 && lba < sectors, "the disk is too small");
        let header = read_sector(disk, lba * sector_bytes)?;
        ensure!(header.starts_with(&SIGNATURE), "no header");
        let header_bytes = le32(&header, field::HEADER_BYTES);
        ensure!((HEADER_BYTES..=SECTOR as u32).contains(&header_bytes), "a header of {header_bytes} bytes");
        let crc = le32(&header, field::HEADER_CRC);
        ensure!(header_crc(&header) == crc, "the header's checksum is wrong");
        let own_lba = le64(&header, field::OWN_LBA);
        ensure!(own_lba == lba, "the header says it stands at sector {own_lba}");
        let entry_bytes = le32(&header, field::ENTRY_BYTES);
        ensure!(
            entry_bytes.is_power_of_two() && (ENTRY_BYTES..=ENTRY_BYTES_MAX).contains(&entry_bytes),
            "entries of {entry_bytes} bytes"
        );
        let count = le32(&header, field::ENTRY_COUNT);
        ensure!(count <= ENTRIES_MAX, "{count} entries; at most {ENTRIES_MAX} are read");
        let entries_lba = le64(&header, field::ENTRIES_LBA);
        let length = u64::from(count) * u64::from(entry_bytes);
        let fits = entries_lba > 0
            && entries_lba < sectors
            && entries_lba * sector_bytes + length <= disk.size_bytes()
            && !(entries_lba..entries_lba + length.div_ceil(sector_bytes)).contains(&lba);
        ensure!(fits, "the entries are said to stand at sector {entries_lba}");
        let entries = disk
            .read(entries_lba * sector_bytes, length as usize)
            .map_err(Error::from)
            .context("reading the entries")?;
        let entries_crc = le32(&header, field::ENTRIES_CRC);
        ensure!(crc32fast::hash(&entries) == entries_crc, "the entries' checksum is wrong");
        Ok(Gpt { sector_bytes, header, entries })
    }

    /// A whole primary table as every tool makes it, of whichever sector size.
    pub fn primary(disk: &Region<'_>) -> Option<Gpt> {
        let found = SECTOR_SIZES.into_iter().find_map(|bytes| {
            let gpt = Gpt::read(disk, bytes, 1).ok()?;
            gpt.partitions(disk).ok().map(|_| gpt)
        })?;
        let usual = !found.entries.is_empty()
            && found.entry_bytes() == ENTRY_BYTES as usize
            && le32(&found.header, field::REVISION) == REVISION
            && le32(&found.header, field::HEADER_BYTES) == HEADER_BYTES;
        usual.then_some(found)
    }

    /// The entries that are in use, checked against the disk's size.
    fn partitions(&self, disk: &Region<'_>) -> Result<Vec<Partition>> {
        let sectors = disk.size_bytes() / self.sector_bytes;
        let mut partitions = Vec::new();
        for (number, bytes) in (1..).zip(self.entries.chunks_exact(self.entry_bytes())) {
            if !is_used(bytes) {
                continue;
            }
            let Range { start, end } = lbas(bytes);
            ensure!(
                start > 0 && start < end && end <= sectors,
                "partition {number} goes from sector {start} to {}, the disk has {sectors}",
                le64(bytes, entry::LAST_LBA)
            );
            partitions.push(Partition {
                number,
                start_bytes: start * self.sector_bytes,
                size_bytes: (end - start) * self.sector_bytes,
            });
        }
        Ok(partitions)
    }

    fn entry_bytes(&self) -> usize {
        le32(&self.header, field::ENTRY_BYTES) as usize
    }

    /// How many sectors the entries take.
    fn entries_sectors(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(self.sector_bytes)
    }

    fn used(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.chunks_exact(self.entry_bytes()).filter(|bytes| is_used(bytes))
    }

    fn used_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let entry_bytes = self.entry_bytes();
        self.entries.chunks_exact_mut(entry_bytes).filter(|bytes| is_used(bytes))
    }

    /// The bytes of a partition's entry; numbers begin at 1.
    pub fn entry_mut(&mut self, number: u32) -> Option<&mut [u8]> {
        let entry_bytes = self.entry_bytes();
        self.entries.chunks_exact_mut(entry_bytes).nth((number as usize).checked_sub(1)?)
    }

    /// Where the other table of the disk is said to be.
    pub fn other_lba(&self) -> u64 {
        le64(&self.header, field::OTHER_LBA)
    }

    /// Whether a partition covers a sector.
    pub fn covers(&self, lba: u64) -> bool {
        self.used().any(|bytes| lbas(bytes).contains(&lba))
    }

    /// Fits a primary table to a disk of `sectors`: its copy is at the end. Returns the sectors that partitions may use, or
    /// `None` if the disk is too small.
    pub fn place(&mut self, sectors: u64) -> Option<Range<u64>> {
        let first = le64(&self.header, field::ENTRIES_LBA) + self.entries_sectors();
        let end = sectors.checked_sub(self.entries_sectors() + 1).filter(|end| *end > first)?;
        self.put_u64(field::OWN_LBA, 1);
        self.put_u64(field::OTHER_LBA, sectors - 1);
        self.put_u64(field::FIRST_USABLE, first);
        self.put_u64(field::LAST_USABLE, end - 1);
        Some(first..end)
    }

    /// Whether its partitions lie in `usable`, one after the other, each with a GUID of its own.
    pub fn is_sound(&self, usable: &Range<u64>) -> bool {
        let mut guids: Vec<&[u8]> = self.used().map(|bytes| &bytes[entry::GUID]).collect();
        guids.sort_unstable();
        let mut places: Vec<Range<u64>> = self.used().map(lbas).collect();
        places.sort_unstable_by_key(|place| place.start);
        let apart = places.is_sorted_by(|one, next| one.end <= next.start);
        let inside = places
            .iter()
            .all(|place| usable.start <= place.start && place.start < place.end && place.end <= usable.end);
        apart && inside && guids.is_sorted_by(|one, next| one < next)
    }

    /// The copy of a primary table that has its place.
    fn copy(&self) -> Gpt {
        let mut copy = self.clone();
        copy.put_u64(field::OWN_LBA, self.other_lba());
        copy.put_u64(field::OTHER_LBA, 1);
        copy.put_u64(field::ENTRIES_LBA, le64(&self.header, field::LAST_USABLE) + 1);
        copy
    }

    /// Makes both checksums right.
    fn seal(&mut self) {
        self.put_u32(field::ENTRIES_CRC, crc32fast::hash(&self.entries));
        self.put_u32(field::HEADER_CRC, header_crc(&self.header));
    }

    /// Writes a primary table that has its place, and its copy, which is first: one of the two is always whole.
    pub fn write_both(&mut self, disk: &File) -> Result<()> {
        let mut copy = self.copy();
        copy.seal();
        copy.write(disk)?;
        self.seal();
        self.write(disk)
    }

    fn write(&self, disk: &File) -> Result<()> {
        let entries_at = le64(&self.header, field::ENTRIES_LBA) * self.sector_bytes;
        let header_at = le64(&self.header, field::OWN_LBA) * self.sector_bytes;
        for (bytes, at) in [(&self.entries[..], entries_at), (&self.header, header_at)] {
            disk.write_all_at(bytes, at)
                .with_context(|| format!("writing the partition table at byte {at}"))?;
        }
        Ok(())
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[cfg(test)]
    pub fn guids(&self) -> Vec<Uuid> {
        let guid = |bytes: &[u8]| Uuid::from_bytes_le(bytes.try_into().unwrap());
        let disk = guid(&self.header[field::DISK_GUID]);
        std::iter::once(disk).chain(self.used().map(|bytes| guid(&bytes[entry::GUID]))).collect()
    }
}

/// A header's checksum is made with zeros in its own place.
pub(super) fn header_crc(header: &[u8; SECTOR as usize]) -> u32 {
    let mut header = *header;
    header[field::HEADER_CRC..field::HEADER_CRC + 4].fill(0);
    let length = (le32(&header, field::HEADER_BYTES) as usize).min(header.len());
    crc32fast::hash(&header[..length])
}

/// A partition has a type.
fn is_used(bytes: &[u8]) -> bool {
    bytes[entry::TYPE].iter().any(|byte| *byte != 0)
}

/// The sectors of a partition. Those that are not backwards are not empty.
fn lbas(bytes: &[u8]) -> Range<u64> {
    le64(bytes, entry::FIRST_LBA)..le64(bytes, entry::LAST_LBA).saturating_add(1)
}
