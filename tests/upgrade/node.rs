//! A tree that is entered as if it were a machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::held::{loops_over, remove_tree, run, scratch_dir};
use crate::trees::Suite;
use crate::tuned::data_dir;
use crate::{CACHE, DISK, DISK_BYTES, OS_DIR, PACKAGE};

/// A tree that is entered as if it were a machine.
pub struct Node {
    /// None where another owns the directory.
    pub dir: Option<TempDir>,
    pub root: PathBuf,
}

pub struct Ran {
    pub status: ExitStatus,
    pub what: String,
    pub log: String,
}

impl Ran {
    pub fn expect_success(self) -> Result<String> {
        ensure!(self.status.success(), "{}: {}\n{}", self.what, self.status, self.log);
        Ok(self.log)
    }
}

impl Node {
    pub fn unpack(tree: &Path) -> Result<Node> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test needs root: it enters a tree and attaches loop devices"
        );
        let dir = scratch_dir()?;
        let root = dir.path().join("root");
        fs::create_dir(&root)?;
        run(Command::new("tar").arg("--extract").arg("--file").arg(tree).arg("-C").arg(&root))?;
        Ok(Node { dir: Some(dir), root })
    }

    /// Where an absolute path of the node lies.
    pub fn path(&self, on_node: &str) -> PathBuf {
        self.root.join(on_node.trim_start_matches('/'))
    }

    /// As root at a shell without a terminal.
    pub fn run(&self, argv: &[&str]) -> Result<Ran> {
        self.run_with(&admins_environment(), 0o022, "/root", argv)
    }

    pub fn run_with(
        &self,
        environment: &[String],
        umask: u32,
        directory: &str,
        argv: &[&str],
    ) -> Result<Ran> {
        // One file for both, as noded's log is.
        let mut log = tempfile::tempfile()?;
        let status = Command::new("timeout")
            .args(["--kill-after=5", "300"])
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
            .arg("sh")
            .arg(data_dir().join("enter.sh"))
            .arg(&self.root)
            .arg(format!("{umask:04o}"))
            .arg(directory)
            .args(environment)
            .args(argv)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .status()?;
        let mut bytes = Vec::new();
        log.seek(SeekFrom::Start(0))?;
        log.read_to_end(&mut bytes)?;
        Ok(Ran { status, what: argv.join(" "), log: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// From apt's lists and archives as they lie in the tree: there is no resolver to find more.
    pub fn apt_install(&self, what: &str) -> Result<()> {
        let log = self
            .run(&["apt-get", "-y", "--no-install-recommends", "--allow-downgrades", "install", what])?
            .expect_success()?;
        assert_nothing_asked(&log);
        Ok(())
    }

    /// `dpkg -i`, with nobody there to answer.
    pub fn install_file(&self, deb: &Path) -> Result<()> {
        fs::copy(deb, self.path("/srv/install.deb"))?;
        let log = self.run(&["dpkg", "-i", "/srv/install.deb"])?.expect_success()?;
        assert_nothing_asked(&log);
        Ok(())
    }

    pub fn purge(&self) -> Result<()> {
        self.run(&["dpkg", "--purge", PACKAGE])?.expect_success()?;
        Ok(())
    }

    pub fn cached_deb(&self, suite: &Suite) -> Result<PathBuf> {
        let path = self.path(&format!("/var/cache/apt/archives/{PACKAGE}_{}_all.deb", suite.version));
        ensure!(path.exists(), "{} is missing", path.display());
        Ok(path)
    }

    /// Runs the installed `create` as noded does, on new disks.
    pub fn create(&self, environment: &[String]) -> Result<Ran> {
        self.create_beside(environment, &[])
    }

    /// The same, with the command line of `create` behind another's.
    pub fn create_beside(&self, environment: &[String], before: &[&str]) -> Result<Ran> {
        for disk in [DISK.to_owned(), format!("{DISK}.1")] {
            let path = self.path(&disk);
            if path.exists() {
                fs::remove_file(&path)?;
            }
            File::create(&path)?.set_len(DISK_BYTES)?;
        }
        let create = format!("{OS_DIR}/create");
        let argv = [before, &[create.as_str()]].concat();
        let ran = self.run_with(environment, 0o077, OS_DIR, &argv)?;
        self.detached(DISK)?;
        Ok(ran)
    }

    /// The kernel lets go of a loop device's backing shortly after the last close.
    pub fn detached(&self, disk: &str) -> Result<()> {
        let deadline = Instant::now() + crate::common::KERNEL_TIMEOUT;
        loop {
            let attached = loops_over(&self.path(disk))?;
            if attached.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still attached: {attached:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Files and links (not directories) at or under these paths, as the node names them.
    pub fn files_under(&self, paths: &[&str]) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for path in paths {
            let start = self.path(path);
            if fs::symlink_metadata(&start).is_err() {
                continue;
            }
            for entry in WalkDir::new(start) {
                let entry = entry?;
                if !entry.file_type().is_dir() {
                    found.insert(format!("/{}", entry.path().strip_prefix(&self.root)?.display()));
                }
            }
        }
        Ok(found)
    }

    /// Everything on the node that a create has no business to touch.
    pub fn listing(&self) -> Result<BTreeMap<PathBuf, (u64, i64, u32)>> {
        let ours = [self.path(CACHE), self.path("/srv")];
        let mut found = BTreeMap::new();
        for entry in
            WalkDir::new(&self.root).into_iter().filter_entry(|entry| !ours.iter().any(|p| p == entry.path()))
        {
            let entry = entry?;
            let status = entry.metadata()?;
            // A directory's time changes with what comes and goes in it, as in /tmp.
            let time = if status.is_dir() { 0 } else { status.mtime() };
            let size = if status.is_dir() { 0 } else { status.len() };
            found.insert(entry.path().strip_prefix(&self.root)?.to_owned(), (size, time, status.mode()));
        }
        Ok(found)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A loop device of ours that a failed run left: by its file, which nobody else has.
        for disk in [DISK.to_owned(), format!("{DISK}.1")] {
            for device in loops_over(&self.path(&disk)).unwrap_or_default() {
                eprintln!("detaching {device}, left by a failed run");
                let _ = Command::new("losetup").args(["--detach", &device]).status();
            }
        }
        if let Some(Err(error)) = self.dir.take().map(remove_tree) {
            eprintln!("{error:#}");
        }
    }
}

pub fn assert_nothing_asked(log: &str) {
    for sign in ["Configuration file '", "==> ", "*** ", "conffile prompt"] {
        assert!(!log.contains(sign), "dpkg asked about a conffile:\n{log}");
    }
}

pub fn admins_environment() -> Vec<String> {
    [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
        "TERM=dumb",
    ]
    .map(str::to_owned)
    .into()
}
