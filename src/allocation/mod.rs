//! What of a partition is in use, by the filesystem's own maps, read from the device and never through a mount: parsers of
//! our own, bounded, that believe nothing. What they cannot be sure of is in use.

pub mod btrfs;
pub mod ext4;
mod map;
mod reader;
mod whole_disk;
pub mod xfs;

use anyhow::Result;

pub use map::UsedMap;
pub use whole_disk::{DiskUse, of_disk};

use crate::filesystem::Filesystem;
use crate::probe::{Content, Part};
use crate::reader::ReadAt;

/// What of a partition has to travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// What the map says; all else may be anything.
    Part(UsedMap),
    /// All of it, with the reason: a filesystem, or a state of one, whose maps are not read.
    Whole(String),
}

/// What identifies a swap area; the rest is nobody's.
const SWAP_HEADER_BYTES: u64 = 64 << 10;

/// What of a part of a disk is in use.
pub fn usage(disk: &impl ReadAt, part: &Part) -> Result<Usage> {
    Ok(match &part.content {
        Content::Swap(_) => {
            let mut map = UsedMap::empty(part.size_bytes);
            map.mark(0, SWAP_HEADER_BYTES);
            Usage::Part(map)
        }
        Content::Filesystem(volume) => match volume.filesystem {
            Filesystem::Xfs => xfs::usage(disk, part.start_bytes, part.size_bytes)?,
            Filesystem::Btrfs => btrfs::usage(disk, part.start_bytes, part.size_bytes)?,
            Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => {
                ext4::usage(disk, part.start_bytes, part.size_bytes)?
            }
        },
        Content::Fat(_) => Usage::Whole("it is a FAT filesystem".into()),
        Content::Other(what) => Usage::Whole(format!("it is {what}")),
        Content::Unknown => Usage::Whole("its content is not known".into()),
    })
}
