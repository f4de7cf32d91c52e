//! What of a partition is in use, by the filesystem's own maps, read from the device and never through a mount: parsers of
//! our own, bounded, that believe nothing. What they cannot be sure of is in use.

pub mod btrfs;
pub mod ext4;
mod map;
mod whole_disk;
pub mod xfs;

use anyhow::Result;

pub use map::AllocationMap;
pub use whole_disk::{DiskUse, of_disk};

use crate::filesystem::Filesystem;
use crate::probe::Content;
use crate::reader::{GiveUp, Parsed, Region};

/// What of a partition has to travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// What the map says; all else may be anything.
    Part(AllocationMap),
    /// All of it, with the reason: a filesystem, or a state of one, whose maps are not read.
    Whole(String),
}

impl Usage {
    /// What a reader's answer means. An error only if the disk cannot be read, or a signal was caught.
    pub fn of(map: Parsed<AllocationMap>) -> Result<Usage> {
        match map {
            Ok(map) => Ok(Usage::Part(map)),
            Err(GiveUp::NotUnderstood(reason) | GiveUp::TooMuchWork(reason)) => Ok(Usage::Whole(reason)),
            Err(GiveUp::Failed(error)) => Err(error),
        }
    }
}

/// What identifies a swap area; the rest is nobody's.
const SWAP_HEADER_BYTES: u64 = 64 << 10;

/// Finds what is in use in a partition that holds `content`.
pub fn usage(part: &Region<'_>, content: &Content) -> Result<Usage> {
    Ok(match content {
        Content::Swap(_) => {
            let mut map = AllocationMap::empty(part.size_bytes());
            map.mark(0, SWAP_HEADER_BYTES);
            Usage::Part(map)
        }
        Content::Filesystem(volume) => match volume.filesystem {
            Filesystem::Xfs => Usage::of(xfs::map(part))?,
            Filesystem::Btrfs => Usage::of(btrfs::map(part))?,
            Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => Usage::of(ext4::map(part))?,
        },
        Content::Fat(_) => Usage::Whole("it is a FAT filesystem".into()),
        Content::Other(what) => Usage::Whole(format!("it is {what}")),
        Content::Unknown => Usage::Whole("its content is not known".into()),
    })
}
