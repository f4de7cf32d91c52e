//! Mounts in a namespace of our own: nobody else sees them, and they go when the process goes, however it ends.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use uuid::Uuid;

use super::one_device;
use crate::PROGRAM;
use crate::command::Tool;
use crate::disk::LoopDevice;
use crate::filesystem::Filesystem;
use crate::probe::Volume;
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;
use crate::sys::{self, signals};

/// What may be wrong with a filesystem that the kernel does not mount.
const DAMAGED: &str = "is the filesystem damaged? the guest's own fsck, or the node's, can tell";

/// How long a busy mount is waited for.
const UMOUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a run that has a copy of the same btrfs mounted gets to finish.
const DUPLICATE_UUID_TIMEOUT: Duration = Duration::from_secs(20);

/// No program, device or suid bit counts.
const INERT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Whose files a filesystem holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// This node's: its programs are run. With more options for the mount.
    Trusted { options: &'static str },
    /// Somebody else's: inert.
    Untrusted,
}

/// Which of the kernel's filesystem drivers mounts, and how.
struct Driver {
    name: &'static str,
    flags: MountFlags,
    options: &'static str,
}

/// A private mount namespace with a place to mount things in.
#[derive(Debug)]
pub struct Workspace {
    dir: PathBuf,
}

impl Workspace {
    /// Enters a mount namespace of our own: what the node mounts later is still seen here, what we mount is
    /// seen by nobody else. Call before any thread exists.
    pub fn enter() -> Result<Workspace> {
        let dir = PathBuf::from("/run").join(PROGRAM);
        sys::new_mount_namespace()
            .context("entering a private mount namespace")
            .hint("the program must run as root")?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
            .context("making the mount namespace private")?;
        // Never removed: it is a mount point in the namespaces of other runs, trust mounts would go with it.
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        mount(PROGRAM, &dir, "tmpfs", MountFlags::empty(), c"mode=0755,size=1m")
            .with_context(|| format!("mounting a tmpfs on {}", dir.display()))?;
        Ok(Workspace { dir })
    }

    /// The directory itself, a small tmpfs.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Mounts a device that we formatted as `name` in the workspace.
    pub fn mount(&self, device: &Path, filesystem: Filesystem, name: &str, trust: Trust) -> Result<Root> {
        let (flags, options) = match trust {
            Trust::Trusted { options } => (MountFlags::empty(), options),
            Trust::Untrusted => (INERT, ""),
        };
        self.mount_as(device, filesystem, name, Driver { name: filesystem.name(), flags, options })
    }

    /// A small tree in memory, named `name` in the workspace; gone when it is dropped.
    pub fn scratch(&self, name: &str, max_bytes: u64) -> Result<Root> {
        let target = self.dir.join(name);
        std::fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
        let options = CString::new(format!("mode=0700,size={max_bytes}"))?;
        mount(PROGRAM, &target, "tmpfs", INERT, options.as_c_str())
            .with_context(|| format!("mounting a tmpfs on {}", target.display()))?;
        Root::of(target)
    }

    /// Mounts a filesystem that was found on a disk as `name` in the workspace, once the kernel has said of it what our own
    /// reader says. Damage makes it read-only, whatever it says itself (ext4 could ask for a panic).
    pub fn mount_found(&self, device: &Path, volume: Volume, name: &str, trust: Trust) -> Result<Root> {
        let filesystem = volume.filesystem;
        if filesystem == Filesystem::Btrfs {
            await_duplicate_uuid(volume)?;
        }
        self.ask_kernel(device, volume)?;
        let flags = if trust == Trust::Untrusted { INERT } else { MountFlags::empty() };
        let (driver, options) = match filesystem {
            // One driver for the three, here and in every kernel of today.
            Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => ("ext4", "errors=remount-ro"),
            // A copy of it may be mounted too.
            Filesystem::Xfs => ("xfs", "nouuid"),
            Filesystem::Btrfs => ("btrfs", "subvolid=5"),
        };
        report::detail(&format!("mounting {} as {driver} with {options}", device.display()));
        // The kernel finds a btrfs by its UUID, among all that it knows at that moment. What is mounted stays the one that was
        // asked about: so it is mounted read-only first, which only replays a log, and can be written afterwards.
        let at_first = if filesystem == Filesystem::Btrfs { MountFlags::RDONLY } else { MountFlags::empty() };
        let at_first = Driver { name: driver, flags: flags | at_first, options };
        let root = self.mount_as(device, filesystem, name, at_first).hint(DAMAGED)?;
        let made_writable =
            one_device::refuse_other_mounted(root.mount_point()?, device, volume).and_then(|()| {
                if filesystem == Filesystem::Btrfs { make_writable(&root, flags) } else { Ok(()) }
            });
        match made_writable {
            Ok(()) => Ok(root),
            Err(error) => {
                root.give_up()?;
                Err(error)
            }
        }
    }

