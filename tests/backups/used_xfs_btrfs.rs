//! What the readers of xfs's and btrfs's maps call in use is enough: copies of that alone, with anything at all in the
//! rest, are the filesystem that was copied.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::live::{Dice, assert_kept, hash, write_until, write_until_shut_down};
use crate::common::{GIB, Mounted, processor_time, tool};
use ganeti_instance_debootstrap::allocation::{AllocationMap, Usage, btrfs, xfs};
use ganeti_instance_debootstrap::reader::{Budget, Parsed, ReadAt, Region};
use ganeti_instance_debootstrap::sys;

const MIB: u64 = 1 << 20;

/// A directory for the images of one test.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("used-").tempdir_in(crate::common::scratch()).unwrap()
}

fn image(dir: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// What a guest's disk looks like inside: small and large files, holes, room that is reserved, and gaps of deleted ones.
fn fill(root: &Path, dice: &mut Dice, data_bytes: u64) {
    for dir in 0..8 {
        fs::create_dir_all(root.join(format!("d{dir}/sub"))).unwrap();
    }
    let mut names = Vec::new();
    let mut written = 0;
    while written < data_bytes {
        let length = match dice.below(10) {
            0 => dice.below(MIB),
            1..5 => dice.below(64 << 10),
            _ => dice.below(4 << 10),
        };
        let name = root.join(format!(
            "d{}/sub/{}-{}",
            dice.below(8),
            names.len(),
            "n".repeat(dice.below(90) as usize)
        ));
        fs::write(&name, dice.bytes(length as usize)).unwrap();
        names.push(name);
        written += length;
    }
    for name in &names {
        if dice.below(3) == 0 {
            fs::remove_file(name).unwrap();
        }
    }
    let sparse = File::create(root.join("holes")).unwrap();
    for _ in 0..50 {
        sparse.write_all_at(&dice.bytes(5000), dice.below(64 * MIB)).unwrap();
    }
    let reserved = root.join("reserved");
    tool("fallocate", &["-l", "3M", reserved.to_str().unwrap()]);
    symlink("a/long/target/".repeat(40), root.join("link")).unwrap();
    let mut large = File::create(root.join("large")).unwrap();
    large.write_all(&dice.bytes(data_bytes as usize / 4)).unwrap();
    large.sync_all().unwrap();
}

/// Every name, with what it is and holds.
fn contents(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        let what = if metadata.is_file() {
            hash(&fs::read(entry.path()).unwrap())
        } else if metadata.is_symlink() {
            fs::read_link(entry.path()).unwrap().display().to_string()
        } else {
            String::new()
        };
        let name = entry.path().strip_prefix(root).unwrap().to_owned();
        found.insert(name, format!("{:o} {} {what}", metadata.permissions().mode(), metadata.len()));
    }
    found
}

fn assert_same(found: &BTreeMap<PathBuf, String>, wanted: &BTreeMap<PathBuf, String>, what: &str) {
    let differing = |name: &&PathBuf| found.get(*name) != wanted.get(*name);
    let names: std::collections::BTreeSet<&PathBuf> =
        found.keys().chain(wanted.keys()).filter(differing).collect();
    let shown: Vec<_> = names.iter().take(5).map(|n| (n, found.get(*n), wanted.get(*n))).collect();
    assert!(names.is_empty(), "{what}: {} names differ: {shown:#?}", names.len());
}

/// What lies in a copy where nothing was copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Zeros,
    Random,
}

/// A copy of what is in use.
fn copy_used(from: &Path, map: &AllocationMap, to: &Path, rest: Rest) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    to.set_len(map.size_bytes()).unwrap();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let noise = dice.bytes(MIB as usize + 4096);
    let mut behind = 0;
    let fill = |range: std::ops::Range<u64>, dice: &mut Dice| {
        let mut at = range.start;
        while rest == Rest::Random && at < range.end {
            let length = MIB.min(range.end - at) as usize;
            let skip = dice.below(4096) as usize;
            to.write_all_at(&noise[skip..skip + length], at).unwrap();
            at += length as u64;
        }
    };
    for extent in map.extents() {
        fill(behind..extent.start, &mut dice);
        copy_range(&from, &to, extent.clone());
        behind = extent.end;
    }
    fill(behind..map.size_bytes(), &mut dice);
}

