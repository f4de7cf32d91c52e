//! Small disks with what Linux puts on disks, their backups, and a look at what a failed import or export leaves.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::archive::{Backup, regions};
use crate::common::backup::{env_of, export};
use crate::common::bytes::Numbers;
use crate::common::running::{Ended, Family, Running, SOON};
use crate::common::{Node, tool};

pub const MIB: u64 = 1 << 20;

/// Of every part that can hold something.
const PARTS: [u64; 6] = [0, MIB, 2 * MIB, 10 * MIB, 18 * MIB, 50 * MIB];

/// A node, and a disk with its backup.
pub struct Bench {
    pub node: Node,
    pub disk: PathBuf,
    pub stream: Vec<u8>,
    /// What the backup becomes on a disk that was empty.
    pub reference: Vec<u8>,
}

impl Bench {
    /// A filesystem on the bare disk.
    pub fn bare() -> Bench {
        let node = Node::bare();
        let disk = node.disk("source", 48 * MIB);
        make_filesystem(&node, "ext4", &disk);
        Bench::of(node, disk)
    }

    /// GPT: a loader's partition, an ESP's bytes, swap, btrfs, and ext4 last.
    pub fn divided() -> Bench {
        let node = Node::bare();
        let disk = node.disk("source", 80 * MIB);
        let script = "label: gpt\nfirst-lba: 34\n1: start=50MiB, size=24MiB\n\
                      2: start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n\
                      3: start=2MiB, size=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
                      4: start=10MiB, size=8MiB, type=S\n5: start=18MiB, size=32MiB\n";
        let input = node.path().join("table");
        fs::write(&input, script).unwrap();
        tool("sh", &["-c", &format!("sfdisk -q --no-reread {} < {}", disk.display(), input.display())]);
        let file = File::options().write(true).open(&disk).unwrap();
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
        let part = |name: &str, bytes: u64| {
            let path = node.path().join("part");
            File::create(&path).unwrap().set_len(bytes).unwrap();
            make_filesystem(&node, name, &path);
            fs::read(&path).unwrap()
        };
        // Boot code, and a FAT's first sector with some of what follows.
        put(0, &noise(1, 400));
        put(MIB, &noise(2, 64 << 10));
        put(2 * MIB, b"\xeb\x58\x90mkfs.fat\0\x02\x01\x20\0\x02\0\0\0\0\xf8\0\0\x20\0\x40\0");
        put(2 * MIB + 54, b"FAT16   ");
        put(2 * MIB + 510, &[&b"\x55\xaa"[..], &noise(3, 64 << 10)].concat());
        put(10 * MIB, &part("swap", 8 * MIB));
        put(18 * MIB, &part("btrfs", 32 * MIB));
        put(50 * MIB, &part("ext4", 24 * MIB));
        Bench::of(node, disk)
    }

    fn of(node: Node, disk: PathBuf) -> Bench {
        let file = node.path().join("stream");
        export(&node, &disk, &file);
        let stream = fs::read(file).unwrap();
        let mut bench = Bench { node, disk, stream, reference: Vec::new() };
        let target = bench.target();
        let ended = bench.import(&target, bench.feed(&bench.stream));
        assert!(ended.status.success(), "{}", ended.log);
        bench.reference = fs::read(target).unwrap();
        // What is carried is what is there.
        let source = fs::read(&bench.disk).unwrap();
        for (offset, length) in bench.backup().runs {
            let range = offset as usize..(offset + length) as usize;
            assert!(bench.reference[range.clone()] == source[range], "{length} bytes at {offset}");
        }
        bench
    }

    pub fn backup(&self) -> Backup {
        Backup::of(&self.stream)
    }

    /// Where a part of the stream lies.
    pub fn region(&self, name: &str) -> std::ops::Range<usize> {
        regions(&self.stream).into_iter().find(|region| region.name == name).unwrap().range
    }

    /// An empty disk of the source's size.
    pub fn target(&self) -> PathBuf {
        self.node.disk("target", fs::metadata(&self.disk).unwrap().len())
    }

    /// Bytes for a standard input.
    pub fn feed(&self, bytes: &[u8]) -> Stdio {
        let path = self.node.path().join("input");
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap().into()
    }

    pub fn import_command(&self, target: &Path, input: Stdio) -> Command {
        let mut env = env_of(&self.node, "import", target);
        env.insert("OSP_PARTITION_STYLE".into(), "none".into());
        env.insert("OSP_BOOT".into(), "no".into());
        let mut command = self.node.verb("import", &env);
        command.stdin(input);
        command
    }

    /// Runs an import to its end, which must come soon; the peak of memory is looked at there.
    pub fn import(&self, target: &Path, input: Stdio) -> Ended {
        let run = Running::start(self.import_command(target, input));
        run.end_within(SOON, Family::default())
    }

