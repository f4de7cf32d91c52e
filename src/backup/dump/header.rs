//! Owns the header record of a dump and the inode inside (protocols/dumprestore.h, struct s_spcl and
//! struct new_bsd_inode; little-endian). Must not read the stream, nor judge in which order headers
//! come.

use anyhow::{Result, bail, ensure};

use super::RECORD_BYTES;
use crate::reader::integers::{be32, le32};

/// NFS_MAGIC.
const MAGIC: u32 = 60012;

/// OFS_MAGIC.
const OLD_MAGIC: u32 = 60011;

/// FS_UFS2_MAGIC.
const UFS2_MAGIC: u32 = 0x1954_0119;

/// What all words of a header add up to.
const CHECKSUM: u32 = 84446;

/// TP_NINDIR: as many records of data as one header can announce.
const ADDRESSES: usize = 512;

/// Records that an inode map may have: more would be more inodes than 32 bits count.
pub(super) const MAP_RECORDS_MAX: u32 = 1 << 19;

/// Larger than any file on ext4: with blocks of 4 KiB it holds 16 TiB (linux/fs/ext4/super.c,
/// ext4_max_size).
const SIZE_BYTES_MAX: u64 = 1 << 44;

/// DR_COMPRESSED.
const FLAG_COMPRESSED: u32 = 0x80;
/// DR_METAONLY: what an incremental dump has of a file whose content did not change.
const FLAG_METAONLY: u32 = 0x100;
/// DR_EXTATTRIBUTES.
const FLAG_ATTRIBUTES: u32 = 0x8000;
/// EXT_XATTR.
const EXTENSION_XATTR: u32 = 3;

/// Offsets in the header.
const C_MAGIC: usize = 24;
const C_DINODE: usize = 32;
const C_COUNT: usize = 160;
const C_ADDR: usize = 164;
const C_LEVEL: usize = 692;
const C_FLAGS: usize = 888;
const C_NTREC: usize = 896;
const C_EXTATTRIBUTES: usize = 900;

/// Bytes of an inode.
pub(super) const INODE_BYTES: usize = C_COUNT - C_DINODE;

/// c_type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// TS_TAPE: the first record of a volume.
    Volume,
    /// TS_INODE: a file's first header, or that of its extended attributes.
    Inode,
    /// TS_BITS: the map of the inodes in the dump.
    Dumped,
    /// TS_ADDR: goes on where the header before it ends.
    Continued,
    /// TS_END.
    End,
    /// TS_CLRI: the map of the inodes in use.
    Used,
}

/// One header record whose checksum is right.
pub(super) struct Header {
    block: Box<[u8; RECORD_BYTES]>,
    pub(super) kind: Kind,
}

/// Whether `first` is the begin of a dump, and one that is accepted; `None` if it is none.
pub(in crate::backup) fn probe(first: &[u8]) -> Option<Result<()>> {
    let magic = first.get(C_MAGIC..C_MAGIC + 4)?;
    let (little, big) = (le32(magic, 0), be32(magic, 0));
    Some(match (little, big) {
        (MAGIC, _) => Ok(()),
        (_, MAGIC) => Err(anyhow::anyhow!("the dump is big-endian, which is not supported")),
        (OLD_MAGIC, _) | (_, OLD_MAGIC) => {
            Err(anyhow::anyhow!("the dump is in the old format (magic {OLD_MAGIC}), which is not supported"))
        }
        (UFS2_MAGIC, _) | (_, UFS2_MAGIC) => {
            Err(anyhow::anyhow!("the dump is of a UFS2 filesystem, which is not supported"))
        }
        _ => return None,
    })
}

/// How many KiB a record of the volume that begins with `first` has, if it says that its records are
/// compressed.
pub(super) fn compressed_record_blocks(first: &[u8]) -> Option<u32> {
    let is_dump = first.len() == RECORD_BYTES && probe(first).is_some_and(|accepted| accepted.is_ok());
    (is_dump && le32(first, C_FLAGS) & FLAG_COMPRESSED != 0).then(|| le32(first, C_NTREC))
}

