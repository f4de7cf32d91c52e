//! What the readers of xfs's and btrfs's maps call in use is enough: copies of that alone, with anything at all in the
//! rest, are the filesystem that was copied.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{GIB, Mounted, tool};
use ganeti_instance_debootstrap::disk::used::{Usage, UsedMap, xfs};
use ganeti_instance_debootstrap::sys;
use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// A directory for the images of one test.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("used-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
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

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
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
fn copy_used(from: &Path, map: &UsedMap, to: &Path, rest: Rest) {
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

fn part(usage: Usage) -> UsedMap {
    match usage {
        Usage::Part(map) => map,
        Usage::Whole(reason) => panic!("all of it: {reason}"),
    }
}

fn usage_of_xfs(image: &Path) -> Usage {
    let file = File::open(image).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    xfs::usage(&file, 0, size_bytes).unwrap()
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
        (GIB, "-m rmapbt=1,reflink=1 -b size=1024 -d agcount=16"),
        (GIB, "-m rmapbt=1 -n size=8192 -l su=256k"),
        (512 * MIB, "-b size=2048 -d agcount=2 -l size=10m,su=32k"),
        (GIB, "-s size=4096 -b size=4096"),
        (GIB, "-b size=16384"),
        (2 * GIB, "-b size=65536"),
        (GIB + 12345 * 512, "-d agcount=5,su=64k,sw=3"),
        (20 * GIB, ""),
    ];
    for (size_bytes, options) in kinds {
        let began = Instant::now();
        let original = image(dir.path(), "original", size_bytes);
        let original_path = original.to_str().unwrap();
        // Small logs, as older releases made them.
        let mut args = vec!["-q", "-f", "--unsupported"];
        args.extend(options.split_whitespace());
        args.push(original_path);
        tool("mkfs.xfs", &args);
        let mounted = Mounted::with(&original, "loop");
        fill(mounted.path(), &mut Dice(size_bytes), 40 * MIB);
        let wanted = contents(mounted.path());
        drop(mounted);

        let map = part(usage_of_xfs(&original));
        let block_bytes = options
            .split("-b size=")
            .nth(1)
            .map_or(4096, |rest| rest.split(' ').next().unwrap().parse().unwrap());
        let mut by_xfs_db = UsedMap::full(size_bytes);
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
            if rest == Rest::Random && size_bytes > 2 * GIB {
                continue;
            }
            let copy = dir.path().join("copy");
            copy_used(&original, &map, &copy, rest);
            tool("xfs_repair", &["-n", "-f", copy.to_str().unwrap()]);
            let mounted = Mounted::with(&copy, "loop,nouuid");
            assert_same(&contents(mounted.path()), &wanted, &format!("{options}, {rest:?}"));
        }
        eprintln!("{options}: {:?}", began.elapsed());
    }
}

/// What a writer was promised: content by name.
type Promises = BTreeMap<String, String>;

/// Writes, fsyncs, changes and deletes until `until`, or until the filesystem fails.
fn write_until(root: &Path, dice: &mut Dice, until: Instant) -> Promises {
    let mut promises = Promises::new();
    while Instant::now() < until {
        if write_one(root, dice, &mut promises).is_err() {
            break;
        }
    }
    promises
}

fn write_one(root: &Path, dice: &mut Dice, promises: &mut Promises) -> io::Result<()> {
    let name = format!("live{}/{}", dice.below(20), dice.below(3000));
    // From here on it may be there or not.
    promises.remove(&name);
    let path = root.join(&name);
    fs::create_dir_all(path.parent().unwrap())?;
    if dice.below(4) == 0 {
        return fs::remove_file(&path)
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
    }
    let size_bound = if dice.below(8) == 0 { 400 << 10 } else { 20 << 10 };
    let length = dice.below(size_bound) as usize;
    let bytes = dice.bytes(length);
    let mut file = File::create(&path)?;
    // In pieces with holes, backwards: many small extents.
    for start in (0..bytes.len()).step_by(12 << 10).rev() {
        file.write_all_at(&bytes[start..bytes.len().min(start + (12 << 10))], start as u64)?;
    }
    file.flush()?;
    if dice.below(3) == 0 {
        file.sync_all()?;
        // An fsync that the end of the filesystem overtook can say yes; nothing that comes after it can.
        file.metadata()?;
        promises.insert(name, hash(&bytes));
    }
    Ok(())
}

fn assert_kept(root: &Path, promises: &Promises, what: &str) {
    for (name, wanted) in promises {
        let found = fs::read(root.join(name)).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        assert_eq!(&hash(&found), wanted, "{what}: {name}");
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
        let original = image(dir.path(), "original", 400 * MIB);
        // Small logs, as older releases made them.
        let mut args = vec!["-q", "-f", "--unsupported"];
        args.extend(options.split_whitespace());
        args.push(original.to_str().unwrap());
        tool("mkfs.xfs", &args);
        let mounted = Mounted::with(&original, &format!("loop,{mount_options}"));
        let mut dice = Dice(77 + round as u64);
        let (root, until) = (mounted.path(), Instant::now() + Duration::from_millis(500 + 60 * round as u64));
        let promises = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until(root, &mut dice, until + Duration::from_secs(5)));
            std::thread::sleep(until - Instant::now());
            sys::shut_down_fs(&File::open(root).unwrap()).unwrap();
            writer.join().unwrap()
        });
        drop(mounted);
        assert!(!promises.is_empty(), "{what}");
        let usage = usage_of_xfs(&original);
        let map = match usage {
            Usage::Part(map) => map,
            Usage::Whole(reason) => {
                eprintln!("{what}: {reason}");
                continue;
            }
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
        let after = part(usage_of_xfs(&copy));
        eprintln!(
            "{what}: {} promises, {} in use, {} after replay",
            promises.len(),
            map.used_bytes() / MIB,
            after.used_bytes() / MIB
        );
    }
    assert!(parts >= 10, "only {parts} of 20 logs could be read");
}
