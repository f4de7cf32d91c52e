//! The journal (jbd2): which blocks have a newer copy in it, in a transaction that was committed, and was not revoked. It
//! follows the log as fs/jbd2/recovery.c does, and reads of it only what says where things are, and the copies asked for.

use std::collections::{HashMap, HashSet};

use super::inode::{Run, journal_runs};
use super::read_blocks;
use super::superblock::Superblock;
use crate::reader::checksum::Crc32c;
use crate::reader::integers::{be16, be32, joined, le16, le32};
use crate::reader::{Parsed, Region, give_up};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;
const HEADER_BYTES: usize = 12;

const COMPATIBLE_COMMIT_SUMS: u32 = 0x1;
const WIDE: u32 = 0x2;
const ASYNC_COMMIT: u32 = 0x4;
const CHECKSUMS_V2: u32 = 0x8;
const CHECKSUMS_V3: u32 = 0x10;
const FAST_COMMITS: u32 = 0x20;
/// revoke and those above.
const INCOMPATIBLE: u32 = 0x1 | WIDE | ASYNC_COMMIT | CHECKSUMS_V2 | CHECKSUMS_V3 | FAST_COMMITS;
const CRC32C: u8 = 4;

const ESCAPED: u16 = 1;
const SAME_UUID: u16 = 2;
const LAST: u16 = 8;

const FAST_COMMIT_BLOCKS: u32 = 256;
/// With less for the log the kernel keeps no area for them.
const LOG_BLOCKS_MIN: u32 = 1024;
const FAST_COMMIT_HEAD: u16 = 9;

/// Where the journal's superblock has its own checksum.
pub const OWN_SUM: std::ops::Range<usize> = 0xfc..0x100;

/// The journal, and what in it is newer than the filesystem.
pub struct Journal {
    /// Where it lies.
    pub runs: Vec<Run>,
    format: Format,
    copies: HashMap<u64, Copy>,
}

/// How the blocks of the log are written.
#[derive(Debug, Clone, Copy)]
struct Format {
    /// Block numbers of 64 bits.
    wide: bool,
    checksums: Option<Checksums>,
}

#[derive(Debug, Clone, Copy)]
struct Checksums {
    seed: Crc32c,
    /// Version 3: a tag has room for all of a sum.
    whole_in_tag: bool,
}

/// A copy of a block in the log.
#[derive(Debug, Clone, Copy)]
struct Copy {
    index: u32,
    sequence: u32,
    checksum: u32,
    /// Its first bytes were those of a block of the log, and zeros stand there.
    escaped: bool,
}

/// What the journal's superblock says.
struct Log {
    format: Format,
    /// The log goes from here to `end`, and on at `first`.
    first: u32,
    end: u32,
    /// Where it begins; 0: there is nothing in it.
    start: u32,
    sequence: u32,
    /// The area of fast commits reaches from `end` to here.
    fast_end: u32,
    /// A commit's own sums, of all before it, decide whether it counts.
    sums_in_commits: bool,
}

impl Journal {
    /// The journal of a filesystem, with its log followed to the end. None: it has none.
    pub fn open(region: &Region<'_>, superblock: &Superblock) -> Parsed<Option<Journal>> {
        if !superblock.has_journal {
            return Ok(None);
        }
        let runs = journal_runs(region, superblock)?;
        let blocks = runs.iter().map(|run| run.count).sum();
        let walk_at = Walk { region, block_bytes: superblock.block_bytes, runs: &runs };
        let log = log(&walk_at.read(0)?, superblock.block_bytes, blocks)?;
        // The kernel would throw the log away, and e2fsck might not.
        if log.start != 0 && !superblock.needs_recovery {
            return give_up("its journal has a log, and no mark that it is to be replayed");
        }
        let copies = if log.start == 0 { HashMap::new() } else { walk_at.follow(&log)? };
        Ok(Some(Journal { runs, format: log.format, copies }))
    }

