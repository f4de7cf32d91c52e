//! The file or block device that Ganeti names: opened, locked, measured, and refused where somebody else uses it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{OFlags, major, minor};
use rustix::io::Errno;

use crate::probe::{self, Survey};
use crate::reader::{Budget, Region};
use crate::report::WithHint;
use crate::sys::{self, lock, signals};

/// What a disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    File,
    Block,
}

/// A disk that is ours: locked until it is dropped.
#[derive(Debug)]
pub struct Disk {
    pub file: File,
    pub path: PathBuf,
    pub medium: Medium,
    pub size_bytes: u64,
    /// Whether `path` leads to it; a file that is only just being made has no name yet.
    named: bool,
}

/// udev and blkid lock a block device for a moment when it changes.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a loop device over the disk may take to go away.
const LOOP_TIMEOUT: Duration = Duration::from_secs(2);

/// With less free space a filesystem counts as full.
const NO_ROOM_BYTES: u64 = 1 << 20;

impl Disk {
    /// Opens for writing. Refuses what is absent, is no disk, or is mounted, held or locked by others; nothing
    /// is written.
    pub fn open(path: &Path) -> Result<Disk> {
        let shown = path.display();
        let meta = metadata_of(path)?;
        let medium = medium_of(path, &meta)?;
        if medium == Medium::Block {
            refuse_held(path, meta.rdev())?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("opening the disk {shown} for writing"))?;
        // The lock first: another installation also has it attached, and is the better explanation.
        let disk = Disk::locked(file, path, medium)?;
        refuse_running(&disk)?;
        // A loop device that somebody only looked at, or that an earlier run had, may just be going away.
        let start = Instant::now();
        while let Err(error) = refuse_looped(path, &meta) {
            signals::check()?;
            if start.elapsed() > LOOP_TIMEOUT {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(disk)
    }

    /// All its bytes, for a reader of what somebody else wrote.
    pub fn region<'a>(&'a self, budget: &'a Budget<'a>) -> Region<'a> {
        Region::new(&self.file, budget, 0, self.size_bytes)
    }

    /// What is on it, in the order of the partitions' numbers. An error where its table is damaged.
    pub fn survey(&self) -> Result<Survey> {
        // What is read here must be what a direct-I/O loop device will see.
        self.flush_path_cache()?;
        self.survey_cached().with_context(|| format!("looking at what is on {}", self.path.display()))
    }

    /// The same without writing out and forgetting what the page cache of its path holds.
    pub fn survey_cached(&self) -> Result<Survey> {
        probe::survey(&self.region(&Budget::of_disk(self.size_bytes)))
    }

    /// Opens for reading alone, also where a running instance has the disk; refused only while somebody installs on it.
    pub fn open_to_read(path: &Path) -> Result<Disk> {
        let shown = path.display();
        let medium = medium_of(path, &metadata_of(path)?)?;
        let file = File::open(path).with_context(|| format!("opening the disk {shown}"))?;
        if !lock::try_shared(&file)? {
            let who = lock::holder(&file).unwrap_or_else(|| "another process".into());
            return Err(anyhow::anyhow!("the disk {shown} is locked by {who}"))
                .hint("an installation of this instance may be running; wait for it, or end it");
        }
        Disk::measured(file, path, medium)
    }

    /// Takes a file that has no name yet, and that nobody else can know.
    pub fn of_new_file(file: File, path: &Path) -> Result<Disk> {
        let disk = Disk::locked(file, path, Medium::File)?;
        Ok(Disk { named: false, ..disk })
    }

    fn locked(file: File, path: &Path, medium: Medium) -> Result<Disk> {
        let shown = path.display();
        if !lock::exclusive(&file, Some(LOCK_TIMEOUT), |_| {})? {
            let who = lock::holder(&file).unwrap_or_else(|| "another process".into());
            return Err(anyhow::anyhow!("the disk {shown} is locked by {who}"))
                .hint("another installation of this instance may be running; wait for it, or end it");
        }
        Disk::measured(file, path, medium)
    }

    fn measured(file: File, path: &Path, medium: Medium) -> Result<Disk> {
        let mut disk = Disk { file, path: path.to_owned(), medium, size_bytes: 0, named: true };
        disk.size_bytes = disk.current_size_bytes()?;
        Ok(disk)
    }

    /// Its size now; a hook that writes to a file with `>` changes it.
    pub fn current_size_bytes(&self) -> Result<u64> {
        let measured = match self.medium {
            Medium::File => self.file.metadata().map(|meta| meta.len()).map_err(anyhow::Error::from),
            Medium::Block => sys::block_size_bytes(&self.file).map_err(anyhow::Error::from),
        };
        measured.with_context(|| format!("measuring {}", self.path.display()))
    }

