//! Loop devices: whose they are, and how they are let go.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ganeti_instance_debootstrap::sys::{LoopInfo64, loop_status};
use walkdir::WalkDir;

/// How long the kernel may take to let a device go. Who looks at it for a moment keeps it so long.
pub const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A loop device that is in use, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// `loop7`
    name: String,
    file: String,
}

/// What tells the loop devices of a test from those of others.
pub struct Owner<'a> {
    /// The test's directory.
    pub dir: &'a Path,
    /// What was attached before the test.
    pub before: &'a [Attached],
    /// Numbers of filesystems that nobody else has.
    pub filesystems: &'a [u64],
}

impl std::fmt::Display for Attached {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "loop device {} over {}", self.name, self.file)
    }
}

/// All loop devices that are in use.
pub fn attached() -> Vec<Attached> {
    let blocks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let read = |block: fs::DirEntry| {
        let file = fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
        Some(Attached { name: block.file_name().into_string().ok()?, file: file.trim_end().to_owned() })
    };
    blocks.filter_map(read).collect()
}

impl Owner<'_> {
    /// Its loop devices; what is over another one comes before it.
    ///
    /// The name of a file tells most. A file can have another name where the mount is gone by which it was opened: then its
    /// device and inode tell. A device over another one of these is the test's as well.
    pub fn devices(&self) -> Vec<Attached> {
        let mut others: Vec<Attached> = attached();
        others.retain(|device| !self.before.contains(device));
        if others.is_empty() {
            return others;
        }
        let files = self.files();
        let is_own = |device: &Attached| device.is_named_below(self.dir) || self.has(device, &files);
        let (mut own, mut others): (Vec<_>, Vec<_>) = others.into_iter().partition(is_own);
        loop {
            let is_over = |device: &Attached| own.iter().any(|lower| device.is_over(lower));
            let (new, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(is_over);
            if new.is_empty() {
                return upper_first(own);
            }
            own.extend(new);
            others = rest;
        }
    }

    fn has(&self, device: &Attached, files: &BTreeSet<(u64, u64)>) -> bool {
        let Some(info) = device.status() else { return false };
        files.contains(&(info.device, info.inode)) || self.filesystems.contains(&info.device)
    }

    /// Device and inode of all files in its directory. One with another link may be somebody else's as well.
    fn files(&self) -> BTreeSet<(u64, u64)> {
        let entries = WalkDir::new(self.dir).same_file_system(true).into_iter().flatten();
        let own = entries.filter_map(|entry| entry.metadata().ok()).filter(|meta| meta.nlink() == 1);
        own.map(|meta| (meta.dev(), meta.ino())).collect()
    }
}

impl Attached {
    /// A mount that is gone leaves the end of the name, so a component is looked for: a test's directory has a random name.
    fn is_named_below(&self, dir: &Path) -> bool {
        Path::new(&self.file).components().any(|part| Some(part.as_os_str()) == dir.file_name())
    }

    fn status(&self) -> Option<LoopInfo64> {
        loop_status(&File::open(Path::new("/dev").join(&self.name)).ok()?).ok()
    }

    /// Whether it is over another loop device, over a partition of that, or over a file of a filesystem that is on it.
    fn is_over(&self, lower: &Attached) -> bool {
        let Some(info) = self.status() else { return false };
        lower
            .nodes()
            .iter()
            .any(|node| (node.dev(), node.ino()) == (info.device, info.inode) || node.rdev() == info.device)
    }

    /// The nodes of the device and of its partitions.
    fn nodes(&self) -> Vec<fs::Metadata> {
        let parts = fs::read_dir(Path::new("/sys/block").join(&self.name)).into_iter().flatten().flatten();
        let parts = parts.filter_map(|entry| entry.file_name().into_string().ok());
        let own = parts.filter(|part| part.starts_with(&self.name)).chain([self.name.clone()]);
        own.filter_map(|name| fs::metadata(Path::new("/dev").join(name)).ok()).collect()
    }

    /// Detaches it; the error says why it is still attached.
    fn detach(&self) -> Result<(), String> {
        let detached = Command::new("losetup").arg("--detach").arg(format!("/dev/{}", self.name)).output();
        let start = Instant::now();
        while attached().contains(self) {
            let why = match &detached {
                Ok(output) if output.status.success() => "it is still in use".into(),
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            if start.elapsed() > KERNEL_TIMEOUT {
                return Err(format!("{self} cannot be detached: {why}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn upper_first(mut devices: Vec<Attached>) -> Vec<Attached> {
    let mut sorted = Vec::new();
    while !devices.is_empty() {
        let is_below =
            |device: &Attached| devices.iter().any(|upper| upper != device && upper.is_over(device));
        let top = devices.iter().position(|device| !is_below(device)).unwrap_or_default();
        sorted.push(devices.remove(top));
    }
    sorted
}

/// Detaches devices, in this order. Says which cannot be.
pub fn detach(devices: &[Attached]) -> Vec<String> {
    devices.iter().filter_map(|device| device.detach().err()).collect()
}
