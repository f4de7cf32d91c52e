//! The bytes of a table, a filesystem or a disk, as a reader of its format sees them: reads stay inside and within a budget,
//! and end when a signal is caught.

use anyhow::Context;

use super::ReadAt;
use super::budget::Budget;
use super::give_up::{GiveUp, Parsed, give_up};

/// A stretch of a disk. All that is read of a disk that somebody else wrote is read through one of these, and is spent of
/// its budget.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    disk: &'a dyn ReadAt,
    budget: &'a Budget<'a>,
    start_bytes: u64,
    size_bytes: u64,
}

impl<'a> Region<'a> {
    /// `size_bytes` at `start_bytes` of a disk.
    pub fn new(
        disk: &'a dyn ReadAt,
        budget: &'a Budget<'a>,
        start_bytes: u64,
        size_bytes: u64,
    ) -> Region<'a> {
        // No disk ends beyond 2^64, so nothing that is there is cut off.
        Region { disk, budget, start_bytes, size_bytes: size_bytes.min(u64::MAX - start_bytes) }
    }

    /// `size_bytes` at `start_bytes` of this region, cut off at its end.
    pub fn part(&self, start_bytes: u64, size_bytes: u64) -> Region<'a> {
        let start_bytes = start_bytes.min(self.size_bytes);
        Region {
            start_bytes: self.start_bytes + start_bytes,
            size_bytes: size_bytes.min(self.size_bytes - start_bytes),
            ..*self
        }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// `length` bytes at `at` of the region; the caller bounds `length`.
    pub fn read(&self, at: u64, length: usize) -> Parsed<Vec<u8>> {
        self.admit(at, length)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Fills a buffer with the bytes at `at` of the region.
    pub fn read_into(&self, buffer: &mut [u8], at: u64) -> Parsed<()> {
        self.admit(at, buffer.len())?;
        self.fill(buffer, at)
    }

    /// A parser is about to look at so many records of what was read.
    pub fn look_at(&self, records: usize) -> Parsed<()> {
        self.budget.look_at(records as u64)
    }

    fn admit(&self, at: u64, length: usize) -> Parsed<()> {
        let end = at.checked_add(length as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return give_up(format!("it points to byte {at}, beyond its end"));
        }
        self.budget.read(length as u64)
    }

    fn fill(&self, buffer: &mut [u8], at: u64) -> Parsed<()> {
        self.disk
            .read_into(buffer, self.start_bytes + at)
            .with_context(|| format!("reading the disk at byte {}", self.start_bytes + at))
            .map_err(GiveUp::Failed)
    }
}
