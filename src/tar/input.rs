//! Owns the byte stream that is unpacked: large reads, yet never a byte beyond what the archive has
//! announced, so that a caller finds what follows the archive. Must not know what the bytes mean,
//! but for blocks and padding.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail, ensure};

use super::{BLOCK, BUFFER_BYTES, padding, shown};
use crate::reader::Budget;

/// The archive's bytes, header by header; between two headers the data of a member, in pieces.
pub(crate) struct Input<'a> {
    source: &'a mut dyn Read,
    budget: &'a Budget<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Data of the current member that was not handed out yet, and the padding behind it.
    data_left: u64,
    padding_left: u64,
    /// The name of the latest entry, for errors, and whether an extended header was begun after it.
    name: Vec<u8>,
    in_extended_header: bool,
}

impl<'a> Input<'a> {
    /// All that is read of `source` is spent of the budget, and so is each header.
    pub(crate) fn new(source: &'a mut dyn Read, budget: &'a Budget<'a>) -> Input<'a> {
        Input {
            source,
            budget,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            data_left: 0,
            padding_left: 0,
            name: Vec::new(),
            in_extended_header: false,
        }
    }

    /// The next header block, what is left of the member before it skipped; `None` at the two zero
    /// blocks that end an archive.
    pub(super) fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        self.budget.look_at(1)?;
        while self.data(u64::MAX)?.is_some() {}
        let block = self.block()?;
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        ensure!(self.block()? == [0; BLOCK], "a lone zero block stands {}", self.place());
        Ok(None)
    }

    /// Announces `size_bytes` of data behind the header that was just read: those of the entry
    /// `name`, or of an extended header.
    pub(super) fn begin(&mut self, name: Option<&[u8]>, size_bytes: u64) {
        self.in_extended_header = name.is_none();
        if let Some(name) = name {
            self.name.clear();
            self.name.extend_from_slice(name);
        }
        self.data_left = size_bytes;
        self.padding_left = padding(size_bytes);
    }

    /// A block between a header and its data (old GNU sparse maps). Must come before any data.
    pub(super) fn extension(&mut self) -> Result<[u8; BLOCK]> {
        self.block()
    }

    /// The next piece of the member's data, at most `limit_bytes`; `None` at its end.
    pub(crate) fn data(&mut self, limit_bytes: u64) -> Result<Option<&[u8]>> {
        if self.data_left == 0 {
            self.skip_padding()?;
            return Ok(None);
        }
        let length = self.fill()?.min(usize::try_from(self.data_left.min(limit_bytes)).unwrap_or(usize::MAX));
        self.data_left -= length as u64;
        Ok(Some(self.take(length)))
    }

    /// The next of the member's data, read right into the room there is for it; 0 at the data's end.
    pub(crate) fn data_into(&mut self, room: &mut [u8]) -> Result<usize> {
        if self.start < self.end || self.data_left == 0 {
            let Some(piece) = self.data(room.len() as u64)? else { return Ok(0) };
            room[..piece.len()].copy_from_slice(piece);
            return Ok(piece.len());
        }
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(room.len());
        let length = read(self.source, self.budget, &mut room[..wanted])?;
        ensure!(length > 0, "{}", self.ended());
        self.data_left -= length as u64;
        Ok(length)
    }

    /// Exactly one block of the member's data (the map of a sparse file).
    pub(super) fn data_block(&mut self) -> Result<[u8; BLOCK]> {
        let left = self.data_left.checked_sub(BLOCK as u64);
        self.data_left =
            left.with_context(|| format!("the map of {} is longer than its data", shown(&self.name)))?;
        self.block()
    }

    /// So many records of what was read are about to be looked at.
    pub(super) fn look_at(&self, records: usize) -> Result<()> {
        Ok(self.budget.look_at(records as u64)?)
    }

    /// How much of the member's data is still to come.
    pub(crate) fn data_left(&self) -> u64 {
        self.data_left
    }

    /// All of the member's data, for those that are read into memory: an error above `max_bytes`.
    pub(crate) fn whole(&mut self, max_bytes: u64) -> Result<Vec<u8>> {
        let size = self.data_left;
        ensure!(
            size <= max_bytes,
            "an extended header of {size} bytes {}, expected at most {max_bytes}",
            self.place()
        );
        let mut bytes = Vec::with_capacity(usize::try_from(size)?);
        while let Some(piece) = self.data(u64::MAX)? {
            bytes.extend_from_slice(piece);
        }
        Ok(bytes)
    }

    /// Whether nothing comes behind the archive's end mark. To be asked once that was read.
    pub(crate) fn ends(&mut self) -> Result<bool> {
        Ok(self.start == self.end && self.source.read(&mut [0]).context("reading behind the archive")? == 0)
    }

    /// Where in the archive this is, to be put behind "found ...".
    pub(super) fn place(&self) -> String {
        match self.name.is_empty() {
            true => "at the start of the archive".to_owned(),
            false => format!("after {}", shown(&self.name)),
        }
    }

    fn skip_padding(&mut self) -> Result<()> {
        while self.padding_left > 0 {
            let length = self.fill()?.min(self.padding_left as usize);
            self.take(length);
            self.padding_left -= length as u64;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let length = self.fill_for(filled)?.min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(self.take(length));
            filled += length;
        }
        Ok(block)
    }

    fn take(&mut self, length: usize) -> &[u8] {
        self.start += length;
        &self.buffer[self.start - length..self.start]
    }

    fn fill(&mut self) -> Result<usize> {
        self.fill_for(0)
    }

    /// How many bytes are buffered, read now if there are none: the member's data and padding and
    /// the one block that must follow it, of which `taken` bytes were used already, but no byte
    /// beyond.
    fn fill_for(&mut self, taken: usize) -> Result<usize> {
        if self.start < self.end {
            return Ok(self.end - self.start);
        }
        let due = (self.data_left + self.padding_left).saturating_add((BLOCK - taken) as u64);
        let wanted = usize::try_from(due).unwrap_or(usize::MAX).min(self.buffer.len());
        let length = read(self.source, self.budget, &mut self.buffer[..wanted])?;
        if length == 0 {
            bail!("{}", self.ended());
        }
        (self.start, self.end) = (0, length);
        Ok(length)
    }

    fn ended(&self) -> String {
        match self.data_left + self.padding_left {
            0 => format!("the archive ends without its end mark, {}", self.place()),
            _ if self.in_extended_header => {
                format!("the archive ends in an extended header {}", self.place())
            }
            _ => format!("the archive ends in the middle of {}", shown(&self.name)),
        }
    }
}

fn read(source: &mut dyn Read, budget: &Budget<'_>, room: &mut [u8]) -> Result<usize> {
    loop {
        match source.read(room) {
            Err(error) if error.kind() == ErrorKind::Interrupted => budget.look_at(0)?,
            answer => {
                let length = answer.context("reading the archive")?;
                budget.read(length as u64)?;
                return Ok(length);
            }
        }
    }
}
