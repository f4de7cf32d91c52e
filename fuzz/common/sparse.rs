//! A disk of which a few sectors are not zero, in the form that inputs have: sectors of 512 bytes, each behind its number in
//! four bytes, little endian. It counts what is read of it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use ganeti_instance_debootstrap::allocation::{AllocationMap, Usage};
use ganeti_instance_debootstrap::reader::{Budget, Parsed, ReadAt, Region, Work};

pub const SECTOR: u64 = 512;

pub struct Sparse {
    pub size_bytes: u64,
    pub sectors: BTreeMap<u64, [u8; SECTOR as usize]>,
    read: Cell<Work>,
}

impl Sparse {
    pub fn of(size_bytes: u64, records: &[u8]) -> Sparse {
        let sectors = records.chunks_exact(4 + SECTOR as usize).map(|record| {
            let number = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            (u64::from(number), record[4..].try_into().expect("a sector"))
        });
        Sparse { size_bytes, sectors: sectors.collect(), read: Cell::default() }
    }

    /// Changes bytes that lie on sectors which are there; what is not is zero, and stays so.
    #[allow(dead_code)]
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            if let Some(sector) = self.sectors.get_mut(&(at / SECTOR)) {
                sector[(at % SECTOR) as usize] = *byte;
            }
        }
    }

    /// Bytes, without being counted; none beyond the end.
    #[allow(dead_code)]
    pub fn bytes(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let (mut bytes, read) = (vec![0; length], self.read.get());
        let found = self.read_into(&mut bytes, at);
        self.read.set(read);
        found.ok().map(|()| bytes)
    }

    /// Wants that no more was read than was spent, and no more spent than there was.
    pub fn assert_within(&self, budget: &Budget<'_>) {
        let (read, spent, limit) = (self.read.get(), budget.spent(), budget.limit());
        assert!(read.bytes <= spent.bytes && read.records <= spent.records, "{read:?} of {spent:?}");
        assert!(spent.bytes <= limit.bytes && spent.records <= limit.records, "{spent:?} of {limit:?}");
    }
}

impl ReadAt for Sparse {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buffer.len() as u64;
        let Work { bytes, records } = self.read.get();
        self.read.set(Work { bytes: bytes + length, records: records + 1 });
        let end = offset.checked_add(length).filter(|end| *end <= self.size_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.fill(0);
        for (number, bytes) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let start = number * SECTOR;
            let (from, to) = (start.max(offset), (start + SECTOR).min(end));
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
}

/// The map of a filesystem that is all of a disk has an answer, within the work that there is for it.
#[allow(dead_code)]
pub fn answer(disk: &Sparse, map: fn(&Region<'_>) -> Parsed<AllocationMap>) {
    let budget = Budget::of_disk(disk.size_bytes);
    let usage = Usage::of(map(&Region::new(disk, &budget, 0, disk.size_bytes)));
    disk.assert_within(&budget);
    match usage.expect("a disk that can be read") {
        Usage::Whole(reason) => assert!(!reason.is_empty()),
        Usage::Part(map) => {
            assert_eq!(map.size_bytes(), disk.size_bytes);
            let mut end = 0;
            for extent in map.extents() {
                assert!(extent.start >= end && extent.start < extent.end, "extents ascend");
                end = extent.end;
            }
            assert!(end <= disk.size_bytes);
        }
    }
}
