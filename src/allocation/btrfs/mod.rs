//! btrfs: what its extent tree holds is in use, on each copy of it. All offsets are those of the published on-disk
//! format.
//!
//! Trees are never overwritten in place, so those of the superblock hold together at any instant, mounted or not. What
//! was fsynced since the last commit lies in log trees, and in extents that no extent tree knows yet.

mod chunks;
mod devices;
mod key;
mod superblock;
mod tree;

use super::AllocationMap;
use crate::reader::integers::le64;
use crate::reader::{Parsed, Region, give_up};
use chunks::Chunks;
pub use devices::refuse_others;
use key::{Key, Root};
use superblock::Superblock;
use tree::Forest;

/// What lies before the first chunk: a boot loader, perhaps, and the superblock.
const RESERVED_BYTES: u64 = 1 << 20;
const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
/// The extent tree's number.
const EXTENT_TREE: u64 = 2;
/// Of a root's item.
const ROOT_ITEM_MIN_BYTES: usize = 239;
const FILE_EXTENT: u8 = 108;
/// Of one that is not inline, by its byte 20.
const FILE_EXTENT_BYTES: usize = 53;
const INLINE: u8 = 0;
/// Log trees: one for each subvolume that was written.
const LOGS_MAX: usize = 1 << 14;
/// BTRFS_MAX_EXTENT_SIZE: larger data has more extents.
const EXTENT_MAX_BYTES: u64 = 128 << 20;

/// What is in use of the region, in which a btrfs is.
pub fn map(region: &Region<'_>) -> Parsed<AllocationMap> {
    let superblock = Superblock::read(region)?;
    let system = Chunks::of_superblock(&superblock)?;
    let mut chunks = Chunks::default();
    let forest = Forest { region, superblock: &superblock, chunks: &system };
    forest.walk(superblock.chunk_root, &mut |key, item| chunks.take(&superblock, key, item))?;
    chunks.refuse_more_than(superblock.device_bytes)?;
    if !chunks.contain(&system) {
        return give_up("the superblock and the chunk tree differ");
    }
    let mut map = AllocationMap::empty(region.size_bytes());
    map.mark(0, RESERVED_BYTES);
    superblock::copies().for_each(|at| map.mark(at, superblock::SIZE_BYTES as u64));
    // What lies behind the filesystem's end is nobody's to call free.
    map.mark(superblock.device_bytes, u64::MAX);
    let forest = Forest { region, superblock: &superblock, chunks: &chunks };
    mark_extents(&forest, &mut map)?;
    if let Some(log) = superblock.log {
        chunks.mark_metadata(&mut map);
        mark_logged(&forest, log, &mut map)?;
    }
    Ok(map)
}

fn mark_extents(forest: &Forest<'_>, map: &mut AllocationMap) -> Parsed<()> {
    let superblock = forest.superblock;
    let (mut behind, mut sum_bytes) = (0, 0u64);
    forest.walk(extent_root(forest)?, &mut |key, _| {
        let length = match key.kind {
            EXTENT_ITEM => key.offset,
            METADATA_ITEM => superblock.node_bytes,
            _ => return Ok(()),
        };
        if key.object < behind {
            return give_up(format!("extents overlap at {}", key.object));
        }
        forest.chunks.mark(key.object, length, map)?;
        behind = key.object + length;
        sum_bytes = sum_bytes.saturating_add(length);
        Ok(())
    })?;
    if sum_bytes != superblock.used_bytes {
        return give_up(format!(
            "extents have {sum_bytes} bytes and the superblock counts {}",
            superblock.used_bytes
        ));
    }
    Ok(())
}

fn extent_root(forest: &Forest<'_>) -> Parsed<Root> {
    let mut found = None;
    forest.walk(forest.superblock.root, &mut |key: Key, item: &[u8]| {
        if (key.object, key.kind) != (EXTENT_TREE, ROOT_ITEM) {
            return Ok(());
        }
        if found.is_some() || item.len() < ROOT_ITEM_MIN_BYTES {
            return give_up("the root of the extent tree does not hold together");
        }
        found = Some(root_of(item));
        Ok(())
    })?;
    found.map_or_else(|| give_up("there is no extent tree"), Ok)
}

/// The data that was fsynced since the last commit. The log trees' own blocks are somewhere in the chunks of metadata.
fn mark_logged(forest: &Forest<'_>, log: Root, map: &mut AllocationMap) -> Parsed<()> {
    let mut roots = Vec::new();
    forest.walk(log, &mut |key: Key, item: &[u8]| {
        if key.kind != ROOT_ITEM {
            return Ok(());
        }
        if item.len() < ROOT_ITEM_MIN_BYTES || roots.len() >= LOGS_MAX {
            return give_up("the log trees do not hold together");
        }
        roots.push(root_of(item));
        Ok(())
    })?;
    refuse_repeated(&roots)?;
    for root in roots {
        forest.walk(root, &mut |key, item| {
            if key.kind != FILE_EXTENT || item.get(20) == Some(&INLINE) {
                return Ok(());
            }
            if item.len() < FILE_EXTENT_BYTES {
                return give_up("the log trees do not hold together");
            }
            match (le64(item, 21), le64(item, 29)) {
                // A hole.
                (0, _) => Ok(()),
                (_, length) if length > EXTENT_MAX_BYTES => {
                    give_up(format!("a file in the log trees has an extent of {length} bytes"))
                }
                (at, length) => forest.chunks.mark(at, length, map),
            }
        })?;
    }
    Ok(())
}

/// A log tree belongs to one subvolume. One that is there twice would be read twice.
fn refuse_repeated(roots: &[Root]) -> Parsed<()> {
    let mut places: Vec<u64> = roots.iter().map(|root| root.at).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => give_up(format!("the log tree at {} is there more than once", pair[0])),
        None => Ok(()),
    }
}

/// What a root's item says, behind an inode's item of 160 bytes.
fn root_of(item: &[u8]) -> Root {
    Root { at: le64(item, 176), generation: le64(item, 160), level: item[238] }
}
