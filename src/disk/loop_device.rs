//! The loop driver: the one way to a device, over whatever Ganeti gives (file, LVM, DRBD, rbd).
//!
//! A device detaches itself when its last user is gone (AUTOCLEAR), so nothing is left after SIGKILL; PARTSCAN
//! besides makes the kernel drop the partition nodes too. Its lock keeps udev off until hooks run.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use uuid::Uuid;

use super::direct::direct_io_is_safe;
use super::holders::opened_by;
use super::{Disk, udev};
use crate::filesystem::SECTOR_BYTES;
use crate::report::{self, WithHint};
use crate::sys::{self, Blkpg, LoopSetup, lock, loop_flags, signals};

/// How long the kernel gets to let go of the backing.
const DETACH_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a device is sought when others take the free ones.
const ATTEMPTS: usize = 256;

/// An attached loop device; detaches when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    number: u32,
    partitions: Vec<u32>,
    /// What sysfs shows while it is attached to our backing.
    backing_shown: String,
}

impl LoopDevice {
    /// Attaches a whole disk, with sectors of 512 bytes and direct I/O where it can be had.
    pub fn attach(disk: &Disk) -> Result<LoopDevice> {
        let shown = disk.path.display();
        let scan = loop_flags::PARTSCAN;
        LoopDevice::attach_window(&disk.file, Window::WHOLE, scan, direct_io_is_safe(&disk.file))
            .with_context(|| format!("attaching {shown} to a loop device"))
    }

    /// Attaches one part of a disk that a guest wrote, and nothing else of it: no partition is looked for in it.
    pub fn attach_part(disk: &Disk, start_bytes: u64, size_bytes: u64) -> Result<LoopDevice> {
        let window = Window { start_bytes, size_bytes };
        LoopDevice::attach_window(&disk.file, window, 0, direct_io_is_safe(&disk.file))
            .with_context(|| format!("attaching a part of {} to a loop device", disk.path.display()))
    }

    /// Attaches all of a device or file so that nothing can write to it.
    pub fn attach_read_only(backing: &File) -> Result<LoopDevice> {
        LoopDevice::attach_window(backing, Window::WHOLE, loop_flags::READ_ONLY, direct_io_is_safe(backing))
            .context("attaching it to a loop device that is read-only")
    }

    /// Attaches a file that is not a guest's disk.
    pub fn attach_file(backing: &File, direct_io: bool) -> Result<LoopDevice> {
        LoopDevice::attach_window(backing, Window::WHOLE, loop_flags::PARTSCAN, direct_io)
    }

    fn attach_window(backing: &File, window: Window, flags: u32, direct_io: bool) -> Result<LoopDevice> {
        let control = LoopDevice::control()?;
        for _ in 0..ATTEMPTS {
            signals::check()?;
            let number = sys::loop_get_free(&control)
                .context("asking for a free loop device")
                .hint("see /sys/module/loop/parameters/max_loop, and `losetup -a` for what is attached")?;
            if let Some(device) = try_attach(number, backing, window, flags, direct_io)? {
                return Ok(device);
            }
        }
        bail!("no loop device could be had in {ATTEMPTS} attempts; others take them as fast")
    }

