//! Archives made to do harm, and archives damaged by accident: an error or a tree within its root,
//! and nothing beside it changed. Needs root.

use std::cell::Cell;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::{FileTypeExt, symlink};

use crate::common::unharmed::Guest;
use anyhow::{Result, bail};
use ganeti_instance_debootstrap::reader::{Budget, Work};
use ganeti_instance_debootstrap::rootdir::RootDir;
use ganeti_instance_debootstrap::tar::{self, UnpackStats};

trait Unpack {
    fn unpack(&self, archive: &[u8]) -> Result<UnpackStats>;

    fn refusal(&self, archive: &[u8]) -> String {
        format!("{:#}", self.unpack(archive).unwrap_err())
    }
}

impl Unpack for Guest {
    fn unpack(&self, archive: &[u8]) -> Result<UnpackStats> {
        self.beside_the_node(|root| tar::unpack(&mut Cursor::new(archive), root, &Budget::of_stream(GIB)))
    }
}

const GIB: u64 = 1 << 30;

/// An archive, entry by entry.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn header(mut self, kind: u8, name: &str, link: &str, size: u64) -> Archive {
        let mut block = [0_u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000000777");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        self.0.extend_from_slice(&block);
        self
    }

    fn data(mut self, data: &[u8]) -> Archive {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Archive {
        self.header(b'0', name, "", content.len() as u64).data(content.as_bytes())
    }

    fn dir(self, name: &str) -> Archive {
        self.header(b'5', name, "", 0)
    }

    fn symlink(self, name: &str, target: &str) -> Archive {
        self.header(b'2', name, target, 0)
    }

    fn hard_link(self, name: &str, target: &str) -> Archive {
        self.header(b'1', name, target, 0)
    }

    fn pax(self, kind: u8, records: &[(&str, &str)]) -> Archive {
        let mut text = String::new();
        for (keyword, value) in records {
            let rest = keyword.len() + value.len() + 3;
            let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
            text += &format!("{length} {keyword}={value}\n");
        }
        self.header(kind, "pax", "", text.len() as u64).data(text.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// With most that the format has: long names, attributes, a sparse file, links, nodes.
fn rich_archive() -> Vec<u8> {
    let long = "long/".repeat(30) + "name";
    Archive::default()
        .dir("./")
        .pax(b'g', &[("comment", "harmless")])
        .dir("./dir/")
        .file("./dir/file", "content")
        .pax(b'x', &[("path", &long), ("mtime", "1.5"), ("SCHILY.xattr.user.a", "b"), ("uid", "3000000")])
        .file("short", &"x".repeat(1500))
        .header(b'L', "././@LongLink", "", long.len() as u64 + 2)
        .data(format!("{long}2\0").as_bytes())
        .file("short", "y")
        .pax(b'x', &[("SCHILY.acl.access", "user::rw-,user:7:r--,group::r--,mask::r--,other::---")])
        .file("acl", "z")
        .symlink("link", "dir/file")
        .hard_link("hard", "dir/file")
        .header(b'6', "fifo", "", 0)
        .header(b'3', "null", "", 0)
        .pax(
            b'x',
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "sparse"),
                ("GNU.sparse.realsize", "100000"),
            ],
        )
        .header(b'0', "GNUSparseFile.0/sparse", "", 512 + 4)
        .data(b"2\n5000\n4\n100000\n0\n")
        .data(b"data")
        .end()
}

#[test]
fn a_name_with_two_dots_is_refused() {
    for name in ["..", "../x", "a/../../x", "/../x", "./..", "dir/.."] {
        let guest = Guest::new();
        let archives = [
            Archive::default().file(name, "x").end(),
            Archive::default().dir(name).end(),
            Archive::default().symlink(name, "x").end(),
            Archive::default().file("x", "x").hard_link("y", name).end(),
            Archive::default().pax(b'x', &[("path", name)]).file("x", "x").end(),
            Archive::default().pax(b'x', &[("GNU.sparse.name", name)]).file("x", "x").end(),
        ];
        for archive in archives {
            assert!(guest.refusal(&archive).contains("contains \"..\""), "{name}");
        }
    }
}

#[test]
fn an_absolute_name_is_taken_in_the_root() {
    let guest = Guest::new();
    let secret = guest.node.join("secret");
    guest
        .unpack(&Archive::default().file(secret.to_str().unwrap(), "x").file("//etc///x", "y").end())
        .unwrap();
    assert_eq!(guest.text(secret.strip_prefix("/").unwrap().to_str().unwrap()), "x");
    assert_eq!(guest.text("etc/x"), "y");
}

#[test]
fn nothing_is_written_through_a_link() {
    let guest = Guest::new();
    let node = guest.node.to_str().unwrap();
    let secret = format!("{node}/secret");
    for target in [secret.as_str(), "../node/secret", "../../../../../../etc/passwd", "l"] {
        guest.unpack(&Archive::default().symlink("l", target).file("l", "x").end()).unwrap();
        assert_eq!(guest.text("l"), "x");
        guest
            .unpack(&Archive::default().symlink("l", target).hard_link("h", "l").file("h", "x").end())
            .unwrap();
        assert_eq!(guest.text("h"), "x");
    }
    let refused = guest.refusal(&Archive::default().symlink("d", node).file("d/secret", "x").end());
    assert!(refused.contains("unpacking /d/secret: creating the directory /d"), "{refused}");
    guest.unpack(&Archive::default().symlink("up", "../../..").file("up/top", "x").end()).unwrap();
    assert_eq!(guest.text("top"), "x");
    guest.unpack(&Archive::default().symlink("d", node).dir("d").file("d/secret", "x").end()).unwrap();
    assert_eq!(guest.text("d/secret"), "x");
}

#[test]
fn a_hard_link_reaches_nothing_outside() {
    let guest = Guest::new();
    let secret = guest.node.join("secret");
    symlink(&guest.node, guest.tree.join("node")).unwrap();
    symlink("../node", guest.tree.join("up")).unwrap();
    for target in [secret.to_str().unwrap(), "node/secret", "up/secret"] {
        let refused = guest.refusal(&Archive::default().hard_link("h", target).end());
        assert!(refused.contains("unpacking /h: linking to "), "{refused}");
    }
    assert!(guest.refusal(&Archive::default().hard_link("h", "").end()).contains("linking to /"));
}

#[test]
fn a_directory_that_became_a_link_is_not_settled_through_it() {
    let guest = Guest::new();
    let node = guest.node.to_str().unwrap();
    guest.unpack(&Archive::default().dir("d").symlink("d", node).end()).unwrap();
    guest.unpack(&Archive::default().dir("e/f").symlink("g", node).end()).unwrap();
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let guest = Guest::new();
    let archive = Archive::default()
        .file("a", "first")
        .hard_link("b", "a")
        .file("a", "second")
        .hard_link("a", "a")
        .dir("c")
        .file("c", "was a directory")
        .file("d", "was a file")
        .dir("d")
        .file("d/below", "x")
        .dir("d")
        .header(b'6', "b2", "", 0)
        .file("b2", "was a fifo")
        .file("e", "was a file")
        .symlink("e", "a")
        .file("f", "was a file")
        .header(b'6', "f", "", 0)
        .end();
    guest.unpack(&archive).unwrap();
    guest.unpack(&archive).unwrap_err();
    let guest = Guest::new();
    guest.unpack(&archive).unwrap();
    let texts =
        [("a", "second"), ("b", "first"), ("c", "was a directory"), ("d/below", "x"), ("b2", "was a fifo")];
    for (path, text) in texts {
        assert_eq!(guest.text(path), text);
    }
    assert!(fs::symlink_metadata(guest.tree.join("e")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(guest.tree.join("f")).unwrap().file_type().is_fifo());
    let refused = guest.refusal(&Archive::default().file("d", "x").end());
    assert!(
        refused.contains("unpacking /d: removing what is in its place: Directory not empty"),
        "{refused}"
    );
}

#[test]
fn absurd_sizes_and_maps_are_refused() {
    let sparse = |records: &[(&str, &str)], map: &str| {
        let mut all = vec![("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s")];
        all.extend_from_slice(records);
        let data = Archive::default().pax(b'x', &all).header(b'0', "s", "", 512 + 4);
        data.data(map.as_bytes()).data(b"data").end()
    };
    let real = [("GNU.sparse.realsize", "100")];
    let cases = [
        (Archive::default().header(b'x', "pax", "", 1 << 32).end(), "expected at most 1048576"),
        (Archive::default().header(b'L', "pax", "", 1 << 32).end(), "expected at most 1048576"),
        (Archive::default().header(b'0', "big", "", 1 << 32).end(), "the archive ends in the middle of /big"),
        (
            Archive::default().pax(b'x', &[("size", "9223372036854775807")]).file("big", "").end(),
            "ends in the middle of /big",
        ),
        (
            Archive::default().pax(b'x', &[("size", "9223372036854775808")]).file("big", "").end(),
            "reading size",
        ),
        (Archive::default().pax(b'x', &[("uid", "4294967295")]).file("u", "").end(), "owner or group"),
        (
            Archive::default().pax(b'x', &[("path", &"x/".repeat(5000))]).file("u", "").end(),
            "longer than any path",
        ),
        (sparse(&real, "1048577\n"), "1048577 entries"),
        (sparse(&real, "99999999999999999999\n"), "more than 19 digits"),
        (sparse(&real, "2\n10\n2\n5\n2\n"), "out of order"),
        (sparse(&real, "1\n97\n4\n"), "beyond the file's 100 bytes"),
        (sparse(&real, "1\n9223372036854775807\n9223372036854775807\n"), "beyond the file's 100 bytes"),
        (sparse(&real, "1\n10\n3\n"), "counts 3 bytes of data, the archive has 4"),
        (sparse(&real, "-1\n10\n3\n"), "expected a decimal number"),
        (sparse(&[], "1\n10\n4\n"), "without the file's size"),
        (sparse(&[("GNU.sparse.realsize", "9223372036854775807")], "1\n10\n4\n"), "setting its size"),
    ];
    for (archive, expected) in cases {
        let guest = Guest::new();
        let refused = guest.refusal(&archive);
        assert!(refused.contains(expected), "{refused}\nexpected {expected}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let cases = [
        (
            Archive::default().header(b'M', "multi", "", 0).end(),
            "reading /multi: it is an entry of type \"M\"",
        ),
        (Archive::default().file("a", "").pax(b'g', &[("size", "5")]).end(), "a global extended header sets"),
        (Archive::default().file("a", "").pax(b'x', &[]).end(), "ends behind an extended header, after /a"),
        (Archive::default().file(".", "x").end(), "unpacking /: the root can only be a directory"),
        (vec![b'x'; 2048], "reading the header at the start of the archive"),
        (Vec::new(), "the archive ends without its end mark, at the start of the archive"),
    ];
    for (archive, expected) in cases {
        let refused = Guest::new().refusal(&archive);
        assert!(refused.contains(expected), "{refused}\nexpected {expected}");
    }
}

#[test]
fn an_archive_cut_short_anywhere_is_refused() {
    let archive = rich_archive();
    for length in (0..archive.len()).filter(|length| length % 61 == 0 || length % 512 < 2) {
        let refused = Guest::new().refusal(&archive[..length]);
        assert!(refused.contains("the archive ends "), "{length}: {refused}");
    }
    Guest::new().unpack(&archive).unwrap();
}

#[test]
fn a_flipped_bit_in_any_header_is_refused() {
    let archive = Archive::default().dir("a").symlink("a/b", "c").end();
    for at in (0..1024).filter(|at| !(154..156).contains(&(at % 512))) {
        let mut broken = archive.clone();
        // In the checksum itself a leading 0 may as well become a space.
        let bit = if (148..154).contains(&(at % 512)) { 1 } else { at % 8 };
        broken[at] ^= 1 << bit;
        let refused = Guest::new().refusal(&broken);
        assert!(refused.contains("checksum"), "{at}: {refused}");
    }
}

/// Headers with random bytes and a right checksum, and data with random bytes: whatever comes of it
/// stays in the root.
#[test]
fn random_damage_stays_within_the_root() {
    let archive = rich_archive();
    let mut state = 1_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    for _ in 0..300 {
        let mut broken = archive.clone();
        for _ in 0..=random(3) {
            let block = random(broken.len() / 512) * 512;
            let known = [b'/', b'.', 0, b'0', b'7', b'1', b'2', b'5', b'S', 0x80, 0xff, b'x'];
            broken[block + random(512)] =
                if random(2) == 0 { known[random(known.len())] } else { random(256) as u8 };
            if &broken[block + 257..block + 262] == b"ustar" {
                seal(&mut broken[block..block + 512]);
            }
        }
        let _ = Guest::new().unpack(&broken);
    }
}

#[test]
fn not_a_byte_is_read_beyond_the_end_mark() {
    let mut archive = rich_archive();
    let length = archive.len() as u64;
    archive.extend_from_slice(&[7; 4096]);
    let guest = Guest::new();
    let mut input = Cursor::new(archive);
    tar::unpack(&mut input, &RootDir::open(&guest.tree).unwrap(), &Budget::of_stream(GIB)).unwrap();
    assert_eq!(input.position(), length);
}

/// Gives a byte or an interruption at a time, as a pipe and a signal may.
struct Trickle<R>(R, bool);

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = !self.1;
        match self.1 {
            true => Err(std::io::ErrorKind::Interrupted.into()),
            false => self.0.read(&mut buffer[..1]),
        }
    }
}

#[test]
fn an_archive_that_trickles_in_is_read_whole() {
    let guest = Guest::new();
    let mut input = Trickle(Cursor::new(rich_archive()), false);
    tar::unpack(&mut input, &RootDir::open(&guest.tree).unwrap(), &Budget::of_stream(GIB)).unwrap();
    assert_eq!(guest.text("hard"), "content");
    assert_eq!(fs::metadata(guest.tree.join("sparse")).unwrap().len(), 100_000);
}

#[test]
fn a_checkpoint_ends_the_packing_with_its_own_error() {
    let guest = Guest::new();
    let root = RootDir::open(&guest.tree).unwrap();
    guest.unpack(&rich_archive()).unwrap();
    fs::write(guest.tree.join("large"), vec![1; 40_000_000]).unwrap();
    let countdown = Cell::new(u32::MAX);
    let checkpoint = || {
        countdown.set(countdown.get() - 1);
        match countdown.get() {
            0 => bail!("interrupted"),
            _ => Ok(()),
        }
    };
    let mut archive = Vec::new();
    let packed = tar::pack(&root, &mut archive, &mut |_, _| {}, &checkpoint).unwrap();
    let calls = u32::MAX - countdown.get();
    assert!(u64::from(calls) >= packed.entries + 3, "{calls} calls for {} entries", packed.entries);
    for count in [1, 5, calls] {
        countdown.set(count);
        let error = tar::pack(&root, &mut Vec::new(), &mut |_, _| {}, &checkpoint).unwrap_err();
        assert_eq!(error.root_cause().to_string(), "interrupted");
    }
}

#[test]
fn an_archive_is_unpacked_with_the_work_that_there_is_for_it_and_refused_with_less() {
    let archive = rich_archive();
    let unpack = |budget: &Budget<'_>| {
        let guest = Guest::new();
        tar::unpack(&mut Cursor::new(&archive), &RootDir::open(&guest.tree).unwrap(), budget)
    };
    let enough = Budget::of_stream(GIB);
    unpack(&enough).unwrap();
    let spent = enough.spent();
    assert!(spent.bytes <= archive.len() as u64 && spent.records < 300, "{spent:?}");
    unpack(&Budget::new(spent)).unwrap();
    for records in [0, 1, 5, spent.records - 1] {
        let error = unpack(&Budget::new(Work { records, ..spent })).unwrap_err();
        assert!(format!("{error:#}").contains("more work"), "{error:#}");
    }
    let error = unpack(&Budget::new(Work { bytes: spent.bytes - 1, ..spent })).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("more work") && text.contains("unpack it by hand"), "{text}");
}

