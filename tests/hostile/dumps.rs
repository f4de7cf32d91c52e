//! Dumps made to do harm: each is refused by name, and nothing beside the root is changed. Needs root.

use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use crate::common::unharmed::Guest;
use anyhow::Result;
use ganeti_instance_debootstrap::backup::dump::{self, Stats};
use ganeti_instance_debootstrap::reader::{Budget, Work};
use ganeti_instance_debootstrap::rootdir::RootDir;

const RECORD: usize = 1024;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

const TAPE: u32 = 1;
const INODE: u32 = 2;
const BITS: u32 = 3;
const ADDR: u32 = 4;
const END: u32 = 5;
const CLRI: u32 = 6;

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

trait Restore {
    fn restore(&self, dump: impl Read) -> Result<Stats>;
}

impl Restore for Guest {
    fn restore(&self, mut dump: impl Read) -> Result<Stats> {
        self.beside_the_node(|root| dump::restore(&mut dump, root, &Budget::of_stream(GIB)))
    }
}

/// Fails unless `dump` is refused with an error that contains `expected`.
fn assert_refused(what: &str, dump: &Dump, expected: &str) {
    let result = Guest::new().restore(Cursor::new(&dump.0));
    let error = format!("{:#}", result.err().unwrap_or_else(|| panic!("{what}: it was restored")));
    assert!(error.contains(expected), "{what}: {error}");
}

/// A dump, record by record.
struct Dump(Vec<u8>);

type Fields<'a> = &'a [(usize, u32)];

// Where fields of a header are, for `header()`.
const C_DATE: usize = 4;
const C_DDATE: usize = 8;
const C_VOLUME: usize = 12;
const C_INUMBER: usize = 20;
const C_MODE: usize = 32;
const C_SIZE: usize = 40;
const C_SIZE_HIGH: usize = 44;
const C_MTIME_MICROSECONDS: usize = 60;
const C_UID: usize = 144;
const C_COUNT: usize = 160;
const C_ADDR: usize = 164;
const C_LEVEL: usize = 692;
const C_FLAGS: usize = 888;
const C_NTREC: usize = 896;
const C_EXTATTRIBUTES: usize = 900;

const DATE: u32 = 1_000_000_000;

impl Dump {
    /// Of the inodes in `map`, which has room for 8192.
    fn of(map: &[u32]) -> Dump {
        Dump::with_volume(&[], map)
    }

    fn with_volume(fields: Fields, map: &[u32]) -> Dump {
        let mut bits = vec![0; RECORD];
        for inode in map {
            bits[(*inode as usize - 1) / 8] |= 1 << ((inode - 1) % 8);
        }
        Dump(Vec::new())
            .header(TAPE, 0, &[&[(C_COUNT, 1)], fields].concat())
            .header(CLRI, 0, &[(C_COUNT, 1)])
            .data(&bits)
            .header(BITS, 0, &[(C_COUNT, 1)])
            .data(&bits)
    }

    /// With the root that has `entries`, and those in its map.
    fn with_root(entries: &[(u32, &[u8])]) -> Dump {
        let mut map: Vec<u32> =
            entries.iter().map(|(inode, _)| *inode).filter(|inode| *inode < 8192).collect();
        map.push(2);
        Dump::of(&map).dir(2, 2, entries)
    }

    fn header(mut self, kind: u32, inode: u32, fields: Fields) -> Dump {
        let mut block = [0_u8; RECORD];
        let mut put =
            |offset: usize, value: u32| block[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let position = (self.0.len() / RECORD) as u32;
        let usual =
            [(0, kind), (C_DATE, DATE), (C_VOLUME, 1), (16, position), (C_INUMBER, inode), (24, 60012)];
        usual
            .iter()
            .chain(&[(C_FLAGS, 2), (C_NTREC, 10)])
            .chain(fields)
            .for_each(|(at, value)| put(*at, *value));
        let sum = |block: &[u8]| {
            let words = block.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
            words.fold(0, u32::wrapping_add)
        };
        let missing = 84446_u32.wrapping_sub(sum(&block));
        block[28..32].copy_from_slice(&missing.to_le_bytes());
        self.0.extend(block);
        self
    }

    fn data(mut self, data: &[u8]) -> Dump {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(RECORD), 0);
        self
    }