    /// Lets the kernel mount a filesystem where it can write nothing, and replays nothing, and compares what it says with what
    /// was found.
    fn ask_kernel(&self, device: &Path, volume: Volume) -> Result<()> {
        one_device::refuse_other(device, volume)?;
        let (name, options) = match volume.filesystem {
            Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => ("ext4", "noload,errors=remount-ro"),
            Filesystem::Xfs => ("xfs", "norecovery,nouuid"),
            Filesystem::Btrfs => ("btrfs", "rescue=nologreplay,subvolid=5"),
        };
        let file = File::open(device).with_context(|| format!("opening {}", device.display()))?;
        let sealed = LoopDevice::attach_read_only(&file)?;
        let path = sealed.path();
        let driver = Driver { name, flags: INERT | MountFlags::RDONLY, options };
        report::detail(&format!("mounting {} read-only as {name} with {options}", path.display()));
        let root = self.mount_as(&path, volume.filesystem, "asked", driver).hint(DAMAGED)?;
        let answer = one_device::refuse_other_mounted(root.mount_point()?, &path, volume);
        drop(root);
        sealed.finish()?;
        answer
    }

    fn mount_as(&self, device: &Path, filesystem: Filesystem, name: &str, driver: Driver) -> Result<Root> {
        let Driver { name: driver, flags, options } = driver;
        let target = self.dir.join(name);
        std::fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
        let options = CString::new(options)?;
        mount(device, &target, driver, MountFlags::NOATIME | flags, options.as_c_str())
            .with_context(|| format!("mounting {} as {filesystem}", device.display()))
            .map_err(|error| match report::cause(&error) {
                Some(&Errno::NODEV) => {
                    let hint = format!("the node's kernel must know the filesystem: modprobe {driver}");
                    report::with_hint(error, hint)
                }
                _ => error,
            })?;
        Root::of(target)
    }
}

fn make_writable(root: &Root, flags: MountFlags) -> Result<()> {
    mount_remount(root.path(), MountFlags::NOATIME | flags, c"")
        .with_context(|| format!("making {} writable", root.path().display()))
        .hint(DAMAGED)
}

