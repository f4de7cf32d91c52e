//! Streams that are small, or endless, and become large: as archives of ours, as raw disks and as trees.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::archive::{Member, Notation, archive, pax_record};
use super::bench::{Bench, MIB, try_each, written_by};
use crate::common::running::{Family, Running, SOON};

const CHUNK: usize = 1 << 20;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Mebibytes of zeros, as frames that are one stream.
fn zeros(pack: &dyn Fn(&[u8]) -> Vec<u8>, mebibytes: u64) -> Vec<u8> {
    pack(&[0; CHUNK]).repeat(mebibytes as usize)
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The start of a raw disk: a boot sector.
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0; CHUNK];
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn root_file(size: u64) -> Vec<u8> {
    Member { claimed_size: Some(size), ..Member::new("./large", b"") }.bytes()
}

#[test]
fn what_unpacks_to_more_than_the_disk_takes_is_refused() {
    let bench = Bench::bare();
    type Pack = fn(&[u8]) -> Vec<u8>;
    let packs: [(&str, Pack); 2] = [("gzip", gzip), ("zstd", zstd)];
    for (with, pack) in packs {
        // A thousand and more to one.
        let disk = [pack(&boot_sector()), zeros(&pack, 1024)].concat();
        assert!(disk.len() < 6 << 20);
        bench.assert_refused(&format!("a raw disk, {with}"), &disk, "the image is larger than the disk");
        let tree = [pack(&root_file(1 << 30)), zeros(&pack, 1024)].concat();
        bench.assert_refused(
            &format!("a file of zeros in a tree, {with}"),
            &tree,
            "the root filesystem is full",
        );
        // The padding behind a header is all of the rest.
        let mut members = bench.backup().members(Notation::Pax10);
        members[2].claimed_size = Some(1 << 30);
        let image = [pack(&archive(&members)), zeros(&pack, 64)].concat();
        bench.assert_refused(&format!("a digest of zeros, {with}"), &image, "1073741824 bytes");
        let behind = [pack(&bench.stream), zeros(&pack, 1024)].concat();
        bench.assert_refused(&format!("zeros behind the end, {with}"), &behind, "more behind the digest");
    }
    let wide = zstd_of_window(27);
    bench.assert_refused("a window of 128 MiB", &wide, "its window is larger than 32 MiB");
}

