//! The root that a job's processes have: that of the node, a tree, or one that is made for a program of the node. The first
//! process of the job's PID namespace moves there before anything runs, so that no process of the job can reach what is left
//! behind: /proc has no other root.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root, umask};
use serde::{Deserialize, Serialize};

/// Where a job runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum JobRoot {
    /// In the node's own root.
    #[default]
    Node,
    /// The same, where /dev has this block device and no other.
    NodeWithOne(PathBuf),
    /// In a tree, which may have a disk in its /dev.
    Tree { path: OsString, device: Option<Device> },
    /// In a root with the node's programs and nothing of the node besides.
    Made(MadeRoot),
}

/// The block device of a tree, and how programs find it: /dev/disk/by-uuid/UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub node: PathBuf,
    pub uuid: String,
}

/// A root for a program of the node that works on a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeRoot {
    /// An empty directory, where it is made.
    pub at: PathBuf,
    /// What may be written, at the place that it has on the node.
    pub target: PathBuf,
    /// What may be read besides, each at the place that it has on the node.
    pub readable: Vec<PathBuf>,
    /// What is /root there; an empty directory by default.
    pub home: Option<PathBuf>,
}

/// Directories of programs, and their links where /usr is merged.
const PROGRAMS: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"];

/// What programs read of /etc: names, certificates, how libraries and alternatives are found. No other file of it is there.
const ETC: [&str; 18] = [
    "alternatives",
    "ca-certificates",
    "debian_version",
    "gai.conf",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "passwd",
    "perl",
    "protocols",
    "resolv.conf",
    "services",
    "ssl/certs",
];

/// Memory that such a root may fill: what programs write to /tmp and /var.
const MADE_OPTIONS: &std::ffi::CStr = c"mode=0755,size=512m";

/// Devices that programs take for granted, as the kernel numbers them (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

impl JobRoot {
    /// A tree without a disk.
    pub fn tree(path: impl Into<OsString>) -> JobRoot {
        JobRoot::Tree { path: path.into(), device: None }
    }

    /// Moves the calling process there; the mount namespace must be its own.
    pub fn enter(&self) -> Result<()> {
        match self {
            JobRoot::Node => mount_proc(Path::new("/proc")),
            JobRoot::NodeWithOne(node) => {
                mount_proc(Path::new("/proc"))?;
                let number = number_of(node)?;
                let dev = Path::new("/dev");
                mount_dev(dev)
                    .and_then(|()| add_block_device(dev, node, number))
                    .context("making a /dev with one disk")
            }
            JobRoot::Tree { path, device } => {
                let root = Path::new(path);
                mount_bind_recursive(root, root).with_context(|| format!("mounting {}", root.display()))?;
                mount_guarded_proc(&root.join("proc"))?;
                let dev = root.join("dev");
                mount_dev(&dev)
                    .and_then(|()| device.as_ref().map_or(Ok(()), |device| add_disk(&dev, device)))
                    .with_context(|| format!("making {}", dev.display()))?;
                pivot(root)
            }
            JobRoot::Made(made) => {
                made.build().with_context(|| format!("making a root in {}", made.at.display()))?;
                pivot(&made.at)
            }
        }
    }
}

/// Makes a mount point the root, and lets go of the old one.
fn pivot(root: &Path) -> Result<()> {
    let context = || format!("moving to {}", root.display());
    chdir(root).with_context(context)?;
    // pivot_root(2): with the same directory twice, the old root is mounted over the new one, and is what unmount takes.
    pivot_root(".", ".").with_context(context)?;
    unmount(".", UnmountFlags::DETACH).with_context(context)?;
    chdir("/").with_context(context)
}

impl MadeRoot {
    fn build(&self) -> Result<()> {
        mount("root", &self.at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, MADE_OPTIONS)?;
        for dir in ["etc/apt/apt.conf.d", "root", "run", "proc", "sys", "dev", "var/lib/dpkg", "var/cache"] {
            std::fs::create_dir_all(self.at.join(dir))?;
        }
        for dir in ["tmp", "var/tmp"] {
            std::fs::create_dir_all(self.at.join(dir))?;
            std::fs::set_permissions(self.at.join(dir), Permissions::from_mode(0o1777))?;
        }
        for name in PROGRAMS {
            self.show(&Path::new("/").join(name))?;
        }
        for name in ETC {
            self.show(&Path::new("/etc").join(name))?;
        }
        // A directory before what is in it.
        let mut readable = self.readable.clone();
        readable.sort();
        for path in &readable {
            self.show(path)?;
        }
        if let Some(home) = &self.home {
            mount_bind(home, self.at.join("root"))?;
        }
        let target = self.place_of(&self.target);
        std::fs::create_dir_all(&target)?;
        mount_bind(&self.target, &target)?;
        // debootstrap mounts what is not there, for which a job has no right.
        let (proc, sys) = (target.join("proc"), target.join("sys"));
        std::fs::create_dir_all(&proc)?;
        std::fs::create_dir_all(&sys)?;
        mount_guarded_proc(&proc)?;
        mount_sys(&sys)?;
        mount_guarded_proc(&self.at.join("proc"))?;
        let dev = self.at.join("dev");
        mount_dev(&dev)?;
        std::fs::create_dir(dev.join("pts"))?;
        let options = c"newinstance,ptmxmode=0666,mode=0620";
        mount("devpts", dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)?;
        Ok(symlink("pts/ptmx", dev.join("ptmx"))?)
    }

