//! A filesystem as the readers of its maps see it: reads that stay inside it, and the two ways in which a reader stops.
//! It knows no format.

use anyhow::{Context, Error, Result};

use super::{Usage, UsedMap};
use crate::reader::ReadAt;

/// Why a reader stops before it has a map.
#[derive(Debug)]
pub enum Stop {
    /// What stands there does not hold together, or is not known here: all of it travels, for this reason.
    Unsure(String),
    /// The device cannot be read.
    Unreadable(Error),
}

/// A step of a reader.
pub type Step<T> = Result<T, Stop>;

/// The end of a reader that is not sure.
pub fn unsure<T>(reason: impl Into<String>) -> Step<T> {
    Err(Stop::Unsure(reason.into()))
}

/// What a reader's map, or its stop, means for what travels.
pub fn settle(map: Step<UsedMap>) -> Result<Usage> {
    match map {
        Ok(map) => Ok(Usage::Part(map)),
        Err(Stop::Unsure(reason)) => Ok(Usage::Whole(reason)),
        Err(Stop::Unreadable(error)) => Err(error),
    }
}

/// The bytes of one filesystem on a disk.
pub struct Source<'a, D: ?Sized> {
    disk: &'a D,
    start_bytes: u64,
    size_bytes: u64,
}

impl<'a, D: ReadAt + ?Sized> Source<'a, D> {
    pub fn new(disk: &'a D, start_bytes: u64, size_bytes: u64) -> Self {
        // No disk ends beyond 2^64, so nothing that is there is cut off.
        Source { disk, start_bytes, size_bytes: size_bytes.min(u64::MAX - start_bytes) }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// `length` bytes at `at` of the filesystem; the caller bounds `length`.
    pub fn read(&self, at: u64, length: usize) -> Step<Vec<u8>> {
        let end = at.checked_add(length as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return unsure(format!("it points to byte {at}, beyond its end"));
        }
        let mut bytes = vec![0; length];
        self.disk
            .read_into(&mut bytes, self.start_bytes + at)
            .with_context(|| format!("reading a filesystem's map at byte {}", self.start_bytes + at))
            .map_err(Stop::Unreadable)?;
        Ok(bytes)
    }
}

/// The checksum of both formats: CRC-32C.
pub const CRC32C: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
