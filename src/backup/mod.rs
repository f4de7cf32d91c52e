//! Owns what a backup is: the stream's compression and its format, told by content alone. Must not
//! touch any file or know where the stream comes from.

pub mod compressed;
pub mod disk_archive;
pub mod dump;
mod pipe_out;
pub mod qcow2;

use std::io::Read;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};

use crate::probe;
use crate::reader::{Budget, Region};
use crate::report::WithHint;

/// How much of a stream [`kind_of()`] wants to see: the superblock of btrfs lies at 64 KiB.
pub const IDENTIFY_BYTES: usize = 72 << 10;

/// What is accepted, for errors.
const ACCEPTED: &str = "import takes a backup of this program, a level 0 dump(8) of ext2, ext3 or ext4, a raw disk, or a \
                        tar of a root tree; plain or as gzip, zstd or xz";

/// What people bring that is none of these: its magic, its name, and how it becomes one.
const NOT_ACCEPTED: [(&[u8], &str, &str); 9] = [
    (b"QFI\xfb", "a qcow2 image", CONVERT),
    (b"KDMV", "a VMDK image", CONVERT),
    (b"vhdxfile", "a VHDX image", CONVERT),
    (b"conectix", "a VHD image", CONVERT),
    (b"<<< ", "a VDI image", CONVERT),
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"\x04\x22\x4d\x18", "compressed by lz4", UNPACK),
    (b"\x89LZO\0", "compressed by lzop", UNPACK),
];
const CONVERT: &str = "make a raw disk of it: qemu-img convert -O raw";
const UNPACK: &str = "unpack it first, or pack it as gzip, zstd or xz";

/// Where a tar's header says that it is one.
const TAR_MAGIC: std::ops::Range<usize> = 257..263;

/// What whoever is not root may give a pipe.
const PIPE_BYTES: usize = 1 << 20;

/// How much of an unknown stream is shown.
const SHOWN_BYTES: usize = 16;

/// The formats that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What dump(8) writes.
    Dump,
    /// What export writes.
    Image,
    /// A tar of a tree.
    Tree,
    /// A disk as it lies.
    Raw,
}

/// A backup whose format is known: its plain bytes, from the first one on.
pub enum Source {
    /// For [`dump::restore()`].
    Dump(Box<dyn Read>),
    /// For [`disk_archive::Image`].
    Image(Box<dyn Read>),
    /// For [`crate::tar::unpack()`].
    Tree(Box<dyn Read>),
    /// A raw disk, and its first bytes again.
    Raw(Box<dyn Read>, Vec<u8>),
}

/// Gives a pipe more room. With the 64 KiB that it has at first both sides wait for each other all the time; what is no
/// pipe, or may not grow, goes as well.
pub fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
}

/// Looks at the first bytes of `input`, unpacks what is compressed, and says what it is. An error
/// if it is nothing that is known.
pub fn open(input: Box<dyn Read>) -> Result<Source> {
    let mut plain = compressed::plain(input)?;
    let first = compressed::peek(&mut plain, IDENTIFY_BYTES).context("reading the start of the backup")?;
    let kind = kind_of(&first)?;
    let all = Box::new(std::io::Cursor::new(first.clone()).chain(plain));
    Ok(match kind {
        Kind::Dump => {
            dump::expect_acceptable(&first)?;
            Source::Dump(all)
        }
        Kind::Image => Source::Image(all),
        Kind::Tree => Source::Tree(all),
        Kind::Raw => Source::Raw(all, first),
    })
}

/// What a stream is that begins with `first_bytes`, at least [`IDENTIFY_BYTES`] of them unless it is
/// shorter. What is known but not accepted is refused by its name.
pub fn kind_of(first_bytes: &[u8]) -> Result<Kind> {
    if let Some(found) = dump::probe(first_bytes) {
        return found.map(|()| Kind::Dump);
    }
    if first_bytes.get(TAR_MAGIC).is_some_and(|magic| magic.starts_with(b"ustar")) {
        return Ok(if disk_archive::begins(first_bytes) { Kind::Image } else { Kind::Tree });
    }
    if let Some((_, what, remedy)) = NOT_ACCEPTED.iter().find(|(magic, ..)| first_bytes.starts_with(magic)) {
        return Err(anyhow!("the backup is {what}, which is not accepted")).hint(*remedy);
    }
    let boot_sector = first_bytes.get(510..512) == Some(&[0x55, 0xaa]);
    let (size_bytes, budget) = (first_bytes.len() as u64, Budget::unlimited());
    let start = Region::new(&first_bytes, &budget, 0, size_bytes);
    if boot_sector || probe::probe(&start)? != probe::Content::Unknown {
        return Ok(Kind::Raw);
    }
    if first_bytes.is_empty() {
        return Err(anyhow!("the backup is empty: standard input ended before its first byte"))
            .hint("whoever was to send it failed first; its log says why");
    }
    let shown = &first_bytes[..first_bytes.len().min(SHOWN_BYTES)];
    Err(anyhow!("the backup is of no known format: it begins with \"{}\"", shown.escape_ascii()))
        .hint(ACCEPTED)
}

#[cfg(test)]
mod tests {
    use super::{Kind, kind_of};
    use crate::report;

    #[test]
    fn what_is_no_backup_is_refused_with_what_was_found() {
        for (bytes, found, remedy) in [
            (&b""[..], "the backup is empty", "failed first"),
            (b"hello\n", r#"it begins with "hello\n""#, "import takes a backup of this program"),
            (&[0; 1024], r"\x00\x00", "import takes a backup of this program"),
            (b"QFI\xfb\0\0\0\x03", "the backup is a qcow2 image", "qemu-img convert -O raw"),
            (b"BZh91AY", "the backup is compressed by bzip2", "unpack it first"),
        ] {
            let error = kind_of(bytes).unwrap_err();
            assert!(report::sentence(&error).contains(found), "{error:?}");
            assert!(
                error.to_string().starts_with("hint: ") && error.to_string().contains(remedy),
                "{error:?}"
            );
        }
    }

    #[test]
    fn dumps_are_told_by_their_magic_and_others_of_their_family_by_name() {
        let mut first = [0; 1024];
        first[24..28].copy_from_slice(&60012_u32.to_le_bytes());
        assert_eq!(kind_of(&first).unwrap(), Kind::Dump);
        for (magic, name) in [
            (60012_u32.to_be_bytes(), "big-endian"),
            (60011_u32.to_le_bytes(), "old format"),
            (0x1954_0119_u32.to_le_bytes(), "UFS2"),
        ] {
            first[24..28].copy_from_slice(&magic);
            let error = kind_of(&first).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
