//! A base tar that is open: its bytes, and whether they are what the manifest says.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backup::compressed;
use crate::report::WithHint;
use crate::sys::signals;

/// Which tar a template was made from: neither another one nor the same name with other bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub suite: String,
    pub arch: String,
    /// The kernel of a tree that boots; empty for one that does not.
    pub kernel: String,
    /// Its name in the cache.
    pub file: String,
    /// What its manifest says; empty where there is none.
    pub digest: String,
    pub size_bytes: u64,
    /// When it was written, and without a digest when anything of it was changed: nanoseconds since 1970.
    pub modified_ns: u64,
}

/// A base tar that is open for reading.
#[derive(Debug)]
pub struct BaseTar {
    /// For messages.
    pub name: String,
    pub(super) file: File,
    pub(super) size_bytes: u64,
    pub(super) by_hand: bool,
    pub(super) digest: Option<String>,
    /// What its files need on a disk, where it is known.
    pub unpacked_bytes: Option<u64>,
    /// None: it is not in the cache.
    pub origin: Option<Origin>,
}

impl BaseTar {
    /// A tar that somebody else has vouched for.
    pub fn sealed(name: String, file: File) -> Result<BaseTar> {
        let size_bytes = file.metadata()?.len();
        let (digest, unpacked_bytes, origin) = (None, None, None);
        Ok(BaseTar { name, file, size_bytes, by_hand: true, digest, unpacked_bytes, origin })
    }

    /// The tar's bytes, from the start; what is compressed (gzip, zstd, xz) is told by its first bytes.
    pub fn reader(&self) -> Result<Box<dyn Read>> {
        let file = self.file.try_clone().context("opening the cache file once more")?;
        compressed::plain(Box::new(ReadAt { file, at: 0 }))
    }

    /// Bytes that the tree needs at least.
    pub fn needed_bytes(&self) -> u64 {
        self.unpacked_bytes.unwrap_or(self.size_bytes)
    }

    /// The size of the file itself.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Compares the file with its manifest; a file without one cannot be judged.
    pub fn verify(&self) -> Result<()> {
        let Some(expected) = &self.digest else { return Ok(()) };
        let file = self.file.try_clone().context("opening the cache file once more")?;
        let found = digest_of(&mut ReadAt { file, at: 0 })?;
        if found == *expected {
            return Ok(());
        }
        let remedy = match self.by_hand {
            true => {
                "restore it from your own copy; if the change was yours, `cache seal` it again".to_owned()
            }
            false => format!("rm {}; the next create makes it anew, or `cache build` does now", self.name),
        };
        Err(anyhow::anyhow!("the cache file {} is damaged: {found}, its manifest says {expected}", self.name))
            .hint(remedy)
    }
}

/// Reads a shared file without moving its position.
struct ReadAt {
    file: File,
    at: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// `sha256:HEX` of all that a reader gives; a caught signal ends it.
pub fn digest_of(reader: &mut dyn Read) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        signals::check()?;
        match reader.read(&mut buffer).context("reading a cache file")? {
            0 => return Ok(format!("sha256:{:x}", hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
