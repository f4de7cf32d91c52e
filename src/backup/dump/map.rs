//! Owns the map of the inodes in a dump, in memory that is bounded whatever it claims.

use anyhow::{Result, ensure};

use super::RECORD_BYTES;
use super::header::MAP_RECORDS_MAX;

/// Inodes per record of a map.
const INODES_PER_RECORD: u32 = RECORD_BYTES as u32 * 8;

/// Records with any inode that are kept: 8 MiB, sixty million files side by side.
const KEPT_RECORDS_MAX: usize = 8 * 1024;

/// Which inodes are in the dump; the first one is number 1. Records without any take no memory.
#[derive(Default)]
pub(super) struct Map {
    records: Vec<Option<Box<[u8]>>>,
    kept_records: usize,
}

impl Map {
    /// Adds the next whole records.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for record in bytes.chunks_exact(RECORD_BYTES) {
            ensure!(
                self.records.len() < MAP_RECORDS_MAX as usize,
                "the map of the dump has more than {MAP_RECORDS_MAX} records"
            );
            let kept = record.iter().any(|&byte| byte != 0).then(|| Box::from(record));
            self.kept_records += usize::from(kept.is_some());
            ensure!(
                self.kept_records <= KEPT_RECORDS_MAX,
                "the dump has inodes in more than {KEPT_RECORDS_MAX} parts of its map, more than are supported"
            );
            self.records.push(kept);
        }
        Ok(())
    }

    /// The highest number that the map has room for.
    pub(super) fn last(&self) -> u64 {
        self.records.len() as u64 * u64::from(INODES_PER_RECORD)
    }

    pub(super) fn contains(&self, inode_number: u32) -> bool {
        let Some(bit) = inode_number.checked_sub(1) else {
            return false;
        };
        let (record, bit) = (bit / INODES_PER_RECORD, bit % INODES_PER_RECORD);
        let record = self.records.get(record as usize).and_then(Option::as_deref);
        record.is_some_and(|bytes| bytes[(bit / 8) as usize] >> (bit % 8) & 1 == 1)
    }

    /// The first inode after `inode_number`.
    pub(super) fn next_after(&self, inode_number: u32) -> Option<u32> {
        // The bit of the inode after it has the number of this one.
        let mut bit = u64::from(inode_number);
        while bit < self.last() {
            let index = bit / u64::from(INODES_PER_RECORD);
            let at = (bit % u64::from(INODES_PER_RECORD)) as usize;
            let bytes = self.records[index as usize].as_deref();
            let byte = bytes.map_or(0, |bytes| bytes[at / 8]) >> (at % 8);
            match (bytes, byte) {
                (None, _) => bit = (index + 1) * u64::from(INODES_PER_RECORD),
                (_, 0) => bit += 8 - (at % 8) as u64,
                (_, byte) => return u32::try_from(bit + u64::from(byte.trailing_zeros()) + 1).ok(),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{INODES_PER_RECORD, Map};

    #[test]
    fn inodes_are_found_and_walked_across_empty_records() {
        let inodes = [1, 2, 8, 9, 11, INODES_PER_RECORD, 3 * INODES_PER_RECORD + 1, 4 * INODES_PER_RECORD];
        let mut bytes = vec![0_u8; 5 * 1024];
        for inode in inodes {
            bytes[(inode as usize - 1) / 8] |= 1 << ((inode - 1) % 8);
        }
        let mut map = Map::default();
        map.push(&bytes).unwrap();
        assert_eq!(map.last(), 5 * 8192);
        let mut walked = Vec::new();
        let mut last = 0;
        while let Some(next) = map.next_after(last) {
            walked.push(next);
            last = next;
        }
        assert_eq!(walked, inodes);
        assert!(inodes.iter().all(|&inode| map.contains(inode)));
        for absent in [0, 3, 10, INODES_PER_RECORD + 1, 5 * INODES_PER_RECORD, u32::MAX] {
            assert!(!map.contains(absent), "{absent}");
        }
        assert_eq!(map.next_after(u32::MAX), None);
    }

    #[test]
    fn a_map_beyond_its_bound_is_refused() {
        let mut map = Map::default();
        let sparse = vec![0; 1024 * 1024];
        (0..512).for_each(|_| map.push(&sparse).unwrap());
        let full = vec![0xff; 1024 * 1024];
        assert!((0..9).any(|_| map.push(&full).is_err()));
        let mut map = Map::default();
        assert!((0..513).any(|_| map.push(&sparse).is_err()));
    }
}
