//! What a disk alone takes: the same bytes past the page cache, in large pieces, flushed. Knows no program.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Subcommand;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::O_DIRECT;

use crate::measure::{Invocation, data_of};

const PIECE_BYTES: usize = 4 << 20;
/// What whoever is not root may give a pipe.
const PIPE_BYTES: i32 = 1 << 20;
/// Every device's blocks and every page divide by it.
const ALIGN_BYTES: usize = 4096;

#[derive(Subcommand)]
pub enum Floor {
    /// Reads all data of a file
    Read { path: PathBuf },
    /// Writes so many bytes
    Write { path: PathBuf, bytes: u64 },
    /// Writes what comes on standard input
    Receive { path: PathBuf },
}

impl Floor {
    pub fn run(self) -> Result<()> {
        match self {
            Floor::Read { path } => {
                let file = direct(&path)?;
                let mut pieces = data_of(&file)?.into_iter().flat_map(|(start, end)| {
                    (start..end)
                        .step_by(PIECE_BYTES)
                        .map(move |at| (at, (end - at).min(PIECE_BYTES as u64) as usize))
                });
                in_turns(
                    |_| Ok(pieces.next()),
                    |piece, at, length| {
                        let read = file.read_at(&mut piece[..rounded(length)], at)?;
                        ensure!(read >= length, "{read} of {length} bytes at {at}");
                        Ok(())
                    },
                )
            }
            Floor::Write { path, bytes } => {
                let file = direct(&path)?;
                let mut pieces = (0..bytes).step_by(PIECE_BYTES);
                let next = |_: &mut [u8]| {
                    Ok(pieces.next().map(|at| (at, (bytes - at).min(PIECE_BYTES as u64) as usize)))
                };
                in_turns(next, |piece, at, length| Ok(file.write_all_at(&piece[..rounded(length)], at)?))?;
                Ok(file.sync_all()?)
            }
            Floor::Receive { path } => {
                let (file, mut input) = (direct(&path)?, std::io::stdin());
                fcntl(&input, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).context("widening the pipe")?;
                let mut at = 0;
                let next = |piece: &mut [u8]| {
                    let (begin, length) = (at, filled(&mut input, piece)?);
                    at += length as u64;
                    Ok((length > 0).then_some((begin, length)))
                };
                in_turns(next, |piece, at, length| Ok(file.write_all_at(&piece[..rounded(length)], at)?))?;
                Ok(file.sync_all()?)
            }
        }
    }

    /// How this program is started for it.
    pub fn invocation(arguments: &[&str]) -> Invocation {
        let argv: Vec<String> =
            ["/proc/self/exe", "floor"].iter().chain(arguments).map(|part| (*part).to_owned()).collect();
        Invocation::of(&argv)
    }
}

/// One piece after the other: `next` fills it and says where it belongs and how long it is, while the piece before is
/// still on its way.
fn in_turns(
    next: impl FnMut(&mut [u8]) -> Result<Option<(u64, usize)>> + Send,
    carry: impl Fn(&mut [u8], u64, usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = Mutex::new(next);
    let carrier = || -> Result<()> {
        let mut piece = Aligned::new();
        loop {
            let mut next = next.lock().map_err(|_| anyhow!("the other carrier failed"))?;
            let Some((at, length)) = (*next)(piece.bytes())? else { return Ok(()) };
            drop(next);
            carry(piece.bytes(), at, length)?;
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(carrier);
        carrier()?;
        other.join().map_err(|_| anyhow!("the other carrier panicked"))?
    })
}

fn direct(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path);
    opened.with_context(|| format!("opening {} past the page cache", path.display()))
}

fn rounded(length: usize) -> usize {
    length.next_multiple_of(ALIGN_BYTES)
}

fn filled(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// A piece that begins where direct I/O may.
struct Aligned {
    room: Vec<u8>,
    begin: usize,
}

impl Aligned {
    fn new() -> Aligned {
        // Not zeros: a device may know these.
        let room = vec![0xa5; PIECE_BYTES + ALIGN_BYTES];
        let begin = room.as_ptr().align_offset(ALIGN_BYTES);
        Aligned { room, begin }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.begin..self.begin + PIECE_BYTES]
    }
}