    pub fn export_command(&self, disk: &Path) -> Command {
        let mut env = env_of(&self.node, "export", disk);
        env.remove("EXP_SIZE_FD");
        self.node.verb("export", &env)
    }

    /// Wants bytes refused with `why`, whatever they are, and the disk as nothing.
    pub fn assert_refused(&self, what: &str, bytes: &[u8], why: &str) {
        let target = self.target();
        let ended = self.import(&target, self.feed(bytes));
        self.assert_failed(what, &ended, &target, why);
    }

    /// Wants bytes restored as the honest stream is.
    pub fn assert_restored(&self, what: &str, bytes: &[u8]) {
        let target = self.target();
        let ended = self.import(&target, self.feed(bytes));
        assert!(ended.status.success(), "{what}: {}", ended.log);
        self.assert_right(what, &target);
        self.node.assert_nothing_left();
    }

    /// Whether bytes are refused; otherwise wants the disk exactly right.
    pub fn is_refused(&self, what: &str, bytes: &[u8]) -> bool {
        let target = self.target();
        let ended = self.import(&target, self.feed(bytes));
        match ended.status.success() {
            true => self.assert_right(what, &target),
            false => self.assert_failed(what, &ended, &target, "error: "),
        }
        !ended.status.success()
    }

    pub fn assert_right(&self, what: &str, target: &Path) {
        assert!(fs::read(target).unwrap() == self.reference, "{what}: the disk is another");
    }

    /// Wants an import ended with 1, its reason where Ganeti shows it, nothing held, and nothing on the disk.
    pub fn assert_failed(&self, what: &str, ended: &Ended, target: &Path, why: &str) {
        assert_told(what, ended, why);
        self.node.assert_nothing_left();
        assert_nothing_on(what, target);
    }
}

/// Tries all cases, also where some fail.
pub fn try_each<T>(cases: impl IntoIterator<Item = T>, mut try_out: impl FnMut(T)) {
    let mut failed = 0;
    for case in cases {
        failed += usize::from(catch_unwind(AssertUnwindSafe(|| try_out(case))).is_err());
    }
    assert_eq!(failed, 0, "cases failed");
}

/// Exit status 1, and `why` in the last error, which is among the last 20 lines.
pub fn assert_told(what: &str, ended: &Ended, why: &str) {
    let log = &ended.log;
    assert_eq!(ended.status.code(), Some(1), "{what}: {log}");
    assert!(log.is_ascii() && !log.contains("panicked"), "{what}: {log}");
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    let error = last.rfind("error: ").unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(last[error..].contains(why), "{what}: expected {why:?}\n{log}");
}

/// Wants that nobody takes the disk, or a part of it, for anything.
pub fn assert_nothing_on(what: &str, disk: &Path) {
    let size = fs::metadata(disk).unwrap().len();
    PARTS.into_iter().filter(|at| *at < size).for_each(|at| assert_nothing_at(what, disk, at));
    let mut sector = [0; 512];
    File::open(disk).unwrap().read_exact_at(&mut sector, 0).unwrap();
    assert!(sector.iter().all(|byte| *byte == 0), "{what}: something stands in the first sector");
}

/// Wants that blkid finds nothing there.
pub fn assert_nothing_at(what: &str, disk: &Path, at: u64) {
    let found = Command::new("blkid").args(["-p", "-O", &at.to_string()]).arg(disk).output().unwrap();
    assert_eq!(found.status.code(), Some(2), "{what}, at {at}: {found:?}");
}

/// Makes a filesystem with a few MiB of files, without mounting it.
fn make_filesystem(node: &Node, name: &str, at: &Path) {
    let files = node.path().join("files");
    if !files.exists() {
        fs::create_dir_all(files.join("dir")).unwrap();
        (0..24).for_each(|n| fs::write(files.join(format!("dir/{n}")), noise(n + 10, 100 << 10)).unwrap());
        fs::write(files.join("large"), noise(9, 3 << 20)).unwrap();
    }
    let (files, at) = (files.to_str().unwrap(), at.to_str().unwrap());
    match name {
        "swap" => tool("mkswap", &["-q", at]),
        "btrfs" => tool("mkfs.btrfs", &["-q", "--mixed", "--rootdir", files, at]),
        _ => tool("mke2fs", &["-q", "-F", "-t", name, "-d", files, at]),
    };
}

pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed + 1);
    (0..bytes.div_ceil(8)).flat_map(|_| numbers.next().to_le_bytes()).take(bytes).collect()
}

/// A standard input that is written to while it is read, until whoever reads it goes away.
pub fn written_by(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()> + Send + 'static) -> Stdio {
    let (reader, mut writer) = pipe();
    std::thread::spawn(move || write(&mut writer));
    reader.into()
}

/// A pipe that no child inherits: reading end, writing end.
pub fn pipe() -> (File, File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}
