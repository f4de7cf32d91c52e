//! A node with a tree made by hand that has all that a filesystem can tell apart, and disks made of it: by a template, and
//! without one.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::superblock::Superblock;
use super::tree::Tree;
use crate::common::live::Dice;
use crate::common::running::{Family, Running};
use crate::common::small_guest::{Flavour, plant};
use crate::common::trees::{pack, shared};
use crate::common::{BlockDevice, GIB, Mounted, Node, data_ranges, fsck, root_offset, scratch, tool};

pub const MIB: u64 = 1 << 20;
/// For a large disk on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// More names than one block of hashes leads to, each of this length.
const NAMES: usize = 9000;
const NAME_BYTES: usize = 240;

/// How a disk is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub bytes: u64,
    pub filesystem: &'static str,
    pub style: &'static str,
}

impl Shape {
    /// A template of it is made in the wink of an eye.
    pub const SMALL: Shape = Shape { bytes: GIB, filesystem: "ext4", style: "none" };
}

/// Whether a create may make and use templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Template,
    Tar,
}

/// A disk with a guest, and the log of its create.
pub struct Guest {
    pub disk: PathBuf,
    pub shape: Shape,
    pub log: String,
    /// As it was when it was first asked for.
    read: OnceCell<(Superblock, Tree)>,
}

/// A node with one tree.
pub struct Bench {
    pub node: Node,
    began: SystemTime,
}

impl Bench {
    /// With the tree that is made by hand.
    pub fn new() -> Bench {
        let bench = Bench::of(Node::bare());
        // No link: what tells two tars made by hand apart is when anything of the file was changed.
        fs::copy(rich_tar(), bench.tar()).unwrap();
        bench
    }

    pub fn of(node: Node) -> Bench {
        Bench { node, began: SystemTime::now() }
    }

    /// Where a tree that is made by hand lies.
    pub fn tar(&self) -> PathBuf {
        self.node.cache().join("cache-trixie-amd64.tar")
    }

    /// A create as noded runs it; `settings` are lines of config.toml.
    pub fn command(&self, disk: &Path, shape: Shape, settings: &str) -> Command {
        self.node.config(settings);
        let mut env = self.node.recorded("create", disk);
        env.insert("OSP_FILESYSTEM".into(), shape.filesystem.into());
        env.insert("OSP_PARTITION_STYLE".into(), shape.style.into());
        env.insert("DEBUG_LEVEL".into(), "1".into());
        self.node.verb("create", &env)
    }

    /// Installs a disk, within our bound of memory.
    pub fn install(&self, disk: &Path, shape: Shape, by: By) -> Guest {
        let settings = if by == By::Tar { "templates = 0\n" } else { "" };
        self.run(self.command(disk, shape, settings), disk, shape)
    }

    pub fn run(&self, command: Command, disk: &Path, shape: Shape) -> Guest {
        let ended = Running::start(command).end_within(PATIENCE, Family::default());
        assert!(ended.status.success() && !ended.log.contains("panicked"), "{}", ended.log);
        Guest::new(disk.to_owned(), shape, ended.log)
    }

    /// Installs a new disk of zeros.
    pub fn guest(&self, name: &str, shape: Shape, by: By) -> Guest {
        self.install(&self.node.disk(name, shape.bytes), shape, by)
    }

    pub fn templates(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.node.cache()).unwrap().flatten().map(|entry| entry.path());
        let mut templates: Vec<PathBuf> =
            files.filter(|path| path.file_name().unwrap().as_bytes().starts_with(b"template-")).collect();
        templates.sort();
        templates
    }

    /// The only one.
    pub fn template(&self) -> PathBuf {
        let templates = self.templates();
        assert_eq!(templates.len(), 1, "{templates:?}");
        templates[0].clone()
    }

    /// A command for the cache, which succeeds; its log and its answer.
    pub fn cache(&self, args: &[&str]) -> String {
        let output = self.node.command(&[&["cache"], args].concat()).output().unwrap();
        let log = crate::common::log_of(&output);
        assert!(output.status.success(), "{args:?}: {log}");
        log
    }

    /// Wants two guests of one kind: trees, and filesystems but for what is each one's own.
    pub fn assert_equal(&self, one: &Guest, other: &Guest, what: &str) {
        self.superblock(one).assert_same_kind(self.superblock(other), what);
        self.tree(one).assert_same(self.tree(other), what);
    }

    fn read<'g>(&self, guest: &'g Guest) -> &'g (Superblock, Tree) {
        guest.read.get_or_init(|| {
            let superblock = Superblock::read(&guest.disk, guest.root_at());
            let tree = Tree::read(guest.mount("ro").path(), superblock.uuid(), self.began);
            (superblock, tree)
        })
    }

    pub fn superblock<'g>(&self, guest: &'g Guest) -> &'g Superblock {
        &self.read(guest).0
    }

    pub fn tree<'g>(&self, guest: &'g Guest) -> &'g Tree {
        &self.read(guest).1
    }
}

