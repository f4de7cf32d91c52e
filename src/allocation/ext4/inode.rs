//! The journal's inode: which blocks hold the journal, by extents or by indirect blocks. Each of its blocks has to be
//! somewhere, in order; what makes it longer than that is not looked at.

use super::groups::inode_table_in_place;
use super::read_blocks;
use super::superblock::{Checksums, Superblock};
use crate::reader::checksum::Crc32c;
use crate::reader::integers::{joined, le16, le32};
use crate::reader::{Parsed, Region, give_up};

const NUMBER: u64 = 8;
const REGULAR: u16 = 0x8000;
const TYPE_MASK: u16 = 0xf000;
const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;
/// i_block.
const MAP: std::ops::Range<usize> = 0x28..0x64;

/// 4 GiB of blocks of 4 KiB; mke2fs makes no journal beyond 1 GiB unless asked. What is known of each is held in memory.
const BLOCKS_MAX: u64 = 1 << 20;
const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_DEPTH_MAX: u16 = 5;
/// A journal is made at once, on an empty filesystem: it has a few extents.
const EXTENT_NODES_MAX: u32 = 1 << 12;

/// Blocks beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// In the file.
    pub index: u64,
    /// In the filesystem, as is the run's end.
    pub block: u64,
    pub count: u64,
}

/// The blocks of the journal's inode, all of them, in order. It is read in its place, as the kernel does before a replay.
pub fn journal_runs(region: &Region<'_>, superblock: &Superblock) -> Parsed<Vec<Run>> {
    let (group, index) =
        ((NUMBER - 1) / superblock.inodes_per_group, (NUMBER - 1) % superblock.inodes_per_group);
    if group >= superblock.groups {
        return give_up("there is no inode of the journal");
    }
    let table = inode_table_in_place(region, superblock, group)?;
    let mut bytes = vec![0; superblock.inode_bytes as usize];
    region.read_into(&mut bytes, table * superblock.block_bytes + index * superblock.inode_bytes)?;
    let checksum = checked(superblock, &bytes)?;

    let flags = le32(&bytes, 0x20);
    let size_bytes = joined(le32(&bytes, 0x6c), le32(&bytes, 0x4));
    let wanted = size_bytes / superblock.block_bytes;
    if le16(&bytes, 0x0) & TYPE_MASK != REGULAR || le16(&bytes, 0x1a) == 0 || flags & INLINE_DATA != 0 {
        return give_up("the journal's inode is none of a file");
    }
    let most = BLOCKS_MAX.min(superblock.blocks);
    if wanted == 0 || wanted > most {
        return give_up(format!("its journal has {wanted} blocks; up to {most} are read"));
    }
    let mut reader = Reader {
        region,
        superblock,
        checksum,
        runs: Vec::new(),
        found: 0,
        wanted,
        nodes_left: EXTENT_NODES_MAX,
    };
    let map = &bytes[MAP];
    if flags & EXTENTS != 0 {
        reader.extents(map, None)?;
    } else {
        reader.blocks(&map[..12 * 4])?;
        for (depth, pointer) in map[12 * 4..].chunks_exact(4).enumerate() {
            if reader.found < wanted {
                reader.indirect(u64::from(le32(pointer, 0)), depth)?;
            }
        }
    }
    if reader.found != wanted {
        return give_up(format!("its journal has {wanted} blocks, and {} of them are found", reader.found));
    }
    refuse_overlap(&reader.runs)?;
    Ok(reader.runs)
}

/// A block twice in a journal would be read, and carried out, as often as it is there.
fn refuse_overlap(runs: &[Run]) -> Parsed<()> {
    let mut places: Vec<_> = runs.iter().map(|run| run.block..run.block + run.count).collect();
    places.sort_unstable_by_key(|place| place.start);
    match places.windows(2).find(|pair| pair[0].end > pair[1].start) {
        Some(pair) => give_up(format!("block {} is more than once in its journal", pair[1].start)),
        None => Ok(()),
    }
}

