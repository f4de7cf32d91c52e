//! What of an ext filesystem is in use: against what e2fsprogs and the kernel say of every kind of one, of filesystems
//! that were stopped dead, and of ones that nobody made. Needs root.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::common::{Mounted, processor_time, tool};
use ganeti_instance_debootstrap::allocation::{AllocationMap, Usage, ext4};
use ganeti_instance_debootstrap::reader::{Budget, ReadAt, Region};
use ganeti_instance_debootstrap::sys;
use sha2::{Digest, Sha256};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// So much of what is not in the map is overwritten at each end of a gap.
const NOISE_BYTES: u64 = 256 * KIB;

/// A generator of numbers that are the same in every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let words = count.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count as usize);
        bytes
    }
}

/// Room in memory: what is measured here does not depend on when a disk has it, and dozens of filesystems are synced.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A loop device may let go of its file a moment later than its mount.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn scratch() -> Scratch {
    let dir = tempfile::Builder::new().prefix("used-ext-").tempdir_in(crate::common::scratch()).unwrap();
    tool("mount", &["-t", "tmpfs", "-o", "size=3g", "used-ext", dir.path().to_str().unwrap()]);
    Scratch(dir)
}

/// A sparse file with a filesystem; `options` are those of mke2fs, in one line.
fn made(path: &Path, size_bytes: u64, options: &str) {
    File::create(path).unwrap().set_len(size_bytes).unwrap();
    let mut args: Vec<&str> = vec!["-q", "-F"];
    args.extend(options.split_whitespace());
    args.push(path.to_str().unwrap());
    tool("mke2fs", &args);
}

fn usage(path: &Path) -> Usage {
    let file = File::open(path).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    let budget = Budget::of_disk(size_bytes);
    let usage = Usage::of(ext4::map(&Region::new(&file, &budget, 0, size_bytes))).unwrap();
    // What is honest takes less than half of the work that there is for it.
    let (spent, limit) = (budget.spent(), budget.limit());
    assert!(spent.bytes <= limit.bytes / 2 && spent.records <= limit.records / 2, "{spent:?} of {limit:?}");
    usage
}

fn map(path: &Path, what: &str) -> AllocationMap {
    match usage(path) {
        Usage::Part(map) => map,
        Usage::Whole(reason) => panic!("{what}: {reason}"),
    }
}

/// Copies what is in use, and leaves zeros or noise elsewhere.
fn copied(source: &Path, target: &Path, map: &AllocationMap, noise: bool) {
    let (source, size_bytes) = (File::open(source).unwrap(), map.size_bytes());
    let target = File::create(target).unwrap();
    target.set_len(size_bytes).unwrap();
    let mut numbers = Numbers(size_bytes | 1);
    let mut end = 0;
    let mut gap = |gap: Range<u64>| {
        if noise && !gap.is_empty() {
            let count = NOISE_BYTES.min(gap.end - gap.start);
            let bytes = numbers.bytes(count);
            target.write_all_at(&bytes, gap.start).unwrap();
            target.write_all_at(&bytes, gap.end - count).unwrap();
        }
    };
    for extent in map.extents() {
        gap(end..extent.start);
        end = extent.end;
        let mut at = extent.start;
        while at < extent.end {
            let mut bytes = vec![0; MIB.min(extent.end - at) as usize];
            source.read_exact_at(&mut bytes, at).unwrap();
            if bytes.iter().any(|byte| *byte != 0) || noise {
                target.write_all_at(&bytes, at).unwrap();
            }
            at += bytes.len() as u64;
        }
    }
    gap(end..size_bytes);
}

/// All that is in a tree: what it is, how long, and its content.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let path = entry.path();
        let what = if entry.file_type().is_file() {
            let bytes = fs::read(path).unwrap();
            format!("{} {:x}", bytes.len(), Sha256::digest(&bytes))
        } else if entry.file_type().is_symlink() {
            fs::read_link(path).unwrap().display().to_string()
        } else {
            "directory".into()
        };
        all.insert(path.strip_prefix(root).unwrap().to_owned(), what);
    }
    all
}

