//! An ext4 that names a journal on another device: e2fsck would look for it by its UUID among all devices of the node, replay
//! it on the guest's disk and mark it as replayed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::MIB;
use crate::common::backup::env_of;
use crate::common::bytes::read;
use crate::common::small_guest::Answer;
use crate::common::{BlockDevice, Mounted, Node, digest, tool};

/// What lies in the journal of another one's filesystem.
const SECRET: &str = "secretdir-of-another-one";

/// A journal of its own device with a transaction that has yet to be replayed, and its UUID.
fn victim(node: &Node) -> (PathBuf, String) {
    let [journal, filesystem] = [("vj", 16), ("vf", 32)].map(|(name, size)| node.disk(name, size * MIB));
    let device = BlockDevice::over(&journal, &[]);
    tool("mke2fs", &["-q", "-F", "-O", "journal_dev", "-b", "4096", path(&device.0)]);
    let other = BlockDevice::over(&filesystem, &[]);
    let elsewhere = format!("device={}", device.0.display());
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-J", &elsewhere, path(&other.0)]);
    let mounted = Mounted::with(&other.0, "noatime");
    fs::create_dir(mounted.path().join(SECRET)).unwrap();
    tool("sync", &["-f", path(mounted.path())]);
    let victim = node.path().join("victim");
    fs::copy(&journal, &victim).unwrap();
    drop((mounted, other, device));
    let words = tool("dumpe2fs", &["-h", path(&victim)]);
    let uuid = words.lines().find_map(|line| line.strip_prefix("Filesystem UUID:")).unwrap();
    (victim, uuid.trim().to_owned())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn debugfs(disk: &Path, commands: &[&str]) {
    let script = disk.with_extension("debugfs");
    fs::write(&script, commands.join("\n")).unwrap();
    tool("debugfs", &["-w", "-f", path(&script), path(disk)]);
}

/// An ext4 that names that journal, and no other one.
fn names(node: &Node, journal: &str) -> PathBuf {
    let disk = node.disk("evil", 24 * MIB);
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum", path(&disk)]);
    let uuid = format!("ssv journal_uuid {journal}");
    debugfs(&disk, &[&uuid, "ssv journal_inum 0", "ssv jnl_backup_type 0", "feature needs_recovery"]);
    disk
}

/// The same without a sign of it, and with a journal of its own that makes it the other one.
fn becomes(evil: &Path) -> PathBuf {
    let disk = evil.with_file_name("becomes");
    fs::copy(evil, &disk).unwrap();
    let nothing = "ssv journal_uuid 00000000-0000-0000-0000-000000000000";
    debugfs(&disk, &[nothing, "ssv journal_inum 8", "feature -needs_recovery"]);
    let block = evil.with_extension("block");
    fs::write(&block, read::<4096>(&File::open(evil).unwrap(), 0)).unwrap();
    debugfs(&disk, &["jo", &format!("jw -b 0 {}", path(&block)), "jc"]);
    disk
}

/// An import that grows and is another guest, or the same.
fn import(node: &Node, from: &Path, bytes: u64, identity: &str) -> (Command, PathBuf) {
    let disk = node.disk("new", bytes);
    let mut env = env_of(node, "import", &disk);
    env.insert("OSP_IMPORT_IDENTITY".into(), identity.into());
    env.insert("DEBUG_LEVEL".into(), "1".into());
    let mut command = node.verb("import", &env);
    command.stdin(File::open(from).unwrap());
    (command, disk)
}

fn holds(disk: &Path, words: &str) -> bool {
    fs::read(disk).unwrap().windows(words.len()).any(|window| window == words.as_bytes())
}

#[test]
fn a_filesystem_that_names_a_journal_elsewhere_reaches_no_other_disk() {
    let node = Node::bare();
    let (victim, journal) = victim(&node);
    assert!(holds(&victim, SECRET));
    let device = BlockDevice::over(&victim, &[]);
    let before = digest(&victim);
    let evil = names(&node, &journal);
    let becomes = becomes(&evil);
    for (disk, found) in [(&evil, "with its journal on another device"), (&becomes, "keeps its size")] {
        for identity in ["keep", "new"] {
            let (command, new) = import(&node, disk, 40 * MIB, identity);
            let answer = Answer::of(command);
            assert_eq!(digest(&victim), before, "{}", answer.log);
            assert!(!holds(&new, SECRET), "{}", answer.log);
            // What grows is left as it is; what would get another UUID is refused, unless it is known as no filesystem to touch.
            assert!(answer.done || identity == "new", "{}", answer.log);
            assert!(answer.log.contains(found), "{}", answer.log);
        }
    }
    drop(device);
    node.assert_nothing_left();
}

#[test]
fn a_journal_of_its_own_is_replayed_before_growth() {
    let node = Node::bare();
    let disk = node.disk("own", 24 * MIB);
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", path(&disk)]);
    let mounted = Mounted::with(&disk, "loop,noatime");
    fs::create_dir(mounted.path().join("kept")).unwrap();
    tool("sync", &["-f", path(mounted.path())]);
    let dirty = node.path().join("dirty");
    fs::copy(&disk, &dirty).unwrap();
    drop(mounted);
    assert!(tool("dumpe2fs", &["-h", path(&dirty)]).contains("needs_recovery"));
    for from in [disk, dirty] {
        for identity in ["keep", "new"] {
            let (command, new) = import(&node, &from, 64 * MIB, identity);
            let answer = Answer::of(command);
            assert!(answer.done && !answer.log.contains("keeps its size"), "{}", answer.log);
            tool("e2fsck", &["-f", "-n", path(&new)]);
            let mounted = Mounted::at(&new, 0);
            assert!(mounted.path().join("kept").is_dir());
            let size = rustix::fs::statvfs(mounted.path()).unwrap();
            assert!(size.f_blocks * size.f_frsize > 40 * MIB, "{}", answer.log);
        }
    }
    node.assert_nothing_left();
}

/// What a tool opened, by strace: the words of its command, and the block devices.
struct Opened {
    command: String,
    devices: Vec<String>,
}

/// The tools that a run started, with what each of them opened. Lines are `PID call(...) = FD<path<block 7:0>>`.
fn tools_of(trace: &str) -> Vec<Opened> {
    let mut running: Vec<(&str, usize)> = Vec::new();
    let mut tools: Vec<Opened> = Vec::new();
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if call.starts_with("execve(") && call.ends_with("= 0") && !call.contains("\"/proc/self/exe\"") {
            running.retain(|(of, _)| *of != pid);
            running.push((pid, tools.len()));
            tools.push(Opened { command: call.to_owned(), devices: Vec::new() });
        } else if let Some((_, device)) = call.rsplit_once("<block ") {
            if let Some((_, tool)) = running.iter().find(|(of, _)| *of == pid) {
                tools[*tool].devices.push(device.trim_end_matches('>').to_owned());
            }
        }
    }
    tools
}