/// Without what the source has no bytes for.
fn copy_range(from: &File, to: &File, range: std::ops::Range<u64>) {
    let mut buffer = vec![0; MIB as usize];
    let mut at = range.start;
    while at < range.end {
        let length = (MIB.min(range.end - at)) as usize;
        let piece = &mut buffer[..length];
        from.read_exact_at(piece, at).unwrap();
        to.write_all_at(piece, at).unwrap();
        at += length as u64;
    }
}

fn part(usage: Usage) -> AllocationMap {
    match usage {
        Usage::Part(map) => map,
        Usage::Whole(reason) => panic!("all of it: {reason}"),
    }
}

fn usage_of_xfs(image: &Path) -> Usage {
    usage(image, xfs::map)
}

fn usage_of_btrfs(image: &Path) -> Usage {
    usage(image, btrfs::map)
}

/// An answer; what is honest takes less than half of the work that there is for it.
fn usage(image: &Path, reader: fn(&Region<'_>) -> Parsed<AllocationMap>) -> Usage {
    let file = File::open(image).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    let budget = Budget::of_disk(size_bytes);
    let usage = Usage::of(reader(&Region::new(&file, &budget, 0, size_bytes))).unwrap();
    let (spent, limit) = (budget.spent(), budget.limit());
    assert!(spent.bytes <= limit.bytes / 2 && spent.records <= limit.records / 2, "{spent:?} of {limit:?}");
    usage
}

/// What xfs_db calls free, in bytes.
fn free_by_xfs_db(image: &Path, block_bytes: u64) -> Vec<std::ops::Range<u64>> {
    let field = |name: &str| -> u64 {
        let args = ["-r", "-f", "-c", "sb 0", "-c", &format!("print {name}"), image.to_str().unwrap()];
        tool("xfs_db", &args).trim().rsplit(' ').next().unwrap().parse().unwrap()
    };
    let group_blocks = field("agblocks");
    let listed = tool("xfs_db", &["-r", "-f", "-c", "freesp -d", image.to_str().unwrap()]);
    let numbers =
        |line: &str| -> Option<Vec<u64>> { line.split_whitespace().map(|n| n.parse().ok()).collect() };
    // Group, block and length; the histogram below has more columns.
    let extents = listed.lines().filter_map(numbers).filter(|numbers| numbers.len() == 3);
    let bytes = extents.map(|n| {
        let start = (n[0] * group_blocks + n[1]) * block_bytes;
        start..start + n[2] * block_bytes
    });
    bytes.collect()
}

#[test]
fn a_copy_of_what_xfs_uses_is_that_xfs() {
    let dir = scratch();
    let kinds: [(u64, &str); 9] = [
        (300 * MIB, "-m reflink=0"),
        (500 * MIB, "-m rmapbt=1,reflink=1 -b size=1024 -d agcount=16"),
        (400 * MIB, "-m rmapbt=1 -n size=8192 -l su=256k"),
        (350 * MIB, "-b size=2048 -d agcount=2 -l size=10m,su=32k"),
        (400 * MIB, "-s size=4096 -b size=4096"),
        (600 * MIB, "-b size=16384"),
        (GIB, "-b size=65536"),
        (400 * MIB + 12345 * 512, "-d agcount=5,su=64k,sw=3"),
        (20 * GIB, ""),
    ];
    for (size_bytes, options) in kinds {
        let original = image(dir.path(), "original", size_bytes);
        let original_path = original.to_str().unwrap();
        // Small logs, as older releases made them.
        let mut args = vec!["-q", "-f", "--unsupported"];
        args.extend(options.split_whitespace());
        args.push(original_path);
        tool("mkfs.xfs", &args);
        let mounted = Mounted::with(&original, "loop");
        fill(mounted.path(), &mut Dice(size_bytes), 20 * MIB);
        let wanted = contents(mounted.path());
        drop(mounted);

        let map = part(usage_of_xfs(&original));
        let block_bytes = options
            .split("-b size=")
            .nth(1)
            .map_or(4096, |rest| rest.split(' ').next().unwrap().parse().unwrap());
        let mut by_xfs_db = AllocationMap::full(size_bytes);
        for free in free_by_xfs_db(&original, block_bytes) {
            by_xfs_db.clear(free.start, free.end - free.start);
        }
        // xfs_db calls free what each group holds ready for its own trees; the reader keeps it.
        let mut both = by_xfs_db.clone();
        map.extents().for_each(|used| both.mark(used.start, used.end - used.start));
        assert_eq!(both, map, "{options}: free by the reader alone");
        let kept = map.used_bytes() - by_xfs_db.used_bytes();
        assert!(kept <= 16 * 10 * block_bytes, "{options}: {kept} bytes are in use by the reader alone");
        assert!(map.used_bytes() < 250 * MIB, "{options}: {} in use", map.used_bytes());
        for rest in [Rest::Zeros, Rest::Random] {
            if rest == Rest::Random && size_bytes > GIB {
                continue;
            }
            let copy = dir.path().join("copy");
            copy_used(&original, &map, &copy, rest);
            tool("xfs_repair", &["-n", "-f", copy.to_str().unwrap()]);
            let mounted = Mounted::with(&copy, "loop,nouuid");
            assert_same(&contents(mounted.path()), &wanted, &format!("{options}, {rest:?}"));
        }
    }
}

/// Version 4 is no longer mounted by every kernel: mkfs itself fills it, and reads it back.
#[test]
fn a_copy_of_what_xfs_of_version_4_uses_is_that_xfs() {
    let dir = scratch();
    let content = dir.path().join("content");
    fs::write(&content, Dice(3).bytes(3 * MIB as usize)).unwrap();
    let mut prototype = String::from("/\n0 0\nd--755 0 0\n");
    for number in 0..20 {
        prototype += &format!("f{number} ---644 0 0 {}\n", content.display());
    }
    let prototype_path = dir.path().join("prototype");
    fs::write(&prototype_path, prototype + "$\n").unwrap();
    for options in ["-m crc=0 -b size=512", "-m crc=0,finobt=0 -d agcount=7", "-m crc=0 -l version=1"] {
        let original = image(dir.path(), "original", 300 * MIB);
        let (path, prototype_path) = (original.to_str().unwrap(), prototype_path.to_str().unwrap());
        let mut args = vec!["-q", "-f", "--unsupported", "-p", prototype_path];
        args.extend(options.split_whitespace());
        tool("mkfs.xfs", &[&args[..], &[path]].concat());
        let map = part(usage_of_xfs(&original));
        assert!((60 * MIB..200 * MIB).contains(&map.used_bytes()), "{options}: {}", map.used_bytes());
        for rest in [Rest::Zeros, Rest::Random] {
            let copy = dir.path().join("copy");
            copy_used(&original, &map, &copy, rest);
            tool("xfs_repair", &["-n", "-f", copy.to_str().unwrap()]);
            // All that a dump of metadata and its free space says is the same.
            let dump =
                |image: &Path| tool("xfs_db", &["-r", "-f", "-c", "freesp -d", image.to_str().unwrap()]);
            assert_eq!(dump(&copy), dump(&original), "{options}");
        }
    }
}

#[test]
fn an_xfs_that_was_stopped_dead_is_copied_with_its_log() {
    let dir = scratch();
    let kinds = [
        ("-m rmapbt=1 -l size=16m", "logbsize=32k"),
        ("-m reflink=0 -b size=1024 -d agcount=9 -l size=10m", "logbsize=256k"),
        ("-l su=32k", "logbsize=64k"),
        ("-m rmapbt=1 -l size=32m", "logbsize=256k"),
    ];
    let mut parts = 0;
    for round in 0..20 {
        let (options, mount_options) = kinds[round % kinds.len()];
        let what = format!("round {round}, {options}, {mount_options}");
        let original = image(dir.path(), "original", 300 * MIB);
        // Small logs, as older releases made them.
        let mut args = vec!["-q", "-f", "--unsupported"];
        args.extend(options.split_whitespace());
        args.push(original.to_str().unwrap());
        tool("mkfs.xfs", &args);
        let mounted = Mounted::with(&original, &format!("loop,{mount_options}"));
        let after = Duration::from_millis(300 + 20 * round as u64);
        let promises = write_until_shut_down(mounted.path(), &mut Dice(77 + round as u64), after);
        drop(mounted);
        assert!(!promises.is_empty(), "{what}");
        let usage = usage_of_xfs(&original);
        let map = match usage {
            Usage::Part(map) => map,
            // Several writes of the log were under way, and not in their order.
            Usage::Whole(_) => continue,
        };
        parts += 1;
        let copy = dir.path().join("copy");
        copy_used(&original, &map, &copy, if round % 2 == 0 { Rest::Zeros } else { Rest::Random });
        let mounted = Mounted::with(&copy, "loop,nouuid");
        assert_kept(mounted.path(), &promises, &what);
        let found = contents(mounted.path());
        drop(mounted);
        tool("xfs_repair", &["-n", "-f", copy.to_str().unwrap()]);
        // The whole of it, replayed, has no file more and none less.
        assert_same(&found, &contents(Mounted::with(&original, "loop,nouuid").path()), &what);
        // Replay finds nothing to add but what its own trees need.
        let after = part(usage_of_xfs(&copy)).used_bytes();
        assert!(
            map.used_bytes().abs_diff(after) < 8 * MIB,
            "{what}: {} before, {after} after",
            map.used_bytes()
        );
    }
    assert!(parts >= 10, "only {parts} of 20 logs could be read");
}

/// Its data's checksums included.
fn check_btrfs(image: &Path) {
    tool("btrfs", &["check", "--readonly", "--check-data-csum", image.to_str().unwrap()]);
}

#[test]
fn a_copy_of_what_btrfs_uses_is_that_btrfs() {
    let dir = scratch();
    let kinds = [
        (300 * MIB, "", "noatime"),
        (300 * MIB, "-m single -n 4096 -O ^no-holes -R ^free-space-tree", "space_cache=v1"),
        (600 * MIB, "-m dup -d dup -n 65536", "compress-force=zstd"),
        (400 * MIB, "-m single -d single -n 32768", "compress=lzo,autodefrag"),
        (400 * MIB, "--mixed -n 4096", "compress=zlib"),
        (300 * MIB, "--csum xxhash -R quota", "nodatacow"),
        (300 * MIB, "--csum sha256 -O ^skinny-metadata", "nodatasum"),
        (20 * GIB, "", "noatime"),
    ];
    for (size_bytes, options, mount_options) in kinds {
        let what = format!("{options}, {mount_options}");
        let original = image(dir.path(), "original", size_bytes);
        let mut args = vec!["-q", "-f"];
        args.extend(options.split_whitespace());
        args.push(original.to_str().unwrap());
        tool("mkfs.btrfs", &args);
        let mounted = Mounted::with(&original, &format!("loop,{mount_options}"));
        let inside = |name: &str| mounted.path().join(name).to_str().unwrap().to_owned();
        tool("btrfs", &["subvolume", "create", &inside("volume")]);
        fill(&mounted.path().join("volume"), &mut Dice(size_bytes), 15 * MIB);
        tool("btrfs", &["subvolume", "snapshot", "-r", &inside("volume"), &inside("snapshot")]);
        fs::remove_dir_all(mounted.path().join("volume/d3")).unwrap();
        fs::write(mounted.path().join("text"), "compresses well\n".repeat(100_000)).unwrap();
        let wanted = contents(mounted.path());
        drop(mounted);

        let map = part(usage_of_btrfs(&original));
        assert!(map.used_bytes() < 230 * MIB, "{what}: {} in use", map.used_bytes());
        for rest in [Rest::Zeros, Rest::Random] {
            if rest == Rest::Random && size_bytes > GIB {
                continue;
            }
            let copy = dir.path().join("copy");
            copy_used(&original, &map, &copy, rest);
            check_btrfs(&copy);
            // Alone: never two of one UUID.
            let mounted = Mounted::with(&copy, "loop");
            assert_same(&contents(mounted.path()), &wanted, &format!("{what}, {rest:?}"));
            // Both copies of what is there twice.
            let report = tool("btrfs", &["scrub", "start", "-B", mounted.path().to_str().unwrap()]);
            assert!(report.contains("no errors found"), "{what}: {report}");
        }
    }
}

#[test]
fn a_btrfs_that_is_being_written_is_copied_with_its_log_trees() {
    let dir = scratch();
    let kinds =
        [("", "noatime"), ("--mixed -n 4096", "compress-force=zstd"), ("-m single -d dup", "nodatacow")];
    let mut logs = 0;
    for round in 0..20 {
        let (options, mount_options) = kinds[round % kinds.len()];
        let what = format!("round {round}, {options}, {mount_options}");
        let original = image(dir.path(), "original", 300 * MIB);
        let mut args = vec!["-q", "-f"];
        args.extend(options.split_whitespace());
        args.push(original.to_str().unwrap());
        tool("mkfs.btrfs", &args);
        let mounted = Mounted::with(&original, &format!("loop,commit=300,{mount_options}"));
        let until = Instant::now() + Duration::from_millis(300 + 20 * round as u64);
        let promises = write_until(mounted.path(), &mut Dice(99 + round as u64), until);
        // As it lies: what the kernel has not written yet is not in it, and it commits nothing meanwhile.
        let snapshot = dir.path().join("snapshot");
        tool("cp", &["--sparse=always", original.to_str().unwrap(), snapshot.to_str().unwrap()]);
        drop(mounted);
        let superblock = {
            let mut bytes = vec![0; 4096];
            File::open(&snapshot).unwrap().read_exact_at(&mut bytes, 64 << 10).unwrap();
            bytes
        };
        logs += usize::from(superblock[0x60..0x68] != [0; 8]);
        let map = part(usage_of_btrfs(&snapshot));
        let copy = dir.path().join("copy");
        copy_used(&snapshot, &map, &copy, if round % 2 == 0 { Rest::Zeros } else { Rest::Random });
        let mounted = Mounted::with(&copy, "loop");
        assert_kept(mounted.path(), &promises, &what);
        let found = contents(mounted.path());
        drop(mounted);
        check_btrfs(&copy);
        let mounted = Mounted::with(&snapshot, "loop");
        assert_same(&found, &contents(mounted.path()), &what);
        drop(mounted);
    }
    assert!(logs >= 10, "only {logs} of 20 had log trees");
}

/// A disk in memory that can be damaged, and remembers what was read.
struct Patched<'a> {
    image: &'a File,
    /// Where the filesystem lies on it.
    start_bytes: u64,
    patches: BTreeMap<u64, u8>,
    reads: std::cell::RefCell<Vec<(u64, usize)>>,
}

