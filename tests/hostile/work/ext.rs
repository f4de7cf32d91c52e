//! ext3 whose journal asks for much.

use ganeti_instance_debootstrap::allocation::{Usage, ext4};
use ganeti_instance_debootstrap::reader::Work;

use super::{KIB, MIB, answer, assert_whole, put};

const BLOCK: usize = 1024;
/// How many numbers of blocks a block has.
const NUMBERS: usize = BLOCK / 4;
/// Where things are, in blocks.
const DESCRIPTORS: usize = 2;
const BLOCK_BITMAP: usize = 3;
const INODE_BITMAP: usize = 4;
const INODE_TABLE: usize = 5;
/// The journal's superblock; what a test needs comes behind it.
const JOURNAL: usize = 8;
const SEQUENCE: u32 = 7;

const REVOKE: u32 = 5;
const COMMIT: u32 = 2;

/// An ext3 with blocks of 1 KiB, all of them in use, in one group; its journal is as long as is said, and is to be replayed.
struct Ext(Vec<u8>);

impl Ext {
    fn new(blocks: usize, journal_blocks: u32) -> Ext {
        let mut ext = Ext(vec![0; blocks * BLOCK]);
        let superblock = [
            (0x00, 16),
            (0x04, blocks as u32),
            (0x14, 1),
            (0x20, 8192),
            (0x24, 8192),
            (0x28, 16),
            (0x38, 0x1_ef53),
            (0x4c, 1),
            (0x58, 128),
            (0x5c, 0x4),
            (0x60, 0x4 | 0x2),
            (0x64, 0x1),
            (0xe0, 8),
        ];
        superblock.into_iter().for_each(|(at, value)| ext.little(BLOCK + at, value));
        ext.list(DESCRIPTORS, &[BLOCK_BITMAP as u32, INODE_BITMAP as u32, INODE_TABLE as u32]);
        ext.block(BLOCK_BITMAP).fill(0xff);
        // A regular file with one name.
        let inode = INODE_TABLE * BLOCK + 7 * 128;
        let size = u64::from(journal_blocks) * BLOCK as u64;
        let fields = [(0x0, 0x8180), (0x4, size as u32), (0x6c, (size >> 32) as u32), (0x18, 0x1_0000)];
        fields.into_iter().for_each(|(at, value)| ext.little(inode + at, value));
        let log = [(0, 0xc03b_3998), (0x4, 4), (0xc, BLOCK as u32), (0x10, journal_blocks), (0x14, 1)];
        log.into_iter().for_each(|(at, value)| ext.big(JOURNAL * BLOCK + at, value));
        ext.big(JOURNAL * BLOCK + 0x18, SEQUENCE);
        ext.big(JOURNAL * BLOCK + 0x1c, 1);
        ext
    }

    fn little(&mut self, at: usize, value: u32) {
        put(&mut self.0, at, &value.to_le_bytes());
    }

    fn big(&mut self, at: usize, value: u32) {
        put(&mut self.0, at, &value.to_be_bytes());
    }

    fn block(&mut self, block: usize) -> &mut [u8] {
        &mut self.0[block * BLOCK..][..BLOCK]
    }

    /// Puts little-endian numbers at the start of a block.
    fn list(&mut self, block: usize, numbers: &[u32]) {
        numbers.iter().enumerate().for_each(|(at, number)| self.little(block * BLOCK + at * 4, *number));
    }

    /// Where the blocks of the journal are: 12 of them, then lists, and lists of lists.
    fn map(&mut self, numbers: &[u32; 15]) {
        let at = INODE_TABLE * BLOCK + 7 * 128 + 0x28;
        numbers.iter().enumerate().for_each(|(index, number)| self.little(at + index * 4, *number));
    }

    /// Makes a block one of the log: its head, and numbers behind it.
    fn log(&mut self, block: usize, kind: u32, numbers: impl Iterator<Item = u32>) {
        [0xc03b_3998, kind, SEQUENCE]
            .into_iter()
            .chain(numbers.take(NUMBERS - 3))
            .enumerate()
            .for_each(|(at, number)| self.big(block * BLOCK + at * 4, number));
    }

    /// A list of revoked blocks: how many bytes of the block it takes, and they.
    fn revoke(&mut self, block: usize, revoked: &[u32]) {
        let used = 16 + 4 * revoked.len() as u32;
        self.log(block, REVOKE, std::iter::once(used).chain(revoked.iter().copied()));
    }
}