/// Bytes, and behind them others again and again. Fails where more is read than there is work for.
struct Endless {
    first: Cursor<Vec<u8>>,
    again: Vec<u8>,
    at: usize,
    left: u64,
}

impl Endless {
    fn of(first: Vec<u8>, again: Vec<u8>, most: u64) -> Endless {
        Endless { first: Cursor::new(first), again, at: 0, left: most }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut count = self.first.read(buffer)?;
        if count == 0 {
            let rest = &self.again[self.at..];
            count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            self.at = (self.at + count) % self.again.len();
        }
        self.left = self.left.checked_sub(count as u64).expect("far more is read than there is work for");
        Ok(count)
    }
}

#[test]
fn an_archive_without_an_end_is_refused_within_its_work() {
    let sparse = {
        let mut block = Archive::default().header(b'S', "s", "", 0).0;
        // Another block of the map follows, and others follow that.
        block[482] = 1;
        seal(&mut block);
        block
    };
    let mut more = vec![0; 512];
    more[504] = 1;
    let dir = Archive::default().dir("d").0;
    let deep = Archive::default().pax(b'x', &[("path", &"d/".repeat(2000))]).dir("d").0;
    let records = Archive::default().pax(b'x', &[("a", "b"); 20_000]).file("f", "").0;
    let attributes = Archive::default().pax(b'x', &[("SCHILY.xattr.user.a", "b"); 1000]).file("f", "").0;
    for (what, first, again, records) in [
        ("the map of a sparse file", sparse, more, 100_000),
        ("a file again and again", Vec::new(), Archive::default().file("f", "x").0, 3000),
        ("a file among many directories", dir.repeat(2000), Archive::default().file("d2", "").0, 6000),
        ("a deep directory", Vec::new(), deep, 20_000),
        ("records without a meaning", Vec::new(), records, 100_000),
        ("attributes", Vec::new(), attributes, 20_000),
    ] {
        let budget = Budget::new(Work { bytes: 16 << 20, records });
        // What was read, and not looked at.
        let mut input = Endless::of(first, again, (16 << 20) + (256 << 10));
        let guest = Guest::new();
        let error = tar::unpack(&mut input, &RootDir::open(&guest.tree).unwrap(), &budget).unwrap_err();
        assert!(format!("{error:#}").contains("more work"), "{what}: {error:#}");
    }
}

