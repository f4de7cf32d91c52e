//! Streams whose digest is right, and whose members, maps or description are not.

use super::archive::{Backup, Member, Notation, archive, decimal, pax_record};
use super::bench::{Bench, MIB, try_each};

type Edit<'a> = &'a dyn Fn(&mut Vec<Member>);
type Change<'a> = (&'a str, Edit<'a>, &'a str);

#[test]
fn other_members_than_the_three_are_refused() {
    let bench = Bench::bare();
    let backup = bench.backup();
    let long = "x".repeat(5000);
    let rename =
        |at: usize, name: &'static str| move |members: &mut Vec<Member>| members[at].name = name.into();
    let of_kind = |at: usize, kind: u8, link: &'static str| {
        move |members: &mut Vec<Member>| {
            members[at].kind = kind;
            members[at].link = link.into();
        }
    };
    let before = |at: usize, header: Member| {
        let bytes = header.bytes();
        move |members: &mut Vec<Member>| members[at].before = bytes.clone()
    };
    let gnu_name = |name: &str| Member::new("././@LongLink", format!("{name}\0").as_bytes()).of_kind(b'L');
    let global = Member::new("g", &pax_record("path", b"disk.img")).of_kind(b'g');
    let cases: [Change<'_>; 40] = [
        ("nothing but the description", &|m| m.truncate(1), "the backup ends before disk.img"),
        ("no digest", &|m| m.truncate(2), "the backup ends without its digest"),
        ("no disk", &|m| drop(m.remove(1)), "\"digest\" where disk.img belongs"),
        ("the disk after its digest", &|m| m.swap(1, 2), "\"digest\" where disk.img belongs"),
        ("the disk before its description", &|m| m.swap(0, 1), "\"disk.img\" where instance.toml belongs"),
        ("two descriptions", &|m| m.insert(1, m[0].clone()), "\"instance.toml\" where disk.img belongs"),
        ("two disks", &|m| m.insert(1, m[1].clone()), "\"disk.img\" where digest belongs"),
        ("two digests", &|m| m.push(m[2].clone()), "there is more behind the digest"),
        ("one more file", &|m| m.push(Member::new("more", b"")), "there is more behind the digest"),
        ("one more in between", &|m| m.insert(2, Member::new("more", b"")), "\"more\" where digest belongs"),
        ("an empty digest", &|m| m[2].data.clear(), "the digest is wrong"),
        ("a digest and more", &|m| m[2].data.push(b'\n'), "the digest is wrong"),
        ("a long digest", &|m| m[2].data.resize(2000, b' '), "of 2000 bytes"),
        ("a digest of 8 EiB", &|m| m[2].claimed_size = Some(i64::MAX as u64), "bytes"),
        ("a description of 8 EiB", &|m| m[0].claimed_size = Some(i64::MAX as u64), "bytes"),
        ("a disk of 8 EiB", &|m| m[1].claimed_size = Some(i64::MAX as u64), "bytes of data"),
        (
            "../disk.img",
            &|m| m[1].records.extend(pax_record("GNU.sparse.name", b"../disk.img")),
            "../disk.img",
        ),
        (
            "an absolute path",
            &|m| m[1].records.extend(pax_record("GNU.sparse.name", b"/disk.img")),
            "/disk.img",
        ),
        (
            "a long path",
            &|m| m[1].records.extend(pax_record("GNU.sparse.name", long.as_bytes())),
            "5000 bytes",
        ),
        ("/etc/passwd", &rename(2, "/etc/passwd"), "\"/etc/passwd\" where digest belongs"),
        ("../digest", &rename(2, "../digest"), "\"../digest\" where digest belongs"),
        ("a directory's name", &rename(2, "digest/"), "\"digest/\" where digest belongs"),
        ("no name", &rename(2, ""), "\"\" where digest belongs"),
        ("a GNU long name", &before(2, gnu_name("/etc/shadow")), "\"/etc/shadow\" where digest belongs"),
        ("a longer one", &before(2, gnu_name(&long)), "5000 bytes"),
        ("a path in PAX", &|m| m[2].records = pax_record("path", b"../../x"), "\"../../x\" where digest"),
        ("a size in PAX", &|m| m[2].records = pax_record("size", b"512"), "the digest is wrong"),
        ("a negative size", &|m| m[2].records = pax_record("size", b"-1"), "expected a decimal number"),
        (
            "a name that is no text",
            &|m| m[2].records = pax_record("path", b"\xff\x1b[2J"),
            "where digest belongs",
        ),
        ("a global header", &before(1, global), "a global extended header sets more than comments"),
        ("a symbolic link", &of_kind(1, b'2', "/dev/sda"), "\"disk.img\" where disk.img belongs"),
        ("a hard link", &of_kind(1, b'1', "/etc/passwd"), "\"disk.img\" where disk.img belongs"),
        ("a device", &of_kind(1, b'4', ""), "\"disk.img\" where disk.img belongs"),
        ("a FIFO", &of_kind(2, b'6', ""), "\"digest\" where digest belongs"),
        ("a directory", &of_kind(2, b'5', ""), "\"digest\" where digest belongs"),
        ("a multi-volume piece", &of_kind(2, b'M', ""), "which is not known here"),
        ("a description that is a link", &of_kind(0, b'2', "/etc/passwd"), "where instance.toml belongs"),
        ("a sparse description", &|m| m[0] = sparse(&m[0]), "instance.toml is a sparse file"),
        ("half a header before it", &|m| m[2].before = vec![7; 512], "reading the header's checksum"),
        ("a lone zero block", &|m| m[2].before = vec![0; 512], "a lone zero block"),
    ];
    try_each(cases, |(what, change, why)| {
        let mut members = backup.members(Notation::Pax10);
        change(&mut members);
        bench.assert_refused(what, &archive(&members), why);
    });
    for (what, more) in [("words", &b"more"[..]), ("a zero", b"\0"), ("itself", &bench.stream)] {
        let stream = [&bench.stream, more].concat();
        bench.assert_refused(&format!("followed by {what}"), &stream, "there is more behind the digest");
    }
    // What other tools write beside it, and what has no meaning.
    let harmless: [(&str, Edit<'_>); 4] = [
        ("as it is", &|_| {}),
        ("./ before each name", &|members| {
            members.iter_mut().for_each(|member| {
                let name = member.name.clone();
                if member.records.is_empty() {
                    member.name = format!("./{name}")
                }
            })
        }),
        ("a comment", &before(2, Member::new("g", &pax_record("comment", b"hello")).of_kind(b'g'))),
        ("a GNU long name for a short one", &before(2, gnu_name("digest"))),
    ];
    for (what, change) in harmless {
        let mut members = backup.members(Notation::Pax10);
        change(&mut members);
        bench.assert_restored(what, &archive(&members));
    }
}

