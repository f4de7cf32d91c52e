//! The superblock: where the allocation groups and the log lie, and whether this is a kind of xfs that is read here.

use std::ops::Range;

use crate::reader::checksum::Crc32c;
use crate::reader::integers::{be16, be32, be64, le32};
use crate::reader::{Parsed, Region, give_up};

/// A superblock lies in one sector, of at least this size.
const SECTOR_MIN_BYTES: usize = 512;
const MAGIC: &[u8] = b"XFSB";
/// Of the log, by the format.
const LOG_MAX_BYTES: u64 = 2 << 30;
/// What the kernel's reader of superblocks wants at least.
const GROUP_MIN_BLOCKS: u32 = 64;

/// FINOBT, RMAPBT, REFLINK, INOBTCNT: trees beside those that are read here.
const READ_ONLY_KNOWN: u32 = 0xf;
/// FTYPE, SPINODES, META_UUID, BIGTIME, NREXT64, EXCHRANGE, PARENT: nothing about free space.
const INCOMPATIBLE_KNOWN: u32 = 0x1 | 0x2 | META_UUID | 0x8 | 0x20 | 0x40 | 0x80;
const META_UUID: u32 = 0x4;
/// XATTRS: intents in the log that replay finishes.
const LOG_KNOWN: u32 = 0x1;

/// Where things are. Every product of its numbers that is taken here fits the filesystem.
#[derive(Debug)]
pub struct Geometry {
    /// Version 5: metadata carry checksums, a UUID and the log's position of their last write.
    pub checksums: bool,
    pub block_bytes: u64,
    pub sector_bytes: u64,
    pub groups: u32,
    /// The log, in bytes of the filesystem.
    pub log: Range<u64>,
    pub uuid: [u8; 16],
    /// What metadata carry: differs from the UUID once that was changed.
    pub metadata_uuid: [u8; 16],
    blocks: u64,
    group_blocks: u32,
}

impl Geometry {
    pub fn read(region: &Region<'_>) -> Parsed<Geometry> {
        let sector = region.read(0, SECTOR_MIN_BYTES)?;
        if !sector.starts_with(MAGIC) {
            return give_up("no superblock of xfs is there");
        }
        let version = be16(&sector, 100) & 0xf;
        let checksums = match version {
            4 => false,
            5 => true,
            _ => return give_up(format!("xfs of version {version} is not known")),
        };
        let (block_bytes, sector_bytes) = (u64::from(be32(&sector, 4)), u64::from(be16(&sector, 102)));
        let sizes_hold = (512..=65536).contains(&block_bytes)
            && block_bytes.is_power_of_two()
            && block_bytes.trailing_zeros() == u32::from(sector[120])
            && (512..=32768).contains(&sector_bytes)
            && sector_bytes.is_power_of_two()
            && sector_bytes <= block_bytes;
        if !sizes_hold {
            return give_up("the superblock's sizes are impossible");
        }
        if checksums {
            Self::check_features(&region.read(0, sector_bytes as usize)?)?;
        }
        if sector[126] != 0 {
            return give_up("its mkfs did not end");
        }
        if be64(&sector, 16) != 0 {
            return give_up("a realtime section is not read");
        }
        let mut geometry = Geometry {
            checksums,
            block_bytes,
            sector_bytes,
            groups: be32(&sector, 88),
            log: 0..0,
            uuid: array(&sector[32..48]),
            metadata_uuid: array(&sector[32..48]),
            blocks: be64(&sector, 8),
            group_blocks: be32(&sector, 84),
        };
        if checksums && be32(&sector, 216) & META_UUID != 0 {
            geometry.metadata_uuid = array(&sector[248..264]);
        }
        geometry.check_groups(region.size_bytes())?;
        geometry.log = geometry.place_log(be64(&sector, 48), be32(&sector, 96), sector[124])?;
        Ok(geometry)
    }

    fn check_features(sector: &[u8]) -> Parsed<()> {
        const CHECKSUM_AT: usize = 224;
        if !checksum_holds(sector, CHECKSUM_AT) {
            return give_up("the superblock's checksum is wrong");
        }
        let (read_only, incompatible, log) = (be32(sector, 212), be32(sector, 216), be32(sector, 220));
        let unknown = [read_only & !READ_ONLY_KNOWN, incompatible & !INCOMPATIBLE_KNOWN, log & !LOG_KNOWN];
        if unknown != [0; 3] {
            return give_up(format!("features {unknown:x?} are not known"));
        }
        Ok(())
    }

    fn check_groups(&self, size_bytes: u64) -> Parsed<()> {
        let full_groups = u64::from(self.groups.saturating_sub(1)) * u64::from(self.group_blocks);
        let last_group = self.blocks.saturating_sub(full_groups);
        let hold = self.groups >= 1
            && (GROUP_MIN_BLOCKS..=1 << 31).contains(&self.group_blocks)
            && (1..=u64::from(self.group_blocks)).contains(&last_group)
            && self.blocks.checked_mul(self.block_bytes).is_some_and(|bytes| bytes <= size_bytes);
        if hold { Ok(()) } else { give_up("the superblock's allocation groups do not fit") }
    }

    /// From a block number that has the group in its upper bits.
    fn place_log(&self, start: u64, blocks: u32, group_bits: u8) -> Parsed<Range<u64>> {
        if start == 0 {
            return give_up("its log is on another device");
        }
        if group_bits > 31 || u64::from(self.group_blocks) > 1 << group_bits {
            return give_up("the superblock's allocation groups do not fit");
        }
        let (group, block) = (start >> group_bits, start & ((1 << group_bits) - 1));
        let length_bytes = u64::from(blocks) * self.block_bytes;
        let inside = group < u64::from(self.groups)
            && block + u64::from(blocks) <= self.group_length(group as u32)
            && (1..=LOG_MAX_BYTES).contains(&length_bytes);
        if !inside {
            return give_up("the superblock's log does not fit");
        }
        let start_bytes = self.group_start_bytes(group as u32) + block * self.block_bytes;
        Ok(start_bytes..start_bytes + length_bytes)
    }

    /// Of one of its groups.
    pub fn group_start_bytes(&self, group: u32) -> u64 {
        u64::from(group) * u64::from(self.group_blocks) * self.block_bytes
    }

    /// In blocks, of one of its groups.
    pub fn group_length(&self, group: u32) -> u64 {
        let before = u64::from(group) * u64::from(self.group_blocks);
        u64::from(self.group_blocks).min(self.blocks - before)
    }

    /// All that the groups cover.
    pub fn size_bytes(&self) -> u64 {
        self.blocks * self.block_bytes
    }

    /// Where the group keeps the root of its free-space trees: its second sector.
    pub fn header_at(&self, group: u32) -> u64 {
        self.group_start_bytes(group) + self.sector_bytes
    }

    /// Whether `at` is where some group keeps that.
    pub fn is_header(&self, at: u64) -> bool {
        at % (u64::from(self.group_blocks) * self.block_bytes) == self.sector_bytes
    }
}

fn array(bytes: &[u8]) -> [u8; 16] {
    let mut array = [0; 16];
    array.copy_from_slice(bytes);
    array
}

/// Whether the CRC-32C of all bytes, with the four of the checksum itself as zeros, is at `at`: a little-endian number.
pub fn checksum_holds(bytes: &[u8], at: usize) -> bool {
    Crc32c::start().and_without(bytes, at..at + 4).finished() == le32(bytes, at)
}