    /// The last committed copy of a block, where there is one.
    pub fn copy_of(&self, region: &Region<'_>, block_bytes: u64, block: u64) -> Parsed<Option<Vec<u8>>> {
        let Some(copy) = self.copies.get(&block) else { return Ok(None) };
        let mut bytes = Walk { region, block_bytes, runs: &self.runs }.read(copy.index)?;
        if let Some(Checksums { seed, whole_in_tag }) = self.format.checksums {
            let sum = seed.and(&copy.sequence.to_be_bytes()).and(&bytes);
            let same = match whole_in_tag {
                true => sum.value() == copy.checksum,
                false => u32::from(sum.low()) == copy.checksum,
            };
            if !same {
                return give_up(format!("the journal's copy of block {block} does not match its checksum"));
            }
        }
        if copy.escaped {
            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(Some(bytes))
    }
}

/// Whether a journal's superblock bears a checksum of itself.
pub fn is_summed(bytes: &[u8]) -> bool {
    be32(bytes, 4) == SUPERBLOCK_V2 && be32(bytes, 0x28) & (CHECKSUMS_V2 | CHECKSUMS_V3) != 0
}

/// The journal's superblock: the first of its `blocks` blocks.
fn log(bytes: &[u8], block_bytes: u64, blocks: u64) -> Parsed<Log> {
    const BYTES: usize = 1024;
    let version = be32(bytes, 4);
    if be32(bytes, 0) != MAGIC || !matches!(version, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return give_up("its journal has no superblock");
    }
    let feature = |at| if version == SUPERBLOCK_V2 { be32(bytes, at) } else { 0 };
    let (compatible, incompatible, read_only) = (feature(0x24), feature(0x28), feature(0x2c));
    if compatible & !COMPATIBLE_COMMIT_SUMS != 0 || incompatible & !INCOMPATIBLE != 0 || read_only != 0 {
        return give_up(format!(
            "its journal has features that are not known here (compat {compatible:#x}, incompat \
             {incompatible:#x}, ro_compat {read_only:#x})"
        ));
    }
    let sums = incompatible & (CHECKSUMS_V2 | CHECKSUMS_V3);
    let checksums = if sums == 0 {
        None
    } else {
        let expected = Crc32c::start().and_without(&bytes[..BYTES], OWN_SUM).value();
        let found = be32(bytes, OWN_SUM.start);
        if sums == CHECKSUMS_V2 | CHECKSUMS_V3 || bytes[0x50] != CRC32C || expected != found {
            return give_up("its journal's superblock does not match its checksum");
        }
        let seed = Crc32c::start().and(&bytes[0x30..0x40]);
        Some(Checksums { seed, whole_in_tag: sums == CHECKSUMS_V3 })
    };
    if be32(bytes, 0x20) != 0 {
        return give_up("its journal was ended by an error");
    }
    let (first, length) = (be32(bytes, 0x14), be32(bytes, 0x10));
    let fast = match (incompatible & FAST_COMMITS != 0, be32(bytes, 0x54)) {
        (false, _) => 0,
        (true, 0) => FAST_COMMIT_BLOCKS,
        (true, blocks) => blocks,
    };
    let start = be32(bytes, 0x1c);
    let end = length.saturating_sub(fast);
    if u64::from(be32(bytes, 0xc)) != block_bytes
        || u64::from(length) > blocks
        || first == 0
        || first >= end
        || (fast != 0 && end < LOG_BLOCKS_MIN)
        || (start != 0 && !(first..end).contains(&start))
    {
        return give_up("its journal's superblock has its log out of bounds");
    }
    Ok(Log {
        format: Format { wide: incompatible & WIDE != 0, checksums },
        first,
        end,
        start,
        sequence: be32(bytes, 0x18),
        fast_end: length,
        sums_in_commits: compatible & COMPATIBLE_COMMIT_SUMS != 0 || incompatible & ASYNC_COMMIT != 0,
    })
}

/// The blocks of the journal.
struct Walk<'a> {
    region: &'a Region<'a>,
    block_bytes: u64,
    runs: &'a [Run],
}