/// A member as a sparse file without a hole.
fn sparse(member: &Member) -> Member {
    let size = member.data.len().to_string();
    Member::new(&member.name, &member.data)
        .record("GNU.sparse.size", &size)
        .record("GNU.sparse.map", &format!("0,{size}"))
}

#[test]
fn a_map_that_contradicts_itself_is_refused_in_every_notation() {
    let bench = Bench::bare();
    let backup = bench.backup();
    let size = backup.size_bytes;
    let data = vec![7; 8192];
    let max = i64::MAX as u64;
    let runs = |runs: &[(u64, u64)]| -> Vec<(String, String)> { runs.iter().map(decimal).collect() };
    let cases = [
        ("overlapping", runs(&[(0, 4096), (2048, 4096)]), "the sparse map is out of order at 2048"),
        ("descending", runs(&[(65536, 4096), (0, 4096)]), "the sparse map is out of order at 0"),
        ("twice the same", runs(&[(4096, 4096), (4096, 4096)]), "the sparse map is out of order at 4096"),
        ("beyond the end", runs(&[(0, 4096), (size - 4095, 4096)]), "reaches beyond the file's"),
        ("begins behind it", runs(&[(0, 4096), (size + 1, 0)]), "reaches beyond the file's"),
        ("a length of 63 bits", runs(&[(0, max)]), "reaches beyond the file's"),
        ("an offset of 63 bits", runs(&[(max, 8192)]), "reaches beyond the file's"),
        ("both", runs(&[(max, max), (max, max)]), "reaches beyond the file's"),
        ("more than is stored", runs(&[(0, 8193)]), "counts 8193 bytes of data, the archive has 8192"),
        ("less than is stored", runs(&[(0, 8191)]), "counts 8191 bytes of data, the archive has 8192"),
        ("nothing at all", runs(&[(size, 0)]), "counts 0 bytes of data, the archive has 8192"),
        ("no runs", Vec::new(), "counts 0 bytes of data, the archive has 8192"),
        ("a negative length", vec![("0".into(), "-1".into())], "-1"),
        ("a negative offset", vec![("-4096".into(), "8192".into())], "-4096"),
        ("64 bits", vec![("0".into(), "9223372036854775808".into())], "63 bits"),
    ];
    for notation in Notation::ALL {
        try_each(&cases, |(what, runs, why)| {
            let why = match (*why, notation) {
                ("63 bits", Notation::OldGnu) => "the number does not fit into 63 bits",
                ("63 bits", _) => "expected a decimal number",
                // No record of a run: a plain file.
                (_, Notation::Pax00) if runs.is_empty() => "disk.img has 8192 bytes, instance.toml says",
                (why, _) => why,
            };
            let mut members = backup.members(notation);
            members[1] = notation.disk(runs, &size.to_string(), &data);
            bench.assert_refused(&format!("{what}, {notation:?}"), &archive(&members), why);
        });
        for real_size in [size - 1, size + 1, 0, max] {
            let mut members = backup.members(notation);
            let all: Vec<_> = backup.runs.iter().map(decimal).collect();
            members[1] = notation.disk(&all, &real_size.to_string(), &backup.data);
            bench.assert_refused(&format!("{real_size} bytes, {notation:?}"), &archive(&members), "bytes");
        }
        bench.assert_restored(&format!("{notation:?}"), &archive(&backup.members(notation)));
    }
}