impl Header {
    pub(super) fn parse(block: Box<[u8; RECORD_BYTES]>) -> Result<Header> {
        let magic = le32(&block[..], C_MAGIC);
        ensure!(magic == MAGIC, "it has the magic number {magic}, expected {MAGIC}: it is no header");
        let sum = block.chunks_exact(4).fold(0_u32, |sum, bytes| sum.wrapping_add(le32(bytes, 0)));
        ensure!(sum == CHECKSUM, "its checksum is {sum}, expected {CHECKSUM}: it is damaged");
        let kind = match le32(&block[..], 0) {
            1 => Kind::Volume,
            2 => Kind::Inode,
            3 => Kind::Dumped,
            4 => Kind::Continued,
            5 => Kind::End,
            6 => Kind::Used,
            kind => bail!("it is of the unknown type {kind}"),
        };
        Ok(Header { block, kind })
    }

    fn word(&self, offset: usize) -> u32 {
        le32(&self.block[..], offset)
    }

    /// When the dump was begun: the same in all headers.
    pub(super) fn date(&self) -> u32 {
        self.word(4)
    }

    /// When the dump was begun that this one builds on.
    pub(super) fn previous_date(&self) -> u32 {
        self.word(8)
    }

    pub(super) fn volume(&self) -> u32 {
        self.word(12)
    }

    /// How many records come before this one.
    pub(super) fn position(&self) -> u32 {
        self.word(16)
    }

    pub(super) fn inode_number(&self) -> u32 {
        self.word(20)
    }

    pub(super) fn level(&self) -> u32 {
        self.word(C_LEVEL)
    }

    /// Records that were written at once, and that the dump's end is padded to.
    pub(super) fn blocking(&self) -> u32 {
        self.word(C_NTREC)
    }

    /// Records of a map.
    pub(super) fn map_records(&self) -> Result<u32> {
        let count = self.word(C_COUNT);
        ensure!(
            (1..=MAP_RECORDS_MAX).contains(&count),
            "an inode map has {count} records, expected 1 to {MAP_RECORDS_MAX}"
        );
        Ok(count)
    }

    /// For each record's worth of the file, from where the header before it ended: whether its data
    /// follow, or it is a hole.
    pub(super) fn addresses(&self) -> Result<&[u8]> {
        let count = self.word(C_COUNT) as usize;
        ensure!(count <= ADDRESSES, "its header announces {count} records, expected at most {ADDRESSES}");
        Ok(&self.block[C_ADDR..C_ADDR + count])
    }

    /// Whether what follows are extended attributes of the inode.
    pub(super) fn is_attributes(&self) -> Result<bool> {
        if self.kind != Kind::Inode || self.word(C_FLAGS) & FLAG_ATTRIBUTES == 0 {
            return Ok(false);
        }
        let extension = self.word(C_EXTATTRIBUTES);
        ensure!(
            extension == EXTENSION_XATTR,
            "inode {} has an extension of the unknown kind {extension}",
            self.inode_number()
        );
        Ok(true)
    }

    /// Whether the content was left out.
    pub(super) fn is_content_missing(&self) -> bool {
        self.word(C_FLAGS) & FLAG_METAONLY != 0
    }

    pub(super) fn inode_bytes(&self) -> &[u8] {
        &self.block[C_DINODE..C_DINODE + INODE_BYTES]
    }

    /// The size of what follows, which is not the file's in a header of attributes.
    pub(super) fn size_bytes(&self) -> Result<u64> {
        let low = u64::from(self.word(C_DINODE + 8));
        let size = low | u64::from(self.word(C_DINODE + 12)) << 32;
        ensure!(size < SIZE_BYTES_MAX, "its size is {size} bytes, more than a file on ext4 can have");
        Ok(size)
    }
}