/// Files, holes, what is allocated and not written, links, many names, and what was deleted between them.
fn fill(root: &Path, up_to_bytes: u64, numbers: &mut Numbers) {
    let mut left = up_to_bytes;
    for index in 0..120u64 {
        let dir = root.join(format!("d{}/e{}", index % 7, index % 3));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("f{index}"));
        let length = match index % 4 {
            0 => numbers.below(100),
            1 => numbers.below(9000),
            _ => numbers.below(up_to_bytes / 25),
        };
        if length > left {
            break;
        }
        left -= length;
        let file = File::create(&path).unwrap();
        match index % 5 {
            // A hole at the start.
            3 => file.write_all_at(&numbers.bytes(length / 8), 900_000 + length).unwrap(),
            // Unwritten blocks; ext2 and ext3 cannot.
            4 => drop(nix::fcntl::fallocate(
                &file,
                nix::fcntl::FallocateFlags::empty(),
                0,
                i64::try_from(length + 1).unwrap(),
            )),
            _ => file.write_all_at(&numbers.bytes(length), 0).unwrap(),
        }
        if index % 11 == 0 {
            symlink("x".repeat(200), dir.join(format!("long{index}"))).unwrap();
            fs::hard_link(&path, dir.join(format!("hard{index}"))).unwrap();
        }
        // What was written stands on the disk before it goes.
        if index % 30 == 29 {
            file.sync_all().unwrap();
            for gone in index - 20..index - 10 {
                let _ = fs::remove_file(root.join(format!("d{}/e{}/f{gone}", gone % 7, gone % 3)));
            }
        }
    }
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for index in 0..150 {
        File::create(many.join(format!("{index:060}"))).unwrap();
    }
}

fn numbers_after<'a>(line: &'a str, word: &str) -> impl Iterator<Item = u64> + use<'a> {
    let rest = line.split_once(word).map_or("", |(_, rest)| rest);
    rest.split(|c: char| !c.is_ascii_digit())
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().unwrap())
}

