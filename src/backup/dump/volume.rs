//! Owns the one volume of a dump as a stream of records: as it is, or unpacked when dump(8) compressed
//! it itself (`-z`). Then the first record is plain, and each other one is preceded by a word: whether
//! it is compressed, how, and its length (struct tapebuf). Must not know what the records mean.

use std::io::{self, Cursor, ErrorKind, Read};

use flate2::{Decompress, FlushDecompress, Status};

use super::{RECORD_BYTES, header};

/// dump(8) takes no more for `-b`.
const BLOCKING_MAX: u32 = 1000;

/// The methods, by their numbers in the prefix: COMPRESS_ZLIB, COMPRESS_BZLIB, COMPRESS_LZO.
const METHODS: [&str; 3] = ["zlib", "bzlib", "lzo"];

/// The plain bytes of a volume, from its first record on.
pub(super) struct Volume<'a> {
    source: &'a mut dyn Read,
    /// What was read to know.
    first: Cursor<Vec<u8>>,
    compressed: Option<Compressed>,
}

struct Compressed {
    /// Of the first record, which is plain.
    plain_left: usize,
    packed: Vec<u8>,
    /// The record at hand.
    block: Vec<u8>,
    start: usize,
}

impl<'a> Volume<'a> {
    /// Reads the first header of `source` to know.
    pub(super) fn open(source: &'a mut dyn Read) -> io::Result<Volume<'a>> {
        let mut first = Vec::new();
        source.take(RECORD_BYTES as u64).read_to_end(&mut first)?;
        let compressed = match header::compressed_record_blocks(&first) {
            None => None,
            Some(blocks) if (1..=BLOCKING_MAX).contains(&blocks) => {
                let bytes = blocks as usize * RECORD_BYTES;
                Some(Compressed {
                    plain_left: bytes - RECORD_BYTES,
                    packed: Vec::new(),
                    block: vec![0; bytes],
                    start: bytes,
                })
            }
            Some(blocks) => {
                return Err(invalid(format!("it has records of {blocks} KiB, expected 1 to {BLOCKING_MAX}")));
            }
        };
        Ok(Volume { source, first: Cursor::new(first), compressed })
    }
}

impl Read for Volume<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.first.read(buffer)?;
        if length > 0 {
            return Ok(length);
        }
        let Some(compressed) = &mut self.compressed else {
            return self.source.read(buffer);
        };
        if compressed.plain_left > 0 {
            let wanted = compressed.plain_left.min(buffer.len());
            let length = self.source.read(&mut buffer[..wanted])?;
            compressed.plain_left -= length;
            return Ok(length);
        }
        if compressed.start == compressed.block.len() && !compressed.next(self.source)? {
            return Ok(0);
        }
        let length = buffer.len().min(compressed.block.len() - compressed.start);
        buffer[..length].copy_from_slice(&compressed.block[compressed.start..compressed.start + length]);
        compressed.start += length;
        Ok(length)
    }
}

impl Compressed {
    /// Unpacks the next record; `false` at the end.
    fn next(&mut self, source: &mut dyn Read) -> io::Result<bool> {
        let mut prefix = Vec::new();
        source.take(4).read_to_end(&mut prefix)?;
        let prefix = match prefix[..] {
            [] => return Ok(false),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "it ends within the prefix of a compressed record",
                ));
            }
        };
        let (is_packed, method, length) = (prefix & 1 == 1, prefix >> 1 & 7, (prefix >> 4) as usize);
        if length == 0 || length > self.block.len() {
            return Err(invalid(format!(
                "a compressed record has {length} bytes, expected 1 to {}",
                self.block.len()
            )));
        }
        match METHODS.get(method as usize) {
            Some(&"zlib") => {}
            method => {
                let method = method.unwrap_or(&"an unknown method");
                return Err(invalid(format!(
                    "it was compressed by dump with {method}, which is not supported (only zlib is)"
                )));
            }
        }
        self.packed.resize(length, 0);
        source.read_exact(&mut self.packed)?;
        self.start = 0;
        if !is_packed {
            if length != self.block.len() {
                return Err(invalid(format!("a record has {length} bytes, expected {}", self.block.len())));
            }
            self.block.copy_from_slice(&self.packed);
            return Ok(true);
        }
        let mut zlib = Decompress::new(true);
        let status = zlib.decompress(&self.packed, &mut self.block, FlushDecompress::Finish);
        let whole = zlib.total_out() == self.block.len() as u64 && zlib.total_in() == length as u64;
        match status {
            Ok(Status::StreamEnd) if whole => Ok(true),
            Ok(_) => {
                Err(invalid(format!("a compressed record does not unpack to {} bytes", self.block.len())))
            }
            Err(error) => Err(invalid(format!("unpacking a compressed record: {error}"))),
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}