/// The sum that those of the inode's blocks go on from, where it matches its own.
fn checked(superblock: &Superblock, bytes: &[u8]) -> Parsed<Option<Crc32c>> {
    const LOW: std::ops::Range<usize> = 0x7c..0x7e;
    const HIGH: std::ops::Range<usize> = 0x82..0x84;
    let Checksums::All(seed) = superblock.checksums else { return Ok(None) };
    let own = seed.and(&(NUMBER as u32).to_le_bytes()).and(&bytes[0x64..0x68]);
    // The extra fields are there as far as the inode says (i_extra_isize).
    let has_high = bytes.len() > 128 && le16(bytes, 0x80) >= 4;
    let (sum, expected) = if has_high {
        let sum = own.and_without(&bytes[..HIGH.start], LOW).and(&[0, 0]).and(&bytes[HIGH.end..]);
        (sum.value(), u32::from(le16(bytes, HIGH.start)) << 16 | u32::from(le16(bytes, LOW.start)))
    } else {
        (u32::from(own.and_without(bytes, LOW).low()), u32::from(le16(bytes, LOW.start)))
    };
    if sum != expected {
        return give_up("the journal's inode does not match its checksum");
    }
    Ok(Some(own))
}

struct Reader<'a> {
    region: &'a Region<'a>,
    superblock: &'a Superblock,
    checksum: Option<Crc32c>,
    runs: Vec<Run>,
    found: u64,
    wanted: u64,
    nodes_left: u32,
}

impl Reader<'_> {
    /// Takes the next blocks of the file.
    fn take(&mut self, block: u64, count: u64) -> Parsed<()> {
        self.region.look_at(1)?;
        let end = block.checked_add(count);
        if block <= self.superblock.first_block || end.is_none_or(|end| end > self.superblock.blocks) {
            return give_up(format!("a block of its journal is {block}, out of bounds"));
        }
        let count = count.min(self.wanted - self.found);
        match self.runs.last_mut() {
            Some(last) if last.block + last.count == block => last.count += count,
            _ if count == 0 => {}
            _ => self.runs.push(Run { index: self.found, block, count }),
        }
        self.found += count;
        Ok(())
    }

    fn read(&self, block: u64) -> Parsed<Vec<u8>> {
        if block <= self.superblock.first_block || block >= self.superblock.blocks {
            return give_up(format!("the map of its journal leads to block {block}, out of bounds"));
        }
        read_blocks(self.region, self.superblock.block_bytes, block, 1)
    }

    /// A node of an extent tree; `depth` is what the one above says of it.
    fn extents(&mut self, node: &[u8], depth: Option<u16>) -> Parsed<()> {
        let strange = || give_up("the map of its journal is not one of a journal");
        let Some(left) = self.nodes_left.checked_sub(1) else { return strange() };
        self.nodes_left = left;
        let (entries, room, own_depth) =
            (usize::from(le16(node, 2)), usize::from(le16(node, 4)), le16(node, 6));
        if le16(node, 0) != EXTENT_MAGIC
            || entries == 0
            || entries > room
            || 12 + 12 * room > node.len()
            || own_depth > EXTENT_DEPTH_MAX
            || depth.is_some_and(|depth| depth != own_depth)
        {
            return strange();
        }
        if let (Some(seed), Some(_)) = (self.checksum, depth) {
            let end = 12 + 12 * room;
            if end + 4 > node.len() || seed.and(&node[..end]).value() != le32(node, end) {
                return give_up("the map of its journal does not match its checksum");
            }
        }
        for entry in node[12..].chunks_exact(12).take(entries) {
            if self.found == self.wanted {
                return Ok(());
            }
            // Neither a hole nor anything twice.
            if u64::from(le32(entry, 0)) != self.found {
                return strange();
            }
            if own_depth == 0 {
                let count = le16(entry, 4);
                // Beyond that: as many as are reserved, and unwritten.
                if !(1..=0x8000).contains(&count) {
                    return strange();
                }
                self.take(joined(u32::from(le16(entry, 6)), le32(entry, 8)), u64::from(count))?;
            } else {
                let child = self.read(joined(u32::from(le16(entry, 8)), le32(entry, 4)))?;
                self.extents(&child, Some(own_depth - 1))?;
            }
        }
        Ok(())
    }

    /// A list of blocks.
    fn blocks(&mut self, list: &[u8]) -> Parsed<()> {
        for entry in list.chunks_exact(4) {
            if self.found == self.wanted {
                break;
            }
            self.take(u64::from(le32(entry, 0)), 1)?;
        }
        Ok(())
    }

    /// A block of a list, or of lists: `depth` more of them.
    fn indirect(&mut self, block: u64, depth: usize) -> Parsed<()> {
        let list = self.read(block)?;
        if depth == 0 {
            return self.blocks(&list);
        }
        for entry in list.chunks_exact(4) {
            if self.found == self.wanted {
                break;
            }
            self.indirect(u64::from(le32(entry, 0)), depth - 1)?;
        }
        Ok(())
    }
}
