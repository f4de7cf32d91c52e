//! What this machine holds, before a test and after it; and where the time went.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::DISK;
use crate::node::Node;

/// The mounts of this machine's own namespace before a test.
pub struct Held {
    mounts: BTreeSet<String>,
    loops: BTreeSet<String>,
}

impl Held {
    pub fn now() -> Result<Held> {
        Ok(Held { mounts: mounts()?, loops: loops()? })
    }

    /// Others may be at work on this machine: only what is new and the node's counts.
    pub fn nothing_new_is_left_by(&self, node: &Node) -> Result<()> {
        let root = node.root.to_str().context("a path in UTF-8")?;
        let mut left: Vec<String> =
            mounts()?.difference(&self.mounts).filter(|m| m.contains(root)).cloned().collect();
        for disk in [DISK.to_owned(), format!("{DISK}.1")] {
            node.detached(&disk)?;
        }
        left.extend(loops()?.difference(&self.loops).filter(|l| l.contains(root)).cloned());
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            for link in ["root", "cwd", "exe"] {
                // Gone by now, or a kernel thread: no link to read.
                let Ok(target) = fs::read_link(entry.path().join(link)) else { continue };
                if target.starts_with(&node.root) {
                    left.push(format!("process {pid}: {link} is {}", target.display()));
                }
            }
        }
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }
}

pub fn mounts() -> Result<BTreeSet<String>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().map(str::to_owned).collect())
}

pub fn loops() -> Result<BTreeSet<String>> {
    let listed = Command::new("losetup").arg("--all").output().context("running losetup --all")?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect())
}

/// Compared by inode: the path the kernel shows was seen from another namespace.
pub fn loops_over(file: &Path) -> Result<Vec<String>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let listed = Command::new("losetup").arg("--associated").arg(file).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(listed.lines().filter_map(|line| line.split(':').next()).map(str::to_owned).collect())
}

/// Removes a tree, but never through a mount: it might be this machine's /dev.
pub fn remove_tree(dir: TempDir) -> Result<()> {
    let path = fs::canonicalize(dir.path())?;
    let inside = mounts()?.into_iter().find(|line| line.contains(path.to_str().unwrap_or("/")));
    if let Some(mount) = inside {
        let kept = dir.keep();
        bail!("{} is kept, something is mounted in it: {mount}", kept.display());
    }
    dir.close().with_context(|| format!("removing {}", path.display()))
}

pub fn scratch_dir() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("upgrade-").tempdir_in(crate::common::scratch())?)
}

pub fn run(command: &mut Command) -> Result<()> {
    let ran = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        ran.status.success(),
        "{command:?}: {}\n{}{}",
        ran.status,
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}

/// Where the time goes, for `--nocapture`.
pub struct Steps(std::cell::Cell<Instant>);

impl Steps {
    pub fn new() -> Steps {
        Steps(std::cell::Cell::new(Instant::now()))
    }

    pub fn done(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.0.replace(Instant::now()).elapsed().as_secs_f64());
    }
}