#[test]
fn a_map_that_cannot_be_read_or_is_endless_is_refused() {
    let bench = Bench::bare();
    let backup = bench.backup();
    let size = backup.size_bytes.to_string();
    let of_map = |map: &[u8]| Notation::with_map(map, &size, &[7; 512]);
    let many = |count: usize, run: &dyn Fn(usize) -> String| -> Vec<u8> {
        let lines: String = (0..count).map(run).collect();
        format!("{count}\n{lines}").into_bytes()
    };
    let with = |key: &str, value: &str| {
        let disk = backup.members(Notation::Pax10).remove(1);
        disk.record(key, value)
    };
    let ones = vec![1; 1_000_000];
    let cases = [
        ("no number", of_map(b"\n"), "expected a decimal number"),
        ("words", of_map(b"many\n"), "expected a decimal number"),
        ("more digits than a number has", of_map(&[b'1'; 100]), "more than 19 digits"),
        ("more entries than data", of_map(b"1000000\n0\n0\n"), "reading /disk.img"),
        ("far too many entries", of_map(b"999999999999\n"), "999999999999 entries"),
        (
            "a million runs of a byte",
            {
                let mut map = many(1_000_000, &|n| format!("{}\n1\n", n * 2));
                map.resize(map.len().next_multiple_of(512), 0);
                Notation::with_map(&map, &size, &ones)
            },
            "in 1000000 pieces",
        ),
        (
            "too many runs of nothing",
            {
                let map = many(2_000_000, &|_| "0\n0\n".into());
                Notation::with_map(&map, &size, &[7; 512])
            },
            "2000000 entries",
        ),
        (
            "a map without a size",
            { Member::new("disk.img", &[7; 512]).record("GNU.sparse.map", "0,512") },
            "without the file's size",
        ),
        (
            "an offset without a length",
            {
                Member::new("disk.img", &[7; 512])
                    .record("GNU.sparse.size", &size)
                    .record("GNU.sparse.map", "0")
            },
            "an offset has no length",
        ),
        (
            "a length without an offset",
            { Member::new("disk.img", &[7; 512]).record("GNU.sparse.numbytes", "512") },
            "no GNU.sparse.offset before it",
        ),
        ("another major version", with("GNU.sparse.major", "2"), "major version"),
        ("another minor version", with("GNU.sparse.minor", "7"), "minor version"),
        ("two sizes", with("GNU.sparse.realsize", "4096"), "reaches beyond the file's 4096 bytes"),
        ("a size that is none", with("GNU.sparse.realsize", "-1"), "expected a decimal number"),
    ];
    try_each(cases, |(what, disk, why)| {
        let mut members = backup.members(Notation::Pax10);
        members[1] = disk;
        bench.assert_refused(what, &archive(&members), why);
    });
    // A million of nothing mean nothing; that they are read takes little memory.
    let mut members = backup.members(Notation::Pax10);
    let mut map = String::new();
    backup.runs.iter().for_each(|(offset, length)| map += &format!("{offset}\n{length}\n"));
    let empty = 1_000_000;
    map = format!("{}\n{}{map}", empty + backup.runs.len(), "0\n0\n".repeat(empty));
    members[1] = Notation::with_map(map.as_bytes(), &size, &backup.data);
    bench.assert_restored("a million runs of nothing", &archive(&members));
    // Without a hole, and without a map.
    let whole = Backup { runs: vec![(0, backup.size_bytes)], data: bench.reference.clone(), ..backup };
    let mut members = whole.members(Notation::Pax10);
    members[1] = Member::new("disk.img", &whole.data);
    bench.assert_restored("a plain member", &archive(&members));
    members[1].data.pop();
    bench.assert_refused("a short plain member", &archive(&members), "instance.toml says");
}

