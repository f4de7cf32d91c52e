//! Writes a disk's archive: its size is known before the first byte, and nothing but data passes once it has begun.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};

use super::{DIGEST, DISK, Digest, MANIFEST, Manifest};
use crate::stream::outlet::Outlet;
use crate::tree::archive::{self, Extent, Member, Output, Sparse, Time};

/// Each of the few buffers that carry all data: what was read is hashed, and written, while the processor's cache has it.
const BUFFER_BYTES: usize = 256 << 10;

/// An archive that is ready to be written.
pub struct Export {
    /// All that stands before the data.
    head: Vec<u8>,
    runs: Vec<Range<u64>>,
    data_bytes: u64,
    /// Bytes that fill up the last block of the disk's member.
    padding_bytes: usize,
    digest: Digest,
    /// Seconds since 1970, the time of all members.
    made: i64,
}

impl Export {
    /// Of the `runs` of data of the disk that `manifest` describes, ascending, in bytes.
    pub fn new(manifest: &Manifest, runs: Vec<Range<u64>>, made: i64) -> Result<Export> {
        let text = manifest.text()?;
        let pairs = || runs.iter().map(|run| (run.start, run.end - run.start));
        let digest = Digest::begin(text.as_bytes(), pairs());
        let size = manifest.disk.size_bytes;
        let mut extents: Vec<Extent> = pairs().map(|(offset, length)| Extent { offset, length }).collect();
        // The end of the last run would be taken for the disk's end.
        if runs.last().is_none_or(|run| run.end < size) {
            extents.push(Extent { offset: size, length: 0 });
        }
        let sparse = Sparse { extents, real_size: size };
        let map = sparse.encode();
        let data_bytes = sparse.data_bytes();
        let stored = map.len() as u64 + data_bytes;
        let mut head = Vec::new();
        let mut output = Output::new(&mut head, &|| Ok(()));
        whole_member(&mut output, MANIFEST, text.as_bytes(), made)?;
        let (name, records) = archive::sparse_name(DISK.as_bytes(), size);
        output.member(&member(&name, stored, made), &records)?;
        output.bytes(&map)?;
        output.flush()?;
        let padding_bytes = archive::padding(stored) as usize;
        Ok(Export { head, runs, data_bytes, padding_bytes, digest, made })
    }

    /// How long the archive is going to be.
    pub fn size_bytes(&self) -> Result<u64> {
        let tail = self.tail(&self.digest.finish())?;
        Ok(self.head.len() as u64 + self.data_bytes + (self.padding_bytes + tail.len()) as u64)
    }

    /// Writes it all; the data comes from `disk`. What cannot be read is an error and never a hole.
    pub fn write(mut self, disk: &File, sink: File) -> Result<()> {
        let mut outlet = Outlet::to(sink, BUFFER_BYTES);
        send(&mut outlet, &self.head)?;
        for run in &self.runs {
            let mut at = run.start;
            while at < run.end {
                let mut piece = outlet.buffer()?;
                piece.resize((run.end - at).min(BUFFER_BYTES as u64) as usize, 0);
                read_piece(disk, &mut piece, at)?;
                self.digest.add(&piece);
                at += piece.len() as u64;
                outlet.send(piece)?;
            }
        }
        let tail = self.tail(&self.digest.finish())?;
        send(&mut outlet, &[vec![0; self.padding_bytes], tail].concat())?;
        outlet.finish()
    }

    /// The digest's member and the end of the archive.
    fn tail(&self, digest: &str) -> Result<Vec<u8>> {
        let mut tail = Vec::new();
        let mut output = Output::new(&mut tail, &|| Ok(()));
        whole_member(&mut output, DIGEST, digest.as_bytes(), self.made)?;
        output.finish()?;
        Ok(tail)
    }
}

/// Fills a piece with what stands at `at`; an error names the first byte that could not be had, to the folio that the page
/// cache reads at once.
fn read_piece(disk: &File, piece: &mut [u8], at: u64) -> Result<()> {
    let mut done = 0;
    while done < piece.len() {
        let here = at + done as u64;
        match disk.read_at(&mut piece[done..], here) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) => bail!("the disk ends at byte {here}, but was longer at the beginning"),
            read => done += read.with_context(|| format!("reading the disk at byte {here}"))?,
        }
    }
    Ok(())
}

fn send(outlet: &mut Outlet, bytes: &[u8]) -> Result<()> {
    for piece in bytes.chunks(BUFFER_BYTES) {
        let mut buffer = outlet.buffer()?;
        buffer.clear();
        buffer.extend_from_slice(piece);
        outlet.send(buffer)?;
    }
    Ok(())
}

fn whole_member(output: &mut Output<'_>, name: &str, content: &[u8], made: i64) -> Result<()> {
    output.member(&member(name.as_bytes(), content.len() as u64, made), &[])?;
    output.bytes(content)?;
    output.pad(content.len() as u64)
}

/// A regular file of root's.
fn member(path: &[u8], size_bytes: u64, made: i64) -> Member<'_> {
    let mtime = Time { seconds: made, nanoseconds: 0 };
    Member { kind: b'0', path, link: b"", mode: 0o600, uid: 0, gid: 0, mtime, size_bytes, device: (0, 0) }
}
