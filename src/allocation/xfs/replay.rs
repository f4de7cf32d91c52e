//! What a replay of the log would make of the blocks that tell what is free: each committed transaction's changes of
//! them, in order, over what stands on the disk. Nothing else of the log is carried out.
//!
//! That is enough: whatever a transaction allocates it takes out of these blocks in the same transaction. What replay
//! does once all of them are carried out (intents that it finishes, files without a name) only frees, or takes what is
//! free by then and writes it anew.

use std::collections::HashMap;

use super::agf::{BLOCK_LSN_AT, BLOCK_MAGICS, BLOCK_UUID_AT, HEADER_LSN_AT, HEADER_MAGIC, HEADER_UUID_AT};
use super::geometry::Geometry;
use super::log::{Record, Span, UNIT_BYTES};
use crate::reader::integers::{be32, be64, le16, le32, le64};
use crate::reader::{Parsed, Region, give_up};

/// Of memory for transactions under way and for blocks; a busy log of 64 MiB takes about one.
const KEPT_MAX_BYTES: usize = 16 << 20;
const TRANSACTIONS_MAX: usize = 1 << 10;
const BLOCKS_MAX: usize = 1 << 17;

/// A log operation's head: transaction, length, client, flags.
const OPERATION_BYTES: usize = 12;
const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
const CONTINUED: u8 = 0x04;
const CONTINUES: u8 = 0x08;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;

/// What a transaction begins with, as it lies in memory.
const TRANSACTION_MAGIC: &[u8; 4] = b"NART";
const TRANSACTION_HEADER_BYTES: usize = 16;
const BUFFER: u16 = 0x123c;
const INODE: u16 = 0x123b;
/// A whole map of a file changes its owner: replay reads it wherever it lay.
const INODE_OWNER: u32 = 0x200 | 0x400;
const REGIONS_MAX: u16 = 1 << 10;
/// A changed buffer's description: flags at 4, length at 6, place at 8, bitmap of its pieces from 20 on.
const BUFFER_MIN_BYTES: usize = 20;
const BUFFER_CANCELLED: u16 = 0x2;
const BUFFER_DQUOT: u16 = 0x4 | 0x8 | 0x10;
/// The buffer's kind: in the upper five bits. Old kernels left it out.
const KIND_SHIFT: u16 = 11;
const KINDS: [u16; 3] = [0, 4, 5];
const PIECE_BYTES: usize = 128;

/// Whether a block is as it stands on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    OnDisk,
    Replayed,
}

/// The blocks that tell what is free and that replay changes.
#[derive(Default)]
pub struct Replayed {
    /// By their place in bytes. None: one of another tree, which never becomes one of ours without being cancelled.
    blocks: HashMap<u64, Option<Vec<u8>>>,
    kept_bytes: usize,
}

/// The log, carried out in memory as far as it tells what is free.
pub fn replay(region: &Region<'_>, geometry: &Geometry, span: Span) -> Parsed<Replayed> {
    let mut replay =
        Replay { region, geometry, open: HashMap::new(), open_bytes: 0, replayed: Replayed::default() };
    span.for_each(region, geometry, |record| replay.record(&record))?;
    Ok(replay.replayed)
}

impl Replayed {
    /// `length` bytes at `at`, as replay leaves them.
    pub fn read(&self, region: &Region<'_>, at: u64, length: usize) -> Parsed<(Vec<u8>, State)> {
        match self.blocks.get(&at) {
            Some(Some(bytes)) if bytes.len() == length => Ok((bytes.clone(), State::Replayed)),
            _ => Ok((region.read(at, length)?, State::OnDisk)),
        }
    }
}

struct Replay<'a> {
    region: &'a Region<'a>,
    geometry: &'a Geometry,
    /// Transactions whose commit has not been seen, by number.
    open: HashMap<u32, Transaction>,
    open_bytes: usize,
    replayed: Replayed,
}