impl Guest {
    pub fn new(disk: PathBuf, shape: Shape, log: String) -> Guest {
        Guest { disk, shape, log, read: OnceCell::new() }
    }

    /// Whether it was copied, and not unpacked.
    pub fn is_copy(&self) -> bool {
        let (copied, unpacked) = (self.log.contains(" s  copying "), self.log.contains(" s  formatting "));
        assert_ne!(copied && !self.log.contains("; it is done without"), unpacked, "{}", self.log);
        !unpacked
    }

    pub fn root_at(&self) -> u64 {
        if self.shape.style == "none" { 0 } else { root_offset(&self.disk) }
    }

    pub fn check(&self) {
        fsck(&self.disk, self.root_at(), self.shape.filesystem);
    }

    pub fn mount(&self, option: &str) -> Mounted {
        Mounted::with(&self.disk, &format!("{option},loop,offset={}", self.root_at()))
    }

    /// Lives a little: ten thousand files come and go, then the disk becomes twice as large.
    pub fn live(&self) {
        let mounted = self.mount("rw,noatime");
        let live = mounted.path().join("live");
        for number in 0..10_000 {
            let dir = live.join(format!("{}", number % 16));
            if number < 16 {
                fs::create_dir_all(&dir).unwrap();
            }
            fs::write(dir.join(format!("{number:050}")), vec![1; number % 5000]).unwrap();
        }
        tool("sync", &["-f", live.to_str().unwrap()]);
        fs::remove_dir_all(&live).unwrap();
        drop(mounted);
        self.check();

        let root_at = self.root_at();
        let file = File::options().write(true).open(&self.disk).unwrap();
        file.set_len(root_at + 2 * (self.shape.bytes - root_at)).unwrap();
        let device = BlockDevice::over(&self.disk, &["-o", &root_at.to_string()]);
        tool("e2fsck", &["-fp", device.0.to_str().unwrap()]);
        tool("resize2fs", &[device.0.to_str().unwrap()]);
        drop(device);
        self.check();
    }

    /// Bytes of the journal's log, from the disk's beginning: the lowest and the highest.
    pub fn journal(&self) -> Option<Range<u64>> {
        let superblock = Superblock::read(&self.disk, self.root_at());
        superblock.journal_uuid.as_ref()?;
        let device = BlockDevice::over(&self.disk, &["-r", "-o", &self.root_at().to_string()]);
        let blocks = tool("debugfs", &["-R", "blocks <8>", device.0.to_str().unwrap()]);
        let blocks: Vec<u64> = blocks.split_ascii_whitespace().map(|block| block.parse().unwrap()).collect();
        let at = |block: u64| self.root_at() + block * superblock.block_bytes;
        Some(at(*blocks.iter().min()?)..at(*blocks.iter().max()? + 1))
    }

    /// Where some blocks of the journal's log lie that a create does not come to, in bytes of the disk.
    pub fn rest_of_journal(&self) -> Vec<u64> {
        let Some(journal) = self.journal() else { return Vec::new() };
        let block_bytes = Superblock::read(&self.disk, self.root_at()).block_bytes;
        // At most half of what lies between its first and its last block is metadata of others.
        let count = (journal.end - journal.start) / block_bytes / 2;
        let asked: String =
            (0..60).map(|part| format!("bmap <8> {}\n", count / 2 + part * count / 120)).collect();
        let requests = self.disk.with_extension("debugfs");
        fs::write(&requests, asked).unwrap();
        let device = BlockDevice::over(&self.disk, &["-r", "-o", &self.root_at().to_string()]);
        let path = device.0.to_str().unwrap();
        let answers = tool("debugfs", &["-f", requests.to_str().unwrap(), path]);
        let blocks = answers.lines().filter_map(|line| line.trim().parse::<u64>().ok());
        let places: Vec<u64> = blocks.map(|block| self.root_at() + block * block_bytes).collect();
        assert_eq!(places.len(), 60, "{answers}");
        places
    }

    /// Where metadata lies of its first groups and of some others.
    fn metadata(&self) -> Vec<Range<u64>> {
        let device = BlockDevice::over(&self.disk, &["-r", "-o", &self.root_at().to_string()]);
        let text = tool("dumpe2fs", &[device.0.to_str().unwrap()]);
        let block_bytes = Superblock::read(&self.disk, self.root_at()).block_bytes;
        let mut ranges = Vec::new();
        let mut group = 0u64;
        for line in text.lines() {
            let number = line.strip_prefix("Group ").and_then(|rest| rest.split(':').next()?.parse().ok());
            group = number.unwrap_or(group);
            if group > 200 && group % 97 != 0 {
                continue;
            }
            for what in ["Inode table at ", "Block bitmap at ", "Inode bitmap at ", "Primary superblock at "]
            {
                let Some((_, rest)) = line.split_once(what) else { continue };
                let numbers = rest.split([' ', ',']).next().unwrap();
                let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
                let number = |text: &str| text.parse::<u64>().unwrap();
                let at = |block: u64| self.root_at() + block * block_bytes;
                ranges.push(at(number(first))..at(number(last) + 1));
            }
        }
        ranges
    }

