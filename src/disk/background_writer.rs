//! Writes to a disk behind whoever has the bytes: a thread of its own takes them, piece by piece, while more comes. Must not
//! know what the bytes are.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise};

use super::Disk;
use crate::sys::signals;

/// With less the threads wake each other too often; with much more nothing stays in the processor's cache.
const PIECE_BYTES: usize = 1 << 20;
/// While one is written, others are filled.
const PIECES: usize = 4;
/// How much is written before the disk is told to begin. By way of the page cache: past it, the disk is slower where others
/// read from it meanwhile, such as whoever brings the stream.
const BEHIND_BYTES: u64 = 8 << 20;
/// How often whoever waits looks for signals.
const POLL: Duration = Duration::from_millis(50);

/// Bytes that lie together on the disk.
struct Piece {
    room: Vec<u8>,
    filled: usize,
    offset: u64,
}

impl Piece {
    fn new() -> Piece {
        Piece { room: vec![0; PIECE_BYTES], filled: 0, offset: 0 }
    }

    /// The room for what comes at `offset`; none where that does not belong here, or it is full.
    fn room(&mut self, offset: u64) -> Option<&mut [u8]> {
        if self.filled == 0 {
            self.offset = offset;
        }
        let follows = offset == self.offset + self.filled as u64 && self.filled < PIECE_BYTES;
        follows.then(|| &mut self.room[self.filled..])
    }
}

/// Bytes on their way to a disk.
pub struct BackgroundWriter {
    filling: Piece,
    spare: Vec<Piece>,
    full: Option<Sender<Piece>>,
    written: Receiver<Result<Piece>>,
    writer: Option<JoinHandle<()>>,
}

impl BackgroundWriter {
    pub fn of(disk: &Disk) -> Result<BackgroundWriter> {
        let file = disk.file.try_clone().context("opening the disk once more")?;
        let mut place = Place { path: disk.path.clone(), file, behind: 0..0 };
        let (full, to_write) = channel::<Piece>();
        let (done, written) = channel();
        let writer = thread::spawn(move || {
            for mut piece in to_write {
                let result = place.write(&piece);
                piece.filled = 0;
                if done.send(result.map(|()| piece)).is_err() {
                    return;
                }
            }
        });
        let spare = (1..PIECES).map(|_| Piece::new()).collect();
        Ok(BackgroundWriter { filling: Piece::new(), spare, full: Some(full), written, writer: Some(writer) })
    }

    /// Takes some of `length` bytes for `offset`, as many as `source` puts into the room it is shown. An error may be that
    /// of bytes before.
    pub fn fill(
        &mut self,
        offset: u64,
        length: u64,
        source: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<usize> {
        if self.filling.room(offset).is_none() {
            self.send()?;
        }
        let room = self.filling.room(offset).context("room in an empty piece")?;
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(room.len());
        let count = source(&mut room[..most])?;
        self.filling.filled += count;
        Ok(count)
    }

    /// Waits until the kernel has all that was taken.
    pub fn flush(&mut self) -> Result<()> {
        if self.filling.filled > 0 {
            self.send()?;
        }
        while self.spare.len() + 1 < PIECES {
            let piece = self.next_written()?;
            self.spare.push(piece);
        }
        Ok(())
    }

    /// Waits until nobody writes any more, whatever became of what was taken; nothing can be written from here on.
    pub fn end(&mut self) {
        self.full = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }

    fn send(&mut self) -> Result<()> {
        let empty = match self.spare.pop() {
            Some(piece) => piece,
            None => self.next_written()?,
        };
        let piece = std::mem::replace(&mut self.filling, empty);
        let full = self.full.as_ref().context("writing to the disk: the writer was ended")?;
        full.send(piece).ok().context("writing to the disk: the writer has ended")
    }

    fn next_written(&self) -> Result<Piece> {
        loop {
            signals::check()?;
            match self.written.recv_timeout(POLL) {
                Ok(piece) => return piece,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("writing to the disk: the writer has ended"),
            }
        }
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        self.end();
    }
}

/// The disk, as the writer has it.
struct Place {
    path: PathBuf,
    file: File,
    /// What was written lately, and need not be on its way to the disk yet.
    behind: Range<u64>,
}

impl Place {
    fn write(&mut self, piece: &Piece) -> Result<()> {
        let (offset, end) = (piece.offset, piece.offset + piece.filled as u64);
        let context = || format!("writing to {} at byte {offset}", self.path.display());
        self.file.write_all_at(&piece.room[..piece.filled], offset).with_context(context)?;
        self.behind = self.behind.start.min(offset)..self.behind.end.max(end);
        if self.behind.end - self.behind.start < BEHIND_BYTES {
            return Ok(());
        }
        // The disk works while more comes, and not only at the end; nor does the node lose what its page cache holds of others.
        let (start, length) = (self.behind.start, NonZeroU64::new(self.behind.end - self.behind.start));
        self.behind = self.behind.end..self.behind.end;
        fadvise(&self.file, start, length, Advice::DontNeed).context("starting to write the disk out")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = PIECE_BYTES as u64;

    fn disk(bytes: u64) -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Disk::of_new_file(file, std::path::Path::new("disk")).unwrap()
    }

    #[test]
    fn runs_that_are_not_aligned_come_to_stand_where_they_belong() {
        let (disk, mut expected) = (disk(12 * PIECE), vec![0; 12 * PIECE_BYTES]);
        let mut behind = BackgroundWriter::of(&disk).unwrap();
        // Neighbors in one sector and one page, more than a piece, more than all pieces, up to the disk's end.
        let runs = [
            (1, 1),
            (2, 1000),
            (3000, 70_000),
            (PIECE - 512, 1024),
            (PIECE + 5000, 2 * PIECE),
            (5 * PIECE + 1, 6 * PIECE),
            (12 * PIECE - 9, 9),
        ];
        for (number, (offset, length)) in runs.into_iter().enumerate() {
            let (mut at, end) = (offset, offset + length);
            while at < end {
                let filled = behind.fill(at, end - at, |room| {
                    let count = room.len().min(65_537);
                    room[..count].fill(number as u8 + 1);
                    Ok(count)
                });
                at += filled.unwrap() as u64;
            }
            expected[offset as usize..end as usize].fill(number as u8 + 1);
        }
        behind.flush().unwrap();
        let mut found = vec![0; expected.len()];
        disk.file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
    }

    #[test]
    fn an_error_names_the_place_and_comes_at_the_latest_when_all_is_to_be_written() {
        let mut disk = disk(PIECE);
        let named = tempfile::NamedTempFile::new().unwrap();
        disk.file = File::open(named.path()).unwrap();
        let mut behind = BackgroundWriter::of(&disk).unwrap();
        let count = behind.fill(512, 100, |room| Ok(room.len())).unwrap();
        let error = behind.flush().unwrap_err();
        assert_eq!((count, error.to_string()), (100, "writing to disk at byte 512".into()));
    }
}