impl ReadAt for Patched<'_> {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = offset.checked_sub(self.start_bytes).expect("a read before the filesystem");
        assert!(buffer.len() <= MIB as usize, "{} bytes at once", buffer.len());
        self.reads.borrow_mut().push((at, buffer.len()));
        self.image.read_exact_at(buffer, at)?;
        for (place, byte) in self.patches.range(at..at + buffer.len() as u64) {
            buffer[(place - at) as usize] = *byte;
        }
        Ok(())
    }
}

impl<'a> Patched<'a> {
    fn over(image: &'a File) -> Patched<'a> {
        Patched { image, start_bytes: 1 << 33, patches: BTreeMap::new(), reads: Default::default() }
    }

    fn patch(&mut self, at: u64, bytes: &[u8]) {
        self.patches.extend(bytes.iter().enumerate().map(|(i, byte)| (at + i as u64, *byte)));
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_into(&mut bytes, self.start_bytes + at).unwrap();
        bytes
    }

    /// The checksum of what was damaged is made to hold again.
    fn mend_checksum(&mut self, block: u64, length: usize) {
        let bytes = self.bytes(block, length);
        let at = match &bytes[..4] {
            b"XFSB" => 224,
            b"XAGF" => 216,
            b"AB3B" => 52,
            _ if bytes.len() >= 4096 && length < MIB as usize => 0,
            _ => return,
        };
        let mut digest = CRC32C.digest();
        if at == 0 {
            digest.update(&bytes[32..]);
        } else {
            digest.update(&bytes[..at]);
            digest.update(&[0; 4]);
            digest.update(&bytes[at + 4..]);
        }
        let checksum = digest.finalize().to_le_bytes();
        self.patch(block + at as u64, &checksum);
    }

    /// The same for the record of xfs's log that holds this byte.
    fn mend_record(&mut self, log: &std::ops::Range<u64>, at: u64) {
        let be32 =
            |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let unit = at / 512 * 512;
        let starts =
            (0..520).map_while(|back| unit.checked_sub(back * 512)).take_while(|at| *at >= log.start);
        let Some((start, header)) =
            starts.map(|at| (at, self.bytes(at, 512))).find(|(_, bytes)| be32(bytes, 0) == 0xfeed_babe)
        else {
            return;
        };
        let (length, units) = (be32(&header, 12), be32(&header, 320).div_ceil(32 << 10).clamp(1, 8));
        if length > 256 << 10 || start + (units * 512 + length) as u64 > log.end {
            return;
        }
        let mut digest = CRC32C.digest();
        digest.update(&header[..32]);
        digest.update(&[0; 4]);
        digest.update(&header[36..328]);
        for unit in 1..length.div_ceil(32 << 10).min(units) {
            digest.update(&self.bytes(start + unit as u64 * 512, 260));
        }
        digest.update(&self.bytes(start + units as u64 * 512, length));
        let checksum = digest.finalize().to_le_bytes();
        self.patch(start + 32, &checksum);
    }
}

const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
type Reader = fn(&Region<'_>) -> anyhow::Result<Usage>;

/// An answer, soon.
fn answer(reader: Reader, disk: &Patched, size_bytes: u64, what: &str) -> Usage {
    let budget = Budget::of_disk(size_bytes);
    let region = Region::new(disk, &budget, disk.start_bytes, size_bytes);
    let (usage, took) = processor_time(|| reader(&region));
    assert!(took < Duration::from_secs(1), "{what}: {took:?}");
    usage.unwrap_or_else(|e| panic!("{what}: {e:#}"))
}

/// Damages what `reader` reads: every field of the superblock, and places anywhere; most of it with a good checksum.
fn damage(image: &Path, reader: Reader, superblock: (u64, usize), log: std::ops::Range<u64>) {
    let file = File::open(image).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    let sound = Patched::over(&file);
    let usage = answer(reader, &sound, size_bytes, "undamaged");
    let undamaged = part(usage);
    assert!(undamaged.used_bytes() < size_bytes);
    let mut reads = sound.reads.take();
    reads.sort_unstable();
    reads.dedup();
    let (mut parts, mut wholes) = (0, 0);
    let mut count = |usage: Usage| match usage {
        Usage::Part(_) => parts += 1,
        Usage::Whole(_) => wholes += 1,
    };
    for field in (0..superblock.1.min(0x32b + 256)).step_by(2) {
        for value in
            [&[0u8; 8][..], &[0xff; 8], &[0x80, 0, 0, 0, 0, 0, 0, 0x80], &[0xff; 2], &[0, 1], &[1, 0]]
        {
            let mut disk = Patched::over(&file);
            disk.patch(superblock.0 + field as u64, value);
            disk.mend_checksum(superblock.0, superblock.1);
            count(answer(reader, &disk, size_bytes, &format!("superblock {field:#x} {value:x?}")));
        }
    }
    let mut dice = Dice(4711);
    for round in 0..500 {
        let mut disk = Patched::over(&file);
        let (block, length) = reads[dice.below(reads.len() as u64) as usize];
        let mut at = block + dice.below(length as u64);
        // Where records and keys begin, more often than not.
        if dice.below(2) == 0 {
            at = block + dice.below(256.min(length as u64));
        }
        match dice.below(3) {
            0 => disk.patch(at, &[1 << dice.below(8)]),
            1 => disk.patch(at, &[0xff; 4]),
            _ => {
                let length = 1 + dice.below(8) as usize;
                let noise = dice.bytes(length);
                disk.patch(at, &noise);
            }
        }
        if round % 4 != 0 && log.contains(&at) {
            disk.mend_record(&log, at);
        } else if round % 4 != 0 {
            disk.mend_checksum(block, length);
        }
        let what = format!("round {round}: byte {at}");
        let usage = answer(reader, &disk, size_bytes, &what);
        // Without a checksum that was mended, damage is found, or lies where nothing is read from.
        assert!(
            round % 4 != 0 || matches!(&usage, Usage::Whole(_)) || usage == Usage::Part(undamaged.clone()),
            "{what}"
        );
        count(usage);
    }
    assert!(wholes > 200, "{wholes}");
    // An end that comes too early is an answer too.
    let mut short = size_bytes;
    while short > 0 {
        short /= 2;
        assert!(matches!(answer(reader, &Patched::over(&file), short, "short"), Usage::Whole(_)), "{short}");
    }
}

/// The most that this process has ever had in memory.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn damaged_maps_have_an_answer() {
    let dir = scratch();
    let before = peak_memory_bytes();
    for (filesystem, options) in [("xfs", "--unsupported -m rmapbt=1 -l size=16m"), ("btrfs", "-n 4096")] {
        let path = image(dir.path(), filesystem, 300 * MIB);
        let mut args = vec!["-q", "-f"];
        args.extend(options.split_whitespace());
        args.push(path.to_str().unwrap());
        tool(&format!("mkfs.{filesystem}"), &args);
        let mounted = Mounted::with(&path, "loop");
        fill(mounted.path(), &mut Dice(5), 15 * MIB);
        let writer_end = Instant::now() + Duration::from_millis(400);
        write_until(mounted.path(), &mut Dice(6), writer_end);
        if filesystem == "xfs" {
            sys::shut_down_fs(&File::open(mounted.path()).unwrap()).unwrap();
            drop(mounted);
            let field = |name: &str| -> u64 {
                let args = ["-r", "-f", "-c", "sb 0", "-c", &format!("print {name}"), path.to_str().unwrap()];
                tool("xfs_db", &args).trim().rsplit(' ').next().unwrap().parse().unwrap()
            };
            let (start, blocks) = (field("logstart"), field("logblocks"));
            let bits = field("agblklog");
            let block = (start >> bits) * field("agblocks") + (start & ((1 << bits) - 1));
            damage(
                &path,
                |region| Usage::of(xfs::map(region)),
                (0, 512),
                block * 4096..(block + blocks) * 4096,
            );
        } else {
            let snapshot = dir.path().join("snapshot");
            tool("cp", &["--sparse=always", path.to_str().unwrap(), snapshot.to_str().unwrap()]);
            drop(mounted);
            damage(&snapshot, |region| Usage::of(btrfs::map(region)), (64 << 10, 4096), 0..0);
        }
    }
    let grown = peak_memory_bytes() - before;
    assert!(grown < 64 * MIB, "{grown} bytes");
}
