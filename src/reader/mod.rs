//! Bytes of a disk, image or partition that somebody else wrote, read at any offset and within a budget of work, with the
//! integers and checksums that formats share. Must not know any format.

mod budget;
pub mod checksum;
mod give_up;
pub mod integers;
mod region;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::filesystem::SECTOR_BYTES;
pub use budget::{Budget, Work};
pub use give_up::{GiveUp, Parsed, give_up};
pub use region::Region;

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

impl ReadAt for &[u8] {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(buffer.len())?));
        let bytes = range.and_then(|range| self.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
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
