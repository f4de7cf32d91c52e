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

mod checksum;
mod groups;
pub mod identity;
mod inode;
mod journal;
mod superblock;

use anyhow::{Context, Result};

use super::{Usage, UsedMap};
use crate::reader::ReadAt;
use journal::Journal;
use superblock::Superblock;

/// What of the ext2, ext3 or ext4 filesystem in `size_bytes` at `start_bytes` is in use; offsets in the map are relative to
/// `start_bytes`. An error only where the device cannot be read.
pub fn usage(disk: &(impl ReadAt + ?Sized), start_bytes: u64, size_bytes: u64) -> Result<Usage> {
    match map(&Volume { disk, start_bytes, size_bytes }) {
        Ok(map) => Ok(Usage::Part(map)),
        Err(Stop::Unsure(reason)) => Ok(Usage::Whole(reason)),
        Err(Stop::Device(error)) => Err(error),
    }
}

fn map<R: ReadAt + ?Sized>(volume: &Volume<'_, R>) -> Sure<UsedMap> {
    let as_it_lies = Superblock::read(volume)?;
    let journal = Journal::open(volume, &as_it_lies)?;
    let blocks = Blocks { volume, block_bytes: as_it_lies.block_bytes, journal };
    let superblock = Superblock::read_replayed(&blocks, &as_it_lies)?;

    let mut map = UsedMap::empty(volume.size_bytes);
    // What lies before the first block (a boot sector) and behind the last one is not the filesystem's to judge.
    let end_bytes = superblock.blocks * superblock.block_bytes;
    map.mark(0, superblock::AT_BYTES + superblock::BYTES as u64);
    map.mark(end_bytes, volume.size_bytes - end_bytes);
    groups::mark(&blocks, &superblock, &mut map)?;
    if let Some(journal) = &blocks.journal {
        for run in &journal.runs {
            map.mark(run.block * superblock.block_bytes, run.count * superblock.block_bytes);
        }
    }
    Ok(map)
}

/// Why there is no map.
enum Stop {
    /// The filesystem is not one that is understood, or does not hold together.
    Unsure(String),
    Device(anyhow::Error),
}

type Sure<T> = Result<T, Stop>;

fn unsure<T>(reason: impl Into<String>) -> Sure<T> {
    Err(Stop::Unsure(reason.into()))
}

/// The filesystem's bytes on its device.
struct Volume<'a, R: ?Sized> {
    disk: &'a R,
    start_bytes: u64,
    size_bytes: u64,
}

impl<R: ReadAt + ?Sized> Volume<'_, R> {
    fn read(&self, buffer: &mut [u8], at_bytes: u64) -> Sure<()> {
        let end = at_bytes.checked_add(buffer.len() as u64);
        let offset = self.start_bytes.checked_add(at_bytes);
        match (end, offset) {
            (Some(end), Some(offset)) if end <= self.size_bytes => self
                .disk
                .read_into(buffer, offset)
                .with_context(|| format!("reading the filesystem's map at byte {offset}"))
                .map_err(Stop::Device),
            _ => unsure(format!("something that it needs should lie at byte {at_bytes}, beyond its end")),
        }
    }
}

/// The filesystem's blocks, as a replay of its journal would leave them.
struct Blocks<'a, R: ?Sized> {
    volume: &'a Volume<'a, R>,
    block_bytes: u64,
    /// None: there is none.
    journal: Option<Journal>,
}

impl<R: ReadAt + ?Sized> Blocks<'_, R> {
    /// Block `block`: the journal's last committed copy, or else what stands in its place.
    fn read(&self, block: u64) -> Sure<Vec<u8>> {
        match self.newer(block)? {
            Some(copy) => Ok(copy),
            None => self.read_in_place(block, 1),
        }
    }

    /// The journal's last committed copy of a block, where it has one.
    fn newer(&self, block: u64) -> Sure<Option<Vec<u8>>> {
        match &self.journal {
            Some(journal) => journal.copy_of(self.volume, self.block_bytes, block),
            None => Ok(None),
        }
    }

    /// What stands in the place of `count` blocks, without the journal.
    fn read_in_place(&self, block: u64, count: u64) -> Sure<Vec<u8>> {
        read_blocks(self.volume, self.block_bytes, block, count)
    }
}

/// `count` blocks from `block` on; the caller bounds their number.
fn read_blocks<R: ReadAt + ?Sized>(
    volume: &Volume<'_, R>,
    block_bytes: u64,
    block: u64,
    count: u64,
) -> Sure<Vec<u8>> {
    let Some(at_bytes) = block.checked_mul(block_bytes) else {
        return unsure(format!("block {block} lies beyond its end"));
    };
    let mut bytes = vec![0; (count * block_bytes) as usize];
    volume.read(&mut bytes, at_bytes)?;
    Ok(bytes)
}

// Fields at constant offsets of buffers whose size the reader chose.

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// A number in two halves of 32 bits.
fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