    /// Refuses where its path leads to something else by now, or where its size is another.
    pub fn refuse_changed(&self) -> Result<()> {
        let shown = self.path.display();
        let size_now = self.current_size_bytes()?;
        if size_now != self.size_bytes {
            let sizes = format!("from {} to {size_now} bytes", self.size_bytes);
            return Err(anyhow::anyhow!("a hook changed the size of {shown} {sizes}"))
                .hint("a hook must not truncate $DISK_0_PATH: write with dd conv=notrunc, not with >");
        }
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino(), meta.rdev());
        let ours = identity(self.file.metadata()?);
        let there = std::fs::metadata(&self.path).map(identity).ok();
        let same = match self.medium {
            Medium::File => there == Some(ours),
            Medium::Block => there.map(|id| id.2) == Some(ours.2),
        };
        ensure!(same || !self.named, "{shown} is no longer the disk that was installed; a hook replaced it");
        Ok(())
    }

    /// Gives a file its size back: as Ganeti knows it, and as the next attempt needs it.
    pub fn restore_size(&self) -> Result<()> {
        if self.medium == Medium::File && self.current_size_bytes()? != self.size_bytes {
            let context = || format!("giving {} its size back", self.path.display());
            self.file.set_len(self.size_bytes).with_context(context)?;
        }
        Ok(())
    }

    /// Whether what a file lies on has no room left; a sparse file needs some while it is written to.
    pub fn backing_is_full(&self) -> bool {
        let free = |fs: rustix::fs::StatVfs| fs.f_bavail * fs.f_frsize;
        self.medium == Medium::File
            && rustix::fs::fstatvfs(&self.file).is_ok_and(|fs| free(fs) < NO_ROOM_BYTES)
    }

    /// Writes out and forgets what the page cache of the disk's own path holds: a direct-I/O loop over it does
    /// not see that, and it would not see what the loop wrote.
    pub fn flush_path_cache(&self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("flushing {}", self.path.display()))?;
        match self.medium {
            Medium::Block => {
                sys::drop_block_cache(&self.file).with_context(|| format!("flushing {}", self.path.display()))
            }
            Medium::File => {
                let advice = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(&self.file, 0, None, advice).context("dropping a file's page cache")
            }
        }
    }
}

fn metadata_of(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::metadata(path)
        .with_context(|| format!("opening the disk {}", path.display()))
        .hint("gnt-instance activate-disks makes the disks of an instance appear on its node")
}

fn medium_of(path: &Path, meta: &std::fs::Metadata) -> Result<Medium> {
    match meta.file_type() {
        kind if kind.is_file() => Ok(Medium::File),
        kind if kind.is_block_device() => Ok(Medium::Block),
        _ => Err(anyhow::anyhow!("{} is neither a file nor a block device", path.display()))
            .hint("`gnt-instance info` shows what the instance's disks are"),
    }
}

/// The kernel grants O_EXCL on a block device to one holder: a mount (in any namespace), md, device-mapper, swap.
fn refuse_held(path: &Path, rdev: u64) -> Result<()> {
    let probe = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::EXCL | OFlags::NONBLOCK).bits() as i32)
        .open(path);
    match probe {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
            let by = match holders(rdev) {
                by if by.is_empty() => super::holders::opened_by(path),
                by => by,
            };
            Err(anyhow::anyhow!("the disk {} is in use{by}", path.display()))
                .hint("shut the instance down, or unmount what is mounted from its disk")
        }
        Err(error) => Err(error).with_context(|| format!("opening the disk {}", path.display())),
        Ok(_) => Ok(()),
    }
}

/// A guest that runs holds its disk open and nothing more; QEMU says so by record locks.
fn refuse_running(disk: &Disk) -> Result<()> {
    if !lock::record_locked(&disk.file) {
        return Ok(());
    }
    let by = super::holders::opened_by(&disk.path);
    Err(anyhow::anyhow!("the disk {} is in use{by}", disk.path.display()))
        .hint("an instance may be running on it; shut it down first")
}

/// `: mounted on /x, held by dm-3`, as far as sysfs and our own mounts tell.
fn holders(rdev: u64) -> String {
    let id = format!("{}:{}", major(rdev), minor(rdev));
    let sys_dir = PathBuf::from(format!("/sys/dev/block/{id}"));
    let mut ids = vec![id];
    let mut held: Vec<String> =
        names(&sys_dir.join("holders")).iter().map(|n| format!("held by {n}")).collect();
    for child in names(&sys_dir) {
        let partition = sys_dir.join(&child);
        if let Ok(id) = std::fs::read_to_string(partition.join("dev")) {
            ids.push(id.trim().to_owned());
            held.extend(names(&partition.join("holders")).iter().map(|n| format!("{child} held by {n}")));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if fields.len() > 4 && ids.iter().any(|id| id == fields[2]) {
            held.push(format!("mounted on {}", fields[4]));
        }
    }
    if held.is_empty() { String::new() } else { format!(": {}", held.join(", ")) }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A loop device over the same file or device means that somebody else works on it.
fn refuse_looped(path: &Path, meta: &std::fs::Metadata) -> Result<()> {
    for name in names(Path::new("/sys/block")) {
        if !name.starts_with("loop") || !Path::new("/sys/block").join(&name).join("loop").is_dir() {
            continue;
        }
        let device = Path::new("/dev").join(&name);
        let Ok(file) = File::open(&device) else { continue };
        let Ok(info) = sys::loop_status(&file) else { continue };
        if (info.device, info.inode) == (meta.dev(), meta.ino()) {
            let device = device.display();
            return Err(anyhow::anyhow!("the disk {} is in use: attached as {device}", path.display()))
                .hint(format!("find out who uses {device}; `losetup -d {device}` detaches it"));
        }
    }
    Ok(())
}
