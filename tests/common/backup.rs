//! export and import as noded runs them, with a file for the stream.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Node, log_of, text};

pub fn export_env(node: &Node, disk: &Path) -> BTreeMap<String, String> {
    let mut env = node.recorded("export", disk);
    env.insert("EXPORT_DEVICE".into(), disk.display().to_string());
    env.insert("EXPORT_DISK_PATH".into(), disk.display().to_string());
    env.insert("EXP_SIZE_FD".into(), "7".into());
    env
}

pub fn import_env(node: &Node, disk: &Path) -> BTreeMap<String, String> {
    let mut env = node.recorded("import", disk);
    env.insert("IMPORT_DEVICE".into(), disk.display().to_string());
    env.insert("IMPORT_DISK_PATH".into(), disk.display().to_string());
    env
}

/// Exports a disk to a file; the log. The size that Ganeti was told must be that of the stream.
pub fn export(node: &Node, disk: &Path, stream: &Path) -> String {
    let told = node.path().join("size");
    let verb = node.verb("export", &export_env(node, disk));
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec 7>\"$SIZE\"; exec \"$0\" \"$@\""])
        .arg(verb.get_program())
        .args(verb.get_args());
    command.env_clear().envs(verb.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("SIZE", &told).current_dir(verb.get_current_dir().unwrap());
    let output =
        command.stdin(Stdio::null()).stdout(File::create(stream).unwrap()).stderr(Stdio::piped()).output();
    let output = output.unwrap();
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert_eq!(fs::read_to_string(told).unwrap(), format!("{}\n", fs::metadata(stream).unwrap().len()));
    log
}

/// Imports a file; whether that was done, and the log.
pub fn import(node: &Node, disk: &Path, stream: &Path) -> (bool, String) {
    let mut command = node.verb("import", &import_env(node, disk));
    let output = command.stdin(File::open(stream).unwrap()).output().unwrap();
    assert!(output.stdout.is_empty(), "stdout is not for words");
    (output.status.success(), log_of(&output))
}
