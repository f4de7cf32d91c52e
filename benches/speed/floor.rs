//! What a disk alone takes: the same bytes past the page cache, in large pieces, flushed. Knows no program.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use nix::libc::O_DIRECT;

use crate::measure::{Invocation, data_of};

const PIECE_BYTES: usize = 4 << 20;
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
        let mut piece = Aligned::new();
        match self {
            Floor::Read { path } => {
                let file = direct(&path)?;
                for (start, end) in data_of(&file)? {
                    for at in (start..end).step_by(PIECE_BYTES) {
                        let length = (end - at).min(PIECE_BYTES as u64) as usize;
                        let read = file.read_at(piece.bytes(rounded(length)), at)?;
                        ensure!(read >= length, "{read} of {length} bytes at {at}");
                    }
                }
                Ok(())
            }
            Floor::Write { path, bytes } => {
                let file = direct(&path)?;
                for at in (0..bytes).step_by(PIECE_BYTES) {
                    let length = rounded((bytes - at).min(PIECE_BYTES as u64) as usize);
                    file.write_all_at(piece.bytes(length), at)?;
                }
                Ok(file.sync_all()?)
            }
            Floor::Receive { path } => {
                let (file, mut input) = (direct(&path)?, std::io::stdin().lock());
                let mut at = 0;
                loop {
                    let length = filled(&mut input, piece.bytes(PIECE_BYTES))?;
                    if length == 0 {
                        return Ok(file.sync_all()?);
                    }
                    file.write_all_at(piece.bytes(rounded(length)), at)?;
                    at += length as u64;
                }
            }
        }
    }

    /// How this program is started for it.
    pub fn invocation(arguments: &[&str]) -> Invocation {
        let argv =
            ["/proc/self/exe", "floor"].iter().chain(arguments).map(|part| (*part).to_owned()).collect();
        Invocation { argv, environment: Default::default(), directory: "/".into() }
    }
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

    fn bytes(&mut self, length: usize) -> &mut [u8] {
        &mut self.room[self.begin..self.begin + length]
    }
}
