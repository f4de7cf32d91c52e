//! A new identity for a guest with more files than any has where that is.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::backup::env_of;
use crate::common::small_guest::{Flavour, SmallDisk, Table};
use crate::common::{Node, log_of, text};

const REMOVALS: &str = "unlinkat";

/// A guest with so many host keys.
fn with_keys(node: &Node, count: usize) -> PathBuf {
    let disk = SmallDisk::make_with(node, "keys", Flavour::Ifupdown, Table::None, "ext4");
    let mounted = disk.mount_writable();
    for number in 0..count {
        File::create(mounted.path().join(format!("etc/ssh/ssh_host_{number}"))).unwrap();
    }
    drop(mounted);
    disk.path
}

/// An import as another guest, and what strace tells of it.
fn import(node: &Node, from: &Path, inject: &str) -> (Command, PathBuf) {
    let disk = node.disk("new", fs::metadata(from).unwrap().len());
    let mut env = env_of(node, "import", &disk);
    env.insert("OSP_IMPORT_IDENTITY".into(), "new".into());
    let command = node.verb("import", &env);
    let log = node.path().join("trace");
    let mut traced = Command::new("strace");
    traced.args(["-qqq", "-o", log.to_str().unwrap(), "-e", &format!("trace={REMOVALS}"), "-e", inject]);
    traced.arg(command.get_program()).args(command.get_args());
    traced.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced.current_dir(command.get_current_dir().unwrap());
    traced.stdin(File::open(from).unwrap()).stdout(Stdio::null()).stderr(Stdio::piped());
    (traced, log)
}

fn removed_keys(trace: &Path) -> usize {
    fs::read_to_string(trace).unwrap().lines().filter(|line| line.contains("\"ssh_host_")).count()
}

#[test]
fn a_signal_ends_the_removal_of_host_keys_between_two_of_them() {
    let node = Node::bare();
    let disk = with_keys(&node, 1000);
    let (mut command, trace) = import(&node, &disk, "inject=unlinkat:signal=SIGTERM:when=20");
    let ended = command.output().unwrap();
    let log = text(&ended.stderr);
    assert_eq!(ended.status.signal(), Some(Signal::SIGTERM as i32), "{log}");
    let removed = removed_keys(&trace);
    assert!((1..=20).contains(&removed), "{removed}: {log}");
    node.wait_until_detached();
    node.assert_nothing_left();
}

#[test]
fn a_directory_of_host_keys_is_bounded() {
    let node = Node::bare();
    let disk = with_keys(&node, 2000);
    let (mut command, trace) = import(&node, &disk, "inject=unlinkat:delay_enter=0");
    let ended = command.output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", log_of(&ended));
    assert!(log_of(&ended).contains("/etc/ssh: it has more than 1024 entries"), "{}", log_of(&ended));
    assert!(removed_keys(&trace) <= 1024);
    node.wait_until_detached();
    node.assert_nothing_left();
}
