//! Backups in a test: export as noded runs it, with its count of the bytes to come, and import; both within our bound
//! of memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::running::{Family, Running};
use super::{Node, tool};

/// For a whole disk on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// The environment of "export" or "import" for a disk.
pub fn env_of(node: &Node, verb: &str, disk: &Path) -> BTreeMap<String, String> {
    let mut env = node.recorded(verb, disk);
    let prefix = verb.to_uppercase();
    env.insert(format!("{prefix}_DEVICE"), disk.display().to_string());
    env.insert(format!("{prefix}_DISK_PATH"), disk.display().to_string());
    env
}

/// Exports a disk to a file; the log. The size that Ganeti is told must be the stream's.
pub fn export(node: &Node, disk: &Path, stream: &Path) -> String {
    let told = node.path().join("told");
    let size_file = File::create(&told).unwrap();
    // A copy that children inherit.
    let inherited = nix::unistd::dup(&size_file).unwrap();
    let mut env = env_of(node, "export", disk);
    env.insert("EXP_SIZE_FD".into(), inherited.as_raw_fd().to_string());
    let running = Running::writing(node.verb("export", &env), File::create(stream).unwrap().into());
    drop(inherited);
    let ended = running.end_within(PATIENCE, Family::default());
    assert!(ended.status.success(), "{}", ended.log);
    let size_bytes = fs::metadata(stream).unwrap().len();
    assert_eq!(fs::read_to_string(told).unwrap(), format!("{size_bytes}\n"), "{}", ended.log);
    ended.log
}

/// Imports a file, or what a pipe brings; whether it was done, and the log.
pub fn import(node: &Node, disk: &Path, stream: impl Into<Stdio>) -> (bool, String) {
    let mut command: Command = node.verb("import", &env_of(node, "import", disk));
    command.stdin(stream);
    let words = node.path().join("words");
    let running = Running::writing(command, File::create(&words).unwrap().into());
    let ended = running.end_within(PATIENCE, Family::default());
    assert_eq!(fs::read_to_string(words).unwrap(), "", "stdout is not for words");
    assert!(!ended.log.contains("panicked"), "{}", ended.log);
    (ended.status.success(), ended.log)
}

/// Imports a file and wants it done; the log.
pub fn imported(node: &Node, disk: &Path, stream: &Path) -> String {
    let (done, log) = import(node, disk, File::open(stream).unwrap());
    assert!(done, "{log}");
    log
}

/// A disk full of what another left.
pub fn dirty(path: &Path, size_bytes: u64) {
    let file = File::create(path).unwrap();
    let noise: Vec<u8> = (0..MIB).map(|n| (n * 7 + n / 251) as u8 | 1).collect();
    for at in (0..size_bytes).step_by(MIB as usize) {
        let length = (size_bytes - at).min(MIB) as usize;
        file.write_all_at(&noise[..length], at).unwrap();
    }
}

/// Wants two trees equal: names, content, owners, modes, times, links, attributes, ACLs.
pub fn assert_same_trees(one: &Path, other: &Path, what: &str) {
    let slash = |path: &Path| format!("{}/", path.display());
    // xfs shows an ACL a second time.
    let options =
        ["-naAXHi", "--checksum", "--delete", "--exclude=/lost+found", "--filter=-x trusted.SGI_ACL_*"];
    let difference = tool("rsync", &[&options[..], &[&slash(one), &slash(other)]].concat());
    assert_eq!(difference, "", "{what}");
}
