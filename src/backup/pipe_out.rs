//! The output of a backup, usually a pipe. The bytes of a file go into it without a copy. A thread does the work, and signals
//! are heard while we wait for it, because the other side may have stopped reading.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memmap2::{Advice, MmapMut};
use rustix::io::Errno;

use super::widen;
use crate::report;
use crate::sys::{self, signals};

/// A huge page of most machines: had at once, where 512 small ones would cost more than copying.
const PIECE_BYTES: usize = 2 << 20;
/// Whether there are huge pages for who asks.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// How often whoever waits looks for signals.
const POLL: Duration = Duration::from_millis(50);

/// Memory of its own, in pages that nothing else lies in.
pub struct Piece {
    pages: MmapMut,
    begin: usize,
}

impl Piece {
    pub fn new() -> Result<Piece> {
        let pages = MmapMut::map_anon(2 * PIECE_BYTES).context("taking memory for the backup")?;
        // Without huge pages it is as much memory in small ones.
        let _ = pages.advise(Advice::HugePage);
        let begin = pages.as_ptr().align_offset(PIECE_BYTES).min(PIECE_BYTES);
        Ok(Piece { pages, begin })
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.pages[self.begin..self.begin + PIECE_BYTES]
    }
}

/// Where a backup goes.
pub struct PipeWriter {
    sink: File,
    gives: bool,
}

impl PipeWriter {
    pub fn to(sink: File) -> PipeWriter {
        widen(&sink);
        let pipe = sink.metadata().is_ok_and(|meta| meta.file_type().is_fifo());
        let huge_pages = std::fs::read_to_string(HUGE_PAGES).is_ok_and(|modes| !modes.contains("[never]"));
        PipeWriter { sink, gives: pipe && huge_pages }
    }

    /// Writes the first `length` bytes of a piece, which may have other content afterwards. The pages themselves go into a
    /// pipe: whoever reads it may hold them for long, so they are not filled again but let go. (The page cache's own pages
    /// would cost nothing at all; but a guest that runs could change them between the digest and the reader.)
    pub fn send(&mut self, piece: &mut Piece, length: usize) -> Result<()> {
        let bytes = &piece.bytes()[..length];
        if !self.gives {
            return self.write(bytes);
        }
        let given = self.give(bytes);
        *piece = Piece::new()?;
        given.map_err(explained).context("writing the backup")
    }

    fn give(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match sys::give_pages(&self.sink, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Writes what is in no piece.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes).map_err(explained).context("writing the backup")
    }
}

/// What stands behind an error of whoever takes the backup.
fn explained(error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::BrokenPipe => "whoever was to read the backup ended first; its log says why",
        io::ErrorKind::StorageFull => "make room where the backup goes",
        _ => return error.into(),
    };
    report::with_hint(error.into(), hint)
}

/// Does it in a thread of its own, which a caught signal leaves behind: it ends with the process.
pub fn beside_signals(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let (ended, result) = channel();
    thread::spawn(move || ended.send(work()));
    loop {
        signals::check()?;
        match result.recv_timeout(POLL) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("writing the backup: the writer has ended"),
        }
    }
}
