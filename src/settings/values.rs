//! Settings whose text says more than one thing, parsed.

use std::fmt;
use std::path::PathBuf;

use super::syntax::number;

/// Where swap is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapWish {
    No,
    /// A disk that Ganeti calls swap, if there is one.
    Auto,
    /// A whole disk, by its index.
    Disk(usize),
    /// Bytes on the root disk.
    Size(u64),
}

impl SwapWish {
    /// None where the text says nothing of this kind.
    pub fn parse(text: &str) -> Option<SwapWish> {
        if let Some(index) = text.strip_prefix("disk") {
            let index = number(index).filter(|index| (1..64).contains(index))?;
            return usize::try_from(index).ok().map(SwapWish::Disk);
        }
        match text {
            "no" => return Some(SwapWish::No),
            "auto" => return Some(SwapWish::Auto),
            _ => {}
        }
        let (number, shift) = match text.as_bytes().last()? {
            b'M' => (&text[..text.len() - 1], 20),
            b'G' => (&text[..text.len() - 1], 30),
            _ => return None,
        };
        let number = self::number(number)?;
        // Less than 1 MiB is no swap; more than 1 TiB is a typing error.
        let bytes = number.checked_mul(1 << shift)?;
        ((1 << 20)..=(1 << 40)).contains(&bytes).then_some(SwapWish::Size(bytes))
    }
}

/// What a new disk is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A tree that is bootstrapped, or comes from the cache.
    Bootstrap,
    /// Nothing: the guest is installed otherwise.
    Empty,
    /// A root tar or a disk image; what it holds tells which.
    File(SealedFile),
}

impl Source {
    /// None where the text says nothing of this kind.
    pub fn parse(text: &str) -> Option<Source> {
        match text {
            "bootstrap" => Some(Source::Bootstrap),
            "empty" => Some(Source::Empty),
            file => SealedFile::parse(file).map(Source::File),
        }
    }
}

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
    fn parse(text: &str) -> Option<SealedFile> {
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
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        })
    }
}

/// Whether what is restored is the guest that was backed up, or another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    Keep,
    New,
}

/// Which program makes a root tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrapper {
    /// The faster one, where it makes the same tree.
    Auto,
    Debootstrap,
    Mmdebstrap,
}

impl fmt::Display for Bootstrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bootstrapper::Auto => "auto",
            Bootstrapper::Debootstrap => "debootstrap",
            Bootstrapper::Mmdebstrap => "mmdebstrap",
        })
    }
}
