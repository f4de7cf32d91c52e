//! The bytes of a table, a filesystem or a disk, as a reader of its format sees them: reads stay inside, and a reader that
//! does not understand what it reads gives up with a reason.

use std::fmt;

use anyhow::{Context, Error, Result};

use super::ReadAt;

/// Why a reader stops before its end.
#[derive(Debug)]
pub enum GiveUp {
    /// What is there does not hold together, or is of a kind that is not known here.
    NotUnderstood(String),
    /// The device cannot be read.
    Unreadable(Error),
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUp::NotUnderstood(reason) => f.write_str(reason),
            GiveUp::Unreadable(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for GiveUp {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            GiveUp::NotUnderstood(_) => None,
            GiveUp::Unreadable(error) => error.source(),
        }
    }
}

/// What a reader found, unless it gave up.
pub type Parsed<T> = Result<T, GiveUp>;

/// The end of a reader that does not understand what it reads.
pub fn give_up<T>(reason: impl Into<String>) -> Parsed<T> {
    Err(GiveUp::NotUnderstood(reason.into()))
}

/// A stretch of a disk. All that is read of a disk that somebody else wrote is read through one of these.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    disk: &'a dyn ReadAt,
    start_bytes: u64,
    size_bytes: u64,
}

impl<'a> Region<'a> {
    /// `size_bytes` at `start_bytes` of a disk.
    pub fn new(disk: &'a dyn ReadAt, start_bytes: u64, size_bytes: u64) -> Region<'a> {
        // No disk ends beyond 2^64, so nothing that is there is cut off.
        Region { disk, start_bytes, size_bytes: size_bytes.min(u64::MAX - start_bytes) }
    }

    /// `size_bytes` at `start_bytes` of this region, cut off at its end.
    pub fn part(&self, start_bytes: u64, size_bytes: u64) -> Region<'a> {
        let start_bytes = start_bytes.min(self.size_bytes);
        Region {
            disk: self.disk,
            start_bytes: self.start_bytes + start_bytes,
            size_bytes: size_bytes.min(self.size_bytes - start_bytes),
        }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// `length` bytes at `at` of the region; the caller bounds `length`.
    pub fn read(&self, at: u64, length: usize) -> Parsed<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_into(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Fills a buffer with the bytes at `at` of the region.
    pub fn read_into(&self, buffer: &mut [u8], at: u64) -> Parsed<()> {
        let end = at.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return give_up(format!("it points to byte {at}, beyond its end"));
        }
        self.disk
            .read_into(buffer, self.start_bytes + at)
            .with_context(|| format!("reading the disk at byte {}", self.start_bytes + at))
            .map_err(GiveUp::Unreadable)
    }
}
