//! The superblock: the filesystem's geometry, and whether it is of a kind and in a state whose bitmaps can be believed.

use super::Blocks;
use crate::reader::checksum::Crc32c;
use crate::reader::integers::{joined, le16, le32};
use crate::reader::{Parsed, Region, give_up};

/// Where it lies, whatever the size of a block.
pub const AT_BYTES: u64 = 1024;
pub const BYTES: usize = 1024;
/// Where its own checksum stands, in its last bytes.
pub const OWN_SUM: usize = 0x3fc;

// Those of fs/ext4/ext4.h whose bitmaps and groups are as they are read here.
const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER2: u32 = 0x200;
/// dir_prealloc, imagic_inodes, has_journal, ext_attr, resize_inode, dir_index, sparse_super2, fast_commit,
/// stable_inodes, orphan_file.
const COMPATIBLE: u32 = 0x1 | 0x2 | HAS_JOURNAL | 0x8 | 0x10 | 0x20 | SPARSE_SUPER2 | 0x400 | 0x800 | 0x1000;
const NEEDS_RECOVERY: u32 = 0x4;
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const FLEX_BG: u32 = 0x200;
const CHECKSUM_SEED: u32 = 0x2000;
/// filetype, needs_recovery, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt,
/// casefold.
const INCOMPATIBLE: u32 = 0x2
    | NEEDS_RECOVERY
    | META_BG
    | 0x40
    | WIDE
    | 0x100
    | FLEX_BG
    | 0x400
    | CHECKSUM_SEED
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
const SPARSE_SUPER: u32 = 0x1;
const GROUP_CRC16: u32 = 0x10;
const BIGALLOC: u32 = 0x200;
const METADATA_CHECKSUMS: u32 = 0x400;
/// sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink, extra_isize, quota, bigalloc, metadata_csum,
/// read-only, project, verity, orphan_present.
const READ_ONLY: u32 = SPARSE_SUPER
    | 0x2
    | 0x4
    | 0x8
    | GROUP_CRC16
    | 0x20
    | 0x40
    | 0x100
    | BIGALLOC
    | METADATA_CHECKSUMS
    | 0x1000
    | 0x2000
    | 0x8000
    | 0x1_0000;

const VALID: u16 = 1;
const ERRORS: u16 = 2;
const JOURNAL_INODE: u32 = 8;
/// What mke2fs refuses too.
const GROUP_BLOCKS_MIN: u64 = 256;

/// How the group descriptors are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Neither descriptors nor anything else; a group's flags mean nothing then.
    None,
    /// `uninit_bg`: the descriptors alone.
    Descriptors,
    /// `metadata_csum`: all metadata, from this seed.
    All(Crc32c),
}

/// What of a superblock tells where things are; within bounds that make the sums of others safe.
#[derive(Debug, Clone)]
pub struct Superblock {
    /// 1 KiB to 64 KiB.
    pub block_bytes: u64,
    /// All blocks from here to `blocks` are in groups.
    pub first_block: u64,
    /// The end of the filesystem, which lies on its device.
    pub blocks: u64,
    /// What a bit of a bitmap stands for.
    pub blocks_per_cluster: u64,
    pub clusters_per_group: u64,
    pub blocks_per_group: u64,
    pub groups: u64,
    pub inode_bytes: u64,
    pub inodes_per_group: u64,
    pub descriptor_bytes: usize,
    pub checksums: Checksums,
    pub uuid: [u8; 16],
    pub has_journal: bool,
    /// Its journal counts.
    pub needs_recovery: bool,
    /// Metadata of a group may lie outside of it.
    pub flexible: bool,
    /// The seed of all checksums stands in the superblock.
    seed_is_kept: bool,
    /// The first block of descriptors that lies in the groups it describes; None: all follow the superblock.
    first_meta: Option<u64>,
    reserved_descriptor_blocks: u64,
    copies: Copies,
}

/// Which groups begin with a copy of the superblock.
#[derive(Debug, Clone, Copy)]
enum Copies {
    All,
    /// 0, 1, and the powers of 3, 5 and 7.
    Sparse,
    /// 0 and these.
    Two([u32; 2]),
}

