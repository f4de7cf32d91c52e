//! The free space of one allocation group: its header (AGF) and the tree of free extents by block number below it.
//! The walk ends because each leaf holds at least one extent that lies behind all before it.

use super::agf::{BLOCK_CHECKSUM_AT, BLOCK_UUID_AT, HEADER_CHECKSUM_AT, HEADER_MAGIC, HEADER_UUID_AT};
use super::geometry::{Geometry, checksum_holds};
use super::replay::{Replayed, State};
use crate::allocation::AllocationMap;
use crate::reader::integers::{be16, be32};
use crate::reader::{Parsed, Region, give_up};

/// The format's bound on the levels of any tree.
const LEVELS_MAX: u32 = 9;
/// Start and length in blocks; keys of inner blocks are of the same size.
const RECORD_BYTES: usize = 8;
const POINTER_BYTES: usize = 4;

/// Clears what is free in `group`, on the disk as `replayed` leaves it.
pub fn clear(
    region: &Region<'_>,
    geometry: &Geometry,
    replayed: &Replayed,
    group: u32,
    map: &mut AllocationMap,
) -> Parsed<()> {
    let at = geometry.header_at(group);
    let (header, state) = replayed.read(region, at, geometry.sector_bytes as usize)?;
    let length = be32(&header, 12);
    let holds = header.starts_with(HEADER_MAGIC)
        && be32(&header, 4) == 1
        && be32(&header, 8) == group
        && u64::from(length) == geometry.group_length(group)
        && is_ours(geometry, &header, state, HEADER_UUID_AT, HEADER_CHECKSUM_AT);
    if !holds {
        return give_up(format!("the header of allocation group {group} does not hold together"));
    }
    let (root, levels, free_blocks) = (be32(&header, 16), be32(&header, 28), be32(&header, 52));
    if !(1..=LEVELS_MAX).contains(&levels) {
        return give_up(format!("the free-space tree of allocation group {group} has {levels} levels"));
    }
    let mut walk = Walk { region, geometry, replayed, map, group, length, root, behind: 0, free_blocks: 0 };
    walk.block(root, levels - 1)?;
    if walk.free_blocks != u64::from(free_blocks) {
        return give_up(format!(
            "allocation group {group} has {} free blocks by its tree and {free_blocks} by its header",
            walk.free_blocks
        ));
    }
    Ok(())
}

/// UUID and checksum, where the format has them. What comes out of the log has no checksum yet.
fn is_ours(geometry: &Geometry, bytes: &[u8], state: State, uuid_at: usize, checksum_at: usize) -> bool {
    !geometry.checksums
        || (bytes[uuid_at..uuid_at + 16] == geometry.metadata_uuid
            && (state == State::Replayed || checksum_holds(bytes, checksum_at)))
}

struct Walk<'a> {
    region: &'a Region<'a>,
    geometry: &'a Geometry,
    replayed: &'a Replayed,
    map: &'a mut AllocationMap,
    group: u32,
    /// In blocks, as all below.
    length: u32,
    root: u32,
    /// Where the last free extent ended.
    behind: u32,
    free_blocks: u64,
}

impl Walk<'_> {
    fn block(&mut self, number: u32, level: u32) -> Parsed<()> {
        if number >= self.length {
            return self.broken("points beyond its group");
        }
        let block_bytes = self.geometry.block_bytes as usize;
        let at = self.byte_of(number);
        let (bytes, state) = self.replayed.read(self.region, at, block_bytes)?;
        let (magic, head_bytes) = if self.geometry.checksums { (b"AB3B", 56) } else { (b"ABTB", 16) };
        let holds = bytes.starts_with(magic)
            && u32::from(be16(&bytes, 4)) == level
            && is_ours(self.geometry, &bytes, state, BLOCK_UUID_AT, BLOCK_CHECKSUM_AT);
        if !holds {
            return self.broken(&format!("has a wrong block {number}"));
        }
        let body = &bytes[head_bytes..];
        let count = usize::from(be16(&bytes, 6));
        let count_max =
            if level == 0 { body.len() / RECORD_BYTES } else { body.len() / (RECORD_BYTES + POINTER_BYTES) };
        // Only a group without free space has an empty block: its root.
        let count_min = usize::from(level > 0 || number != self.root);
        if !(count_min..=count_max).contains(&count) {
            return self.broken(&format!("counts {count} records in block {number}"));
        }
        self.region.look_at(count)?;
        if level == 0 {
            return body[..count * RECORD_BYTES].chunks_exact(RECORD_BYTES).try_for_each(|r| self.record(r));
        }
        // Keys, room for as many as fit, then the pointers.
        let pointers = &body[count_max * RECORD_BYTES..][..count * POINTER_BYTES];
        pointers.chunks_exact(POINTER_BYTES).try_for_each(|pointer| self.block(be32(pointer, 0), level - 1))
    }

    fn record(&mut self, record: &[u8]) -> Parsed<()> {
        const HEADER_SECTORS: u64 = 4;
        let (start, count) = (be32(record, 0), be32(record, 4));
        let end = start.checked_add(count).filter(|end| *end <= self.length);
        let Some(end) = end.filter(|_| count > 0 && start >= self.behind) else {
            return self.broken("is out of order");
        };
        let (start_bytes, end_bytes) = (self.byte_of(start), self.byte_of(end));
        let headers_end = self.byte_of(0) + HEADER_SECTORS * self.geometry.sector_bytes;
        let log = &self.geometry.log;
        if start_bytes < headers_end || (start_bytes < log.end && log.start < end_bytes) {
            return self.broken("calls free what cannot be");
        }
        self.map.clear(start_bytes, end_bytes - start_bytes);
        self.behind = end;
        self.free_blocks += u64::from(count);
        Ok(())
    }

    fn byte_of(&self, block: u32) -> u64 {
        self.geometry.group_start_bytes(self.group) + u64::from(block) * self.geometry.block_bytes
    }

    fn broken<T>(&self, how: &str) -> Parsed<T> {
        give_up(format!("the free-space tree of allocation group {} {how}", self.group))
    }
}