/// btrfs knows a filesystem by its UUID: one with that of a mounted filesystem of the node would be taken for another
/// path to that. A copy that another run has mounted is waited for.
fn await_duplicate_uuid(volume: Volume) -> Result<()> {
    let start = Instant::now();
    let is_mounted = |uuid: &Uuid| Path::new("/sys/fs/btrfs").join(uuid.to_string()).exists();
    while let Some(uuid) =
        [Some(volume.uuid), volume.metadata_uuid].into_iter().flatten().find(|uuid| is_mounted(uuid))
    {
        signals::check()?;
        if start.elapsed() > DUPLICATE_UUID_TIMEOUT {
            return Err(anyhow!("this node has a btrfs filesystem with the UUID {uuid} mounted already"))
                .hint("unmount the other one, a copy of it perhaps");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A mounted root tree; unmounts when dropped, but only [`Root::finish`] tells of errors.
#[derive(Debug)]
pub struct Root {
    // Open since the mount: every error of writing since then is told by it, once, and nothing that is mounted over
    // the target later hides the filesystem. Dropped in this order: an open directory keeps the mount busy.
    held: Option<File>,
    dir: Option<RootDir>,
    mount: Option<Mount>,
}

impl Root {
    /// Takes over what is mounted there: from here on an error unmounts it.
    fn of(target: PathBuf) -> Result<Root> {
        let guard = Mount { target, mounted: true };
        let held = File::open(&guard.target).context("opening the mount point")?;
        let dir = RootDir::open(&guard.target)?;
        Ok(Root { held: Some(held), dir: Some(dir), mount: Some(guard) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount.as_ref().map_or(Path::new("/nonexistent"), |mount| &mount.target)
    }

    /// The tree, reached without following a link out of it.
    pub fn dir(&self) -> Result<&RootDir> {
        self.dir.as_ref().context("using a root that is unmounted")
    }

    /// Whether files can still be made in it, as far as it counts them.
    pub fn has_inodes(&self) -> bool {
        rustix::fs::statvfs(self.path()).is_ok_and(|fs| fs.f_files == 0 || fs.f_ffree > 0)
    }

    /// Bytes that files and directories take.
    pub fn used_bytes(&self) -> Result<u64> {
        let fs = rustix::fs::statvfs(self.path()).context("asking for the used space")?;
        Ok((fs.f_blocks - fs.f_bfree) * fs.f_frsize)
    }

    /// The mount point, open since the mount.
    pub fn mount_point(&self) -> Result<&File> {
        self.held.as_ref().context("using a root that is unmounted")
    }

    /// The filesystem's label, where it can be asked for while it is mounted, and is text.
    pub fn label(&self) -> Option<String> {
        let label = sys::fs_label(self.held.as_ref()?).ok()?;
        String::from_utf8(label).ok()
    }

    /// Sets the filesystem's label while it is mounted.
    pub fn set_label(&self, device: &Path, filesystem: Filesystem, label: &str) -> Result<()> {
        let mount_point = self.mount_point()?;
        match sys::set_fs_label(mount_point, label) {
            Ok(()) => Ok(()),
            // Before Linux 5.17 ext4 has no such call; its tool writes to a mounted device.
            Err(Errno::NOTTY | Errno::OPNOTSUPP) if filesystem.is_ext() => {
                Tool::new("tune2fs").args(["-L", label]).arg(device).run()
            }
            Err(Errno::NOTTY | Errno::OPNOTSUPP) if filesystem == Filesystem::Btrfs => {
                Tool::new("btrfs").args(["filesystem", "label"]).arg(self.path()).arg(label).run()
            }
            Err(error) => Err(error).context("setting the filesystem's label"),
        }
    }

    /// Writes everything out; an error where anything since the mount could not be written.
    pub fn flush(&self) -> Result<()> {
        rustix::fs::syncfs(self.mount_point()?).with_context(|| format!("flushing {}", self.path().display()))
    }

    /// Writes everything out and unmounts; what could not be written, or is held by somebody, is an error, and
    /// leaves it mounted.
    pub fn finish(&mut self) -> Result<()> {
        self.flush()?;
        (self.dir, self.held) = (None, None);
        match &mut self.mount {
            Some(mount) => mount.unmount(UMOUNT_TIMEOUT, signals::check),
            None => Ok(()),
        }
    }

    /// Gives the filesystem up: what is not written yet never will be. An error where somebody still holds it.
    pub fn give_up(mut self) -> Result<()> {
        // Best effort: not every filesystem has such a call.
        let _ = self.held.as_ref().map(sys::shut_down_fs);
        (self.dir, self.held) = (None, None);
        // After a signal too: what is lazily unmounted is still held.
        self.mount.take().map_or(Ok(()), |mut mount| mount.unmount(Duration::from_millis(500), || Ok(())))
    }
}

/// One mount point.
#[derive(Debug)]
struct Mount {
    target: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Waits for whoever holds it, until the time is over or `may_wait` is an error.
    fn unmount(&mut self, timeout: Duration, may_wait: impl Fn() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while self.mounted {
            match unmount(&self.target, UnmountFlags::NOFOLLOW) {
                // Once more: something may have been mounted over it. EINVAL: it is no mount point any more.
                Ok(()) => {}
                Err(Errno::INVAL) => self.mounted = false,
                Err(Errno::BUSY) if start.elapsed() < timeout => {
                    may_wait()?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("unmounting {}", self.target.display()))
                        .hint("a process that a hook left running holds the guest's files open");
                }
            }
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: the error that brought us here matters more than who still looks.
            let _ = unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}
