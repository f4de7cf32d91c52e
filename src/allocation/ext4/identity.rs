//! Where an ext2, ext3 or ext4 filesystem says which one it is, and how the same places say another: for copies of one that
//! was made here. The hash seed is none of it: it orders the names in directories, and a copy keeps it.

use std::ops::Range;

use anyhow::{Result, anyhow};

use super::Blocks;
use super::journal::{self, Journal};
use super::superblock::{self, Superblock};
use crate::reader::checksum::Crc32c;
use crate::reader::{Budget, GiveUp, Parsed, ReadAt, Region, give_up};

/// Of a superblock of either kind.
pub const SUPERBLOCK_BYTES: usize = superblock::BYTES;

/// Where a filesystem that is at rest says which one it is; all in bytes from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its superblock, and the copies of it, ascending.
    pub superblocks: Vec<u64>,
    /// The superblock of its journal.
    pub journal: Option<u64>,
    /// What else of the journal lies where: nothing that still means anything.
    pub log: Vec<Range<u64>>,
    /// Whether its UUID stands nowhere else. If not, all sums of its metadata begin with it.
    pub is_all: bool,
}

/// Of the filesystem that `disk` is, in `size_bytes`; an error where it is not at rest, or not known.
pub fn identity(disk: &dyn ReadAt, size_bytes: u64) -> Result<Identity> {
    match of_volume(&Region::new(disk, &Budget::of_disk(size_bytes), 0, size_bytes)) {
        Ok(identity) => Ok(identity),
        Err(GiveUp::NotUnderstood(reason) | GiveUp::TooMuchWork(reason)) => {
            Err(anyhow!("the filesystem cannot be copied: {reason}"))
        }
        Err(GiveUp::Failed(error)) => Err(error),
    }
}

fn of_volume(region: &Region<'_>) -> Parsed<Identity> {
    let superblock = Superblock::read(region)?;
    if superblock.needs_recovery {
        return give_up("its journal was not replayed");
    }
    let block_bytes = superblock.block_bytes;
    let journal = Journal::open(region, &superblock)?;
    let blocks = Blocks { region, block_bytes, journal };
    let mut log = Vec::new();
    for run in blocks.journal.iter().flat_map(|journal| &journal.runs) {
        // The first block is the journal's superblock.
        let skipped = u64::from(run.index == 0);
        log.push((run.block + skipped) * block_bytes..(run.block + run.count) * block_bytes);
    }
    let first = blocks.journal.as_ref().and_then(|journal| journal.runs.first());
    let copies = (1..superblock.groups).filter(|group| superblock.has_copy(*group));
    let copies = copies.map(|group| superblock.group_start(group) * block_bytes);
    Ok(Identity {
        superblocks: std::iter::once(superblock::AT_BYTES).chain(copies).collect(),
        journal: first.map(|run| run.block * block_bytes),
        log,
        is_all: superblock.sums_without_uuid(),
    })
}

/// Gives a superblock another UUID.
pub fn renew_superblock(bytes: &mut [u8; SUPERBLOCK_BYTES], uuid: &[u8; 16]) {
    bytes[0x68..0x78].copy_from_slice(uuid);
    if superblock::is_summed(bytes) {
        let sum = Crc32c::start().and(&bytes[..superblock::OWN_SUM]);
        bytes[superblock::OWN_SUM..].copy_from_slice(&sum.value().to_le_bytes());
    }
}

/// Gives the superblock of a journal at rest another UUID.
pub fn renew_journal(bytes: &mut [u8; SUPERBLOCK_BYTES], uuid: &[u8; 16]) {
    bytes[0x30..0x40].copy_from_slice(uuid);
    if journal::is_summed(bytes) {
        let sum = Crc32c::start().and_without(bytes, journal::OWN_SUM);
        bytes[journal::OWN_SUM].copy_from_slice(&sum.value().to_be_bytes());
    }
}