    /// An inode with `data`, that says about itself what `fields` say.
    fn inode(self, inode: u32, mode: u32, data: &[u8], fields: Fields) -> Dump {
        let records = data.len().div_ceil(RECORD);
        let mut all = vec![(C_MODE, mode), (C_SIZE, data.len() as u32), (C_COUNT, records as u32)];
        // Four addresses in each word; a file here has few records.
        for word in 0..records.div_ceil(4) {
            let here = (records - word * 4).min(4);
            all.push((C_ADDR + word * 4, u32::MAX.checked_shr(32 - 8 * here as u32).unwrap() & 0x0101_0101));
        }
        all.extend(fields);
        self.header(INODE, inode, &all).data(data)
    }

    fn file(self, inode: u32, content: &[u8]) -> Dump {
        self.inode(inode, FILE, content, &[])
    }

    fn dir(self, inode: u32, parent: u32, entries: &[(u32, &[u8])]) -> Dump {
        let dots: [(u32, &[u8]); 2] = [(inode, b"."), (parent, b"..")];
        self.raw_dir(inode, &[&dots, entries].concat())
    }

    fn raw_dir(self, inode: u32, entries: &[(u32, &[u8])]) -> Dump {
        let data = directory(entries);
        assert!(data.len() <= RECORD);
        self.inode(inode, DIR, &data, &[])
    }

    fn end(self) -> Dump {
        let mut dump = self.header(END, 0, &[]);
        while dump.0.len() % (10 * RECORD) != 0 {
            dump = dump.header(END, 0, &[]);
        }
        dump
    }

    fn change(mut self, at: usize, to: u8) -> Dump {
        self.0[at] = to;
        self
    }
}

/// The data of a directory.
fn directory(entries: &[(u32, &[u8])]) -> Vec<u8> {
    let mut data: Vec<u8> = Vec::new();
    let mut last = 0;
    for (inode, name) in entries {
        let length = (8 + name.len() + 1).next_multiple_of(4);
        if data.len() / 512 != (data.len() + length - 1) / 512 {
            fill_block(&mut data, last);
        }
        last = data.len();
        data.extend(inode.to_le_bytes());
        data.extend((length as u16).to_le_bytes());
        data.extend([0, name.len() as u8]);
        data.extend(*name);
        data.resize(last + length, 0);
    }
    fill_block(&mut data, last);
    data
}

fn fill_block(data: &mut Vec<u8>, last: usize) {
    data.resize(data.len().next_multiple_of(512), 0);
    let length = (data.len() - last) as u16;
    data[last + 4..last + 6].copy_from_slice(&length.to_le_bytes());
}