#[test]
fn a_tool_sees_the_device_that_it_is_to_change_and_no_other() {
    let node = Node::bare();
    let (victim, journal) = victim(&node);
    let device = BlockDevice::over(&victim, &[]);
    let evil = names(&node, &journal);
    let ordinary = |name: &str, mkfs: &str, args: &[&str], mib: u64| {
        let disk = node.disk(name, mib * MIB);
        tool(mkfs, &[args, &[path(&disk)]].concat());
        disk
    };
    let disks = [
        (becomes(&evil), &["e2fsck"][..]),
        (ordinary("e", "mke2fs", &["-q", "-F", "-t", "ext4"], 24), &["e2fsck", "resize2fs", "tune2fs"]),
        (ordinary("x", "mkfs.xfs", &["-q", "-f"], 300), &["xfs_growfs", "xfs_admin", "xfs_db"]),
        (ordinary("b", "mkfs.btrfs", &["-q", "-f"], 112), &["btrfs", "btrfstune"]),
    ];
    for (disk, programs) in disks {
        let bytes = fs::metadata(&disk).unwrap().len() + 256 * MIB;
        let (command, _) = import(&node, &disk, bytes, "new");
        let log = node.path().join("trace");
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qqq", "-yy", "-s", "300", "-o", path(&log)]);
        traced.args(["-e", "trace=execve,open,openat,openat2,mknodat,mount", "-z"]);
        traced.arg(command.get_program()).args(command.get_args());
        traced.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        traced.current_dir(command.get_current_dir().unwrap()).stdin(File::open(&disk).unwrap());
        let answer = Answer::of(traced);
        let trace = fs::read_to_string(&log).unwrap();
        assert!(!trace.contains("blkid.tab"), "{trace}");
        let tools = tools_of(&trace);
        for program in programs {
            let named = format!("/{program}\"");
            let mut of_program = tools.iter().filter(|tool| tool.command.contains(&named)).peekable();
            assert!(of_program.peek().is_some(), "{program} was not run: {}\n{trace}", answer.log);
            for Opened { command, devices } in of_program {
                assert!(devices.iter().all(|device| *device == devices[0]), "{command}: {devices:?}");
            }
        }
        // The first process of its namespaces has made a /dev with that one.
        let made = trace.lines().filter(|line| line.contains("S_IFBLK")).count();
        let started = trace.lines().filter(|line| line.contains("\"/proc/self/exe\"")).count();
        assert!(made > 0 && made == started, "{made} {started}\n{trace}");
    }
    drop(device);
    node.assert_nothing_left();
}