    fn place_of(&self, path: &Path) -> PathBuf {
        self.at.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Shows a file or directory of the node at its own place, read-only. What is not there is left out. A link within the same
    /// directory stays one; any other is replaced by what it leads to, for its way may not be there.
    fn show(&self, path: &Path) -> Result<()> {
        let context = || format!("showing {}", path.display());
        let to = self.place_of(path);
        let meta = match std::fs::symlink_metadata(path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(());
            }
            meta => meta.with_context(context)?,
        };
        if std::fs::symlink_metadata(&to).is_ok() {
            // In a directory that is shown already.
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).with_context(context)?;
        }
        if meta.is_symlink() {
            let link = std::fs::read_link(path).with_context(context)?;
            if path.parent() == Some(Path::new("/")) {
                return symlink(link, &to).with_context(context);
            }
        }
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => std::fs::create_dir_all(&to).with_context(context)?,
            Ok(_) => drop(File::create(&to).with_context(context)?),
            // A link to nothing.
            Err(_) => return Ok(()),
        }
        mount_bind_recursive(path, &to).with_context(context)?;
        let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        for mounted in mounts_below(&to).with_context(context)? {
            mount_remount(&mounted, read_only, "").with_context(context)?;
        }
        Ok(())
    }
}

/// The mount points at and below a directory, by proc(5).
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo").context("reading the table of mounts")?;
    let points =
        table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let points = points.map(|point| PathBuf::from(OsString::from_vec(unescaped(point))));
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

/// A path of mountinfo, in which blanks and the like are written as three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

fn mount_proc(at: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", at, "proc", flags, None).with_context(|| format!("mounting proc on {}", at.display()))
}

/// A /proc whose switches of the node's kernel are read-only (sys, sysrq-trigger, irq and all others): root may use them without
/// any capability. What belongs to processes is as ever.
fn mount_guarded_proc(at: &Path) -> Result<()> {
    mount_proc(at)?;
    let context = || format!("guarding {}", at.display());
    for entry in std::fs::read_dir(at).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (name, meta) = (entry.file_name(), entry.metadata().with_context(context)?);
        let is_of_a_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let is_writable = meta.is_dir() || meta.permissions().mode() & 0o222 != 0;
        if is_of_a_process || meta.is_symlink() || !is_writable {
            continue;
        }
        mount_bind(entry.path(), entry.path()).with_context(context)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(entry.path(), flags | MountFlags::NOEXEC, "").with_context(context)?;
    }
    Ok(())
}

/// In the place of sysfs, whose files are switches of the node: a directory that is not empty, so that nothing is mounted there.
fn mount_sys(at: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sys", at, "tmpfs", flags, c"mode=0755,size=64k")
        .with_context(|| format!("mounting {}", at.display()))?;
    Ok(std::fs::create_dir(at.join("kernel"))?)
}

/// A /dev in memory: what looks for disks (grub-probe) finds none of the node's.
fn mount_dev(at: &Path) -> Result<()> {
    mount("dev", at, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0755,size=1m")?;
    let everyone = Mode::from_raw_mode(0o666);
    umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        mknodat(CWD, at.join(name), FileType::CharacterDevice, everyone, makedev(major, minor))?;
    }
    umask(Mode::from_raw_mode(0o022));
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(to, at.join(name))?;
    }
    Ok(std::fs::create_dir(at.join("shm"))?)
}

/// Adds the node of one disk.
fn add_disk(dev: &Path, device: &Device) -> Result<()> {
    add_block_device(dev, &device.node, number_of(&device.node)?)?;
    let name = device.node.file_name().context("naming the device")?;
    std::fs::create_dir_all(dev.join("disk/by-uuid"))?;
    Ok(symlink(Path::new("../..").join(name), dev.join("disk/by-uuid").join(&device.uuid))?)
}

fn number_of(node: &Path) -> Result<u64> {
    let meta = std::fs::metadata(node).with_context(|| format!("looking at {}", node.display()))?;
    Ok(meta.rdev())
}

fn add_block_device(dev: &Path, node: &Path, number: u64) -> Result<()> {
    let name = node.file_name().context("naming the device")?;
    Ok(mknodat(CWD, dev.join(name), FileType::BlockDevice, Mode::from_raw_mode(0o600), number)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_points_blanks_are_read() {
        assert_eq!(unescaped(b"/a\\040b\\134c\\"), b"/a b\\c\\");
    }
}