#[test]
fn a_path_through_links_takes_the_work_that_it_can_cost() {
    let links = Archive::default().dir("a").dir("b").symlink("c", "a").symlink("d", "b");
    let through =
        (0..50).fold(links, |archive, n| archive.file(&format!("c/{n}"), "").file(&format!("d/{n}"), ""));
    let budget = Budget::of_stream(GIB);
    let guest = Guest::new();
    tar::unpack(&mut Cursor::new(through.end()), &RootDir::open(&guest.tree).unwrap(), &budget).unwrap();
    assert!((100 * 4096..100 * 4096 + 1000).contains(&budget.spent().records), "{:?}", budget.spent());
    assert_eq!(fs::read_dir(guest.tree.join("b")).unwrap().count(), 50);
}

#[test]
fn names_in_acls_are_looked_up_in_files_that_are_read_once() {
    const FILES: u64 = 40;
    const NAMES: u64 = 200;
    // The largest that is read; those that are named come last.
    let lines = (1 << 20) / 24;
    let line = |number: u64| format!("user{number:08}:x:{number:05}:\n");
    let passwd: String = (0..lines).map(line).collect();
    assert!(passwd.len() < 1 << 20 && passwd.len() > 1 << 19);
    let named: Vec<String> =
        (lines - NAMES..lines).map(|number| format!("user:user{number:08}:r--")).collect();
    let acl = format!("user::rw-,group::r--,mask::rwx,other::r--,{}", named.join(","));
    let files = (0..FILES).fold(Archive::default().dir("etc").file("etc/passwd", &passwd), |archive, n| {
        archive.pax(b'x', &[("SCHILY.acl.access", &acl)]).file(&format!("f{n}"), "")
    });
    let (budget, guest) = (Budget::of_stream(GIB), Guest::new());
    tar::unpack(&mut Cursor::new(files.end()), &RootDir::open(&guest.tree).unwrap(), &budget).unwrap();
    // A record for each line, once, and one for each 16 bytes of the ACLs.
    let (acls, spent) = (FILES * (acl.len() as u64 / 16 + 20), budget.spent());
    assert!((lines..lines + acls + 1000).contains(&spent.records), "{spent:?}");
    let listed = crate::common::tool("getfacl", &["-n", guest.tree.join("f39").to_str().unwrap()]);
    assert_eq!(listed.matches("\nuser:").count() as u64, NAMES + 1, "{listed}");
}
