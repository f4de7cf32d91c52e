//! Owns the maps of files with holes: found by SEEK_DATA and SEEK_HOLE, written in GNU tar's PAX
//! format 1.0, read in all of GNU tar's formats (its manual, "Storing Sparse Files"). Must not copy
//! any data.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::header::{Header, unsigned};
use super::input::Input;
use super::pax_record::{decimal, nonempty, push, push_number};
use super::{BLOCK, padding, shown};

/// A map with more extents is refused: 16 MiB of memory.
const READ_EXTENTS_MAX: usize = 1024 * 1024;

/// A file in more pieces is written with its last piece reaching to its end, the holes in it as
/// zeros: 2 MiB of memory.
const WRITTEN_EXTENTS_MAX: usize = 128 * 1024;

/// A run of data in a file; what lies between two runs is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What a GNU tar sparse member says about itself in pax records (formats 0.0, 0.1 and 1.0).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    /// The map stands in the data (format 1.0).
    pub(super) map_in_data: bool,
    /// The map, in formats 0.0 and 0.1.
    pub(super) map: Option<Vec<Extent>>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Format 0.0 gives offset and length in two records.
    offset: Option<u64>,
}

impl SparseRecords {
    pub(super) fn take(&mut self, keyword: &[u8], value: &[u8]) -> Result<()> {
        match keyword {
            b"major" => {
                let major = decimal(value)?;
                ensure!(major <= 1, "expected a major version of 0 or 1");
                self.map_in_data = major == 1;
            }
            b"minor" => ensure!(decimal(value)? <= 1, "expected a minor version of 0 or 1"),
            b"name" => self.name = nonempty(value),
            b"realsize" | b"size" => self.real_size = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().context("it has no GNU.sparse.offset before it")?;
                self.map.get_or_insert_default().push(Extent { offset, length: decimal(value)? });
            }
            b"map" => self.map = Some(parse_map(value)?),
            // The number of extents (0.0 and 0.1) follows from the map.
            _ => {}
        }
        Ok(())
    }
}

/// A file with holes: where its data is, and how long it is with them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) extents: Vec<Extent>,
    pub(crate) real_size: u64,
}

impl Sparse {
    /// The holes of an open file of `size_bytes`; `None` if it has none, or none that pays for its
    /// map.
    pub(super) fn of_file(file: BorrowedFd<'_>, size_bytes: u64) -> Result<Option<Sparse>> {
        let Some(extents) = data_extents(file, size_bytes)? else {
            return Ok(None);
        };
        let sparse = Sparse { extents, real_size: size_bytes };
        // A map costs its own blocks and an extended header of two.
        let stored = sparse.data_bytes() + sparse.encode().len() as u64 + 2 * BLOCK as u64;
        Ok((stored < size_bytes).then_some(sparse))
    }

    /// How many bytes of data the archive holds for it, without the map.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The map as PAX format 1.0 has it before the data: decimal lines, padded to whole blocks.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut map = format!("{}\n", self.extents.len()).into_bytes();
        for extent in &self.extents {
            map.extend_from_slice(format!("{}\n{}\n", extent.offset, extent.length).as_bytes());
        }
        map.resize(map.len() + padding(map.len() as u64) as usize, 0);
        map
    }

    /// The map that pax `records` give or, in format 1.0, the data that `input` stands at. `None`
    /// if the member is not sparse.
    pub(super) fn of_records(records: SparseRecords, input: &mut Input<'_>) -> Result<Option<Sparse>> {
        let extents = match (records.map_in_data, records.map) {
            (true, _) => read_map(input)?,
            (false, Some(map)) => map,
            (false, None) => return Ok(None),
        };
        let real_size = records.real_size.context("the sparse map comes without the file's size")?;
        Sparse { extents, real_size }.checked(input).map(Some)
    }

    /// The map in an old GNU header (type `S`) and the extension blocks behind it, which `input`
    /// stands at.
    pub(super) fn of_old_gnu(header: &Header, input: &mut Input<'_>) -> Result<Sparse> {
        let mut extents = Vec::new();
        take_old_extents(header.raw(386..482), &mut extents)?;
        let mut extended = header.raw(482..483) != b"\0";
        while extended {
            let block = input.extension()?;
            take_old_extents(&block[..504], &mut extents)?;
            ensure!(
                extents.len() <= READ_EXTENTS_MAX,
                "the sparse map has more than {READ_EXTENTS_MAX} entries"
            );
            extended = block[504] != 0;
        }
        let real_size = unsigned(header.raw(483..495)).context("reading the real size")?;
        Sparse { extents, real_size }.checked(input)
    }

    /// Itself, if its extents lie in order within the file and are exactly what `input` still
    /// holds.
    fn checked(self, input: &Input<'_>) -> Result<Sparse> {
        let mut end = 0;
        for extent in &self.extents {
            ensure!(extent.offset >= end, "the sparse map is out of order at {}", extent.offset);
            end = extent.offset.saturating_add(extent.length);
            ensure!(
                end <= self.real_size,
                "the sparse map reaches beyond the file's {} bytes",
                self.real_size
            );
        }
        let (mapped, stored) = (self.data_bytes(), input.data_left());
        ensure!(mapped == stored, "the sparse map counts {mapped} bytes of data, the archive has {stored}");
        Ok(self)
    }
}

