//! What lies in a partition, by its superblock: enough to know which driver of the kernel may have it, and that the
//! filesystem keeps to its own device. Offsets are those of ext4's, xfs's and btrfs's documented superblocks.

use std::fmt;

use anyhow::{Context, Error, Result};
use uuid::Uuid;

use super::layers;
use crate::filesystem::Filesystem;
use crate::reader::Region;
use crate::reader::integers::{be32, le16, le32, le64};

/// What a partition, or a bare disk, holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A filesystem that can be mounted.
    Filesystem(Volume),
    /// A swap area.
    Swap(Uuid),
    /// A FAT filesystem: an EFI system partition, as a rule.
    Fat(Fat),
    /// Something known that holds no guest's root, or one that is not mounted; with the reason.
    Other(String),
    /// Nothing that is known here.
    Unknown,
}

/// A filesystem on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    pub filesystem: Filesystem,
    pub uuid: Uuid,
    /// btrfs: what its metadata bear where the UUID was changed later.
    pub metadata_uuid: Option<Uuid>,
}

/// What a FAT filesystem is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fat {
    /// `ABCD-1234` as a number.
    pub volume: u32,
    /// Where that stands in the boot sector, and in the copy of it.
    pub volume_at: u64,
    /// Where the copy of the boot sector is, if there is one.
    pub copy_at: Option<u64>,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Filesystem(volume) => write!(f, "{}", volume.filesystem),
            Content::Swap(_) => f.write_str("swap"),
            Content::Fat(_) => f.write_str("FAT"),
            Content::Other(what) => f.write_str(what),
            Content::Unknown => f.write_str("nothing that is known"),
        }
    }
}

const EXT_AT: u64 = 1024;
const BTRFS_AT: u64 = 64 << 10;
const SUPERBLOCK_BYTES: usize = 4096;

/// Identifies what a partition, or a bare disk, holds. A part of something larger is that, whatever it seems to hold.
pub fn probe(part: &Region<'_>) -> Result<Content> {
    let found = by_superblock(part)?;
    Ok(match (layers::of_device(part)?, found) {
        (None, found) => found,
        (Some(layer), Content::Filesystem(volume)) => {
            let article = if volume.filesystem.is_ext() { "an" } else { "a" };
            Content::Other(format!("{layer}, with {article} {}", volume.filesystem))
        }
        (Some(layer), _) => Content::Other(layer.into()),
    })
}

fn by_superblock(part: &Region<'_>) -> Result<Content> {
    let read = |at: u64| -> Result<Option<[u8; SUPERBLOCK_BYTES]>> {
        if at + SUPERBLOCK_BYTES as u64 > part.size_bytes() {
            return Ok(None);
        }
        let mut bytes = [0u8; SUPERBLOCK_BYTES];
        part.read_into(&mut bytes, at).map_err(Error::from).context("reading a superblock")?;
        Ok(Some(bytes))
    };
    let Some(start) = read(0)? else { return Ok(Content::Unknown) };
    if start.starts_with(b"XFSB") {
        return Ok(xfs(&start));
    }
    let first = match read(EXT_AT)?.as_ref().and_then(ext) {
        Some(content) => content,
        None => at_start(&start),
    };
    match read(BTRFS_AT)?.as_ref().and_then(btrfs) {
        Some(btrfs) if first == Content::Unknown => Ok(btrfs),
        // Its mkfs clears what lies before it: this is what is left of it below something newer, or within.
        Some(_) => Ok(Content::Other(format!("{first} over a btrfs"))),
        None => Ok(first),
    }
}

