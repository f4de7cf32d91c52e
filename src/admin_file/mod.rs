//! Files that the administrator of the node vouches for: who else can write them, and whether one is what its digest says. Must not
//! know what they hold.

mod exposure;

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256, Sha512};

use crate::report::WithHint;
use crate::sys::signals;

pub use exposure::AdminFiles;

/// What is read at once.
const PIECE_BYTES: usize = 1 << 20;

/// A file of which the administrator said what it holds: its digest is his seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFile {
    pub path: PathBuf,
    pub algorithm: Algorithm,
    /// Lower case.
    pub hex: String,
}

/// How a digest is made; those with which images are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl SealedFile {
    /// `/srv/golden.qcow2 sha256:HEX`
    pub fn parse(text: &str) -> Option<SealedFile> {
        let (path, digest) = text.rsplit_once(' ')?;
        let (algorithm, hex) = match digest.split_once(':')? {
            ("sha256", hex) if hex.len() == 64 => (Algorithm::Sha256, hex),
            ("sha512", hex) if hex.len() == 128 => (Algorithm::Sha512, hex),
            _ => return None,
        };
        let path = path.trim_end();
        let good = path.starts_with('/') && !path.contains(char::is_control);
        let good = good && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| SealedFile { path: path.into(), algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// Compares a file with the digest.
    pub fn compare(&self, file: &File) -> Result<()> {
        let found = match self.algorithm {
            Algorithm::Sha256 => hex_of::<Sha256>(file)?,
            Algorithm::Sha512 => hex_of::<Sha512>(file)?,
        };
        if found == self.hex {
            return Ok(());
        }
        let (path, algorithm) = (self.path.display(), self.algorithm);
        Err(anyhow!(
            "{path} is not what source says: it is {algorithm}:{found}, not {algorithm}:{}",
            self.hex
        ))
        .hint("restore the file, or, if the change was yours, give source its new digest")
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        })
    }
}

fn hex_of<D: Digest>(mut file: &File) -> Result<String> {
    let mut hash = D::new();
    let mut piece = vec![0; PIECE_BYTES];
    file.rewind()?;
    loop {
        signals::check()?;
        match file.read(&mut piece).context("reading the source of the disk")? {
            0 => break,
            count => hash.update(&piece[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