/// The data in the file; `None` where the filesystem cannot tell.
fn data_extents(file: BorrowedFd<'_>, size_bytes: u64) -> Result<Option<Vec<Extent>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        let offset = match seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset,
            // No data up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error).context("looking for data in the file"),
        };
        if offset >= size_bytes {
            break;
        }
        at = match extents.len() < WRITTEN_EXTENTS_MAX - 1 {
            true => {
                seek(file, SeekFrom::Hole(offset)).context("looking for a hole in the file")?.min(size_bytes)
            }
            false => size_bytes,
        };
        extents.push(Extent { offset, length: at - offset });
    }
    // GNU tar takes the end of the last extent for the file's end: a hole there is followed by an
    // empty extent.
    if extents.last().is_none_or(|last| last.offset + last.length < size_bytes) {
        extents.push(Extent { offset: size_bytes, length: 0 });
    }
    seek(file, SeekFrom::Start(0)).context("going back to the file's start")?;
    Ok(Some(extents))
}

/// `OFFSET,LENGTH,OFFSET,LENGTH...` of sparse format 0.1.
fn parse_map(value: &[u8]) -> Result<Vec<Extent>> {
    let mut map = Vec::new();
    let mut numbers = value.split(|&byte| byte == b',').filter(|number| !number.is_empty());
    while let Some(offset) = numbers.next() {
        let length = numbers.next().context("an offset has no length")?;
        map.push(Extent { offset: decimal(offset)?, length: decimal(length)? });
    }
    Ok(map)
}

/// Reads the map of PAX format 1.0: the number of entries, then offset and length of each, one
/// number a line.
fn read_map(input: &mut Input<'_>) -> Result<Vec<Extent>> {
    let mut lines = Lines { block: [0; BLOCK], at: BLOCK };
    let entries = lines.number(input)?;
    ensure!(
        entries <= READ_EXTENTS_MAX as u64,
        "the sparse map has {entries} entries, expected at most {READ_EXTENTS_MAX}"
    );
    let mut extents = Vec::new();
    for _ in 0..entries {
        extents.push(Extent { offset: lines.number(input)?, length: lines.number(input)? });
    }
    Ok(extents)
}

/// Numbers in the data, one a line; the data behind them starts with the next block.
struct Lines {
    block: [u8; BLOCK],
    at: usize,
}

impl Lines {
    fn number(&mut self, input: &mut Input<'_>) -> Result<u64> {
        let mut digits = [0; 20];
        for length in 0..digits.len() {
            if self.at == BLOCK {
                self.block = input.data_block()?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits[..length]).context("reading the sparse map"),
                _ => digits[length] = byte,
            }
        }
        bail!("a number in the sparse map has more than 19 digits")
    }
}

/// Takes the entries of 24 bytes in `field`, up to the first empty one.
fn take_old_extents(field: &[u8], extents: &mut Vec<Extent>) -> Result<()> {
    for entry in field.chunks_exact(24).take_while(|entry| entry[0] != 0) {
        let offset = unsigned(&entry[..12]).context("reading the sparse map")?;
        let length = unsigned(&entry[12..]).context("reading the sparse map")?;
        extents.push(Extent { offset, length });
    }
    Ok(())
}

/// How a file with holes is announced in PAX format 1.0: the name in its header, and the records before that.
pub(crate) fn announced(path: &[u8], real_size: u64) -> (Vec<u8>, Vec<u8>) {
    let mut records = Vec::new();
    push_number(&mut records, "GNU.sparse.major", 1);
    push_number(&mut records, "GNU.sparse.minor", 0);
    push(&mut records, b"GNU.sparse.name", path);
    push_number(&mut records, "GNU.sparse.realsize", real_size);
    (placeholder(path), records)
}

/// The name of a sparse member's placeholder, as GNU tar writes it: what readers that do not know
/// the format extract.
fn placeholder(path: &[u8]) -> Vec<u8> {
    let split = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    debug_assert!(split < path.len(), "{} is a directory", shown(path));
    [&path[..split], b"GNUSparseFile.0/", &path[split..]].concat()
}
