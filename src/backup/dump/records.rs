//! Owns the records of a dump, 1 KiB each: headers, the data that they announce, and what may follow
//! the last one. Every header must stand where it says it does. Must not know what the data mean.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail, ensure};

use super::header::{Header, Kind};
use super::volume::Volume;
use super::{RECORD_BYTES, attributes};
use crate::reader::Budget;

/// One buffer carries all data.
const BUFFER_BYTES: usize = 256 * 1024;

/// Takes data of a file and where in the file they belong.
pub(super) type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<()> + 'a;

/// A dump, read from its first record to its last.
pub(super) struct Records<'a> {
    volume: Volume<'a>,
    budget: &'a Budget<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Records that were taken.
    taken: u64,
    /// What the first header says.
    date: Option<u32>,
}

impl<'a> Records<'a> {
    pub(super) fn open(input: &'a mut dyn Read, budget: &'a Budget<'a>) -> Result<Records<'a>> {
        Ok(Records {
            volume: Volume::open(input).context("reading the dump's first record")?,
            budget,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            taken: 0,
            date: None,
        })
    }

    /// The next record, which must be a header.
    pub(super) fn header(&mut self) -> Result<Header> {
        self.budget.look_at(1)?;
        let position = self.taken;
        let mut block = Box::new([0; RECORD_BYTES]);
        block.copy_from_slice(self.piece(1)?);
        let header = Header::parse(block).with_context(|| reading(position))?;
        self.expect_in_place(&header, position).with_context(|| reading(position))?;
        Ok(header)
    }

    fn expect_in_place(&mut self, header: &Header, position: u64) -> Result<()> {
        let claimed = header.position();
        ensure!(
            // The field has 32 bits, however long the dump is.
            claimed == position as u32,
            "the header says that it is record {claimed}: records are missing before it, or too many"
        );
        let date = *self.date.get_or_insert(header.date());
        ensure!(header.date() == date, "the header belongs to another dump, begun at another time");
        Ok(())
    }

    /// Hands the data of the file that `header` begins to `sink`, up to `size_bytes`, holes left out,
    /// and returns the header after it. Data beyond are passed over: blocks may be allocated there.
    pub(super) fn content(&mut self, header: Header, size_bytes: u64, sink: &mut Sink<'_>) -> Result<Header> {
        let inode_number = header.inode_number();
        let mut header = header;
        let mut offset = 0;
        loop {
            for run in header.addresses()?.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
                if run[0] == 0 {
                    offset += (run.len() * RECORD_BYTES) as u64;
                    continue;
                }
                let mut left = run.len();
                while left > 0 {
                    let piece = self.piece(left)?;
                    left -= piece.len() / RECORD_BYTES;
                    let wanted = size_bytes.saturating_sub(offset).min(piece.len() as u64);
                    if wanted > 0 {
                        sink(offset, &piece[..wanted as usize])?;
                    }
                    offset += piece.len() as u64;
                }
            }
            let next = self.header()?;
            if next.kind != Kind::Continued {
                ensure!(
                    offset >= size_bytes,
                    "its data end after {offset} of {size_bytes} bytes: the rest is not in the dump"
                );
                return Ok(next);
            }
            ensure!(
                next.inode_number() == inode_number,
                "its data are continued by those of inode {}",
                next.inode_number()
            );
            header = next;
        }
    }

    /// Like [`Records::content`] for what is kept in memory, and has no holes.
    pub(super) fn whole(&mut self, header: Header, max_bytes: u64, what: &str) -> Result<(Vec<u8>, Header)> {
        let size = header.size_bytes()?;
        ensure!(size <= max_bytes, "{what} has {size} bytes, expected at most {max_bytes}");
        let mut bytes = Vec::new();
        let next = self.content(header, size, &mut |offset, piece| {
            ensure!(offset == bytes.len() as u64, "{what} has a hole at byte {}", bytes.len());
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        ensure!(bytes.len() as u64 == size, "{what} has a hole at byte {}", bytes.len());
        Ok((bytes, next))
    }

    /// The extended attributes that follow the content of an inode, if any, as they are; `header` is
    /// the one after the content.
    pub(super) fn attributes(&mut self, inode_number: u32, header: Header) -> Result<(Vec<Vec<u8>>, Header)> {
        let mut header = header;
        let mut found = Vec::new();
        while header.is_attributes()? {
            ensure!(
                header.inode_number() == inode_number,
                "extended attributes of inode {} follow it",
                header.inode_number()
            );
            ensure!(
                found.len() < attributes::BLOCKS_MAX,
                "it has more than {} blocks of attributes",
                attributes::BLOCKS_MAX
            );
            let (bytes, next) =
                self.whole(header, attributes::BLOCK_BYTES_MAX, "a block of its attributes")?;
            found.push(bytes);
            header = next;
        }
        Ok((found, header))
    }

    /// Hands the data of the map that `header` begins to `take`, and returns the header after it.
    pub(super) fn map(
        &mut self,
        header: Header,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Header> {
        let mut header = header;
        loop {
            let mut left = header.map_records()? as usize;
            while left > 0 {
                let piece = self.piece(left)?;
                left -= piece.len() / RECORD_BYTES;
                take(piece)?;
            }
            header = self.header()?;
            if header.kind != Kind::Continued {
                return Ok(header);
            }
        }
    }

    /// Reads to the end of the stream, behind the end header: dump fills its last record, of
    /// `blocking` KiB, with such headers.
    pub(super) fn end(mut self, blocking: u32) -> Result<()> {
        let blocking = u64::from(blocking).max(1);
        let mut padding = (blocking - self.taken % blocking) % blocking;
        while self.fill()? > 0 {
            ensure!(padding > 0, "something else follows the end of the dump, at KiB {}", self.taken);
            padding -= 1;
            if self.buffer[self.start..].starts_with(&[0; RECORD_BYTES]) {
                self.piece(1)?;
            } else {
                let header = self.header()?;
                ensure!(
                    header.kind == Kind::End,
                    "something else follows the end of the dump, at KiB {}",
                    self.taken - 1
                );
            }
        }
        Ok(())
    }

    /// The next records, at least one and at most `most`.
    fn piece(&mut self, most: usize) -> Result<&[u8]> {
        let records = (self.fill()? / RECORD_BYTES).min(most);
        if records == 0 {
            bail!(
                "the dump ends after {} KiB, before its end header: it was cut, or it has more volumes",
                self.taken
            );
        }
        self.taken += records as u64;
        self.start += records * RECORD_BYTES;
        Ok(&self.buffer[self.start - records * RECORD_BYTES..self.start])
    }

    /// How many bytes are buffered: a whole record at least, unless the stream ends.
    fn fill(&mut self) -> Result<usize> {
        if self.end - self.start < RECORD_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < RECORD_BYTES {
            match self.volume.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(length) => {
                    self.budget.read(length as u64)?;
                    self.end += length;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => self.budget.look_at(0)?,
                Err(error) => {
                    return Err(error).with_context(|| format!("reading the dump at KiB {}", self.taken));
                }
            }
        }
        Ok(self.end - self.start)
    }
}

fn reading(position: u64) -> String {
    format!("reading the header at KiB {position}")
}
