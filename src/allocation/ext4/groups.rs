//! The groups: their descriptors, their bitmaps, and what of their metadata no bitmap needs to be asked about. One block
//! of descriptors and the bitmaps of its groups are held at a time.

use super::superblock::{Checksums, Superblock};
use super::{Blocks, read_blocks};
use crate::allocation::AllocationMap;
use crate::reader::checksum::crc16;
use crate::reader::integers::{joined, le16, le32};
use crate::reader::{Parsed, Region, give_up};

/// Bitmaps that lie beside each other are read at once, up to this many bytes.
const READ_BYTES: u64 = 1 << 20;

const BLOCK_BITMAP_ABSENT: u16 = 0x2;
const INODE_TABLE_ZEROED: u16 = 0x4;

/// A group's descriptor, all of whose blocks lie in the filesystem.
struct Descriptor {
    group: u64,
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    /// In clusters.
    free: u64,
    bitmap_absent: bool,
    /// How many inodes at the end of the table have never been written, and nobody relies on what stands there.
    inodes_unwritten: u64,
    bitmap_checksum: u32,
}

/// Marks what is in use in all groups.
pub fn mark(blocks: &Blocks<'_>, superblock: &Superblock, map: &mut AllocationMap) -> Parsed<()> {
    let per_block = superblock.descriptors_per_block();
    for index in 0..superblock.descriptor_blocks() {
        let at = superblock.descriptor_block(index);
        if at >= superblock.blocks {
            return give_up(format!("its group descriptors lie in block {at}, beyond its end"));
        }
        let bytes = blocks.read(at)?;
        map.mark(at * superblock.block_bytes, superblock.block_bytes);
        let first = index * per_block;
        blocks.region.look_at(per_block.min(superblock.groups - first) as usize)?;
        let descriptors = bytes
            .chunks_exact(superblock.descriptor_bytes)
            .zip(first..superblock.groups)
            .map(|(bytes, group)| parse(superblock, bytes, group))
            .collect::<Parsed<Vec<_>>>()?;
        descriptors.iter().for_each(|descriptor| mark_metadata(superblock, descriptor, map));
        mark_bitmaps(blocks, superblock, &descriptors, map)?;
        // Last: what a bitmap calls used is unmarked again.
        descriptors.iter().for_each(|descriptor| clear_unwritten(superblock, descriptor, map));
    }
    Ok(())
}

fn parse(superblock: &Superblock, bytes: &[u8], group: u64) -> Parsed<Descriptor> {
    let number = (group as u32).to_le_bytes();
    const OWN: std::ops::Range<usize> = 0x1e..0x20;
    let expected = match superblock.checksums {
        Checksums::None => None,
        Checksums::Descriptors => {
            Some(crc16(&[&superblock.uuid, &number, &bytes[..OWN.start], &bytes[OWN.end..]]))
        }
        Checksums::All(seed) => Some(seed.and(&number).and_without(bytes, OWN).low()),
    };
    if expected.is_some_and(|sum| sum != le16(bytes, OWN.start)) {
        return give_up(format!("the descriptor of group {group} does not match its checksum"));
    }
    let wide = bytes.len() >= 64;
    let high = |at| if wide { le32(bytes, at) } else { 0 };
    let high16 = |at| if wide { le16(bytes, at) } else { 0 };
    let joined16 = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
    // Without checksums nobody keeps the flags.
    let flags = if expected.is_some() { le16(bytes, 0x12) } else { 0 };
    let unused = match expected {
        Some(_) => u64::from(joined16(high16(0x32), le16(bytes, 0x1c))),
        None => 0,
    };
    let descriptor = Descriptor {
        group,
        block_bitmap: joined(high(0x20), le32(bytes, 0x0)),
        inode_bitmap: joined(high(0x24), le32(bytes, 0x4)),
        inode_table: joined(high(0x28), le32(bytes, 0x8)),
        free: u64::from(joined16(high16(0x2c), le16(bytes, 0xc))),
        bitmap_absent: flags & BLOCK_BITMAP_ABSENT != 0,
        inodes_unwritten: if flags & INODE_TABLE_ZEROED == 0 { unused } else { 0 },
        bitmap_checksum: joined16(high16(0x38), le16(bytes, 0x18)),
    };
    let within = if superblock.flexible {
        superblock.first_block..superblock.blocks
    } else {
        superblock.group_start(group)..superblock.group_end(group)
    };
    let lies_within = |block: u64, count: u64| {
        within.contains(&block) && block.checked_add(count).is_some_and(|end| end <= within.end)
    };
    if !lies_within(descriptor.block_bitmap, 1)
        || !lies_within(descriptor.inode_bitmap, 1)
        || !lies_within(descriptor.inode_table, superblock.inode_table_blocks())
        || unused > superblock.inodes_per_group
    {
        return give_up(format!("the descriptor of group {group} has its metadata out of bounds"));
    }
    Ok(descriptor)
}

/// The block where a group's inode table begins, by what stands in the place of its descriptor.
pub fn inode_table_in_place(region: &Region<'_>, superblock: &Superblock, group: u64) -> Parsed<u64> {
    let per_block = superblock.descriptors_per_block();
    let block = superblock.descriptor_block(group / per_block);
    let bytes = read_blocks(region, superblock.block_bytes, block, 1)?;
    let at = (group % per_block) as usize * superblock.descriptor_bytes;
    Ok(parse(superblock, &bytes[at..at + superblock.descriptor_bytes], group)?.inode_table)
}