impl Superblock {
    /// As it lies on the device.
    pub fn read(region: &Region<'_>) -> Parsed<Superblock> {
        let mut bytes = [0; BYTES];
        region.read_into(&mut bytes, AT_BYTES)?;
        parse(&bytes, region.size_bytes())
    }

    /// As it will be after a replay.
    pub fn read_replayed(blocks: &Blocks<'_>, as_it_lies: &Superblock) -> Parsed<Superblock> {
        let Some(block) = blocks.newer(AT_BYTES / blocks.block_bytes)? else {
            return Ok(as_it_lies.clone());
        };
        let at = (AT_BYTES % blocks.block_bytes) as usize;
        let replayed = parse(&block[at..at + BYTES], blocks.region.size_bytes())?;
        if replayed.block_bytes != as_it_lies.block_bytes || replayed.has_journal != as_it_lies.has_journal {
            return give_up("the journal's copy of the superblock is of another filesystem");
        }
        Ok(replayed)
    }

    /// How many blocks the group descriptors fill.
    pub fn descriptor_blocks(&self) -> u64 {
        self.groups.div_ceil(self.descriptors_per_block())
    }

    pub fn descriptors_per_block(&self) -> u64 {
        self.block_bytes / self.descriptor_bytes as u64
    }

    /// Where the first copy of a block of descriptors lies.
    pub fn descriptor_block(&self, index: u64) -> u64 {
        let superblock = AT_BYTES / self.block_bytes;
        if self.first_meta.is_none_or(|first| index < first) {
            return superblock + 1 + index;
        }
        let group = index * self.descriptors_per_block();
        let at = self.group_start(group) + u64::from(self.has_copy(group));
        // With clusters of small blocks the first group begins before the superblock.
        if index == 0 { superblock + 1 } else { at }
    }

    pub fn group_start(&self, group: u64) -> u64 {
        self.first_block + group * self.blocks_per_group
    }

    pub fn group_end(&self, group: u64) -> u64 {
        self.group_start(group + 1).min(self.blocks)
    }

    pub fn inode_table_blocks(&self) -> u64 {
        (self.inodes_per_group * self.inode_bytes).div_ceil(self.block_bytes)
    }

    /// How many blocks at the start of a group hold copies of the superblock and of descriptors, or are kept for more.
    pub fn group_head_blocks(&self, group: u64) -> u64 {
        let copy = u64::from(self.has_copy(group));
        let per_block = self.descriptors_per_block();
        let tables = match self.first_meta {
            Some(first) if group / per_block >= first => {
                u64::from(matches!(group % per_block, 0 | 1) || group % per_block == per_block - 1)
            }
            first => copy * (first.unwrap_or(self.descriptor_blocks()) + self.reserved_descriptor_blocks),
        };
        // The first group may begin before the superblock.
        let before = if group == 0 { AT_BYTES / self.block_bytes - self.first_block } else { 0 };
        before + copy + tables
    }

    /// Whether no checksum of its metadata begins with the UUID.
    pub fn sums_without_uuid(&self) -> bool {
        self.seed_is_kept || self.checksums == Checksums::None
    }

    /// Whether a group begins with a copy of the superblock.
    pub fn has_copy(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.copies {
            _ if group == 0 => true,
            Copies::All => true,
            Copies::Sparse => group == 1 || [3, 5, 7].into_iter().any(power_of),
            Copies::Two(groups) => groups.into_iter().any(|copy| u64::from(copy) == group),
        }
    }
}

/// Whether a superblock bears a checksum of itself.
pub fn is_summed(bytes: &[u8; BYTES]) -> bool {
    le32(bytes, 0x64) & METADATA_CHECKSUMS != 0
}

/// The features that a superblock says the filesystem has.
struct Features {
    compatible: u32,
    incompatible: u32,
    read_only: u32,
}

impl Features {
    fn read(bytes: &[u8]) -> Parsed<Features> {
        let (compatible, incompatible, read_only) = (le32(bytes, 0x5c), le32(bytes, 0x60), le32(bytes, 0x64));
        let unknown = [compatible & !COMPATIBLE, incompatible & !INCOMPATIBLE, read_only & !READ_ONLY];
        if unknown != [0; 3] {
            let [compatible, incompatible, read_only] = unknown;
            return give_up(format!(
                "it has features that are not known here (compat {compatible:#x}, incompat {incompatible:#x}, \
                 ro_compat {read_only:#x})"
            ));
        }
        Ok(Features { compatible, incompatible, read_only })
    }

