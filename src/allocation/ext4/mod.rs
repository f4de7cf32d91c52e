//! What of an ext2, ext3 or ext4 filesystem is in use: its block bitmaps, as a replay of its journal would leave them, and
//! all metadata, whoever lists them. It must not change anything, and it keeps no inode but the journal's.
//!
//! A disk of a running guest has a journal that was not replayed, and the bitmaps in their places are older than the
//! filesystem. So what is read here (superblock, group descriptors, bitmaps) is read through the journal: its last
//! committed copy first. The places themselves count too where such a copy stands above them: their bits are added.
//!
//! Only one thing is left out that a bitmap calls used: the end of an inode table that nobody has written yet
//! (`bg_itable_unused`, under a checksum that matches), where the group is not marked `INODE_ZEROED`. The kernel writes
//! zeros there before it reads. Where the mark stands, it relies on zeros, and the table travels.
//!
//! The layout is that of the kernel's Documentation/filesystems/ext4 and of fs/ext4/ext4.h, include/linux/jbd2.h.

mod groups;
pub mod identity;
mod inode;
mod journal;
mod superblock;

use super::AllocationMap;
use crate::reader::{Parsed, Region, give_up};
use journal::Journal;
use superblock::Superblock;

/// What is in use of the region, in which an ext2, ext3 or ext4 filesystem is.
pub fn map(region: &Region<'_>) -> Parsed<AllocationMap> {
    let as_it_lies = Superblock::read(region)?;
    let journal = Journal::open(region, &as_it_lies)?;
    let blocks = Blocks { region, block_bytes: as_it_lies.block_bytes, journal };
    let superblock = Superblock::read_replayed(&blocks, &as_it_lies)?;

    let mut map = AllocationMap::empty(region.size_bytes());
    // What lies before the first block (a boot sector) and behind the last one is not the filesystem's to judge.
    let end_bytes = superblock.blocks * superblock.block_bytes;
    map.mark(0, superblock::AT_BYTES + superblock::BYTES as u64);
    map.mark(end_bytes, region.size_bytes() - end_bytes);
    groups::mark(&blocks, &superblock, &mut map)?;
    if let Some(journal) = &blocks.journal {
        for run in &journal.runs {
            map.mark(run.block * superblock.block_bytes, run.count * superblock.block_bytes);
        }
    }
    Ok(map)
}

/// The filesystem's blocks, as a replay of its journal would leave them.
struct Blocks<'a> {
    region: &'a Region<'a>,
    block_bytes: u64,
    /// None: there is none.
    journal: Option<Journal>,
}

impl Blocks<'_> {
    /// Block `block`: the journal's last committed copy, or else what stands in its place.
    fn read(&self, block: u64) -> Parsed<Vec<u8>> {
        match self.newer(block)? {
            Some(copy) => Ok(copy),
            None => self.read_in_place(block, 1),
        }
    }

    /// The journal's last committed copy of a block, where it has one.
    fn newer(&self, block: u64) -> Parsed<Option<Vec<u8>>> {
        match &self.journal {
            Some(journal) => journal.copy_of(self.region, self.block_bytes, block),
            None => Ok(None),
        }
    }

    /// What stands in the place of `count` blocks, without the journal.
    fn read_in_place(&self, block: u64, count: u64) -> Parsed<Vec<u8>> {
        read_blocks(self.region, self.block_bytes, block, count)
    }
}

/// `count` blocks from `block` on; the caller bounds their number.
fn read_blocks(region: &Region<'_>, block_bytes: u64, block: u64, count: u64) -> Parsed<Vec<u8>> {
    let Some(at_bytes) = block.checked_mul(block_bytes) else {
        return give_up(format!("block {block} lies beyond its end"));
    };
    region.read(at_bytes, (count * block_bytes) as usize)
}
