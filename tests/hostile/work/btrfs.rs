//! btrfs whose trees ask for much. Its checksums are of a kind that is not compared here.

use ganeti_instance_debootstrap::allocation::{Usage, btrfs};
use ganeti_instance_debootstrap::reader::Work;

use super::{KIB, MIB, answer, assert_whole, put};

const NODE: usize = 4096;
const HEADER: usize = 101;
const GENERATION: u64 = 9;
/// Chunks begin here, and a logical address is a place on the disk.
const CHUNKS_AT: u64 = MIB;

const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;
const FILE_EXTENT: u8 = 108;
/// The tree of log trees.
const LOGS: u64 = u64::MAX - 5;

type Key = (u64, u8, u64);

/// A disk of a btrfs, filled node by node.
struct Btrfs {
    disk: Vec<u8>,
    next: u64,
}

fn key_bytes((object, kind, offset): Key) -> Vec<u8> {
    [&object.to_le_bytes()[..], &[kind], &offset.to_le_bytes()].concat()
}

/// A chunk's item: its length, all kinds of content, and one stripe.
fn chunk(length: u64, place: u64) -> Vec<u8> {
    let mut item = vec![0; 80];
    put(&mut item, 0, &length.to_le_bytes());
    put(&mut item, 24, &7u64.to_le_bytes());
    put(&mut item, 44, &1u16.to_le_bytes());
    put(&mut item, 48, &1u64.to_le_bytes());
    put(&mut item, 56, &place.to_le_bytes());
    item
}

/// A root's item, as far as it is read.
fn root(at: u64, level: u8) -> Vec<u8> {
    let mut item = vec![0; 239];
    put(&mut item, 160, &(GENERATION + 1).to_le_bytes());
    put(&mut item, 176, &at.to_le_bytes());
    item[238] = level;
    item
}

/// The item of a file's data, of `length` bytes at `at`.
fn extent(at: u64, length: u64) -> Vec<u8> {
    let mut item = vec![0; 53];
    item[20] = 1;
    put(&mut item, 21, &at.to_le_bytes());
    put(&mut item, 29, &length.to_le_bytes());
    item
}

impl Btrfs {
    /// With trees that are empty but for what they must have, and these chunks: logical start, length and place.
    fn new(size: u64, chunks: &[(u64, u64, u64)]) -> Btrfs {
        let mut btrfs = Btrfs { disk: vec![0; size as usize], next: CHUNKS_AT };
        let items: Vec<_> = chunks
            .iter()
            .map(|(at, length, place)| ((256, CHUNK_ITEM, *at), chunk(*length, *place)))
            .collect();
        let chunk_root = btrfs.leaf(GENERATION, &items);
        let extents = btrfs.leaf(GENERATION, &[]);
        let mut extent_root = root(extents, 0);
        put(&mut extent_root, 160, &GENERATION.to_le_bytes());
        let tree_root = btrfs.leaf(GENERATION, &[((2, ROOT_ITEM, 0), extent_root)]);
        let system = [key_bytes(items[0].0), items[0].1.clone()].concat();
        let numbers = [
            (0x30, 64 * KIB),
            (0x48, GENERATION),
            (0x50, tree_root),
            (0x58, chunk_root),
            (0x88, 1),
            (0x90, NODE as u64 | (NODE as u64) << 32),
            (0xa0, system.len() as u64),
            (0xa4, GENERATION),
            (0xc9, 1),
            (0xd1, size),
        ];
        let superblock = &mut btrfs.disk[64 << 10..][..4096];
        put(superblock, 0x40, b"_BHRfS_M");
        numbers.into_iter().for_each(|(at, number)| put(superblock, at, &number.to_le_bytes()));
        put(superblock, 0xc4, &1u16.to_le_bytes());
        put(superblock, 0x32b, &system);
        btrfs
    }

    /// With one chunk for all of the disk.
    fn simple(size: u64) -> Btrfs {
        Btrfs::new(size, &[(CHUNKS_AT, size - CHUNKS_AT, CHUNKS_AT)])
    }

    fn node(&mut self, level: u8, generation: u64, count: usize) -> (u64, &mut [u8]) {
        let at = self.next;
        self.next += NODE as u64;
        let node = &mut self.disk[at as usize..][..NODE];
        put(node, 48, &at.to_le_bytes());
        put(node, 80, &generation.to_le_bytes());
        put(node, 96, &(count as u32).to_le_bytes());
        node[100] = level;
        (at, &mut node[HEADER..])
    }

    fn leaf(&mut self, generation: u64, items: &[(Key, Vec<u8>)]) -> u64 {
        let (at, body) = self.node(0, generation, items.len());
        let mut end = body.len();
        for (index, (key, item)) in items.iter().enumerate() {
            end -= item.len();
            put(body, end, item);
            let place = [end as u32, item.len() as u32].map(u32::to_le_bytes).concat();
            put(body, index * 25, &[key_bytes(*key), place].concat());
        }
        at
    }