/// Marks what every group has, also where it has no bitmap that says so, or another group's bitmap does.
fn mark_metadata(superblock: &Superblock, descriptor: &Descriptor, map: &mut AllocationMap) {
    let head = superblock.group_head_blocks(descriptor.group);
    let start = superblock.group_start(descriptor.group);
    let length = head.min(superblock.group_end(descriptor.group) - start);
    for (block, count) in [
        (start, length),
        (descriptor.block_bitmap, 1),
        (descriptor.inode_bitmap, 1),
        (descriptor.inode_table, superblock.inode_table_blocks()),
    ] {
        map.mark(block * superblock.block_bytes, count * superblock.block_bytes);
    }
}

fn mark_bitmaps(
    blocks: &Blocks<'_>,
    superblock: &Superblock,
    descriptors: &[Descriptor],
    map: &mut AllocationMap,
) -> Parsed<()> {
    let block_bytes = superblock.block_bytes as usize;
    let batch_max = (READ_BYTES / superblock.block_bytes) as usize;
    let mut left = descriptors.iter().filter(|group| !group.bitmap_absent).peekable();
    while let Some(first) = left.next() {
        let mut batch = vec![first];
        let follows = |next: &Descriptor, count| next.block_bitmap == first.block_bitmap + count as u64;
        while let Some(next) = left.next_if(|next| batch.len() < batch_max && follows(next, batch.len())) {
            batch.push(next);
        }
        let in_place = blocks.read_in_place(first.block_bitmap, batch.len() as u64)?;
        for (descriptor, bitmap) in batch.iter().zip(in_place.chunks_exact(block_bytes)) {
            match blocks.newer(descriptor.block_bitmap)? {
                None => mark_bitmap(superblock, descriptor, bitmap, map)?,
                Some(newer) => {
                    mark_bitmap(superblock, descriptor, &newer, map)?;
                    // What the older one calls used is carried too.
                    runs_of(superblock, descriptor.group, bitmap, |start, count| {
                        map.mark(start * superblock.block_bytes, count * superblock.block_bytes);
                    });
                }
            }
        }
    }
    Ok(())
}

/// Marks what a bitmap says, if it is the one that its descriptor means.
fn mark_bitmap(
    superblock: &Superblock,
    descriptor: &Descriptor,
    bitmap: &[u8],
    map: &mut AllocationMap,
) -> Parsed<()> {
    let group = descriptor.group;
    if let Checksums::All(seed) = superblock.checksums {
        let sum = seed.and(&bitmap[..(superblock.clusters_per_group / 8) as usize]);
        let same = match superblock.descriptor_bytes {
            64.. => sum.value() == descriptor.bitmap_checksum,
            _ => u32::from(sum.low()) == descriptor.bitmap_checksum,
        };
        if !same {
            return give_up(format!("the block bitmap of group {group} does not match its checksum"));
        }
    }
    let mut used = 0;
    let clusters = runs_of(superblock, group, bitmap, |start, count| {
        used += count.div_ceil(superblock.blocks_per_cluster);
        map.mark(start * superblock.block_bytes, count * superblock.block_bytes);
    });
    if clusters - used != descriptor.free {
        return give_up(format!(
            "the block bitmap of group {group} has {} free, its descriptor {}",
            clusters - used,
            descriptor.free
        ));
    }
    Ok(())
}

/// Calls `each` with the start and the number of blocks of every run of bits; answers with the number of bits that count.
fn runs_of(superblock: &Superblock, group: u64, bitmap: &[u8], mut each: impl FnMut(u64, u64)) -> u64 {
    let (start, end) = (superblock.group_start(group), superblock.group_end(group));
    let ratio = superblock.blocks_per_cluster;
    let bits = (end - start).div_ceil(ratio);
    let mut at = 0;
    loop {
        let from = next_bit(bitmap, at, bits, true);
        if from == bits {
            return bits;
        }
        at = next_bit(bitmap, from, bits, false);
        let blocks = from * ratio..(at * ratio).min(end - start);
        each(start + blocks.start, blocks.end - blocks.start);
    }
}

/// The first bit from `at` on that is `set`, else `bits`.
fn next_bit(bitmap: &[u8], at: u64, bits: u64, set: bool) -> u64 {
    let mut at = at;
    while at < bits {
        // A bitmap is a block: of whole words.
        let from = (at / 64 * 8) as usize;
        let word = joined(le32(bitmap, from + 4), le32(bitmap, from));
        let wanted = if set { word } else { !word } >> (at % 64);
        if wanted != 0 {
            return (at + u64::from(wanted.trailing_zeros())).min(bits);
        }
        at += 64 - at % 64;
    }
    bits
}

/// Unmarks the part of a group's inode table that has never been written.
fn clear_unwritten(superblock: &Superblock, descriptor: &Descriptor, map: &mut AllocationMap) {
    let written = superblock.inodes_per_group - descriptor.inodes_unwritten;
    let written_blocks = (written * superblock.inode_bytes).div_ceil(superblock.block_bytes);
    let unwritten_blocks = superblock.inode_table_blocks() - written_blocks;
    map.clear(
        (descriptor.inode_table + written_blocks) * superblock.block_bytes,
        unwritten_blocks * superblock.block_bytes,
    );
}