/// A journal whose blocks follow each other from [`JOURNAL`] on, by lists that lie before the filesystem's end: lists of
/// revoked blocks, and at the end a commit. `revoked` are those of each list.
fn of_revokes(blocks: usize, revoked: impl Fn(u32) -> Vec<u32>) -> Ext {
    let lists = blocks / NUMBERS + 2;
    let length = blocks - lists - JOURNAL;
    let mut ext = Ext::new(blocks, length as u32);
    let numbers: Vec<u32> = (JOURNAL..JOURNAL + length).map(|block| block as u32).collect();
    let mut map = [0; 15];
    map[..12].copy_from_slice(&numbers[..12]);
    let mut next = JOURNAL + length;
    let mut indirect = Vec::new();
    for part in numbers[12..].chunks(NUMBERS) {
        ext.list(next, part);
        indirect.push(next as u32);
        next += 1;
    }
    (map[12], map[13]) = (indirect[0], next as u32);
    ext.list(next, &indirect[1..]);
    ext.map(&map);
    for index in 1..length as u32 - 1 {
        ext.revoke(JOURNAL + index as usize, &revoked(index));
    }
    ext.log(JOURNAL + length - 1, COMMIT, std::iter::empty());
    ext
}

/// A 256 KiB ext3 whose journal has a million blocks: all are one list of revoked blocks, and the last one is a commit.
pub fn one_revoke_a_million_times() -> Vec<u8> {
    const BLOCKS: u32 = 1 << 20;
    let [list, commit, single, double, triple] = [9, 10, 11, 12, 13];
    // The last of each kind leads to the commit.
    let [last_single, last_double] = [14, 15];
    let mut ext = Ext::new(256, BLOCKS);
    let all = |of: usize, last: usize, count: usize| {
        let mut numbers = vec![of as u32; count];
        numbers[count - 1] = last as u32;
        numbers
    };
    // What the triple list has to have: 12 and two smaller lists come before it.
    let left = BLOCKS as usize - 12 - NUMBERS - NUMBERS * NUMBERS;
    let (doubles, rest) = (left / (NUMBERS * NUMBERS), left % (NUMBERS * NUMBERS));
    ext.list(single, &[list as u32; NUMBERS]);
    ext.list(double, &[single as u32; NUMBERS]);
    ext.list(triple, &all(double, last_double, doubles + 1));
    ext.list(last_double, &all(single, last_single, rest.div_ceil(NUMBERS)));
    ext.list(last_single, &all(list, commit, (rest - 1) % NUMBERS + 1));
    let mut map = [list as u32; 15];
    (map[0], map[12], map[13], map[14]) = (JOURNAL as u32, single as u32, double as u32, triple as u32);
    ext.map(&map);
    ext.revoke(list, &[100; NUMBERS - 4]);
    ext.log(commit, COMMIT, std::iter::empty());
    ext.0
}

/// A journal with lists of a million blocks, each of them once.
pub fn with_revokes_of_its_own(blocks: usize) -> Vec<u8> {
    of_revokes(blocks, |index| (index * 252..(index + 1) * 252).collect()).0
}

/// As honest as can be: a few in each list.
pub fn with_few_revokes(blocks: usize) -> Vec<u8> {
    of_revokes(blocks, |index| vec![index, index + 5000]).0
}

#[test]
fn a_journal_of_one_list_of_revoked_blocks_is_not_followed() {
    let most = Work { bytes: 64 * KIB, records: 64 };
    assert_whole(ext4::map, &one_revoke_a_million_times(), "its journal has 1048576 blocks", most);
    // One that would fit the filesystem.
    let mut ext = Ext::new(256, 200);
    ext.map(&[8, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 10, 0, 0]);
    ext.list(10, &[9; NUMBERS]);
    ext.revoke(9, &[100; NUMBERS - 4]);
    let most = Work { bytes: 64 * KIB, records: 512 };
    assert_whole(ext4::map, &ext.0, "block 9 is more than once in its journal", most);
}

#[test]
fn a_journal_that_revokes_a_block_over_and_over_is_not_followed() {
    let same = of_revokes(4096, |_| vec![100; 252]);
    let most = Work { bytes: 9 * MIB, records: 32 * KIB };
    assert_whole(ext4::map, &same.0, "revokes block 100 twice at once", most);
    let others = with_revokes_of_its_own(4096);
    assert_whole(ext4::map, &others, "more work than its size is worth", most);
}

#[test]
fn a_journal_with_as_much_as_an_honest_one_is_followed() {
    let (usage, spent) = answer(ext4::map, &with_few_revokes(4096));
    assert!(matches!(usage, Usage::Part(_)), "{usage:?}");
    assert!(spent.bytes < 9 * MIB && spent.records > 7000, "{spent:?}");
}