#[test]
fn a_description_that_cannot_be_is_refused() {
    let bench = Bench::bare();
    let backup = bench.backup();
    let size = backup.size_bytes;
    let partition = |start: u64, length: u64| {
        let facts = format!("number = 1\nstart_bytes = {start}\nsize_bytes = {length}\ncontent = \"\"");
        format!("\n[[partition]]\n{facts}\n")
    };
    let append = |text: &str| Backup { manifest: backup.manifest.clone() + text, ..backup.clone() };
    let before = |text: &str| Backup { manifest: format!("{text}\n{}", backup.manifest), ..backup.clone() };
    let text = |text: String| Backup { manifest: text, ..backup.clone() };
    let sized =
        |to: &str| backup.with_manifest(&format!("size_bytes = {size}"), &format!("size_bytes = {to}"));
    let zeros = |ranges: &str| {
        let start = backup.manifest.find("zero = ").unwrap();
        let end = backup.manifest[start..].find("]]").map_or(start + 9, |at| start + at + 2);
        let manifest = [&backup.manifest[..start], "zero = ", ranges, &backup.manifest[end..]].concat();
        Backup { manifest, ..backup.clone() }
    };
    let max = i64::MAX as u64;
    let newer = "the backup has format 2, this program reads format 1\nhint: import it with a newer version";
    let cases = [
        ("a newer format", backup.with_manifest("format = 1", "format = 2"), newer),
        ("a newer format with other keys", text("format = 2\n".into()), newer),
        ("an older format", backup.with_manifest("format = 1", "format = 0"), "the backup has format 0"),
        ("no format", backup.with_manifest("format = 1\n", ""), "missing field `format`"),
        ("a negative format", backup.with_manifest("format = 1", "format = -1"), "format = -1"),
        ("a format in words", backup.with_manifest("format = 1", "format = \"1\""), "invalid type"),
        ("nothing", text(String::new()), "missing field `format`"),
        ("no disk", text("format = 1\nprogram = \"x\"\n".into()), "missing field `disk`"),
        ("a key twice", before("format = 1"), "duplicate key"),
        ("a table twice", append("\n[disk]\nindex = 0\n"), "duplicate key"),
        ("a size of 2^63", sized("9223372036854775808"), "instance.toml says that the disk has"),
        ("a size of 2^63 - 1", sized("9223372036854775807"), "instance.toml says 9223372036854775807"),
        ("a negative size", sized("-1"), "invalid value"),
        ("another size", sized(&(size + 1).to_string()), "instance.toml says"),
        ("a partition behind the disk", append(&partition(size, 1)), "beyond the disk's"),
        ("a partition of 63 bits", append(&partition(1, max)), "beyond the disk's"),
        ("both of 63 bits", append(&partition(max, max)), "beyond the disk's"),
        ("a thousand partitions and more", append(&partition(0, MIB).repeat(1025)), "1025 partitions"),
        ("zeros behind the disk", zeros(&format!("[[{size}, 1]]")), "beyond the disk's"),
        ("zeros of 63 bits", zeros(&format!("[[{max}, {max}]]")), "beyond the disk's"),
        ("negative zeros", zeros("[[-1, 1]]"), "invalid value"),
        ("zeros without a length", zeros("[[1]]"), "invalid length"),
        ("zeros that overlap", zeros("[[0, 8192], [4096, 8192]]"), "do not ascend"),
        ("zeros that descend", zeros("[[8192, 4096], [0, 4096]]"), "do not ascend"),
        (
            "a mebibyte of zeros",
            zeros(&format!("[{}]", "[0,0],".repeat(200_000))),
            "too many lines or elements",
        ),
        ("too many zeros", zeros(&format!("[{}]", "[0,0],".repeat(33_000))), "too many ranges of zeros"),
        ("deep nesting", before(&format!("x = {}", "[".repeat(100_000))), "reading instance.toml"),
        ("deeper nesting", before(&format!("x = {}", "[".repeat(1_000_000))), "too many lines"),
        ("deep tables", before(&format!("{}x = 1", "a.".repeat(10_000))), "reading instance.toml"),
        ("deeper tables", before(&format!("{}x = 1", "a.".repeat(1_000_000))), "too many lines or elements"),
        ("a long line of arrays", before(&format!("x = [{}]", "[],".repeat(600_000))), "too many lines"),
        ("a long line of numbers", before(&format!("x = [{}]", "1,".repeat(900_000))), "too many lines"),
        (
            "many keys",
            before(&(0..150_000).map(|n| format!("k{n} = 1\n")).collect::<String>()),
            "too many lines",
        ),
        ("many empty lines", append(&"\n".repeat(1 << 20)), "too many lines"),
        ("100 MiB of text", append(&format!("# {}", "x".repeat(100 << 20))), "bytes"),
    ];
    try_each(cases, |(what, backup, why)| bench.assert_refused(what, &backup.stream(), why));
    let mut members = backup.members(Notation::Pax10);
    members[0].data = [&members[0].data[..], b"# \xff\xfe\n"].concat();
    bench.assert_refused("no text", &archive(&members), "reading instance.toml");
    // Overlapping partitions and unknown keys contradict nothing that is relied on.
    let harmless = [
        ("partitions that overlap", append(&partition(0, MIB).repeat(2))),
        ("unknown keys", before("color = \"blue\"")),
        ("as many zeros as there may be", {
            let ranges: String = (0..32_768).map(|n| format!("[{}, 512],\n", n * 1024)).collect();
            zeros(&format!("[{}]", ranges.replace('\n', "")))
        }),
        ("a comment of a mebibyte", append(&format!("# {}\n", "x".repeat(1 << 20)))),
    ];
    for (what, backup) in harmless {
        bench.assert_restored(what, &backup.stream());
    }
}

#[test]
fn disks_smaller_than_a_sector_or_a_superblock_are_restored() {
    let bench = Bench::bare();
    let backup = bench.backup();
    let start = backup.manifest.find("zero = ").unwrap();
    let manifest = backup.manifest[..start].replace(&format!("= {}\n", backup.size_bytes), "= SIZE\n");
    for size in [0_u64, 1, 511, 512, 513, 4095, 65537, 70_000, MIB + 1] {
        let data = vec![7; size as usize];
        let runs = if size == 0 { Vec::new() } else { vec![(0, size)] };
        let manifest = manifest.replace("SIZE", &size.to_string());
        let small = Backup { manifest, size_bytes: size, runs, data: data.clone() };
        let target = bench.target();
        let ended = bench.import(&target, bench.feed(&small.stream()));
        assert!(ended.status.success(), "{size}: {}", ended.log);
        let restored = std::fs::read(target).unwrap();
        assert!(restored[..size as usize] == data && restored[size as usize..].iter().all(|byte| *byte == 0));
        bench.node.assert_nothing_left();
    }
}
