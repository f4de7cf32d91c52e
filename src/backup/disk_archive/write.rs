//! Writes a disk's archive: its size is known before the first byte, and nothing but data passes once it has begun.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::vec::IntoIter;

use anyhow::{Context, Result, bail};

use super::{DIGEST, DISK, Digest, MANIFEST, Manifest};
use crate::backup::pipe_out::{Piece, PipeWriter, beside_signals};
use crate::tar::archive::{self, Extent, Member, Output, Sparse, Time};

/// As many as keep two processors busy.
const CARRIERS: usize = 2;

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
    pub fn write(self, disk: &File, sink: File) -> Result<()> {
        let disk = disk.try_clone().context("opening the disk once more")?;
        beside_signals(move || self.carry(&disk, PipeWriter::to(sink)))
    }

    fn carry(mut self, disk: &File, mut pipe: PipeWriter) -> Result<()> {
        pipe.write(&self.head)?;
        let runs = std::mem::take(&mut self.runs);
        in_turns(Data { disk, runs: runs.into_iter(), run: 0..0 }, &mut self.digest, &mut pipe)?;
        let tail = self.tail(&self.digest.finish())?;
        pipe.write(&[vec![0; self.padding_bytes], tail].concat())
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

/// What is yet to be read.
struct Data<'a> {
    disk: &'a File,
    runs: IntoIter<Range<u64>>,
    /// The rest of the one that was begun.
    run: Range<u64>,
}

impl Data<'_> {
    /// Fills the buffer as far as there is something; says how far.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.run.is_empty() {
                let Some(next) = self.runs.next() else { break };
                self.run = next;
            }
            let length = (self.run.end - self.run.start).min((buffer.len() - filled) as u64);
            read_piece(self.disk, &mut buffer[filled..][..length as usize], self.run.start)?;
            self.run.start += length;
            filled += length as usize;
        }
        Ok(filled)
    }
}

/// Carriers that each take a piece through all three stages. Whoever is in a stage enters the next one before he leaves it:
/// none overtakes, and the stages of different pieces overlap.
fn in_turns(data: Data<'_>, digest: &mut Digest, pipe: &mut PipeWriter) -> Result<()> {
    // None once a carrier has failed: nothing is to come behind what is missing.
    let (data, digest, pipe) = (Mutex::new(Some(data)), Mutex::new(digest), Mutex::new(Some(pipe)));
    let carrier = || -> Result<()> {
        let mut piece = Piece::new()?;
        loop {
            let mut reading = entered(&data);
            let Some(data) = reading.as_mut() else { return Ok(()) };
            let length = data.fill(piece.bytes()).inspect_err(|_| *reading = None)?;
            if length == 0 {
                return Ok(());
            }
            let mut hashing = entered(&digest);
            drop(reading);
            hashing.add(&piece.bytes()[..length]);
            let mut writing = entered(&pipe);
            drop(hashing);
            let Some(pipe) = writing.as_mut() else { return Ok(()) };
            pipe.send(&mut piece, length).inspect_err(|_| *writing = None)?;
        }
    };
    thread::scope(|scope| {
        let carriers: Vec<_> = (0..CARRIERS).map(|_| scope.spawn(carrier)).collect();
        let joined = |carrier: ScopedJoinHandle<'_, _>| {
            carrier.join().unwrap_or_else(|_| bail!("a carrier of the backup has panicked"))
        };
        carriers.into_iter().try_for_each(joined)
    })
}

/// The stage, once whoever was in it has left.
fn entered<T>(stage: &Mutex<T>) -> MutexGuard<'_, T> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
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