    /// Fills a new disk with noise: all of a small one, of a large one wherever this one has something, its metadata, its
    /// journal and its ends.
    pub fn noise(&self, bench: &Bench, name: &str) -> PathBuf {
        let (path, bytes) = (bench.node.disk(name, self.shape.bytes), self.shape.bytes);
        let file = File::options().write(true).open(&path).unwrap();
        if bytes <= GIB {
            fill(&file, 0..bytes);
            return path;
        }
        fill(&file, 0..200 * MIB);
        fill(&file, bytes - 4 * MIB..bytes);
        for range in data_ranges(&self.disk) {
            fill(&file, range.start.saturating_sub(MIB)..(range.end + MIB).min(bytes));
        }
        for range in self.metadata() {
            fill(&file, range);
        }
        if let Some(journal) = self.journal() {
            fill(&file, journal.start..journal.end.min(journal.start + 128 * MIB));
            fill(&file, journal.end - MIB..journal.end);
        }
        path
    }
}

fn fill(file: &File, range: Range<u64>) {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| Dice(0x9e37_79b9_7f4a_7c15).bytes(MIB as usize));
    let mut at = range.start;
    while at < range.end {
        let count = (range.end - at).min(MIB) as usize;
        file.write_all_at(&noise[..count], at).unwrap();
        at += count as u64;
    }
}

/// A tar of a guest's tree with every kind of file, made once for all tests.
fn rich_tar() -> PathBuf {
    let made = shared("rich-tree", "1", |dir| {
        let tree = tempfile::tempdir_in(scratch()).unwrap();
        plant(tree.path(), Flavour::Ifupdown);
        enrich(tree.path());
        pack(tree.path(), &dir.join("rich.tar"));
    });
    made.join("rich.tar")
}

fn enrich(tree: &Path) {
    let file = |name: &str, bytes: &[u8]| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    let mut dice = Dice(7);
    // Three files under thousands of names, in a directory whose hashes are two levels deep where they are hashed.
    let all = tree.join("names");
    fs::create_dir_all(&all).unwrap();
    for number in 0..NAMES {
        let name = all.join(format!("{number:0NAME_BYTES$}"));
        match number {
            0..3 => fs::write(name, dice.bytes(5000)).unwrap(),
            _ => fs::hard_link(all.join(format!("{:0NAME_BYTES$}", number % 3)), name).unwrap(),
        }
    }
    for number in 0..800u64 {
        let length = dice.below(9000) as usize;
        // Bytes above 127 are hashed as signed or as unsigned ones.
        file(
            &format!("many/{number}-{}", "\u{e9}\u{4e2d}".repeat(number as usize % 20)),
            &dice.bytes(length),
        );
    }
    for depth in 0..40 {
        file(&format!("deep/{}/leaf", "d/".repeat(depth)), b"leaf");
    }
    file("large", &dice.bytes(24 << 20));
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(&dice.bytes(70_000), 40 * MIB).unwrap();
    sparse.write_all_at(&dice.bytes(70_000), 4 * MIB).unwrap();
    sparse.set_len(60 * MIB).unwrap();
    symlink("a/long/target/".repeat(60), tree.join("link")).unwrap();
    symlink("short", tree.join("short-link")).unwrap();
    let path = |name: &str| tree.join(name).to_str().unwrap().to_owned();
    tool("mkfifo", &[&path("fifo")]);
    tool("mknod", &[&path("null"), "c", "1", "3"]);
    tool("mknod", &[&path("disk"), "b", "259", "1234"]);
    let program = file("usr/bin/program", b"#!/bin/sh\n");
    chown(&program, Some(1000), Some(70_000)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    tool("setcap", &["cap_net_raw+ep", &path("usr/bin/program")]);
    tool("setfattr", &["-n", "user.note", "-v", &"v".repeat(90), &path("large")]);
    // More than an inode has room for.
    tool("setfattr", &["-n", "trusted.much", "-v", &"w".repeat(2000), &path("sparse")]);
    tool("setfacl", &["-m", "u:1000:r", &path("large")]);
    tool("setfacl", &["-d", "-m", "g:70000:rx", &path("many")]);
    for (number, entry) in walkdir::WalkDir::new(tree).into_iter().enumerate() {
        let time = Timespec { tv_sec: 1_200_000_000 + number as i64 * 977, tv_nsec: number as i64 * 10_007 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, entry.unwrap().path(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