/// A transaction under way.
struct Transaction {
    lsn: u64,
    header_bytes: usize,
    /// The changes to what may tell what is free.
    kept: Vec<Item>,
    current: Item,
    /// Of memory, for both.
    held_bytes: usize,
}

/// A thing that was changed: its description, and further regions of bytes.
#[derive(Default)]
struct Item {
    regions: Vec<Vec<u8>>,
    /// How many have begun; of what is not kept no bytes are here.
    begun: u16,
}

impl Replay<'_> {
    fn record(&mut self, record: &Record) -> Parsed<()> {
        let mut rest = record.data.as_slice();
        for _ in 0..record.operations {
            self.region.look_at(1)?;
            let Some((operation, behind)) = rest.split_at_checked(OPERATION_BYTES) else {
                return broken();
            };
            let (number, length, flags) = (be32(operation, 0), be32(operation, 4) as usize, operation[9]);
            let Some((body, behind)) = behind.split_at_checked(length) else {
                return broken();
            };
            self.operation(record.lsn, number, flags, body)?;
            rest = behind;
        }
        Ok(())
    }

    fn operation(&mut self, lsn: u64, number: u32, flags: u8, body: &[u8]) -> Parsed<()> {
        let Some(transaction) = self.open.get_mut(&number) else {
            // The rest of one that began before the tail.
            if flags & START == 0 {
                return Ok(());
            }
            if !body.is_empty() || self.open.len() >= TRANSACTIONS_MAX {
                return broken();
            }
            let transaction = Transaction {
                lsn,
                header_bytes: 0,
                kept: Vec::new(),
                current: Item::default(),
                held_bytes: 0,
            };
            self.open.insert(number, transaction);
            return Ok(());
        };
        let held_before = transaction.held_bytes;
        let mut kind = flags & !END;
        if kind & CONTINUES != 0 {
            kind &= !CONTINUED;
        }
        match kind {
            0 | CONTINUED => transaction.begin_region(body, self.geometry)?,
            CONTINUES => transaction.continue_region(body)?,
            COMMIT | UNMOUNT => {
                self.open_bytes -= held_before;
                let ended = self.open.remove(&number).filter(|_| kind == COMMIT);
                return ended.map_or(Ok(()), |transaction| self.commit(transaction));
            }
            _ => return broken(),
        }
        self.open_bytes = self.open_bytes - held_before + transaction.held_bytes;
        self.check_memory()
    }

    fn check_memory(&self) -> Parsed<()> {
        let kept = self.open_bytes + self.replayed.kept_bytes;
        if kept > KEPT_MAX_BYTES || self.replayed.blocks.len() > BLOCKS_MAX {
            return give_up("the log changes more than is kept in memory");
        }
        Ok(())
    }

    /// Changes first, then what was given up, as replay orders them.
    fn commit(&mut self, transaction: Transaction) -> Parsed<()> {
        let (lsn, items) = (transaction.lsn, transaction.items(self.geometry)?);
        let changes: Vec<Change> =
            items.iter().map(|item| Change::read(item, self.geometry)).collect::<Parsed<_>>()?;
        for change in changes.iter().filter(|change| !change.is_cancelled) {
            self.change(change, lsn)?;
            self.check_memory()?;
        }
        for change in changes.iter().filter(|change| change.is_cancelled) {
            if let Some(Some(bytes)) = self.replayed.blocks.remove(&change.at) {
                self.replayed.kept_bytes -= bytes.len();
            }
        }
        Ok(())
    }

    fn change(&mut self, change: &Change, lsn: u64) -> Parsed<()> {
        let is_header =
            self.geometry.is_header(change.at) && change.length as u64 == self.geometry.sector_bytes;
        let mut bytes = match self.replayed.blocks.remove(&change.at) {
            Some(None) => {
                self.replayed.blocks.insert(change.at, None);
                return Ok(());
            }
            Some(Some(bytes)) => {
                self.replayed.kept_bytes -= bytes.len();
                bytes
            }
            None => self.region.read(change.at, change.length)?,
        };
        if bytes.len() != change.length {
            return broken();
        }
        if !self.is_newer(&bytes, lsn) {
            change.apply(&mut bytes)?;
        }
        let is_ours = if is_header {
            bytes.starts_with(HEADER_MAGIC)
        } else {
            BLOCK_MAGICS.iter().any(|magic| bytes.starts_with(*magic))
        };
        if is_ours {
            self.replayed.kept_bytes += bytes.len();
        }
        self.replayed.blocks.insert(change.at, is_ours.then_some(bytes));
        Ok(())
    }

    /// Whether the block was written to its place with this change in it, or a later one.
    fn is_newer(&self, bytes: &[u8], lsn: u64) -> bool {
        let (uuid_at, lsn_at) = match &bytes[..4] {
            magic if magic == HEADER_MAGIC => (HEADER_UUID_AT, HEADER_LSN_AT),
            magic if magic == BLOCK_MAGICS[1] => (BLOCK_UUID_AT, BLOCK_LSN_AT),
            _ => return false,
        };
        let written = be64(bytes, lsn_at);
        self.geometry.checksums
            && bytes[uuid_at..uuid_at + 16] == self.geometry.metadata_uuid
            && written != 0
            && written != u64::MAX
            && written >= lsn
    }
}

