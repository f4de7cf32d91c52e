//! The superblock: where the trees begin, and whether this is a kind of btrfs that is read here.

use super::key::Root;
use crate::reader::checksum::Crc32c;
use crate::reader::integers::{le16, le32, le64};
use crate::reader::{Parsed, Region, give_up};

pub const SIZE_BYTES: usize = 4096;
const AT: u64 = 64 << 10;
/// The size of the array of system chunks, by the format.
const ARRAY_AT: usize = 0x32b;
const ARRAY_MAX_BYTES: usize = 2048;

/// WRITTEN and RELOC: nothing that is under way.
const FLAGS_KNOWN: u64 = 0x3;
/// Backrefs, subvolumes, mixed groups, compression, nodes larger than a page, further references, RAID (which a chunk
/// tells itself), skinny metadata, holes, UUID of metadata; simple quotas.
const INCOMPATIBLE_KNOWN: u64 = 0xfff | 0x10000;
const METADATA_UUID: u64 = 0x400;
/// The free-space tree (2 bits), verity, the tree of block groups.
const READ_ONLY_KNOWN: u64 = 0xf;
/// The kind of checksum: CRC-32C. Of the others (xxhash, SHA-256, BLAKE2b) the structure alone is looked at.
const CRC: u16 = 0;
const CHECKSUM_KINDS: u16 = 4;

/// What a reader of the maps needs of it.
#[derive(Debug)]
pub struct Superblock {
    pub metadata_uuid: [u8; 16],
    pub root: Root,
    pub chunk_root: Root,
    /// What was fsynced since the last commit, if anything.
    pub log: Option<Root>,
    pub used_bytes: u64,
    pub node_bytes: u64,
    pub device: u64,
    pub device_bytes: u64,
    /// Chunks that hold the chunk tree: keys and items.
    pub system_chunks: Vec<u8>,
    is_crc: bool,
}

/// Where its copies lie, the first one that counts included.
pub fn copies() -> impl Iterator<Item = u64> {
    [AT, 64 << 20, 256 << 30, 1 << 50].into_iter()
}

impl Superblock {
    pub fn read(region: &Region<'_>) -> Parsed<Superblock> {
        let bytes = region.read(AT, SIZE_BYTES)?;
        if bytes[0x40..0x48] != *b"_BHRfS_M" || le64(&bytes, 0x30) != AT {
            return give_up("no superblock of btrfs is there");
        }
        let checksum_kind = le16(&bytes, 0xc4);
        if checksum_kind >= CHECKSUM_KINDS {
            return give_up(format!("checksums of kind {checksum_kind} are not known"));
        }
        let flags = le64(&bytes, 0x38);
        let (read_only, incompatible) = (le64(&bytes, 0xb4), le64(&bytes, 0xbc));
        let unknown =
            [flags & !FLAGS_KNOWN, read_only & !READ_ONLY_KNOWN, incompatible & !INCOMPATIBLE_KNOWN];
        if unknown != [0; 3] {
            return give_up(format!("features {unknown:x?} are not known"));
        }
        let devices = le64(&bytes, 0x88);
        if devices != 1 {
            return give_up(format!("btrfs on {devices} devices"));
        }
        let (sector_bytes, node_bytes) = (le32(&bytes, 0x90), le32(&bytes, 0x94));
        let sizes_hold = [sector_bytes, node_bytes].iter().all(|n| n.is_power_of_two())
            && (4096..=65536).contains(&node_bytes)
            && (512..=node_bytes).contains(&sector_bytes);
        let array_bytes = le32(&bytes, 0xa0) as usize;
        let device_bytes = le64(&bytes, 0xd1);
        if !sizes_hold || array_bytes > ARRAY_MAX_BYTES || device_bytes > region.size_bytes() {
            return give_up("the superblock's sizes are impossible");
        }
        let generation = le64(&bytes, 0x48);
        let log_at = le64(&bytes, 0x60);
        let uuid_at = if incompatible & METADATA_UUID != 0 { 0x23b } else { 0x20 };
        let mut metadata_uuid = [0; 16];
        metadata_uuid.copy_from_slice(&bytes[uuid_at..uuid_at + 16]);
        let superblock = Superblock {
            metadata_uuid,
            root: Root { at: le64(&bytes, 0x50), generation, level: bytes[0xc6] },
            chunk_root: Root { at: le64(&bytes, 0x58), generation: le64(&bytes, 0xa4), level: bytes[0xc7] },
            // Log trees are written by the transaction that has not been committed.
            log: (log_at != 0).then_some(Root {
                at: log_at,
                generation: generation.wrapping_add(1),
                level: bytes[0xc8],
            }),
            used_bytes: le64(&bytes, 0x78),
            node_bytes: u64::from(node_bytes),
            device: le64(&bytes, 0xc9),
            device_bytes,
            system_chunks: bytes[ARRAY_AT..ARRAY_AT + array_bytes].to_vec(),
            is_crc: checksum_kind == CRC,
        };
        if !superblock.checksum_holds(&bytes) {
            return give_up("the superblock's checksum is wrong");
        }
        Ok(superblock)
    }

    /// Of the superblock, or of a block of a tree, which both begin with it.
    pub fn checksum_holds(&self, block: &[u8]) -> bool {
        const BEHIND_CHECKSUM: usize = 32;
        !self.is_crc || Crc32c::of(&block[BEHIND_CHECKSUM..]) == le32(block, 0)
    }
}