/// What the first bytes say.
fn at_start(start: &[u8; SUPERBLOCK_BYTES]) -> Content {
    let has = |at: usize, magic: &[u8]| start[at..].starts_with(magic);
    // mkswap(8): the mark ends the first page, the UUID stands behind the boot bits and four numbers.
    if has(SUPERBLOCK_BYTES - 10, b"SWAPSPACE2") {
        return Content::Swap(uuid(&start[1036..1052]));
    }
    if has(0x52, b"FAT32") || has(0x36, b"FAT1") {
        return Content::Fat(fat(start));
    }
    let known: [(usize, &[u8], &str); 4] = [
        (3, b"NTFS    ", "NTFS"),
        (3, b"EXFAT   ", "exFAT"),
        (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
        (0, b"hsqs", "squashfs"),
    ];
    let found = known.iter().find(|(at, magic, _)| has(*at, magic));
    found.map_or(Content::Unknown, |(_, _, what)| Content::Other((*what).into()))
}

/// Offsets are those of Microsoft's FAT specification (fatgen103).
fn fat(boot_sector: &[u8; SUPERBLOCK_BYTES]) -> Fat {
    const SECTOR_BYTES_AT: usize = 0x0b;
    const COPY_AT: usize = 0x32;
    let is_32 = boot_sector[0x52..].starts_with(b"FAT32");
    let volume_at = if is_32 { 0x43 } else { 0x27 };
    let copy_sector = u64::from(le16(boot_sector, COPY_AT));
    let has_copy = is_32 && (1..32).contains(&copy_sector);
    Fat {
        volume: le32(boot_sector, volume_at),
        volume_at: volume_at as u64,
        copy_at: has_copy.then(|| copy_sector * u64::from(le16(boot_sector, SECTOR_BYTES_AT))),
    }
}

/// ext2, ext3 or ext4, told apart by their features as blkid does.
fn ext(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<Content> {
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    const MULTIPLE_MOUNT_PROTECTION: u32 = 0x100;
    /// Whatever ext3 does not know: all but filetype, recover, journal_dev and meta_bg.
    const INCOMPATIBLE_EXT4: u32 = !(0x2 | 0x4 | JOURNAL_DEVICE | 0x10);
    /// All but sparse_super, large_file and btree_dir.
    const READ_ONLY_EXT4: u32 = !(0x1 | 0x2 | 0x4);
    const JOURNAL_UUID: std::ops::Range<usize> = 0xd0..0xe0;
    const JOURNAL_INODE_AT: usize = 0xe0;
    const JOURNAL_DEVICE_AT: usize = 0xe4;
    const MOUNT_OPTIONS: std::ops::Range<usize> = 0x200..0x240;
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let (compatible, incompatible, read_only) =
        (le32(superblock, 0x5c), le32(superblock, 0x60), le32(superblock, 0x64));
    let filesystem = if incompatible & INCOMPATIBLE_EXT4 != 0 || read_only & READ_ONLY_EXT4 != 0 {
        Filesystem::Ext4
    } else if compatible & HAS_JOURNAL != 0 {
        Filesystem::Ext3
    } else {
        Filesystem::Ext2
    };
    // e2fsck looks for a journal by these whatever the features say, and by the UUID among all devices of the node.
    let journal_elsewhere = incompatible & JOURNAL_DEVICE != 0
        || le32(superblock, JOURNAL_DEVICE_AT) != 0
        || superblock[JOURNAL_UUID] != [0; 16]
        || superblock[MOUNT_OPTIONS].windows(8).any(|option| option == b"journal_");
    if journal_elsewhere {
        return Some(Content::Other(format!("{filesystem} with its journal on another device")));
    }
    if compatible & HAS_JOURNAL != 0 && le32(superblock, JOURNAL_INODE_AT) == 0 {
        // Inode 8, or that of a file .journal where tune2fs made it on a mounted filesystem. A tool looks elsewhere without one.
        return Some(Content::Other(format!("{filesystem} with a journal that has no inode")));
    }
    if incompatible & MULTIPLE_MOUNT_PROTECTION != 0 {
        return Some(Content::Other(format!("{filesystem} with multiple mount protection")));
    }
    Some(volume(filesystem, &superblock[0x68..0x78]))
}

fn xfs(superblock: &[u8; SUPERBLOCK_BYTES]) -> Content {
    const VERSION_AT: usize = 101;
    const LOG_FEATURES_AT: usize = 220;
    /// Extended attributes in the log.
    const LOG_FEATURES_KNOWN: u32 = 1;
    // sb_logstart: 0 means a log device.
    if superblock[48..56] == [0; 8] {
        return Content::Other("xfs with its log on another device".into());
    }
    // Such a one can be mounted while its log is empty, but what is written then is never closed: nothing that the
    // kernel says at the end tells of it, and the next mount cannot replay it.
    let unknown = be32(superblock, LOG_FEATURES_AT) & !LOG_FEATURES_KNOWN;
    if superblock[VERSION_AT] & 0xf == 5 && unknown != 0 {
        return Content::Other(format!("xfs with unknown features of its log ({unknown:#x})"));
    }
    volume(Filesystem::Xfs, &superblock[32..48])
}

fn btrfs(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<Content> {
    const INCOMPATIBLE_AT: usize = 0xbc;
    const METADATA_UUID: u64 = 1 << 10;
    if superblock[0x40..0x48] != *b"_BHRfS_M" {
        return None;
    }
    let devices = le64(superblock, 0x88);
    if devices != 1 {
        return Some(Content::Other(format!("btrfs on {devices} devices")));
    }
    let mut content = volume(Filesystem::Btrfs, &superblock[0x20..0x30]);
    if let Content::Filesystem(volume) = &mut content {
        if le64(superblock, INCOMPATIBLE_AT) & METADATA_UUID != 0 {
            volume.metadata_uuid = Some(uuid(&superblock[0x23b..0x24b]));
        }
    }
    Some(content)
}

fn volume(filesystem: Filesystem, id: &[u8]) -> Content {
    Content::Filesystem(Volume { filesystem, uuid: uuid(id), metadata_uuid: None })
}

fn uuid(bytes: &[u8]) -> Uuid {
    Uuid::from_slice(bytes).unwrap_or(Uuid::nil())
}