/// What dumpe2fs says is in use; without what its groups have not written of their inode tables.
fn map_of_dumpe2fs(path: &Path) -> AllocationMap {
    let text = tool("dumpe2fs", &[path.to_str().unwrap()]);
    let field = |name: &str| text.lines().find_map(|line| numbers_after(line, name).next());
    let block_bytes = field("Block size:").unwrap();
    let per_cluster = field("Cluster size:").map_or(1, |bytes| bytes / block_bytes);
    let inodes_per_group = field("Inodes per group:").unwrap();
    let inode_bytes = field("Inode size:").unwrap();
    let blocks = field("Block count:").unwrap();
    let size_bytes = fs::metadata(path).unwrap().len();
    let mut map = AllocationMap::empty(size_bytes);
    let mut unwritten = Vec::new();
    let (mut zeroed, mut table, mut group) = (false, 0..0, 0..0);
    map.mark(0, 2048);
    map.mark(blocks * block_bytes, size_bytes);
    for line in text.lines() {
        if line.contains(": (Blocks ") {
            zeroed = line.contains("ITABLE_ZEROED") || !line.contains("csum");
            let mut ends = numbers_after(line, "(Blocks ");
            group = ends.next().unwrap()..ends.next().unwrap() + 1;
        } else if line.contains("Inode table at ") {
            let mut ends = numbers_after(line, "Inode table at ");
            table = ends.next().unwrap()..ends.next().unwrap() + 1;
        } else if line.ends_with("unused inodes") {
            let unused: u64 =
                line.trim().rsplit(", ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
            let used_blocks = ((inodes_per_group - unused) * inode_bytes).div_ceil(block_bytes);
            if !zeroed {
                unwritten.push(table.start + used_blocks..table.end);
            }
        } else if line.trim().starts_with("Free blocks:") && line.starts_with(' ') {
            let list = line.split_once(':').unwrap().1;
            let mut at = group.start;
            for range in list.split(", ").map(str::trim).filter(|range| !range.is_empty()) {
                let mut ends = numbers_after(range, "");
                let start = ends.next().unwrap();
                // The end is a cluster, too.
                let end = ends.next().unwrap_or(start) + per_cluster;
                map.mark(at * block_bytes, (start - at) * block_bytes);
                at = end;
            }
            map.mark(at * block_bytes, group.end.saturating_sub(at) * block_bytes);
        }
    }
    for range in unwritten {
        map.clear(range.start * block_bytes, (range.end - range.start) * block_bytes);
    }
    map
}

fn e2fsck(path: &Path) {
    tool("e2fsck", &["-fn", path.to_str().unwrap()]);
}

/// Wants that a copy of what is in use, over zeros and over noise, is the same filesystem.
fn assert_copies_are_whole(dir: &Path, source: &Path, map: &AllocationMap, what: &str) {
    let expected = listing(Mounted::with(source, "ro,loop").path());
    for noise in [false, true] {
        let copy = dir.join("copy");
        copied(source, &copy, map, noise);
        e2fsck(&copy);
        assert_eq!(listing(Mounted::with(&copy, "ro,loop").path()), expected, "{what}, noise {noise}");
        fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn the_map_of_every_kind_is_that_of_e2fsprogs_and_a_copy_by_it_is_whole() {
    for (size_bytes, options) in [
        (8 * MIB, "-t ext2 -b 1024"),
        (60 * MIB, "-t ext2 -b 2048"),
        (200 * MIB, "-t ext2 -b 4096 -O ^sparse_super,^resize_inode"),
        (100 * MIB, "-t ext3 -b 1024"),
        (300 * MIB, "-t ext3 -b 2048"),
        (3 * GIB, "-t ext3 -b 4096"),
        (8 * MIB, "-t ext4 -b 1024"),
        (70 * MIB, "-t ext4 -b 1024 -O ^64bit,^metadata_csum,uninit_bg"),
        (300 * MIB + 12345, "-t ext4 -b 2048"),
        (GIB + 4096, "-t ext4"),
        (3 * GIB, "-t ext4 -E nodiscard"),
        (300 * MIB, "-t ext4 -b 1024 -E nodiscard -O ^64bit,^metadata_csum,uninit_bg"),
        (GIB, "-t ext4 -E lazy_itable_init=0,lazy_journal_init=0"),
        (2 * GIB, "-t ext4 -O ^flex_bg"),
        (2 * GIB, "-t ext4 -O ^flex_bg,^64bit,^metadata_csum,uninit_bg"),
        (2 * GIB, "-t ext4 -O ^metadata_csum,^uninit_bg"),
        (2 * GIB, "-t ext4 -O ^resize_inode,meta_bg"),
        (300 * MIB, "-t ext4 -b 1024 -O ^resize_inode,meta_bg,^flex_bg"),
        (2 * GIB, "-t ext4 -O sparse_super2,^resize_inode"),
        (2 * GIB, "-t ext4 -O bigalloc -C 65536"),
        (400 * MIB, "-t ext4 -b 1024 -O bigalloc -C 16384"),
        (400 * MIB, "-t ext4 -O inline_data,orphan_file,ea_inode,large_dir,verity"),
        (400 * MIB, "-t ext4 -I 128 -G 64 -g 4096 -E nodiscard"),
        (400 * MIB, "-t ext4 -O ^has_journal,metadata_csum_seed,encrypt,stable_inodes"),
        (400 * MIB, "-t ext4 -O fast_commit -E packed_meta_blocks=1"),
        (20 * GIB, "-t ext4 -E nodiscard"),
        (20 * GIB, "-t ext4 -b 1024 -O ^resize_inode,meta_bg -N 200000"),
    ] {
        let dir = scratch();
        let source = dir.path().join("source");
        made(&source, size_bytes, options);
        let mut numbers = Numbers(size_bytes);
        {
            let mounted = Mounted::with(&source, REPLAYING);
            fill(mounted.path(), (size_bytes / 5).min(24 * MIB), &mut numbers);
        }
        let map = map(&source, options);
        assert_eq!(map, map_of_dumpe2fs(&source), "{options}");
        assert!(map.used_bytes() < size_bytes, "{options}");
        assert_copies_are_whole(dir.path(), &source, &map, options);
    }
}

/// Kinds that not every kernel mounts: filled and read by e2fsprogs.
#[test]
fn the_map_of_a_kind_that_is_not_mounted_here_is_that_of_e2fsprogs() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fill(&tree, 8 * MIB, &mut Numbers(7));
    let expected = listing(&tree);
    let (source, copy, out) = (dir.path().join("source"), dir.path().join("copy"), dir.path().join("out"));
    for options in [
        "-t ext4 -O quota,project,casefold,large_dir",
        "-t ext4 -b 65536",
        "-t ext4 -b 8192 -O mmp",
        "-t ext4 -b 16384 -O ^metadata_csum,^64bit",
    ] {
        made(&source, GIB, &format!("{options} -d {}", tree.display()));
        // mke2fs does not count what it fills in for the quota; e2fsck answers 1 where it has mended something.
        std::process::Command::new("e2fsck").args(["-fy"]).arg(&source).output().unwrap();
        let map = map(&source, options);
        assert_eq!(map, map_of_dumpe2fs(&source), "{options}");
        copied(&source, &copy, &map, true);
        e2fsck(&copy);
        fs::create_dir(&out).unwrap();
        let all = format!("rdump / {}", out.display());
        tool("debugfs", &["-R", &all, copy.to_str().unwrap()]);
        let mut found = listing(&out);
        found.retain(|path, _| !path.starts_with("lost+found"));
        assert_eq!(found, expected, "{options}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Writes, syncs and deletes until it is stopped; answers with what was synced, and stays.
fn write_until_it_fails(root: &Path, worker: u64, synced: &Mutex<Synced>) {
    let mut numbers = Numbers(worker + 1);
    let dir = root.join(format!("w{worker}"));
    let mut index = 0u64;
    let mut step = || -> io::Result<()> {
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("kept{index}"));
        let bytes = match index % 3 {
            0 => numbers.bytes(50_000),
            _ => numbers.bytes(700),
        };
        let passing = dir.join(format!("passing{}", index % 5));
        let mut file = File::create(&passing)?;
        file.write_all(&bytes.repeat(9))?;
        if index % 4 == 0 {
            file.sync_all()?;
        }
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        synced.lock().unwrap().push((PathBuf::from(format!("w{worker}/kept{index}")), bytes));
        for other in 0..8 {
            File::create(dir.join(format!("never-synced{other}")))?.write_all(&[3; 30_000])?;
        }
        let _ = fs::remove_file(&passing);
        if index % 9 == 0 {
            file.sync_all()?;
        }
        index += 1;
        Ok(())
    };
    while step().is_ok() {}
}

/// A loop device that can be written to, and otherwise as little as possible.
const REPLAYING: &str = "loop,noatime,noinit_itable";

/// Makes a filesystem, and copies it as it lies after it was stopped dead among writes; answers with what was synced
/// before.
fn stopped_dead(
    dir: &Path,
    size_bytes: u64,
    making: &str,
    mounting: &str,
    after: Duration,
) -> (PathBuf, Synced) {
    let (source, stopped) = (dir.join("source"), dir.join("stopped"));
    made(&source, size_bytes, making);
    let synced = Mutex::new(Vec::new());
    let mounted = Mounted::with(&source, mounting);
    let root = File::open(mounted.path()).unwrap();
    let durable = std::thread::scope(|scope| {
        for worker in 0..3 {
            let (path, synced) = (mounted.path(), &synced);
            scope.spawn(move || write_until_it_fails(path, worker, synced));
        }
        std::thread::sleep(after);
        // A disk that others keep busy may take longer.
        while synced.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let durable = synced.lock().unwrap().clone();
        sys::shut_down_fs(&root).unwrap();
        durable
    });
    assert!(!durable.is_empty(), "{making}");
    tool("cp", &["--reflink=never", source.to_str().unwrap(), stopped.to_str().unwrap()]);
    (stopped, durable)
}

/// Paths below the root, and what was written there.
type Synced = Vec<(PathBuf, Vec<u8>)>;

#[test]
fn a_filesystem_that_was_stopped_dead_is_carried_with_all_that_was_synced() {
    const KINDS: [&str; 10] = [
        "-t ext4",
        "-t ext4 -J size=4",
        "-t ext4 -b 1024 -J size=4",
        "-t ext3 -J size=4",
        "-t ext3 -b 1024 -J size=4",
        "-t ext4 -O ^metadata_csum,^64bit,uninit_bg -J size=4",
        "-t ext4 -O ^flex_bg,^metadata_csum,^uninit_bg -g 4096 -J size=4",
        "-t ext4 -O bigalloc -C 16384 -J size=4",
        "-t ext4 -g 2048 -J size=4",
        "-t ext4 -O meta_bg,^resize_inode -b 1024 -g 1024 -J size=4",
    ];
    let mut replayed = 0;
    for round in 0..20usize {
        let options = KINDS[round % KINDS.len()];
        let dir = scratch();
        let mounting = if round % 5 == 4 { "loop,data=journal" } else { "loop" };
        let after = Duration::from_millis(300 + 70 * (round as u64 % 7));
        let (stopped, durable) = stopped_dead(dir.path(), 200 * MIB, options, mounting, after);
        let copy = dir.path().join("copy");

        let what = format!("round {round}: {options}");
        let map = map(&stopped, &what);
        assert!(map.used_bytes() < 200 * MIB, "{what}");
        copied(&stopped, &copy, &map, round % 2 == 1);
        replayed += usize::from(needs_recovery(&copy));
        let copied = listing(Mounted::with(&copy, REPLAYING).path());
        e2fsck(&copy);
        for (path, bytes) in durable {
            let expected = format!("{} {:x}", bytes.len(), Sha256::digest(&bytes));
            assert_eq!(copied.get(&path), Some(&expected), "{what}: {}", path.display());
        }
        // All else is what a replay of the whole makes of it.
        assert_eq!(copied, listing(Mounted::with(&stopped, REPLAYING).path()), "{what}");
        let used = map_of_dumpe2fs(&stopped);
        for extent in used.extents() {
            let covered = map.extents().any(|have| have.start <= extent.start && extent.end <= have.end);
            assert!(covered, "{what}: {extent:?} is in use after the replay");
        }
    }
    assert_eq!(replayed, 20, "each was stopped with a journal to replay");
}

fn needs_recovery(path: &Path) -> bool {
    tool("dumpe2fs", &["-h", path.to_str().unwrap()]).contains("needs_recovery")
}

#[test]
fn what_no_journal_covers_travels_whole() {
    let dir = scratch();
    let whole = |options: &str, mounting: &str, reason: &str| {
        let after = Duration::from_millis(900);
        let (stopped, _) = stopped_dead(dir.path(), 100 * MIB, options, mounting, after);
        match usage(&stopped) {
            Usage::Whole(told) => assert!(told.contains(reason), "{options}: {told}"),
            Usage::Part(_) => panic!("{options}: a map"),
        }
    };
    whole("-t ext4 -O ^has_journal", "loop", "not unmounted cleanly");
    whole("-t ext4 -O ^metadata_csum", "loop,journal_checksum", "commits that count only");

    let source = dir.path().join("source");
    let refused = |making: &str, change: &str, reason: &str| {
        made(&source, 100 * MIB, making);
        if !change.is_empty() {
            tool("debugfs", &["-w", "-R", change, source.to_str().unwrap()]);
        }
        match usage(&source) {
            Usage::Whole(told) => assert!(told.contains(reason), "{making}, {change}: {told}"),
            Usage::Part(_) => panic!("{making}, {change}: a map"),
        }
    };
    refused("-t ext4", "set_super_value state 3", "with errors");
    refused("-t ext4", "set_super_value journal_dev 7", "lies elsewhere");
    refused("-t ext4", "set_super_value feature_incompat 0x12c2", "not known");
    refused("-t ext4", "set_super_value feature_compat 0x13c", "not known");
    refused("-t ext3", "set_block_group 0 free_blocks_count 5", "free");
    refused("-t ext3", "clri <8>", "none of a file");
    refused("-t ext4", "set_inode_field <8> block[0] 4", "of a journal");
    refused("-O journal_dev", "", "not known");
    refused("-t ext2 -r 0", "", "revision 0");
}

#[test]
fn fast_commits_travel_whole_and_a_log_without_them_by_its_map() {
    let dir = scratch();
    let (source, stopped) = (dir.path().join("source"), dir.path().join("stopped"));
    made(&source, 100 * MIB, "-t ext4 -O fast_commit");
    let mounted = Mounted::with(&source, REPLAYING);
    let root = File::open(mounted.path()).unwrap();
    let mut file = File::create(mounted.path().join("file")).unwrap();
    // All of the filesystem: a commit of the log's own.
    nix::unistd::syncfs(&root).unwrap();
    let now = || {
        tool("cp", &["--reflink=never", source.to_str().unwrap(), stopped.to_str().unwrap()]);
        usage(&stopped)
    };
    assert!(matches!(now(), Usage::Part(_)));
    for _ in 0..5 {
        file.write_all(&[7; 5000]).unwrap();
        file.sync_all().unwrap();
    }
    let Usage::Whole(reason) = now() else { panic!("a map") };
    assert!(reason.contains("fast commits"), "{reason}");
    // Once the log has all of it, they are of the past.
    File::create(mounted.path().join("other")).unwrap();
    nix::unistd::syncfs(&root).unwrap();
    let answer = now();
    assert!(matches!(answer, Usage::Part(_)), "{answer:?}");
}

/// Bytes that tell when they are read out of bounds, or too much of them.
struct Watched<'a> {
    bytes: &'a [u8],
    start_bytes: u64,
    left_bytes: Cell<u64>,
}

impl ReadAt for Watched<'_> {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buffer.len() as u64 <= MIB, "{} bytes at once", buffer.len());
        let left = self.left_bytes.get().checked_sub(buffer.len() as u64);
        self.left_bytes.set(left.expect("far more is read than there is"));
        let at = offset.checked_sub(self.start_bytes).expect("reads before the filesystem");
        self.bytes.read_into(buffer, at)
    }
}

/// The answer for an image, within bounds of time and of what is read.
fn answer(image: &[u8]) -> Usage {
    const START_BYTES: u64 = 123 * 512;
    let left_bytes = Cell::new(4 * image.len() as u64);
    let watched = Watched { bytes: image, start_bytes: START_BYTES, left_bytes };
    let (usage, took) = processor_time(|| {
        let size_bytes = image.len() as u64;
        let budget = Budget::of_disk(size_bytes);
        Usage::of(ext4::map(&Region::new(&watched, &budget, START_BYTES, size_bytes))).unwrap()
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    if let Usage::Part(map) = &usage {
        assert_eq!(map.size_bytes(), image.len() as u64);
    }
    usage
}

fn is_part(image: &[u8]) -> bool {
    matches!(answer(image), Usage::Part(_))
}

/// Where the journal begins.
fn journal_at(image: &[u8]) -> usize {
    const SUPERBLOCK: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4];
    (0..image.len()).step_by(1024).find(|at| image[*at..].starts_with(&SUPERBLOCK)).unwrap()
}

/// Makes the superblock's checksum right.
fn sum(image: &mut [u8]) {
    const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let sum = CRC32C.checksum(&image[1024..2044]) ^ u32::MAX;
    image[2044..2048].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_filesystem_that_nobody_made_is_answered_within_bounds() {
    const EXTREMES: [u32; 6] = [0, 1, 0x20, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    for options in [
        "-t ext4 -b 2048 -J size=2",
        "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg -J size=2",
        "-t ext3 -b 1024 -J size=1",
        "-t ext4 -b 4096 -O ^metadata_csum,^uninit_bg,bigalloc -C 16384 -J size=4",
        "-t ext4 -b 1024 -O ^metadata_csum,meta_bg,^resize_inode -J size=1",
    ] {
        let dir = scratch();
        let (stopped, _) = stopped_dead(dir.path(), 24 * MIB, options, "loop", Duration::from_millis(250));
        let mut image = fs::read(stopped).unwrap();
        assert!(is_part(&image), "{options}: {:?}", answer(&image));
        let journal = journal_at(&image);
        let summed = options == "-t ext4 -b 2048 -J size=2";
        let tried = |image: &mut [u8], at: usize, bytes: [u8; 4]| {
            let kept: [u8; 4] = image[at..at + 4].try_into().unwrap();
            let kept_sum: [u8; 4] = image[2044..2048].try_into().unwrap();
            image[at..at + 4].copy_from_slice(&bytes);
            if summed {
                sum(image);
            }
            answer(image);
            image[at..at + 4].copy_from_slice(&kept);
            image[2044..2048].copy_from_slice(&kept_sum);
        };
        for value in EXTREMES {
            for at in (1024..2048).chain(4096..4224).step_by(2) {
                tried(&mut image, at, value.to_le_bytes());
            }
            for at in (journal..journal + 256).step_by(4) {
                tried(&mut image, at, value.to_be_bytes());
            }
        }
        let mut numbers = Numbers(image.len() as u64 + 3);
        for round in 0..500 {
            let mut kept = Vec::new();
            for _ in 0..=round % 4 {
                let at = match numbers.below(3) {
                    0 => 1024 + numbers.below(16 * KIB),
                    1 => journal as u64 + numbers.below(2 * KIB),
                    _ => journal as u64 + numbers.below(MIB),
                } as usize;
                kept.push((at, image[at]));
                image[at] ^= 1 << numbers.below(8);
            }
            answer(&image);
            for (at, byte) in kept.into_iter().rev() {
                image[at] = byte;
            }
        }
        assert!(is_part(&image), "{options}: all was put back");
    }
    for length in [0, 1, 1024, 2047, 2048, 4096, 70_000] {
        assert!(!is_part(&vec![0; length]));
        assert!(!is_part(&vec![0xff; length]));
    }
}

/// A journal of our own hand in a filesystem without checksums, whose blocks are of 4 KiB.
struct Handwritten {
    image: Vec<u8>,
    /// Its blocks.
    journal: Vec<usize>,
    sequence: u32,
}

const BLOCK: usize = 4096;

impl Handwritten {
    fn of(source: &Path) -> Handwritten {
        made(source, 64 * MIB, "-t ext4 -b 4096 -O ^metadata_csum,^uninit_bg,^64bit -J size=4 -g 16384");
        let mut image = fs::read(source).unwrap();
        let blocks = tool("debugfs", &["-R", "blocks <8>", source.to_str().unwrap()]);
        let journal: Vec<usize> = blocks.split_whitespace().map(|block| block.parse().unwrap()).collect();
        assert_eq!(journal.len(), 1024);
        let sequence = 77;
        // s_sequence, s_start
        let recover = image[1024 + 0x60] | 4;
        let superblock = &mut image[journal[0] * BLOCK..];
        superblock[0x18..0x1c].copy_from_slice(&u32::to_be_bytes(sequence));
        superblock[0x1c..0x20].copy_from_slice(&1u32.to_be_bytes());
        assert!(!is_part(&image), "there is a log, and nobody says that it counts");
        image[1024 + 0x60] = recover;
        Handwritten { image, journal, sequence }
    }

    fn put(&mut self, index: usize, kind: u32, sequence: u32, rest: &[u32]) {
        let words = [0xc03b_3998, kind, sequence];
        let bytes: Vec<u8> = words.iter().chain(rest).flat_map(|word| word.to_be_bytes()).collect();
        self.image[self.journal[index] * BLOCK..][..bytes.len()].copy_from_slice(&bytes);
    }

    fn put_copy(&mut self, index: usize, block: &[u8]) {
        self.image[self.journal[index] * BLOCK..][..BLOCK].copy_from_slice(block);
    }

    fn block(&self, block: u32) -> &[u8] {
        &self.image[block as usize * BLOCK..][..BLOCK]
    }

    /// Whether a map calls the last block of the first group used.
    fn has_last(&self) -> bool {
        match answer(&self.image) {
            Usage::Part(map) => map.extents().any(|extent| extent.contains(&(64 * MIB - 1))),
            Usage::Whole(reason) => panic!("{reason}"),
        }
    }
}

#[test]
fn a_committed_copy_of_a_bitmap_counts_and_one_that_was_revoked_or_never_committed_does_not() {
    const DESCRIPTORS: u32 = 1;
    const SAME_UUID: u32 = 2;
    const LAST: u32 = 8;
    let dir = scratch();
    let mut log = Handwritten::of(&dir.path().join("source"));
    let bitmap = u32::from_le_bytes(log.block(DESCRIPTORS)[..4].try_into().unwrap());
    let sequence = log.sequence;
    // The last block is in use, and there is one less that is free.
    let mut newer = log.block(bitmap).to_vec();
    newer[64 * 256 / 8 - 1] |= 0x80;
    let mut descriptors = log.block(DESCRIPTORS).to_vec();
    let free = u16::from_le_bytes([descriptors[0xc], descriptors[0xd]]) - 1;
    descriptors[0xc..0xe].copy_from_slice(&free.to_le_bytes());
    assert!(!log.has_last(), "nothing is in the log");

    log.put(1, 1, sequence, &[bitmap, SAME_UUID, DESCRIPTORS, SAME_UUID | LAST]);
    log.put_copy(2, &newer);
    log.put_copy(3, &descriptors);
    assert!(!log.has_last(), "it was not committed");
    log.put(4, 2, sequence + 1, &[]);
    assert!(!log.has_last(), "the commit is another's");
    log.put(4, 2, sequence, &[]);
    assert!(log.has_last(), "it was committed");
    // A list of revoked blocks: its length in bytes, and the blocks.
    log.put(5, 5, sequence + 1, &[24, bitmap, DESCRIPTORS]);
    assert!(log.has_last(), "it is revoked by what was not committed");
    log.put(6, 2, sequence + 1, &[]);
    assert!(!log.has_last(), "it was revoked");
    log.put(7, 1, sequence + 2, &[bitmap, SAME_UUID, DESCRIPTORS, SAME_UUID | LAST]);
    log.put_copy(8, &newer);
    log.put_copy(9, &descriptors);
    log.put(10, 2, sequence + 2, &[]);
    assert!(log.has_last(), "it was written again");

    // A copy that began as a block of the log does: zeros stand in the place of those bytes.
    const ESCAPED: u32 = 1;
    newer[..4].fill(0);
    log.put(7, 1, sequence + 2, &[bitmap, SAME_UUID | ESCAPED, DESCRIPTORS, SAME_UUID | LAST]);
    log.put_copy(8, &newer);
    let lost = 32 - 0xc03b_3998u32.count_ones();
    let free = free + lost as u16;
    descriptors[0xc..0xe].copy_from_slice(&free.to_le_bytes());
    log.put_copy(9, &descriptors);
    assert!(log.has_last(), "its first bytes are those of a block of the log");

    // A list that claims more than its block.
    log.put(11, 5, sequence + 3, &[5000]);
    log.put(12, 2, sequence + 3, &[]);
    assert!(!is_part(&log.image));
    // A log that never ends.
    for index in 1..1024 {
        log.put(index, 1, sequence, &[bitmap, SAME_UUID | LAST]);
    }
    match answer(&log.image) {
        Usage::Whole(reason) => assert!(reason.contains("no end"), "{reason}"),
        Usage::Part(_) => panic!("a map"),
    }
}

#[test]
fn a_filesystem_that_grew_in_its_journal_alone_is_mapped_as_it_is_then() {
    let dir = scratch();
    let source = dir.path().join("source");
    let mut log = Handwritten::of(&source);
    File::options().write(true).open(&source).unwrap().set_len(300 * MIB).unwrap();
    tool("resize2fs", &[source.to_str().unwrap()]);
    let grown = fs::read(&source).unwrap();
    let expected = map(&source, "grown");
    log.image.resize(grown.len(), 0);

    // One transaction with all that has changed since.
    let changed: Vec<usize> = (0..grown.len() / BLOCK)
        .filter(|block| !log.journal.contains(block))
        .filter(|block| log.image[block * BLOCK..][..BLOCK] != grown[block * BLOCK..][..BLOCK])
        .collect();
    assert!(changed.len() > 5 && changed.len() < 400, "{changed:?}");
    let (mut tags, last) = (Vec::new(), changed.len() - 1);
    for (index, block) in changed.iter().enumerate() {
        tags.extend([*block as u32, if index == last { 2 | 8 } else { 2 }]);
        let mut copy = grown[block * BLOCK..][..BLOCK].to_vec();
        if *block == 0 {
            // It needs a replay still.
            copy[1024 + 0x60] |= 4;
        }
        log.put_copy(index + 2, &copy);
    }
    let sequence = log.sequence;
    log.put(1, 1, sequence, &tags);
    log.put(changed.len() + 2, 2, sequence, &[]);
    match answer(&log.image) {
        Usage::Part(map) => assert_eq!(map, expected),
        Usage::Whole(reason) => panic!("{reason}"),
    }
}

#[test]
fn a_terabyte_takes_less_than_a_second_of_processor_time() {
    let dir = scratch();
    let source = dir.path().join("source");
    made(&source, 1 << 40, "-t ext4 -E nodiscard");
    let (map, took) = processor_time(|| map(&source, "1 TiB"));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(map.used_bytes() < 4 * GIB, "{}", map.used_bytes());
}
