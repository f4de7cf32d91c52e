//! A damaged disk, handed to a rename, and all that must hold afterwards: either it is refused with a cause, and
//! nothing was written that is not the filesystem's; or the guest has its new name on a sound filesystem.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};

use crate::common::small_guest::{Answer, Flavour, NEW_NAME, SmallDisk, Table};
use crate::common::{BlockDevice, Node, text};

const BLOCK: u64 = 4096;

/// What must come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Done,
    Refused,
    Either,
}

/// A node and an honest disk.
pub struct Bench {
    pub node: Node,
    pub honest: SmallDisk,
}

impl Bench {
    pub fn new(table: Table, filesystem: &'static str) -> Bench {
        let node = Node::bare();
        let honest = SmallDisk::make_with(&node, "honest", Flavour::Ifupdown, table, filesystem);
        Bench { node, honest }
    }

    /// Renames the guest on a copy of the honest disk that was damaged.
    pub fn rename(&self, what: &str, expected: Expected, damage: impl Fn(&File)) {
        let make = |name| {
            let disk = self.honest.copy(name);
            damage(&File::options().read(true).write(true).open(&disk.path).unwrap());
            disk
        };
        let disk = make("case");
        let before = blocks(&disk.path);
        let mut env = self.node.recorded("rename", &disk.path);
        // It says what it mounts.
        env.insert("DEBUG_LEVEL".into(), "1".into());
        self.node.wait_until_detached();
        let answer = Answer::of(self.node.verb("rename", &env));
        let log = format!("{what}\n{}", answer.log);
        self.node.assert_nothing_left();
        match expected {
            Expected::Done => assert!(answer.done, "{log}"),
            Expected::Refused => assert!(!answer.done, "{log}"),
            Expected::Either => {}
        }
        let own = self.honest.root_at..self.honest.root_at + self.honest.root_bytes;
        let mounted = answer.log.contains("    + mounting ");
        let changed = differences(&before, &blocks(&disk.path));
        let foreign = changed.iter().find(|at| !mounted || !own.contains(at));
        assert!(foreign.is_none(), "byte {foreign:?} was written\n{log}");
        if answer.done {
            if let Err(complaint) = check(&disk) {
                // Damage that nobody noticed may be there still.
                let untouched = make("untouched");
                if !disk.filesystem.starts_with("ext") {
                    // Some makes itself known only after a mount: an xfs whose log cannot be closed.
                    drop(untouched.mount_writable());
                }
                assert!(check(&untouched).is_err(), "{complaint}\n{log}");
                fs::remove_file(untouched.path).unwrap();
            }
            assert_eq!(hostname(&disk), format!("{NEW_NAME}\n"), "{log}");
        } else {
            let last = answer.last_lines();
            let (_, cause) =
                last.split_once("error: renaming the guest of ").unwrap_or_else(|| panic!("{log}"));
            assert!(cause.lines().count() > 1, "{log}");
        }
        fs::remove_file(disk.path).unwrap();
    }
}

/// What its blocks hold, but for holes and zeros.
fn blocks(path: &Path) -> BTreeMap<u64, u64> {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut blocks = BTreeMap::new();
    let mut at = 0;
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        let hole = seek(&file, SeekFrom::Hole(data)).unwrap_or(size);
        for start in (data / BLOCK * BLOCK..hole).step_by(BLOCK as usize) {
            let mut bytes = vec![0; BLOCK.min(size - start) as usize];
            file.read_exact_at(&mut bytes, start).unwrap();
            if bytes.iter().any(|byte| *byte != 0) {
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                blocks.insert(start, hasher.finish());
            }
        }
        at = hole;
    }
    blocks
}

/// Where the blocks differ.
fn differences(before: &BTreeMap<u64, u64>, after: &BTreeMap<u64, u64>) -> Vec<u64> {
    let all = before.keys().chain(after.keys());
    all.filter(|at| before.get(at) != after.get(at)).copied().collect()
}

/// Read without a mount where that can be: the superblock may say what is to happen on errors.
fn hostname(disk: &SmallDisk) -> String {
    if !disk.filesystem.starts_with("ext") {
        // An xfs whose quotas are to be counted first cannot be mounted read-only.
        return disk.mount_writable().read("etc/hostname");
    }
    let device = disk.attach();
    let output = Command::new("debugfs").args(["-R", "cat /etc/hostname"]).arg(&device.0).output().unwrap();
    // Where data lies within an inode, debugfs prints all the room that there is for it.
    text(&output.stdout).trim_end_matches('\0').to_owned()
}

/// What the filesystem's own tool says of it.
fn check(disk: &SmallDisk) -> Result<(), String> {
    let options = [&disk.root_at.to_string(), "--sizelimit", &disk.root_bytes.to_string()].map(str::to_owned);
    let device = BlockDevice::over(&disk.path, &["-r", "-o", &options[0], &options[1], &options[2]]);
    let (program, args): (&str, &[&str]) = match disk.filesystem {
        "xfs" => ("xfs_repair", &["-n"]),
        "btrfs" => ("btrfs", &["check", "--readonly"]),
        _ => ("e2fsck", &["-fn"]),
    };
    let output = Command::new(program).args(args).arg(&device.0).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(text(&[output.stdout, output.stderr].concat())) }
}