    /// A node above others: the first key of each, and where it is.
    fn inner(&mut self, level: u8, children: &[(Key, u64)]) -> u64 {
        let (at, body) = self.node(level, GENERATION + 1, children.len());
        for (index, (key, child)) in children.iter().enumerate() {
            let pointer = [child.to_le_bytes(), (GENERATION + 1).to_le_bytes()].concat();
            put(body, index * 33, &[key_bytes(*key), pointer].concat());
        }
        at
    }

    /// A log tree with so many leaves of so many items, and nodes above them of at most 100 children; its root, and its level.
    fn tree(&mut self, leaves: u64, items: u64) -> (u64, u8) {
        let mut nodes: Vec<(Key, u64)> = Vec::new();
        for leaf in 0..leaves {
            let key = |item: u64| (leaf + 256, FILE_EXTENT, item * 4096);
            let all: Vec<_> = (0..items).map(|item| (key(item), extent(0, 4096))).collect();
            let at = self.leaf(GENERATION + 1, &all);
            nodes.push((key(0), at));
        }
        let mut level = 0;
        while nodes.len() > 1 {
            level += 1;
            nodes = nodes.chunks(100).map(|part| (part[0].0, self.inner(level, part))).collect();
        }
        (nodes[0].1, level)
    }

    /// Makes these the roots of log trees.
    fn logs(&mut self, roots: &[(u64, u8)]) {
        let mut leaves = Vec::new();
        for (index, part) in roots.chunks(15).enumerate() {
            let key = |item: usize| (LOGS, ROOT_ITEM, (index * 15 + item) as u64);
            let items: Vec<_> =
                part.iter().enumerate().map(|(item, (at, level))| (key(item), root(*at, *level))).collect();
            let at = self.leaf(GENERATION + 1, &items);
            leaves.push((key(0), at));
        }
        let at = self.inner(1, &leaves);
        put(&mut self.disk, (64 << 10) + 0x60, &at.to_le_bytes());
        self.disk[(64 << 10) + 0xc8] = 1;
    }
}

/// One log tree of 2 MiB, as the tree of 256 subvolumes.
fn one_log_for_all() -> Vec<u8> {
    let mut btrfs = Btrfs::simple(4 * MIB);
    let tree = btrfs.tree(500, 50);
    btrfs.logs(&[tree; 256]);
    btrfs.disk
}

#[test]
fn a_log_tree_that_is_there_256_times_is_not_walked() {
    let most = Work { bytes: 256 * KIB, records: KIB };
    assert_whole(btrfs::map, &one_log_for_all(), "is there more than once", most);
}

#[test]
fn log_trees_that_share_their_leaves_are_walked_within_bounds() {
    let mut btrfs = Btrfs::simple(4 * MIB);
    let leaves: Vec<(Key, u64)> = (0..100)
        .map(|leaf| {
            let key = (leaf + 256, FILE_EXTENT, 0);
            (key, btrfs.leaf(GENERATION + 1, &[(key, extent(0, 4096))]))
        })
        .collect();
    let roots: Vec<(u64, u8)> = (0..256).map(|_| (btrfs.inner(1, &leaves), 1)).collect();
    btrfs.logs(&roots);
    let most = Work { bytes: 9 * MIB, records: 32 * KIB };
    assert_whole(btrfs::map, &btrfs.disk, "more work than its size is worth", most);
}

#[test]
fn log_trees_of_their_own_are_walked() {
    let mut btrfs = Btrfs::simple(4 * MIB);
    let roots: Vec<(u64, u8)> = (0..20).map(|_| btrfs.tree(3, 9)).collect();
    btrfs.logs(&roots);
    let (usage, spent) = answer(btrfs::map, &btrfs.disk);
    assert!(matches!(usage, Usage::Part(_)), "{usage:?}");
    assert!((20 * 27..2 * KIB).contains(&spent.records), "{spent:?}");
}

#[test]
fn chunks_that_lie_over_each_other_are_not_marked() {
    let chunks: Vec<(u64, u64, u64)> =
        (0..30).map(|n| (CHUNKS_AT + n * 3 * MIB, 3 * MIB, CHUNKS_AT)).collect();
    let most = Work { bytes: 64 * KIB, records: KIB };
    assert_whole(btrfs::map, &Btrfs::new(4 * MIB, &chunks).disk, "its chunks take more than", most);
}

#[test]
fn a_file_in_a_log_tree_has_no_extent_that_is_larger_than_any() {
    let mut btrfs = Btrfs::simple(4 * MIB);
    let key = (256, FILE_EXTENT, 0);
    let tree = btrfs.leaf(GENERATION + 1, &[(key, extent(CHUNKS_AT, 1 << 40))]);
    btrfs.logs(&[(tree, 0)]);
    let most = Work { bytes: 64 * KIB, records: KIB };
    assert_whole(btrfs::map, &btrfs.disk, "has an extent of 1099511627776 bytes", most);
}