    fn has_journal(&self) -> bool {
        self.compatible & HAS_JOURNAL != 0
    }

    fn needs_recovery(&self) -> bool {
        self.incompatible & NEEDS_RECOVERY != 0
    }

    /// Whether block numbers have 64 bits.
    fn is_wide(&self) -> bool {
        self.incompatible & WIDE != 0
    }
}

fn parse(bytes: &[u8], size_bytes: u64) -> Parsed<Superblock> {
    if le16(bytes, 0x38) != 0xef53 {
        return give_up("it has no superblock");
    }
    if le32(bytes, 0x4c) != 1 {
        return give_up(format!("it is of revision {}; known is 1", le32(bytes, 0x4c)));
    }
    let features = Features::read(bytes)?;
    let uuid: [u8; 16] = std::array::from_fn(|at| bytes[0x68 + at]);
    let checksums = read_checksums(bytes, &features, &uuid)?;
    refuse_state(bytes, &features)?;
    let Sizes { block_bytes, first_block, blocks, blocks_per_cluster } =
        read_sizes(bytes, &features, size_bytes)?;
    let Groups { clusters_per_group, blocks_per_group, groups, inode_bytes, inodes_per_group } =
        read_groups(bytes, block_bytes, blocks - first_block, blocks_per_cluster)?;
    let (descriptor_bytes, reserved_descriptor_blocks) = read_descriptors(bytes, &features, block_bytes)?;
    let first_meta = (features.incompatible & META_BG != 0).then(|| u64::from(le32(bytes, 0x104)));
    let superblock = Superblock {
        block_bytes,
        first_block,
        blocks,
        blocks_per_cluster,
        clusters_per_group,
        blocks_per_group,
        groups,
        inode_bytes,
        inodes_per_group,
        descriptor_bytes,
        checksums,
        uuid,
        has_journal: features.has_journal(),
        needs_recovery: features.needs_recovery(),
        flexible: features.incompatible & FLEX_BG != 0,
        seed_is_kept: features.incompatible & CHECKSUM_SEED != 0,
        first_meta,
        reserved_descriptor_blocks,
        copies: read_copies(bytes, &features),
    };
    if first_meta.is_some_and(|first| first > superblock.descriptor_blocks()) {
        return give_up("its first block of group descriptors within groups lies beyond the last one");
    }
    Ok(superblock)
}

fn read_checksums(bytes: &[u8], features: &Features, uuid: &[u8; 16]) -> Parsed<Checksums> {
    if features.read_only & METADATA_CHECKSUMS != 0 {
        if bytes[0x175] != 1 || Crc32c::start().and(&bytes[..OWN_SUM]).value() != le32(bytes, OWN_SUM) {
            return give_up("its superblock does not match its checksum");
        }
        return Ok(Checksums::All(match features.incompatible & CHECKSUM_SEED {
            0 => Crc32c::start().and(uuid),
            _ => Crc32c::from_seed(le32(bytes, 0x270)),
        }));
    }
    let only_descriptors = features.read_only & GROUP_CRC16 != 0;
    Ok(if only_descriptors { Checksums::Descriptors } else { Checksums::None })
}

/// Refuses a filesystem of which the maps need not be right.
fn refuse_state(bytes: &[u8], features: &Features) -> Parsed<()> {
    let state = le16(bytes, 0x3a);
    if state & ERRORS != 0 {
        return give_up("it is marked as one with errors");
    }
    if state & VALID == 0 {
        return give_up("it was not unmounted cleanly, and no journal knows what was going on");
    }
    if features.has_journal() && (le32(bytes, 0xe0) != JOURNAL_INODE || le32(bytes, 0xe4) != 0) {
        return give_up("its journal lies elsewhere");
    }
    if !features.has_journal() && features.needs_recovery() {
        return give_up("it wants a journal to be replayed, and has none");
    }
    Ok(())
}

struct Sizes {
    block_bytes: u64,
    first_block: u64,
    blocks: u64,
    blocks_per_cluster: u64,
}