impl Transaction {
    fn begin_region(&mut self, body: &[u8], geometry: &Geometry) -> Parsed<()> {
        if body.is_empty() {
            return Ok(());
        }
        if self.header_bytes == 0 {
            if !body.starts_with(TRANSACTION_MAGIC) || body.len() > TRANSACTION_HEADER_BYTES {
                return broken();
            }
            self.header_bytes = body.len();
            return Ok(());
        }
        if self.current.is_whole() {
            self.end_item(geometry)?;
        }
        let item = &mut self.current;
        if item.regions.is_empty() || item.is_kept(geometry) {
            item.regions.push(body.to_vec());
            self.held_bytes += body.len();
        }
        item.begun += 1;
        // The description's own beginning is never split.
        if item.total().is_some_and(|total| (1..=REGIONS_MAX).contains(&total)) { Ok(()) } else { broken() }
    }

    fn continue_region(&mut self, body: &[u8]) -> Parsed<()> {
        if self.current.begun == 0 {
            self.header_bytes += body.len();
            return if self.header_bytes <= TRANSACTION_HEADER_BYTES { Ok(()) } else { broken() };
        }
        let item = &mut self.current;
        if item.regions.len() == usize::from(item.begun) {
            if let Some(last) = item.regions.last_mut() {
                last.extend_from_slice(body);
                self.held_bytes += body.len();
            }
        }
        Ok(())
    }

    fn end_item(&mut self, geometry: &Geometry) -> Parsed<()> {
        let item = std::mem::take(&mut self.current);
        if item.kind() == INODE && item.regions[0].get(4..8).is_none_or(|f| le32(f, 0) & INODE_OWNER != 0) {
            return give_up("the log gives a file's map to another file");
        }
        self.held_bytes -= item.regions.iter().map(Vec::len).sum::<usize>();
        if item.is_kept(geometry) {
            self.held_bytes += item.held_bytes();
            self.kept.push(item);
        }
        Ok(())
    }

    /// All that was kept, at the end.
    fn items(mut self, geometry: &Geometry) -> Parsed<Vec<Item>> {
        match (self.current.begun, self.current.is_whole()) {
            (0, _) => {}
            (_, true) => self.end_item(geometry)?,
            (_, false) => return broken(),
        }
        Ok(self.kept)
    }
}

impl Item {
    /// How many regions there will be; None before the first.
    fn total(&self) -> Option<u16> {
        Some(le16(self.regions.first()?.get(2..4)?, 0))
    }