/// A frame that asks for a window of that power of two.
fn zstd_of_window(log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(&boot_sector()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn headers_without_an_end_are_refused() {
    let bench = Bench::bare();
    let disk = bench.backup().members(Notation::Pax10);
    let huge = Member { claimed_size: Some(1 << 30), ..Member::new("x", b"").of_kind(b'x') };
    let long_name = Member { claimed_size: Some(1 << 30), ..Member::new("x", b"").of_kind(b'L') };
    let before = |header: Member| {
        let mut members = disk.clone();
        members[1].before = header.bytes();
        archive(&members)
    };
    let in_tree = |header: Member| archive(&[Member::new("./a", b"a"), header]);
    for (what, stream) in [
        ("a PAX header of 1 GiB", before(huge.clone())),
        ("a long name of 1 GiB", before(long_name.clone())),
        ("a PAX header of 1 GiB in a tree", in_tree(huge)),
        ("a long name of 1 GiB in a tree", in_tree(long_name)),
    ] {
        bench.assert_refused(what, &stream, "1073741824 bytes");
    }
    let comment = pax_record("comment", &[b'x'; 1000]);
    let pax = Member::new("x", &comment).of_kind(b'x').bytes();
    let (described, in_tree) = (disk[0].bytes(), Member::new("./a", b"").bytes());
    let many = "more than 32 extended headers follow each other";
    let endless: [(&str, &[u8], Vec<u8>, &str); 7] = [
        ("PAX headers", &described, pax.clone(), many),
        ("PAX headers in a tree", &in_tree, pax, many),
        ("global headers", &described, Member::new("g", &comment).of_kind(b'g').bytes(), many),
        ("long names", &described, Member::new("L", b"name\0").of_kind(b'L').bytes(), many),
        ("long links", &[], Member::new("K", b"name\0").of_kind(b'K').bytes(), many),
        ("descriptions", &described, disk[0].bytes(), "where disk.img belongs"),
        ("nothing", &[], vec![0; 512], "of no known format"),
    ];
    try_each(endless, |(what, first, again, why)| {
        let (target, first) = (bench.target(), first.to_vec());
        let input = written_by(move |input| {
            input.write_all(&first)?;
            loop {
                input.write_all(&again)?;
            }
        });
        let ended = Running::start(bench.import_command(&target, input)).end_within(SOON, Family::default());
        bench.assert_failed(&format!("endless {what}"), &ended, &target, why);
    });
    // A name in gzip's own header, and the same without its end.
    let target = bench.target();
    let input = written_by(|input| {
        input.write_all(b"\x1f\x8b\x08\x08\0\0\0\0\0\x03")?;
        loop {
            input.write_all(&[b'x'; 4096])?;
        }
    });
    let ended = Running::start(bench.import_command(&target, input)).end_within(SOON, Family::default());
    bench.assert_failed("an endless name in gzip", &ended, &target, "unpacking gzip");
}

#[test]
fn trees_that_fill_the_disk_are_refused() {
    let bench = Bench::bare();
    let empty = |name: String| Member::new(&name, b"").bytes();
    let many: Vec<u8> = (0..200_000).flat_map(|n| empty(format!("./{n}"))).collect();
    let million = gzip(&[&many, &[0; 1024][..]].concat());
    let deep = |depth: usize| {
        let name = "d/".repeat(depth);
        let member = Member::new("./d", b"").of_kind(b'5');
        archive(&[Member { records: pax_record("path", name.as_bytes()), ..member }])
    };
    let levels: Vec<u8> = (1..100_000_usize)
        .step_by(999)
        .flat_map(|depth| {
            let name = format!("./{}", "d/".repeat(depth));
            let member = Member::new("./d", b"").of_kind(b'5');
            Member { records: pax_record("path", name.as_bytes()), ..member }.bytes()
        })
        .collect();
    let sparse = |size: u64| {
        let member = Member::new("./sparse", b"x").record("GNU.sparse.size", &size.to_string());
        archive(&[member.record("GNU.sparse.map", "0,1")])
    };
    let noise = super::bench::noise(77, 64 << 20);
    let cases = [
        ("a file for each inode and more", million, "the root filesystem has no inode left"),
        (
            "a file larger than the disk",
            archive(&[Member::new("./a", &noise)]),
            "the root filesystem is full",
        ),
        ("a sparse file of 8 EiB", sparse(i64::MAX as u64), "error: "),
        ("a path a hundred thousand deep", deep(100_000), "longer than any path"),
        ("deeper and deeper", levels, "longer than any path"),
    ];
    try_each(cases, |(what, stream, why)| bench.assert_refused(what, &stream, why));
}

/// The largest window, as many partitions and runs as there may be: all at once.
#[test]
fn all_that_takes_memory_at_once_stays_below_the_limit() {
    let bench = Bench::bare();
    let mut backup = bench.backup();
    let partition = |n: u64| {
        let facts =
            format!("start_bytes = {}\nsize_bytes = 8192\ncontent = \"{}\"", n * 16384, "x".repeat(200));
        format!("\n[[partition]]\nnumber = {n}\n{facts}\n")
    };
    backup.manifest += &(1..=1024).map(partition).collect::<String>();
    let mut map = format!("{}\n{}", 1_000_000 + backup.runs.len(), "0\n0\n".repeat(1_000_000));
    backup.runs.iter().for_each(|(offset, length)| map += &format!("{offset}\n{length}\n"));
    let mut members = backup.members(Notation::Pax10);
    members[1] = Notation::with_map(map.as_bytes(), &(48 * MIB).to_string(), &backup.data);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(25).unwrap();
    encoder.write_all(&archive(&members)).unwrap();
    bench.assert_restored("all at once", &encoder.finish().unwrap());
}