    /// The loop driver itself.
    pub fn control() -> Result<File> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        control.context("opening /dev/loop-control").hint("modprobe loop")
    }

    /// `/dev/loopN`
    pub fn path(&self) -> PathBuf {
        format!("/dev/loop{}", self.number).into()
    }

    /// `/dev/loopNpM`
    pub fn partition_path(&self, number: u32) -> PathBuf {
        format!("/dev/loop{}p{number}", self.number).into()
    }

    /// The device, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The device or file that a loop device shows from its first byte on. `None`: another device, or it shows a part.
    pub fn whole_backing(device: &Path) -> Option<PathBuf> {
        let number = device.file_name()?.to_str()?.strip_prefix("loop")?.parse().ok()?;
        let offset = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/offset")).ok()?;
        (offset.trim() == "0").then(|| shown_backing(number)).flatten().map(|name| name.trim_end().into())
    }

    /// Whether the kernel really does direct I/O on the backing.
    pub fn direct_io(&self) -> bool {
        self.sysfs("loop/dio").is_some_and(|text| text.trim() == "1")
    }

    /// Whether a partition was added already.
    pub fn has_partition(&self, number: u32) -> bool {
        self.partitions.contains(&number)
    }

    /// Makes a partition appear as a node; nothing is written to the disk. Where the kernel's own parser was
    /// first, an identical partition is accepted.
    pub fn add_partition(&mut self, number: u32, start_bytes: u64, size_bytes: u64) -> Result<PathBuf> {
        let node = self.partition_path(number);
        match sys::blkpg(&self.file, Blkpg::Add, number, start_bytes, size_bytes) {
            Ok(()) => {}
            Err(Errno::BUSY | Errno::EXIST) => {
                let name = format!("loop{}p{number}", self.number);
                let sectors = |what: &str| self.sysfs(&format!("{name}/{what}"))?.trim().parse::<u64>().ok();
                let there = (sectors("start"), sectors("size"));
                let wanted = (Some(start_bytes / SECTOR_BYTES), Some(size_bytes / SECTOR_BYTES));
                if there != wanted {
                    bail!(
                        "{} exists already, at another place: {there:?} sectors, not {wanted:?}",
                        node.display()
                    );
                }
            }
            Err(error) => return Err(error).with_context(|| format!("adding {}", node.display())),
        }
        self.partitions.push(number);
        if !node.exists() {
            return Err(anyhow::anyhow!("{} did not appear", node.display()))
                .hint("/dev must be a devtmpfs, or a udev must run that makes the node");
        }
        Ok(node)
    }

    /// Lets udev make its links for the filesystem on `node`, the device or a partition of it, from here on.
    pub fn show_to_udev(&self, node: &Path, uuid: Uuid) -> Result<()> {
        udev::show(&self.file, node, uuid)
    }

    /// Waits for all writes, removes the partitions, detaches, and waits until the kernel has let go of the
    /// backing: Ganeti's next step would find the volume busy otherwise.
    pub fn finish(mut self) -> Result<()> {
        let path = self.path();
        self.file.sync_all().with_context(|| format!("flushing {}", path.display()))?;
        for number in self.partitions.clone() {
            self.remove_partition(number)?;
        }
        self.partitions.clear();
        let (number, backing) = (self.number, self.backing_shown.clone());
        drop(self);
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        while shown_backing(number).is_some_and(|now| now == backing) {
            if start.elapsed() > DETACH_TIMEOUT {
                let who = opened_by(&path);
                return Err(anyhow::anyhow!("{} is still held{who}", path.display()))
                    .hint("end what holds the device; it detaches by itself then");
            }
            signals::check()?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Whoever looks at a node for a moment (udev, blkid) is waited for; a node that is gone already is well.
    fn remove_partition(&self, number: u32) -> Result<()> {
        let start = Instant::now();
        loop {
            match sys::blkpg(&self.file, Blkpg::Delete, number, 0, 0) {
                Ok(()) | Err(Errno::NXIO) => return Ok(()),
                Err(Errno::BUSY) if start.elapsed() < DETACH_TIMEOUT => {
                    signals::check()?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    let node = self.partition_path(number);
                    return Err(error)
                        .with_context(|| format!("removing {}{}", node.display(), opened_by(&node)))
                        .hint("end what still has the partition open; a hook may have left it there");
                }
            }
        }
    }

    fn sysfs(&self, what: &str) -> Option<String> {
        std::fs::read_to_string(format!("/sys/block/loop{}/{what}", self.number)).ok()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        for number in &self.partitions {
            let _ = sys::blkpg(&self.file, Blkpg::Delete, *number, 0, 0);
        }
    }
}

/// What of the backing a device shows.
#[derive(Debug, Clone, Copy)]
struct Window {
    start_bytes: u64,
    /// 0: to the end.
    size_bytes: u64,
}

impl Window {
    const WHOLE: Window = Window { start_bytes: 0, size_bytes: 0 };
}

/// One try with one device; None where somebody else was faster.
fn try_attach(
    number: u32,
    backing: &File,
    window: Window,
    flags: u32,
    direct_io: bool,
) -> Result<Option<LoopDevice>> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
        .hint("/dev must hold the loop devices: a devtmpfs, or a udev that makes the nodes")?;
    if !lock::try_exclusive(&file)? {
        std::thread::sleep(Duration::from_millis(5));
        return Ok(None);
    }
    let dio = if direct_io { loop_flags::DIRECT_IO } else { 0 };
    let setup = LoopSetup {
        backing,
        offset_bytes: window.start_bytes,
        size_limit_bytes: window.size_bytes,
        sector_bytes: SECTOR_BYTES as u32,
        flags: loop_flags::AUTOCLEAR | flags | dio,
    };
    match sys::loop_configure(&file, &setup) {
        Ok(()) => {}
        Err(Errno::BUSY) => return Ok(None),
        Err(Errno::INVAL) if direct_io => {
            drop(file); // and with it the lock
            return try_attach(number, backing, window, flags, false);
        }
        Err(error) => return Err(error).with_context(|| format!("configuring {}", path.display())),
    }
    let backing_shown = shown_backing(number).unwrap_or_default();
    let device = LoopDevice { file, number, partitions: Vec::new(), backing_shown };
    let how = if device.direct_io() { "direct" } else { "buffered" };
    report::detail(&format!("{} attached, {how} I/O", path.display()));
    Ok(Some(device))
}

fn shown_backing(number: u32) -> Option<String> {
    std::fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).ok()
}
