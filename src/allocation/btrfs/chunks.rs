//! Chunks: where on the disk logical addresses lie, once (single) or twice (DUP). Other profiles are not read.

use super::key::{KEY_BYTES, Key};
use super::superblock::Superblock;
use crate::allocation::AllocationMap;
use crate::reader::integers::{le16, le64};
use crate::reader::{Parsed, give_up};

const CHUNK_TREE: u64 = 256;
const CHUNK_ITEM: u8 = 228;
/// A chunk's item without stripes, and each stripe.
const ITEM_BYTES: usize = 48;
const STRIPE_BYTES: usize = 32;
/// DATA, SYSTEM, METADATA; mixed ones have two of them.
const KINDS: u64 = 0x7;
const DATA_ALONE: u64 = 0x1;
const DUP: u64 = 0x20;
/// Larger than any that is made: chunks have a gigabyte each, where there is room.
const CHUNKS_MAX: usize = 1 << 16;

/// A range of logical addresses, and where it lies on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    start: u64,
    length: u64,
    holds_metadata: bool,
    /// The same place twice for what lies there once.
    places: [u64; 2],
}

/// Ascending, without overlaps.
#[derive(Debug, Default)]
pub struct Chunks(Vec<Chunk>);

impl Chunks {
    /// Those that the chunk tree itself lies in.
    pub fn of_superblock(superblock: &Superblock) -> Parsed<Chunks> {
        let mut chunks = Chunks::default();
        let mut rest = superblock.system_chunks.as_slice();
        while !rest.is_empty() {
            let Some((key, behind)) = rest.split_at_checked(KEY_BYTES) else {
                return give_up("the superblock's chunks do not hold together");
            };
            let used = chunks.add(superblock, Key::read(key), behind)?;
            rest = &behind[used..];
        }
        // The array has its own order.
        chunks.0.sort_by_key(|chunk| chunk.start);
        Ok(chunks)
    }

    /// Refuses chunks that lie over each other on the disk. Without that, what is marked could be marked once for each.
    pub fn refuse_more_than(&self, device_bytes: u64) -> Parsed<()> {
        let copies = |chunk: &Chunk| if chunk.places[0] == chunk.places[1] { 1 } else { 2 };
        let taken = |sum: u64, chunk: &Chunk| sum.checked_add(chunk.length.checked_mul(copies(chunk))?);
        match self.0.iter().try_fold(0, taken) {
            Some(sum) if sum <= device_bytes => Ok(()),
            _ => give_up(format!("its chunks take more than the {device_bytes} bytes of the device")),
        }
    }

    /// Takes the next item of the chunk tree, in the order of the tree.
    pub fn take(&mut self, superblock: &Superblock, key: Key, item: &[u8]) -> Parsed<()> {
        if key.kind == CHUNK_ITEM {
            if self.0.last().is_some_and(|last| key.offset < last.start + last.length) {
                return give_up("chunks overlap");
            }
            self.add(superblock, key, item)?;
        }
        Ok(())
    }

    /// Returns how many bytes the item takes.
    fn add(&mut self, superblock: &Superblock, key: Key, item: &[u8]) -> Parsed<usize> {
        let Some((head, stripes)) = item.split_at_checked(ITEM_BYTES) else {
            return give_up("a chunk's item is too short");
        };
        let (length, kind) = (le64(head, 0), le64(head, 24));
        let profile = kind & !KINDS;
        let copies: usize = match profile {
            0 => 1,
            DUP => 2,
            _ => return give_up(format!("chunks of profile {profile:#x} are not read")),
        };
        let Some(stripes) = stripes.get(..copies * STRIPE_BYTES) else {
            return give_up("a chunk's item is too short");
        };
        let (first, last) = (&stripes[..STRIPE_BYTES], &stripes[stripes.len() - STRIPE_BYTES..]);
        let places = [le64(first, 8), le64(last, 8)];
        let holds = (key.object, key.kind) == (CHUNK_TREE, CHUNK_ITEM)
            && length > 0
            && key.offset.checked_add(length).is_some()
            && usize::from(le16(head, 44)) == copies
            && [first, last].iter().all(|stripe| le64(stripe, 0) == superblock.device)
            && places
                .iter()
                .all(|at| at.checked_add(length).is_some_and(|end| end <= superblock.device_bytes));
        if !holds || self.0.len() >= CHUNKS_MAX {
            return give_up(format!("the chunk at {} does not hold together", key.offset));
        }
        self.0.push(Chunk { start: key.offset, length, holds_metadata: kind & KINDS != DATA_ALONE, places });
        Ok(ITEM_BYTES + stripes.len())
    }

    /// Whether all of `others` are among them.
    pub fn contain(&self, others: &Chunks) -> bool {
        others.0.iter().all(|chunk| {
            self.0.binary_search_by_key(&chunk.start, |c| c.start).is_ok_and(|i| self.0[i] == *chunk)
        })
    }

    /// Where `length` bytes at a logical address lie.
    pub fn places(&self, at: u64, length: u64) -> Parsed<[u64; 2]> {
        let index = self.0.partition_point(|chunk| chunk.start <= at);
        let chunk = index.checked_sub(1).map(|index| &self.0[index]);
        let inside = |chunk: &&Chunk| {
            at.checked_add(length).is_some_and(|end| length > 0 && end <= chunk.start + chunk.length)
        };
        match chunk.filter(inside) {
            Some(chunk) => Ok(chunk.places.map(|place| place + (at - chunk.start))),
            None => give_up(format!("{length} bytes at {at} lie in no chunk")),
        }
    }

    pub fn mark(&self, at: u64, length: u64, map: &mut AllocationMap) -> Parsed<()> {
        self.places(at, length)?.into_iter().for_each(|place| map.mark(place, length));
        Ok(())
    }

    /// All of the chunks where tree blocks may be.
    pub fn mark_metadata(&self, map: &mut AllocationMap) {
        for chunk in self.0.iter().filter(|chunk| chunk.holds_metadata) {
            chunk.places.iter().for_each(|place| map.mark(*place, chunk.length));
        }
    }
}
