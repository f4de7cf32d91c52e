//! Owns what a backup is: the stream's compression and its format, told by content alone. Must not
//! touch any file or know where the stream comes from.

pub mod compressed;
pub mod dump;
pub mod image;
mod outlet;

use std::io::Read;

use anyhow::{Context, Result, bail};

/// How much of a stream [`identify()`] wants to see: the header of a dump.
pub const IDENTIFY_BYTES: usize = 1024;

/// What is accepted, for errors.
const ACCEPTED: &str = "a level 0 dump(8) of an ext2, ext3 or ext4 filesystem, plain or as gzip, zstd or xz";

/// How much of an unknown stream is shown.
const SHOWN_BYTES: usize = 16;

/// The formats that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What dump(8) writes.
    Dump,
}

/// A backup whose format is known: its plain bytes, from the first one on.
pub enum Source {
    /// For [`dump::restore()`].
    Dump(Box<dyn Read>),
}

/// Looks at the first bytes of `input`, unpacks what is compressed, and says what it is. An error
/// if it is nothing that is known.
pub fn open(input: Box<dyn Read>) -> Result<Source> {
    let mut plain = compressed::plain(input)?;
    let first = compressed::peek(&mut plain, IDENTIFY_BYTES).context("reading the start of the backup")?;
    match identify(&first)? {
        Kind::Dump => Ok(Source::Dump(Box::new(std::io::Cursor::new(first).chain(plain)))),
    }
}

/// What a stream is that begins with `first_bytes`, at least [`IDENTIFY_BYTES`] of them unless it is
/// shorter. What is known but not accepted is refused by its name.
pub fn identify(first_bytes: &[u8]) -> Result<Kind> {
    if let Some(found) = dump::identify(first_bytes) {
        return found.map(|()| Kind::Dump);
    }
    if first_bytes.is_empty() {
        bail!("the backup is empty; expected {ACCEPTED}");
    }
    let shown = &first_bytes[..first_bytes.len().min(SHOWN_BYTES)];
    bail!(
        "the backup is of no known format: it begins with \"{}\"; expected {ACCEPTED}",
        shown.escape_ascii()
    )
}

#[cfg(test)]
mod tests {
    use super::{Kind, identify};

    #[test]
    fn what_is_no_backup_is_refused_with_what_was_found() {
        for (bytes, found) in [
            (&b""[..], "the backup is empty"),
            (b"hello\n", r#"it begins with "hello\n""#),
            (&[0; 1024], r"\x00\x00"),
        ] {
            let error = identify(bytes).unwrap_err().to_string();
            assert!(error.contains(found) && error.contains("expected a level 0 dump"), "{error}");
        }
    }

    #[test]
    fn dumps_are_told_by_their_magic_and_others_of_their_family_by_name() {
        let mut first = [0; 1024];
        first[24..28].copy_from_slice(&60012_u32.to_le_bytes());
        assert_eq!(identify(&first).unwrap(), Kind::Dump);
        for (magic, name) in [
            (60012_u32.to_be_bytes(), "big-endian"),
            (60011_u32.to_le_bytes(), "old format"),
            (0x1954_0119_u32.to_le_bytes(), "UFS2"),
        ] {
            first[24..28].copy_from_slice(&magic);
            let error = identify(&first).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
