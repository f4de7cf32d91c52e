//! Partition tables as nobody should write them, with checksums that are right unless it is said otherwise.

use std::fs::File;

use crate::common::bytes::{read, write};

pub const SECTOR: u64 = 512;

/// Both copies of a GPT; sectors of 512 bytes.
pub struct Gpt<'a> {
    disk: &'a File,
    last: u64,
}

/// Which copy of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    Primary,
    Backup,
}

/// Fields of the header: offset and bytes (UEFI specification, 5.3.2).
#[derive(Clone, Copy, Debug)]
pub struct Field(pub u64, pub usize);

pub const SIGNATURE: Field = Field(0, 8);
pub const HEADER_BYTES: Field = Field(12, 4);
pub const OWN_LBA: Field = Field(24, 8);
pub const OTHER_LBA: Field = Field(32, 8);
pub const FIRST_USABLE: Field = Field(40, 8);
pub const ENTRIES_LBA: Field = Field(72, 8);
pub const ENTRY_COUNT: Field = Field(80, 4);
pub const ENTRY_BYTES: Field = Field(84, 4);
/// Of an entry.
pub const FIRST_LBA: Field = Field(32, 8);
pub const LAST_LBA: Field = Field(40, 8);

impl Gpt<'_> {
    pub fn of(disk: &File) -> Gpt<'_> {
        Gpt { disk, last: disk.metadata().unwrap().len() / SECTOR - 1 }
    }

    /// The disk's last sector.
    pub fn last_sector(&self) -> u64 {
        self.last
    }

    fn header_at(&self, copy: Copy) -> u64 {
        SECTOR * if copy == Copy::Primary { 1 } else { self.last }
    }

    fn entries_at(&self, copy: Copy) -> u64 {
        u64::from_le_bytes(read(self.disk, self.header_at(copy) + ENTRIES_LBA.0)).saturating_mul(SECTOR)
    }

    /// Sets a field of the header.
    pub fn set(&self, copy: Copy, field: Field, value: u64) {
        write(self.disk, self.header_at(copy) + field.0, &value.to_le_bytes()[..field.1]);
    }

    /// Sets a field of an entry, counted from 1.
    pub fn set_entry(&self, copy: Copy, number: u64, field: Field, value: u64) {
        let at = self.entries_at(copy) + (number - 1) * 128 + field.0;
        write(self.disk, at, &value.to_le_bytes()[..field.1]);
    }

    /// Copies an entry over another.
    pub fn copy_entry(&self, copy: Copy, from: u64, to: u64) {
        let entry: [u8; 128] = read(self.disk, self.entries_at(copy) + (from - 1) * 128);
        write(self.disk, self.entries_at(copy) + (to - 1) * 128, &entry);
    }

    /// Clears the type of an entry: it is none any more.
    pub fn clear_entry(&self, copy: Copy, number: u64) {
        write(self.disk, self.entries_at(copy) + (number - 1) * 128, &[0; 16]);
    }

    /// Makes the entries' checksum right, as far as what the header says can be read.
    pub fn seal_entries(&self, copy: Copy) {
        let header: [u8; 92] = read(self.disk, self.header_at(copy));
        let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let bytes = u64::from(field(80)) * u64::from(field(84));
        let at = self.entries_at(copy);
        if at.checked_add(bytes).is_some_and(|end| end <= (self.last + 1) * SECTOR) {
            let mut entries = vec![0; bytes as usize];
            std::os::unix::fs::FileExt::read_exact_at(self.disk, &mut entries, at).unwrap();
            self.set(copy, Field(88, 4), crc32fast::hash(&entries).into());
        }
    }

    /// Makes the header's checksum right, over as much as it says that it has.
    pub fn seal(&self, copy: Copy) {
        self.set(copy, Field(16, 4), 0);
        let sector: [u8; SECTOR as usize] = read(self.disk, self.header_at(copy));
        let bytes = u32::from_le_bytes(sector[12..16].try_into().unwrap()) as usize;
        self.set(copy, Field(16, 4), crc32fast::hash(&sector[..bytes.min(sector.len())]).into());
    }
}

/// An entry of an MBR.
#[derive(Clone, Copy, Debug, Default)]
pub struct MbrEntry {
    pub active: u8,
    pub kind: u8,
    pub start: u32,
    pub sectors: u32,
}

/// Writes an MBR, or a table of an extended partition, at a sector.
pub fn write_mbr(disk: &File, sector: u64, entries: &[MbrEntry]) {
    let mut table = [0; 66];
    for (entry, bytes) in entries.iter().zip(table.chunks_exact_mut(16)) {
        (bytes[0], bytes[4]) = (entry.active, entry.kind);
        bytes[8..12].copy_from_slice(&entry.start.to_le_bytes());
        bytes[12..16].copy_from_slice(&entry.sectors.to_le_bytes());
    }
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    write(disk, sector * SECTOR + 446, &table);
}
