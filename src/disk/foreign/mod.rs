//! A disk that somebody else wrote: what is on it, read by bounded readers of our own, so that the node's kernel parses
//! no table of a guest, and no filesystem that reaches for other devices of the node.

mod content;
pub mod partitions;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

pub use content::{Content, Fat, Volume, identify};
pub use partitions::TableKind;

use super::{Disk, SECTOR_BYTES};

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Fills the buffer with the bytes at `offset`.
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(buffer.len())?));
        let bytes = range.and_then(|range| self.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// A part of a disk, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// None: the whole disk, without a table.
    pub number: Option<u32>,
    pub start_bytes: u64,
    pub size_bytes: u64,
    pub content: Content,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "partition {number}: {}", self.content),
            None => write!(f, "the bare disk: {}", self.content),
        }
    }
}

/// A disk of which the first sector is another than the one that stands there.
pub struct WithSector<'a> {
    pub disk: &'a File,
    pub sector: &'a [u8; SECTOR_BYTES as usize],
}

impl ReadAt for WithSector<'_> {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_into(buffer, offset)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.sector.len());
        for (to, byte) in buffer.iter_mut().zip(&self.sector[from..]) {
            *to = *byte;
        }
        Ok(())
    }
}

/// What a disk holds, in the order of the partitions' numbers. An error where its table is damaged.
pub fn survey(disk: &Disk) -> Result<(Option<TableKind>, Vec<Part>)> {
    // What is read here must be what a direct-I/O loop device will see.
    disk.flush_path_cache()?;
    survey_bytes(&disk.file, disk.size_bytes)
        .with_context(|| format!("looking at what is on {}", disk.path.display()))
}

/// The same of `size_bytes` wherever they are.
pub fn survey_bytes(disk: &impl ReadAt, size_bytes: u64) -> Result<(Option<TableKind>, Vec<Part>)> {
    let part = |number, start_bytes, size_bytes| -> Result<Part> {
        let content = identify(disk, start_bytes, size_bytes)?;
        Ok(Part { number, start_bytes, size_bytes, content })
    };
    let Some(table) = partitions::read(disk, size_bytes)? else {
        return Ok((None, vec![part(None, 0, size_bytes)?]));
    };
    let parts = table.partitions.iter().map(|p| part(Some(p.number), p.start_bytes, p.size_bytes));
    Ok((Some(table.kind), parts.collect::<Result<_>>()?))
}