#[test]
fn a_dump_of_our_own_is_restored() {
    let guest = Guest::new();
    let many = vec![7; 5 * RECORD];
    let dump = Dump::with_root(&[(11, b"dir"), (12, b"file"), (13, b"link"), (14, b"null"), (15, b"fifo")])
        .dir(11, 2, &[(12, b"again"), (4000, b"excluded")])
        .file(12, &many)
        .inode(13, LINK, b"/node", &[])
        .inode(14, 0o020_666, b"", &[(C_SIZE + 32, 0x0103)])
        .inode(15, 0o010_600, b"", &[])
        .end();
    let stats = guest.restore(Cursor::new(&dump.0)).unwrap();
    let expected = Stats {
        directories: 2,
        files: 4,
        links: 1,
        bytes: 5 * 1024,
        names_without_inode: 1,
        ..Stats::default()
    };
    assert_eq!(stats, expected);
    assert_eq!(fs::read(guest.tree.join("dir/again")).unwrap(), many);
    assert_eq!(fs::read_link(guest.tree.join("link")).unwrap(), PathBuf::from("/node"));
    let null = fs::symlink_metadata(guest.tree.join("null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == 0x0103);
    assert_eq!(fs::read_dir(&guest.tree).unwrap().count(), 5, "something of ours is left");
}

#[test]
fn names_that_a_file_cannot_have_are_refused() {
    for name in [&b"a/b"[..], b"/etc", b"a\0b", b"", b"../x"] {
        assert_refused(
            "a name",
            &Dump::with_root(&[(12, name)]).file(12, b"x").end(),
            "none that a file can have",
        );
    }
    for name in [&b".."[..], b"."] {
        let dump = Dump::with_root(&[(12, name)]).file(12, b"x").end();
        assert_refused("a dot", &dump, "there are two of them");
    }
}

#[test]
fn a_name_of_255_bytes_that_dump_lost_is_replaced() {
    let guest = Guest::new();
    let mut data = directory(&[(2, b"."), (2, b".."), (12, b"file"), (13, b"12345678")]);
    // As dump leaves it: an entry of eight bytes, over whose name the next one was written.
    let file = data.windows(4).position(|bytes| bytes == b"file").unwrap();
    data[file - 4..file].copy_from_slice(&[8, 0, 0, 255]);
    data.copy_within(file + 8..file + 24, file);
    let left = (512 - file) as u16;
    data[file + 4..file + 6].copy_from_slice(&left.to_le_bytes());
    let dump = Dump::of(&[2, 12, 13]).inode(2, DIR, &data, &[]).file(12, b"x").file(13, b"y").end();
    assert_eq!(guest.restore(Cursor::new(&dump.0)).unwrap().names_lost, 1);
    assert_eq!(fs::read(guest.tree.join("#12")).unwrap(), b"x");
    assert_eq!(fs::read(guest.tree.join("12345678")).unwrap(), b"y");
}

#[test]
fn directories_that_are_no_tree_are_refused() {
    let two: &[(u32, &[u8])] = &[(11, b"a"), (12, b"b")];
    let cases = [
        ("no root", Dump::of(&[11]).dir(11, 11, &[]).end(), "directory 11 has no name"),
        ("nothing at all", Dump::of(&[]).end(), "the root directory (inode 2) is not in the dump"),
        ("a wrong dot", Dump::of(&[2]).raw_dir(2, &[(11, b"."), (2, b"..")]).end(), "expected 2"),
        ("no dots", Dump::of(&[2]).raw_dir(2, &[(2, b".")]).end(), "no entry \"..\""),
        (
            "a wrong parent",
            Dump::with_root(two).dir(11, 2, &[]).dir(12, 11, &[]).end(),
            "but its \"..\" is inode 11",
        ),
        ("two names", Dump::with_root(&[(11, b"a"), (11, b"b")]).dir(11, 2, &[]).end(), "more than one name"),
        ("two parents", Dump::with_root(two).dir(11, 2, &[(12, b"c")]).dir(12, 2, &[]).end(), "directory 12"),
        (
            "the root below",
            Dump::with_root(&[(11, b"a")]).dir(11, 2, &[(2, b"up")]).end(),
            "that is the root",
        ),
        ("the root in itself", Dump::with_root(&[(2, b"self")]).end(), "that is the root"),
        (
            "itself",
            Dump::of(&[2, 11]).dir(2, 2, &[]).dir(11, 11, &[(11, b"me")]).end(),
            "does not lead to the root",
        ),
        (
            "a circle",
            Dump::of(&[2, 11, 12]).dir(2, 2, &[]).dir(11, 12, &[(12, b"a")]).dir(12, 11, &[(11, b"b")]).end(),
            "does not lead to the root",
        ),
        ("nobody's", Dump::of(&[2, 11]).dir(2, 2, &[]).dir(11, 2, &[]).end(), "directory 11 has no name"),
        (
            "twice",
            Dump::with_root(&[(11, b"a")]).dir(11, 2, &[]).dir(11, 2, &[]).end(),
            "twice, or out of order",
        ),
        (
            "late",
            Dump::with_root(two).file(11, b"x").dir(12, 2, &[]).end(),
            "a directory comes after the files",
        ),
        (
            "same names",
            Dump::with_root(&[(11, b"a"), (12, b"a")]).dir(11, 2, &[]).dir(12, 2, &[]).end(),
            "File exists",
        ),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
}

#[test]
fn directories_deeper_than_any_path_are_refused_and_others_are_not() {
    for (depth, name, expected) in [
        (3000, &b"d"[..], Some("longer than 4095 bytes")),
        (30, &[b'd'; 250], Some("longer than 4095 bytes")),
        (2000, b"d", None),
    ] {
        let inode = |level: u32| if level == 0 { 2 } else { 100 + level };
        let mut dump = Dump::of(&(0..=depth).map(inode).collect::<Vec<u32>>());
        for level in 0..=depth {
            let entries = [(inode(level + 1), name)];
            let below = if level == depth { &entries[..0] } else { &entries[..] };
            dump = dump.dir(inode(level), inode(level.saturating_sub(1)), below);
        }
        match expected {
            Some(expected) => assert_refused("depth", &dump.end(), expected),
            None => assert_eq!(Guest::new().restore(Cursor::new(&dump.end().0)).unwrap().directories, 2001),
        }
    }
}

#[test]
fn inodes_that_contradict_the_map_are_refused() {
    let named: &[(u32, &[u8])] = &[(12, b"a"), (13, b"b")];
    let cases = [
        (
            "never comes",
            Dump::with_root(named).file(12, b"x").end(),
            "inode 13 is in the dump's map, but does not come",
        ),
        (
            "left out",
            Dump::with_root(named).file(13, b"x").end(),
            "inode 12 is in the dump's map, but does not come",
        ),
        ("twice", Dump::with_root(named).file(12, b"x").file(12, b"x").end(), "twice, or out of order"),
        (
            "backwards",
            Dump::with_root(named).file(13, b"x").file(12, b"x").end(),
            "inode 12 is in the dump's map",
        ),
        (
            "not in it",
            Dump::with_root(named).file(12, b"x").file(13, b"").file(14, b"x").end(),
            "not in the dump's map",
        ),
        ("number 0", Dump::with_root(named).file(0, b"x").end(), "inode 0 comes after"),
        ("beyond it", Dump::with_root(named).file(u32::MAX, b"x").end(), "not in the dump's map"),
        ("a name beyond it", Dump::with_root(&[(8193, b"far")]).end(), "inode 8193 is beyond the 8192"),
        ("a name far beyond", Dump::with_root(&[(u32::MAX, b"far")]).end(), "is beyond the 8192"),
        (
            "a directory as a file",
            Dump::with_root(named).dir(12, 2, &[]).file(12, b"x").end(),
            "comes twice, once as a directory",
        ),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
    let guest = Guest::new();
    let nameless = Dump::of(&[2, 12]).dir(2, 2, &[]).file(12, b"nobody's").end();
    assert_eq!(guest.restore(Cursor::new(&nameless.0)).unwrap().inodes_without_name, 1);
    assert_eq!(fs::read_dir(&guest.tree).unwrap().count(), 0);
}

#[test]
fn sizes_and_counts_that_lie_are_refused() {
    let one = || Dump::with_root(&[(12, b"a")]);
    let file = |fields: Fields| one().inode(12, FILE, b"data", fields).end();
    let cases = [
        ("more than there is", file(&[(C_SIZE, 1025)]), "its data end after 1024 of 1025 bytes"),
        ("more than ext4 holds", file(&[(C_SIZE_HIGH, 1 << 12)]), "more than a file on ext4 can have"),
        ("negative", file(&[(C_SIZE_HIGH, u32::MAX)]), "more than a file on ext4 can have"),
        ("too many addresses", file(&[(C_COUNT, 513)]), "expected at most 512"),
        ("negative addresses", file(&[(C_COUNT, u32::MAX)]), "expected at most 512"),
        (
            "more addresses than data",
            file(&[(C_COUNT, 8), (C_ADDR + 4, 0x0101_0101)]),
            "before its end header",
        ),
        ("fewer addresses than data", file(&[(C_COUNT, 0)]), "magic number"),
        (
            "continued by another",
            one().inode(12, FILE, b"data", &[(C_SIZE, 4096)]).header(ADDR, 13, &[]).end(),
            "inode 13",
        ),
        ("half a directory", Dump::of(&[2]).inode(2, DIR, &[0; 100], &[]).end(), "not whole blocks"),
        (
            "a directory with a hole",
            Dump::of(&[2]).inode(2, DIR, &[], &[(C_SIZE, 1024), (C_COUNT, 1)]).end(),
            "a hole",
        ),
        ("an empty directory", Dump::of(&[2]).inode(2, DIR, &[], &[]).end(), "its entry \".\""),
        (
            "an entry beyond its block",
            Dump::of(&[2]).inode(2, DIR, &[0xff; 512], &[]).end(),
            "its data are damaged",
        ),
        ("endless entries", Dump::of(&[2]).inode(2, DIR, &[0; 512], &[]).end(), "its data are damaged"),
        ("another map", Dump::of(&[2]).header(BITS, 0, &[(C_COUNT, u32::MAX)]), "found a record Dumped"),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
    let map = Dump(Vec::new()).header(TAPE, 0, &[]).header(CLRI, 0, &[(C_COUNT, u32::MAX)]);
    assert_refused("a map", &map, "an inode map has 4294967295 records");
    // Blocks may lie behind the end of a file.
    let behind = file(&[(C_SIZE, 2)]);
    let guest = Guest::new();
    assert_eq!(guest.restore(Cursor::new(&behind.0)).unwrap().bytes, 2);
    assert_eq!(fs::read(guest.tree.join("a")).unwrap(), b"da");
}

#[test]
fn nothing_is_written_through_a_link() {
    for target in [&b"../node"[..], b"../node/secret", b"/"] {
        let twice =
            Dump::with_root(&[(12, b"x"), (13, b"x")]).inode(12, LINK, target, &[]).file(13, b"evil").end();
        assert_refused("a link and a file", &twice, "File exists");
        let below = Dump::with_root(&[(11, b"x"), (12, b"x")])
            .dir(11, 2, &[(13, b"secret")])
            .inode(12, LINK, target, &[])
            .end();
        assert_refused("a directory and a link", &below, "");
        let owned = Dump::with_root(&[(12, b"x")]).inode(12, LINK, target, &[(C_UID, 1000)]).end();
        let guest = Guest::new();
        guest.restore(Cursor::new(&owned.0)).unwrap();
        assert_eq!(fs::symlink_metadata(guest.tree.join("x")).unwrap().uid(), 1000);
    }
}

#[test]
fn links_owners_and_times_that_cannot_be_are_refused() {
    let one = || Dump::with_root(&[(12, b"a")]);
    let cases = [
        ("an empty link", one().inode(12, LINK, b"", &[]).end(), "the link's target is empty"),
        ("a NUL in a link", one().inode(12, LINK, b"a\0b", &[]).end(), "or has a NUL"),
        (
            "a long link",
            one().inode(12, LINK, &[b'x'; 4096], &[]).end(),
            "has 4096 bytes, expected at most 4095",
        ),
        ("a link with a hole", one().inode(12, LINK, b"", &[(C_SIZE, 5), (C_COUNT, 1)]).end(), "a hole"),
        ("no type", one().inode(12, 0o644, b"", &[]).end(), "no type of file"),
        ("an unknown type", one().inode(12, 0o170_644, b"", &[]).end(), "no type of file"),
        ("nobody's", one().inode(12, FILE, b"", &[(C_UID, u32::MAX)]).end(), "which is none"),
        ("a time", one().inode(12, FILE, b"", &[(C_MTIME_MICROSECONDS, 1_000_000)]).end(), "microseconds"),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
}

#[test]
fn attributes_that_lie_are_refused() {
    let attributes: Fields = &[(C_FLAGS, 0x8002), (C_EXTATTRIBUTES, 3)];
    let empty = [&0xea02_0001_u32.to_le_bytes()[..], &[0; 252]].concat();
    let one = || Dump::with_root(&[(12, b"a")]).file(12, b"x");
    let with = |block: &[u8]| one().inode(12, FILE, block, attributes).end();
    let entry = |words: [u32; 4]| {
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        [&empty[..4], &words, b"name", &[0; 200]].concat()
    };
    let cases = [
        ("another's", one().inode(13, FILE, &empty, attributes).end(), "extended attributes of inode 13"),
        (
            "before it",
            Dump::with_root(&[(12, b"a")]).inode(12, FILE, &empty, attributes).end(),
            "extended attributes of inode 12 follow it",
        ),
        (
            "of an unknown kind",
            one().inode(12, FILE, &empty, &[(C_FLAGS, 0x8002), (C_EXTATTRIBUTES, 1)]).end(),
            "unknown kind 1",
        ),
        (
            "three",
            (0..3).fold(one(), |dump, _| dump.inode(12, FILE, &empty, attributes)).end(),
            "more than 2 blocks",
        ),
        ("large", with(&vec![0; 65 * RECORD]), "expected at most 65536"),
        ("no magic", with(&[0; 256]), "magic number 0x0"),
        ("nothing", with(&[]), "has 0 bytes"),
        ("a value outside", with(&entry([0xfff0_0104, 0, 16, 0])), "lies outside"),
        ("a value in an inode", with(&entry([0x0104, 9, 0, 0])), "in inode 9"),
        ("a long name", with(&[&empty[..4], &[255, 1], &[0; 30]].concat()), "cut short"),
        ("data", with(&entry([0x0704, 0, 0, 0])), "not supported"),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
}

#[test]
fn other_dumps_than_whole_ones_of_level_0_are_refused_by_name() {
    let root = || Dump::of(&[2]).dir(2, 2, &[]);
    let volume = |fields: Fields| Dump::with_volume(fields, &[2]).dir(2, 2, &[]).end();
    let cases = [
        ("level 1", volume(&[(C_LEVEL, 1)]), "incremental (level 1)"),
        ("since a date", volume(&[(C_DDATE, 5)]), "incremental"),
        ("volume 2", volume(&[(C_VOLUME, 2)]), "volume 2 of a dump"),
        ("another volume", root().header(TAPE, 0, &[(C_VOLUME, 2)]).end(), "another volume begins"),
        ("no end", root(), "before its end header"),
        ("no content", root().inode(2, FILE, b"", &[(C_FLAGS, 0x102)]).end(), "is not in the dump"),
        ("no volume", Dump(Vec::new()).header(CLRI, 0, &[]), "expected a volume's header"),
        ("no map", Dump(Vec::new()).header(TAPE, 0, &[]).header(END, 0, &[]), "expected the map"),
        ("an unknown record", root().header(7, 0, &[]).end(), "unknown type 7"),
        ("another time", root().header(END, 0, &[(C_DATE, 5)]).end(), "another dump"),
        ("another place", root().header(END, 0, &[(16, 99)]).end(), "says that it is record 99"),
        ("another checksum", root().end().change(RECORD + 500, 1), "it is damaged"),
        ("another magic", root().end().change(RECORD + 24, 1), "it is no header"),
        ("nothing", Dump(Vec::new()), "before its end header"),
        ("half a header", Dump(vec![0; 500]), "before its end header"),
        ("more after it", root().end().data(b"more"), "something else follows the end"),
        ("zeros after it", root().end().data(&[0; RECORD]), "something else follows the end"),
        ("a file after it", root().header(END, 0, &[]).file(12, b"x"), "something else follows the end"),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
    // The padding may be zeros, or missing.
    for padding in [0, 2] {
        let dump = root().header(END, 0, &[]).data(&vec![0; padding * RECORD]);
        Guest::new().restore(Cursor::new(&dump.0)).unwrap();
    }
}

#[test]
fn records_that_dump_compressed_are_read_or_refused_by_name() {
    let plain = Dump::with_volume(&[(C_FLAGS, 0x83)], &[2]).dir(2, 2, &[]).end();
    let (first, rest) = plain.0.split_at(10 * RECORD);
    assert_eq!(rest.len(), 0);
    let after = |prefix: u32, data: &[u8]| Dump([first, &prefix.to_le_bytes(), data].concat());
    let whole = 10 * RECORD as u32;
    let cases = [
        ("bzlib", after(100 << 4 | 1 << 1 | 1, &[0; 100]), "bzlib"),
        ("lzo", after(100 << 4 | 2 << 1 | 1, &[0; 100]), "lzo"),
        ("unknown", after(100 << 4 | 7 << 1 | 1, &[0; 100]), "an unknown method"),
        ("no length", after(1, &[]), "has 0 bytes"),
        ("a huge length", after(u32::MAX, &[]), "expected 1 to 10240"),
        ("damaged", after(100 << 4 | 1, &[7; 100]), "unpacking a compressed record"),
        ("cut", after(whole << 4, &[0; 100]), "reading the dump"),
        ("half a prefix", Dump([first, &[1, 2]].concat()), "within the prefix"),
        ("short", after(100 << 4, &[0; 100]), "expected 10240"),
        ("more after it", after(whole << 4, &[1; 10240]), "something else follows"),
        ("blocks of 0", Dump::with_volume(&[(C_FLAGS, 0x83), (C_NTREC, 0)], &[2]), "expected 1 to 1000"),
        (
            "huge blocks",
            Dump::with_volume(&[(C_FLAGS, 0x83), (C_NTREC, u32::MAX)], &[2]),
            "expected 1 to 1000",
        ),
    ];
    for (what, dump, expected) in cases {
        assert_refused(what, &dump, expected);
    }
    Guest::new().restore(Cursor::new(&plain.0)).unwrap();
}

/// A dump that does not end: fails where more is read than there is work for.
fn assert_refused_within(what: &str, budget: Work, stream: impl Iterator<Item = Vec<u8>>) {
    let mut left = budget.bytes + (256 << 10);
    let counted = stream.inspect(|piece| {
        left = left.checked_sub(piece.len() as u64).expect("far more is read than there is work for");
    });
    let guest = Guest::new();
    let root = RootDir::open(&guest.tree).unwrap();
    let error =
        dump::restore(&mut Pieces(counted, Cursor::default()), &root, &Budget::new(budget)).unwrap_err();
    assert!(format!("{error:#}").contains("more work"), "{what}: {error:#}");
}

#[test]
fn a_dump_without_an_end_is_refused_within_its_work() {
    let work = Work { bytes: 4 * MIB, records: 100_000 };
    let record = |kind: u32, inode: u32, count: u32, data: usize, position: &mut u32| {
        let addresses = (0..count.div_ceil(4)).map(|word| (C_ADDR + word as usize * 4, 0x0101_0101));
        let fields: Vec<_> = [(C_COUNT, count), (16, *position)].into_iter().chain(addresses).collect();
        *position += 1 + data as u32;
        Dump(Vec::new()).header(kind, inode, &fields).data(&vec![0; data * RECORD]).0
    };
    // A map of inodes that goes on and on.
    let mut position = 1;
    let start = Dump(Vec::new()).header(TAPE, 0, &[]).0;
    let maps = std::iter::repeat_with(|| {
        let kind = if position == 1 { CLRI } else { ADDR };
        record(kind, 0, 100, 100, &mut position)
    });
    assert_refused_within("a map", work, std::iter::once(start).chain(maps));
    // A file that has data behind its end, without one.
    let start = Dump::with_root(&[(12, b"a")]).file(12, b"x").0;
    let mut position = (start.len() / RECORD) as u32;
    let data = std::iter::repeat_with(|| record(ADDR, 12, 200, 200, &mut position));
    assert_refused_within("data behind a file", work, std::iter::once(start.clone()).chain(data));
    // And one that has none, but headers.
    let mut position = (start.len() / RECORD) as u32;
    let headers = std::iter::repeat_with(|| record(ADDR, 12, 0, 0, &mut position));
    let few = Work { records: 1000, ..work };
    assert_refused_within("headers of a file", few, std::iter::once(start).chain(headers));
}

/// Two directories that are as deep as paths can be, and files that lie in the one and the other by turns.
fn by_turns(depth: u32, files: u32) -> Dump {
    let chain = |side: u32, level: u32| 100 + side * depth + level;
    let file = |number: u32| 6000 + number;
    let all = [2].into_iter().chain((0..2 * depth).map(|n| 100 + n)).chain((0..files).map(file));
    let roots: [(u32, &[u8]); 2] = [(chain(0, 0), b"a"), (chain(1, 0), b"b")];
    let mut dump = Dump::of(&all.collect::<Vec<u32>>()).dir(2, 2, &roots);
    for side in 0..2 {
        for level in 0..depth {
            let parent = if level == 0 { 2 } else { chain(side, level - 1) };
            let names: Vec<(u32, Vec<u8>)> = match level + 1 == depth {
                false => vec![(chain(side, level + 1), b"d".to_vec())],
                true => {
                    let own = (0..files).filter(|number| number % 2 == side);
                    own.map(|number| (file(number), format!("{number:x}").into_bytes())).collect()
                }
            };
            let entries: Vec<(u32, &[u8])> = names.iter().map(|(inode, name)| (*inode, &name[..])).collect();
            dump = dump.dir(chain(side, level), parent, &entries);
        }
    }
    (0..files).fold(dump, |dump, number| dump.file(file(number), b"")).end()
}

#[test]
fn directories_that_are_opened_again_and_again_take_the_work_that_there_is() {
    let restore = |files: u32, budget: &Budget<'_>| {
        let (dump, guest) = (by_turns(700, files), Guest::new());
        dump::restore(&mut Cursor::new(&dump.0), &RootDir::open(&guest.tree).unwrap(), budget)
    };
    let without = Budget::of_stream(GIB);
    restore(0, &without).unwrap();
    let with = Budget::of_stream(GIB);
    assert_eq!(restore(60, &with).unwrap().files, 60);
    // Each file's directory is a way of 700, of which some is held.
    let more = with.spent().records - without.spent().records;
    assert!((60 * 400..60 * 800).contains(&more), "{more} for 60 files");
    let error =
        restore(60, &Budget::new(Work { records: with.spent().records - 1, ..with.limit() })).unwrap_err();
    assert!(format!("{error:#}").contains("more work"), "{error:#}");
}

#[test]
fn attributes_that_share_their_value_are_refused() {
    let attributes: Fields = &[(C_FLAGS, 0x8002), (C_EXTATTRIBUTES, 3)];
    let mut block = 0xea02_0001_u32.to_le_bytes().to_vec();
    for name in b'a'..b'q' {
        // One letter, user.*, and where the value is: the same for all.
        block.extend([1, 1, 0, 4]);
        [0_u32, 2000, 0].iter().for_each(|word| block.extend(word.to_le_bytes()));
        block.extend([name, 0, 0, 0]);
    }
    block.resize(4 * RECORD, 0);
    let dump = Dump::with_root(&[(12, b"a")]).file(12, b"x").inode(12, FILE, &block, attributes).end();
    assert_refused("shared values", &dump, "share their values");
}

#[test]
fn only_a_fresh_root_is_filled() {
    let dump = Dump::with_root(&[(11, b"lost+found"), (12, b"a")]).dir(11, 2, &[]).file(12, b"x").end();
    let guest = Guest::new();
    fs::create_dir(guest.tree.join("lost+found")).unwrap();
    guest.restore(Cursor::new(&dump.0)).unwrap();
    let error = guest.restore(Cursor::new(&dump.0)).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error:#}");
    let guest = Guest::new();
    std::os::unix::fs::symlink("../node", guest.tree.join("lost+found")).unwrap();
    let error = format!("{:#}", guest.restore(Cursor::new(&dump.0)).unwrap_err());
    assert!(error.contains("lost+found"), "{error}");
}

#[test]
fn a_million_names_take_little_memory() {
    let names = 1_000_000_u32;
    let map_records = (names + 100).div_ceil(8192);
    let mut start = Dump(Vec::new()).header(TAPE, 0, &[]);
    for kind in [CLRI, BITS] {
        start =
            start.header(kind, 0, &[(C_COUNT, map_records)]).data(&vec![0xff; map_records as usize * RECORD]);
    }
    // Two names of 247 bytes in each block, which are not kept here either.
    let blocks = names / 2;
    let size = (blocks + 1) * 512;
    let records = size.div_ceil(1024);
    let mut data = directory(&[(2, b"."), (2, b"..")]);
    let mut next = 0;
    let mut generated = 0;
    let mut end = true;
    let stream = std::iter::from_fn(move || {
        if next == 0 {
            next = 1;
            return Some(std::mem::take(&mut start.0));
        }
        if generated >= records {
            let position = 2 * map_records + 3 + generated + generated.div_ceil(512);
            return std::mem::take(&mut end).then(|| Dump(Vec::new()).header(END, 0, &[(16, position)]).0);
        }
        let here = (records - generated).min(512);
        let kind = if generated == 0 { INODE } else { ADDR };
        let mut fields = vec![(C_MODE, DIR), (C_SIZE, size), (C_COUNT, here)];
        fields.extend((0..here.div_ceil(4)).map(|word| (C_ADDR + word as usize * 4, 0x0101_0101)));
        let before = 2 * map_records + 3 + generated + generated.div_ceil(512);
        fields.push((16, before));
        let piece = Dump(Vec::new()).header(kind, 2, &fields);
        while data.len() < here as usize * RECORD {
            let name = |number: u32| format!("{number:0247}").into_bytes();
            let number = next;
            next += 2;
            data.extend(directory(&[
                (number % names + 3, &name(number)),
                ((number + 1) % names + 3, &name(number + 1)),
            ]));
        }
        let rest = data.split_off(here as usize * RECORD);
        generated += here;
        Some(piece.data(&std::mem::replace(&mut data, rest)).0)
    });
    let before_kib = memory_kib("VmRSS");
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let error = format!("{:#}", Guest::new().restore(Pieces(stream, Cursor::new(Vec::new()))).unwrap_err());
    let peak_kib = memory_kib("VmHWM") - before_kib;
    assert!(error.contains("inode 1 is in the dump's map, but does not come"), "{error}");
    assert!(peak_kib < 16 * 1024, "{peak_kib} KiB for {} MiB of names", u64::from(size) / MIB);
}

/// A stream made while it is read.
struct Pieces<I>(I, Cursor<Vec<u8>>);

impl<I: Iterator<Item = Vec<u8>>> Read for Pieces<I> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match (self.1.read(buffer)?, self.1.position() == self.1.get_ref().len() as u64) {
                (0, true) => match self.0.next() {
                    Some(piece) => self.1 = Cursor::new(piece),
                    None => return Ok(0),
                },
                (length, _) => return Ok(length),
            }
        }
    }
}

fn memory_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
