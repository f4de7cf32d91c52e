//! The file of a template, `template-SUITE-ARCH-FILESYSTEM-SIZE-KEY.img`: dense, so that whoever backs up the cache reads what
//! is there. A header of 4096 bytes, the data in use (run after run, no matter where each belongs), files of the tree that are
//! wanted before it is mounted, and an index in JSON. The header holds the magic, then as little-endian numbers where the
//! index begins (64 bits), its length (64), and its CRC-32.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{BlockRuns, PIECE_BYTES, TemplateSpec};
use crate::cache::Origin;
use crate::reader::integers::{le32, le64};
use crate::sys::signals;

/// The version stands in it: another format has another magic.
const MAGIC: &[u8; 16] = b"gid-template-1\n\0";
pub const HEADER_BYTES: usize = 4096;
const INDEX_BYTES_MAX: u64 = 16 << 20;
const FILE_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub origin: Origin,
    #[serde(rename = "shape")]
    pub spec: TemplateSpec,
    #[serde(rename = "content")]
    pub runs: BlockRuns,
    /// CRC-32 of each piece of the data.
    pub sums: Vec<u32>,
    /// Files of its tree that are wanted besides, and stand behind the data in this order.
    pub files: Vec<KeptFile>,
    /// RFC 3339.
    pub made: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    pub path: String,
    pub length: u64,
    /// CRC-32.
    pub sum: u32,
}

impl Index {
    /// Where it stands in the file: behind all that it speaks of.
    fn begins_at(&self) -> Result<u64> {
        ensure!(self.files.iter().all(|file| file.length <= FILE_BYTES_MAX), "a file in it is too large");
        let files: u64 = self.files.iter().map(|file| file.length).sum();
        Ok(HEADER_BYTES as u64 + self.runs.data_bytes() + files)
    }
}

/// Writes a template, with an index that has no sums yet; returns it with them.
pub fn write(
    file: &File,
    mut index: Index,
    filesystem: &File,
    files: impl Iterator<Item = Vec<u8>>,
) -> Result<Index> {
    let mut sink = BufWriter::with_capacity(PIECE_BYTES, file);
    sink.write_all(&[0; HEADER_BYTES])?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for run in &index.runs.data {
        let mut at = run.start;
        while at < run.end {
            signals::check()?;
            let filled = piece.len();
            let count = (run.end - at).min((PIECE_BYTES - filled) as u64);
            piece.resize(filled + count as usize, 0);
            filesystem.read_exact_at(&mut piece[filled..], at)?;
            at += count;
            if piece.len() == PIECE_BYTES {
                index.sums.push(crc32fast::hash(&piece));
                sink.write_all(&piece)?;
                piece.clear();
            }
        }
    }
    if !piece.is_empty() {
        index.sums.push(crc32fast::hash(&piece));
        sink.write_all(&piece)?;
    }
    for bytes in files {
        sink.write_all(&bytes)?;
    }
    let text = serde_json::to_vec(&index)?;
    ensure!(text.len() as u64 <= INDEX_BYTES_MAX, "its index would have {} bytes", text.len());
    sink.write_all(&text)?;
    sink.flush()?;
    let mut header = MAGIC.to_vec();
    header.extend(index.begins_at()?.to_le_bytes());
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(crc32fast::hash(&text).to_le_bytes());
    file.write_all_at(&header, 0)?;
    Ok(index)
}

/// Reads the index of what may be a template.
pub fn read_index(file: &File) -> Result<Index> {
    let mut header = [0; 36];
    file.read_exact_at(&mut header, 0).context("it is too short")?;
    ensure!(header.starts_with(MAGIC), "it does not begin as one");
    let (at, length, sum) = (le64(&header, 16), le64(&header, 24), le32(&header, 32));
    ensure!(length <= INDEX_BYTES_MAX, "its index claims {length} bytes");
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, at).context("its index is not there")?;
    ensure!(crc32fast::hash(&text) == sum, "its index is damaged");
    let index: Index = serde_json::from_slice(&text).context("its index says nothing that is known")?;
    index.runs.check(index.spec.size_bytes)?;
    let data_bytes = index.runs.data_bytes();
    ensure!(at == index.begins_at()?, "its data is not of the length that its index says");
    ensure!(index.sums.len() as u64 == data_bytes.div_ceil(PIECE_BYTES as u64), "its sums are not all there");
    Ok(index)
}