fn read_sizes(bytes: &[u8], features: &Features, size_bytes: u64) -> Parsed<Sizes> {
    let (block_shift, cluster_shift) = (le32(bytes, 0x18), le32(bytes, 0x1c));
    if block_shift > 6 {
        return give_up("the size of its blocks is beyond 64 KiB");
    }
    let block_bytes = 1024u64 << block_shift;
    let bigalloc = features.read_only & BIGALLOC != 0;
    let shifts_fit = if bigalloc {
        cluster_shift >= block_shift && cluster_shift <= 20
    } else {
        cluster_shift == block_shift
    };
    if !shifts_fit {
        return give_up("the size of its clusters does not fit that of its blocks");
    }
    let first_block = u64::from(le32(bytes, 0x14));
    if first_block != u64::from(block_bytes == 1024 && !bigalloc) {
        return give_up(format!("its first block is {first_block}"));
    }
    let high = if features.is_wide() { le32(bytes, 0x150) } else { 0 };
    let blocks = joined(high, le32(bytes, 0x4));
    if blocks <= first_block || blocks.checked_mul(block_bytes).is_none_or(|end| end > size_bytes) {
        return give_up(format!(
            "it claims {blocks} blocks of {block_bytes} bytes, and {size_bytes} bytes are there"
        ));
    }
    Ok(Sizes { block_bytes, first_block, blocks, blocks_per_cluster: 1 << (cluster_shift - block_shift) })
}

struct Groups {
    clusters_per_group: u64,
    blocks_per_group: u64,
    groups: u64,
    inode_bytes: u64,
    inodes_per_group: u64,
}

/// `blocks` from the first group's start to the end.
fn read_groups(bytes: &[u8], block_bytes: u64, blocks: u64, blocks_per_cluster: u64) -> Parsed<Groups> {
    let blocks_per_group = u64::from(le32(bytes, 0x20));
    let clusters_per_group = u64::from(le32(bytes, 0x24));
    if blocks_per_group < GROUP_BLOCKS_MIN
        || clusters_per_group % 8 != 0
        || clusters_per_group > 8 * block_bytes
        || clusters_per_group * blocks_per_cluster != blocks_per_group
    {
        return give_up(format!(
            "its groups are of {blocks_per_group} blocks, {clusters_per_group} clusters"
        ));
    }
    let groups = blocks.div_ceil(blocks_per_group);
    if groups > u64::from(u32::MAX) {
        return give_up(format!("it claims {groups} groups"));
    }
    let inodes_per_group = u64::from(le32(bytes, 0x28));
    let inode_bytes = u64::from(le16(bytes, 0x58));
    if inodes_per_group == 0
        || inodes_per_group > 8 * block_bytes
        || inodes_per_group.checked_mul(groups) != Some(u64::from(le32(bytes, 0x0)))
        || !inode_bytes.is_power_of_two()
        || !(128..=block_bytes).contains(&inode_bytes)
    {
        return give_up(format!("its groups have {inodes_per_group} inodes of {inode_bytes} bytes"));
    }
    Ok(Groups { clusters_per_group, blocks_per_group, groups, inode_bytes, inodes_per_group })
}

/// Bytes of a group descriptor, and blocks that are kept for more of them.
fn read_descriptors(bytes: &[u8], features: &Features, block_bytes: u64) -> Parsed<(usize, u64)> {
    let wide = features.is_wide();
    let descriptor_bytes = if wide { usize::from(le16(bytes, 0xfe)) } else { 32 };
    if !descriptor_bytes.is_power_of_two() || descriptor_bytes > 1024 || (wide && descriptor_bytes < 64) {
        return give_up(format!("its group descriptors are of {descriptor_bytes} bytes"));
    }
    let reserved_blocks = u64::from(le16(bytes, 0xce));
    if reserved_blocks > block_bytes / 4 {
        return give_up(format!("it keeps {reserved_blocks} blocks for more group descriptors"));
    }
    Ok((descriptor_bytes, reserved_blocks))
}

fn read_copies(bytes: &[u8], features: &Features) -> Copies {
    if features.compatible & SPARSE_SUPER2 != 0 {
        Copies::Two([le32(bytes, 0x24c), le32(bytes, 0x250)])
    } else if features.read_only & SPARSE_SUPER != 0 {
        Copies::Sparse
    } else {
        Copies::All
    }
}