    fn is_whole(&self) -> bool {
        self.total() == Some(self.begun)
    }

    /// 0: none, as of no item.
    fn kind(&self) -> u16 {
        self.regions.first().and_then(|region| region.get(..2)).map_or(0, |bytes| le16(bytes, 0))
    }

    /// Whether it is a buffer that may tell what is free, or one that was given up. All are of these sizes.
    fn is_kept(&self, geometry: &Geometry) -> bool {
        let Some(description) = self.regions.first().filter(|_| self.kind() == BUFFER) else { return false };
        if description.len() < BUFFER_MIN_BYTES {
            return true;
        }
        let (flags, length_bytes) = (le16(description, 4), u64::from(le16(description, 6)) * UNIT_BYTES);
        flags & BUFFER_CANCELLED != 0
            || (flags & BUFFER_DQUOT == 0
                && KINDS.contains(&(flags >> KIND_SHIFT))
                && (length_bytes == geometry.block_bytes || length_bytes == geometry.sector_bytes))
    }

    fn held_bytes(&self) -> usize {
        const EACH: usize = size_of::<Vec<u8>>();
        EACH + self.regions.iter().map(|region| EACH + region.len()).sum::<usize>()
    }
}

/// A changed buffer.
struct Change<'a> {
    at: u64,
    length: usize,
    is_cancelled: bool,
    /// One bit for each piece that was changed.
    bitmap: &'a [u8],
    regions: &'a [Vec<u8>],
}

impl<'a> Change<'a> {
    fn read(item: &'a Item, geometry: &Geometry) -> Parsed<Change<'a>> {
        let Some((description, regions)) =
            item.regions.split_first().filter(|(description, _)| description.len() >= BUFFER_MIN_BYTES)
        else {
            return broken();
        };
        let length = u64::from(le16(description, 6)) * UNIT_BYTES;
        let at = le64(description, 8).checked_mul(UNIT_BYTES);
        let Some(at) = at.filter(|at| at.saturating_add(length) <= geometry.size_bytes()) else {
            return broken();
        };
        // In words, as many as tell of all of the buffer.
        let bitmap = &description[BUFFER_MIN_BYTES..];
        let words = (le32(description, 16) as usize).min((length as usize).div_ceil(PIECE_BYTES * 32));
        let bitmap_bytes = (words * 4).min(bitmap.len());
        Ok(Change {
            at,
            length: length as usize,
            is_cancelled: le16(description, 4) & BUFFER_CANCELLED != 0,
            bitmap: &bitmap[..bitmap_bytes],
            regions,
        })
    }

    /// A run of pieces is one region, or several where it was not in one piece of memory.
    fn apply(&self, bytes: &mut [u8]) -> Parsed<()> {
        let mut piece = 0;
        for region in self.regions {
            while !self.is_set(piece) {
                if piece >= self.bitmap.len() * 8 {
                    return broken();
                }
                piece += 1;
            }
            let mut count = region.len() / PIECE_BYTES;
            let run = (piece..).take_while(|piece| self.is_set(*piece)).take(count).count();
            count = count.min(run);
            let at = piece * PIECE_BYTES;
            let Some(target) = bytes.get_mut(at..at + count * PIECE_BYTES).filter(|_| count > 0) else {
                return broken();
            };
            target.copy_from_slice(&region[..count * PIECE_BYTES]);
            piece += count;
        }
        if (piece..self.bitmap.len() * 8).any(|piece| self.is_set(piece)) {
            return broken();
        }
        Ok(())
    }

    /// The bitmap is of little-endian words, so its bits are those of its bytes.
    fn is_set(&self, piece: usize) -> bool {
        self.bitmap.get(piece / 8).is_some_and(|byte| byte >> (piece % 8) & 1 != 0)
    }
}

fn broken<T>() -> Parsed<T> {
    give_up("the log does not hold together")
}