impl Walk<'_> {
    fn read(&self, index: u32) -> Parsed<Vec<u8>> {
        let index = u64::from(index);
        let after = self.runs.partition_point(|run| run.index <= index);
        match after.checked_sub(1).map(|at| &self.runs[at]) {
            Some(run) if index - run.index < run.count => {
                read_blocks(self.region, self.block_bytes, run.block + (index - run.index), 1)
            }
            _ => give_up(format!("its journal has no block {index}")),
        }
    }

    /// Follows the log to its end, and keeps the last copy of each block.
    fn follow(&self, log: &Log) -> Parsed<HashMap<u64, Copy>> {
        if log.sums_in_commits {
            return give_up("its journal has commits that count only with all that stands before them");
        }
        let mut copies = HashMap::new();
        let mut transaction = Transaction::default();
        let (mut sequence, mut at) = (log.sequence, log.start);
        let mut left = log.end - log.first;
        let mut step = |at: u32| {
            left = match left.checked_sub(1) {
                Some(left) => left,
                None => return give_up("its journal's log has no end"),
            };
            Ok(if at + 1 == log.end { log.first } else { at + 1 })
        };
        loop {
            let block = self.read(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            let kind = be32(&block, 4);
            if !matches!(kind, DESCRIPTOR | COMMIT | REVOKE) {
                break;
            }
            if !log.format.block_is_whole(&block, kind) {
                return give_up(format!("block {at} of its journal does not match its checksum"));
            }
            let this = at;
            at = step(at)?;
            match kind {
                DESCRIPTOR => {
                    for tag in log.format.tags(&block) {
                        self.region.look_at(1)?;
                        let Tag { block, checksum, escaped } = tag;
                        transaction.copies.push((block, Copy { index: at, sequence, checksum, escaped }));
                        at = step(at)?;
                    }
                }
                REVOKE => transaction.revokes.push(this),
                _ => {
                    self.commit(std::mem::take(&mut transaction), log.format, &mut copies)?;
                    sequence = sequence.wrapping_add(1);
                }
            }
        }
        // What follows the last commit has not happened; but for fast commits, which count from here on.
        for index in [log.end, log.end + 1] {
            if index < log.fast_end && is_fast_commit(&self.read(index)?, sequence) {
                return give_up("its journal has fast commits, which are not read");
            }
        }
        Ok(copies)
    }

    /// Carries a transaction out: a revoke is of all copies up to its own transaction's.
    fn commit(
        &self,
        transaction: Transaction,
        format: Format,
        copies: &mut HashMap<u64, Copy>,
    ) -> Parsed<()> {
        copies.extend(transaction.copies);
        let mut revoked = HashSet::new();
        for index in transaction.revokes {
            let blocks = format.revoked(&self.read(index)?)?;
            self.region.look_at(blocks.len())?;
            for block in blocks {
                // jbd2 revokes a block that is freed, and frees none again that was not allocated meanwhile.
                if !revoked.insert(block) {
                    return give_up(format!("its journal revokes block {block} twice at once"));
                }
                copies.remove(&block);
            }
        }
        Ok(())
    }
}

/// Whether the area of fast commits begins with one that is not older than the log.
fn is_fast_commit(block: &[u8], next_sequence: u32) -> bool {
    let transaction = le32(block, 8);
    // Numbers of transactions go round.
    le16(block, 0) == FAST_COMMIT_HEAD && transaction.wrapping_sub(next_sequence) <= u32::MAX / 2
}

/// What has been read of a transaction that may never be committed.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    /// Where its lists of revoked blocks are.
    revokes: Vec<u32>,
}

/// A block's entry in a descriptor.
struct Tag {
    block: u64,
    checksum: u32,
    escaped: bool,
}

impl Format {
    fn block_is_whole(&self, block: &[u8], kind: u32) -> bool {
        let Some(Checksums { seed, .. }) = self.checksums else { return true };
        let own = if kind == COMMIT { 0x10..0x14 } else { block.len() - 4..block.len() };
        seed.and_without(block, own.clone()).value() == be32(block, own.start)
    }

    /// What stands in a descriptor or a list of revoked blocks, without the sum behind it.
    fn content<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        let sum = if self.checksums.is_some() { 4 } else { 0 };
        &block[..block.len() - sum]
    }

    fn tag_bytes(&self) -> usize {
        match (self.checksums, self.wide) {
            (Some(Checksums { whole_in_tag: true, .. }), _) => 16,
            (Some(_), true) => 14,
            (Some(_), false) => 10,
            (None, true) => 12,
            (None, false) => 8,
        }
    }

    fn tags<'a>(&self, block: &'a [u8]) -> impl Iterator<Item = Tag> + use<'a> {
        let format = *self;
        let mut left = Some(&self.content(block)[HEADER_BYTES..]);
        std::iter::from_fn(move || {
            let (tag, rest) = left.take()?.split_at_checked(format.tag_bytes())?;
            let flags = be16(tag, 6);
            if flags & LAST == 0 {
                let uuid = if flags & SAME_UUID == 0 { 16 } else { 0 };
                left = rest.get(uuid..);
            }
            let high = if format.wide { be32(tag, 8) } else { 0 };
            let checksum = match format.checksums {
                Some(Checksums { whole_in_tag: true, .. }) => be32(tag, 12),
                _ => u32::from(be16(tag, 4)),
            };
            Some(Tag { block: joined(high, be32(tag, 0)), checksum, escaped: flags & ESCAPED != 0 })
        })
    }

    fn revoked(&self, block: &[u8]) -> Parsed<Vec<u64>> {
        let content = self.content(block);
        let used = be32(block, HEADER_BYTES) as usize;
        match content.get(HEADER_BYTES + 4..used) {
            Some(records) if self.wide => {
                Ok(records.chunks_exact(8).map(|record| joined(be32(record, 0), be32(record, 4))).collect())
            }
            Some(records) => Ok(records.chunks_exact(4).map(|record| u64::from(be32(record, 0))).collect()),
            None => give_up("a list of revoked blocks in its journal is out of bounds"),
        }
    }
}
