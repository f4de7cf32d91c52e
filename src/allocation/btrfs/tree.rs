//! B-trees of btrfs: a walk over all items of one. It ends because each leaf holds at least one key, and every key is
//! greater than all before it.

use super::chunks::Chunks;
use super::key::{KEY_BYTES, Key, Root};
use super::superblock::Superblock;
use crate::reader::integers::{le32, le64};
use crate::reader::{Parsed, Region, give_up};

const LEVELS: u8 = 8;
const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;

/// All trees of a filesystem.
pub struct Forest<'a> {
    pub region: &'a Region<'a>,
    pub superblock: &'a Superblock,
    pub chunks: &'a Chunks,
}

impl Forest<'_> {
    /// Shows every item of a tree, in the order of their keys.
    pub fn walk(&self, root: Root, take: &mut dyn FnMut(Key, &[u8]) -> Parsed<()>) -> Parsed<()> {
        if root.level >= LEVELS {
            return give_up(format!("a tree has {} levels", root.level));
        }
        self.block(root, None, &mut None, take)
    }

    /// `first`: the key that whoever points to it gives. `last`: that of the last item shown.
    fn block(
        &self,
        block: Root,
        first: Option<Key>,
        last: &mut Option<Key>,
        take: &mut dyn FnMut(Key, &[u8]) -> Parsed<()>,
    ) -> Parsed<()> {
        let bytes = self.read(block)?;
        let broken = || give_up(format!("the tree block at {} does not hold together", block.at));
        let (count, body) = (le32(&bytes, 96) as usize, &bytes[HEADER_BYTES..]);
        let entry_bytes = if block.level == 0 { ITEM_BYTES } else { POINTER_BYTES };
        // Only a tree without items has an empty block.
        if count > body.len() / entry_bytes || (count == 0 && (first.is_some() || block.level > 0)) {
            return broken();
        }
        self.region.look_at(count)?;
        for (index, entry) in body[..count * entry_bytes].chunks_exact(entry_bytes).enumerate() {
            let key = Key::read(entry);
            if index == 0 && first.is_some_and(|first| first != key) {
                return broken();
            }
            if block.level > 0 {
                let child = Root {
                    at: le64(entry, KEY_BYTES),
                    generation: le64(entry, KEY_BYTES + 8),
                    level: block.level - 1,
                };
                self.block(child, Some(key), last, take)?;
                continue;
            }
            if last.is_some_and(|last| key <= last) {
                return broken();
            }
            *last = Some(key);
            let (offset, size) = (le32(entry, KEY_BYTES) as usize, le32(entry, KEY_BYTES + 4) as usize);
            match offset.checked_add(size).and_then(|end| body.get(offset..end)) {
                Some(item) => take(key, item)?,
                None => return broken(),
            }
        }
        Ok(())
    }

    /// From the first copy that is what it must be.
    fn read(&self, block: Root) -> Parsed<Vec<u8>> {
        let superblock = self.superblock;
        for at in self.chunks.places(block.at, superblock.node_bytes)? {
            let bytes = self.region.read(at, superblock.node_bytes as usize)?;
            let holds = bytes[32..48] == superblock.metadata_uuid
                && le64(&bytes, 48) == block.at
                && le64(&bytes, 80) == block.generation
                && bytes[100] == block.level
                && superblock.checksum_holds(&bytes);
            if holds {
                return Ok(bytes);
            }
        }
        give_up(format!("the tree block at {} is not what it must be", block.at))
    }
}
