//! What our reader believes of a stranger's filesystem, and what the kernel does with it, must be the same before the kernel
//! writes. So a filesystem is read here first; then the kernel mounts it from a device that cannot be written, without a
//! replay of its log, and says what it has; only then it is mounted for writing, and asked again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::allocation::btrfs;
use crate::disk::LoopDevice;
use crate::filesystem::Filesystem;
use crate::probe::{self, Content, Volume};
use crate::reader::{Budget, Region};
use crate::report::WithHint;
use crate::sys;

/// What helps with a disk that is refused here.
const HINT: &str =
    "a disk that reaches for another one is not written; the guest's owner can copy its files to a new one";

/// A loop device over one over a volume.
const LOOPS_AT_MOST: u32 = 4;

/// Reads a device that nobody has mounted, and refuses it unless it has the filesystem that was found on it before, on this
/// one device alone.
pub fn refuse_other(device: &Path, volume: Volume) -> Result<()> {
    look(device, volume).with_context(|| format!("looking at {}", device.display())).hint(HINT)
}

fn look(device: &Path, volume: Volume) -> Result<()> {
    let file = File::open(device)?;
    // What was read before a mount is not what is there after it.
    sys::drop_block_cache(&file)?;
    let size_bytes = sys::block_size_bytes(&file)?;
    let budget = Budget::of_disk(size_bytes);
    let region = Region::new(&file, &budget, 0, size_bytes);
    let found = probe::probe(&region)?;
    ensure!(found == Content::Filesystem(volume), "it holds {found} now, and not what was found before");
    match volume.filesystem {
        Filesystem::Btrfs => Ok(btrfs::refuse_others(&region)?),
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 | Filesystem::Xfs => Ok(()),
    }
}

/// Asks the kernel what it has mounted, and refuses all but the one device and the filesystem that was found on it.
pub fn refuse_other_mounted(mount_point: &File, device: &Path, volume: Volume) -> Result<()> {
    ask(mount_point, device, volume)
        .with_context(|| format!("asking the kernel what it mounted from {}", device.display()))
        .hint(HINT)
}

fn ask(mount_point: &File, device: &Path, volume: Volume) -> Result<()> {
    let uuid = match volume.filesystem {
        Filesystem::Btrfs => {
            let mounted = sys::mounted_btrfs(mount_point)?;
            ensure!(mounted.devices == 1, "it uses {} devices for it", mounted.devices);
            // The kernel finds a btrfs by its UUID: another device may have the same one.
            ensure!(is_same_disk(&mounted.device, device)?, "it uses {}", mounted.device.display());
            Uuid::from_bytes(mounted.uuid)
        }
        Filesystem::Xfs => {
            refuse_other_device(mount_point, device)?;
            Uuid::from_bytes(sys::xfs_uuid(mount_point)?)
        }
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => {
            refuse_other_device(mount_point, device)?;
            let id = rustix::fs::fstatvfs(mount_point)?.f_fsid;
            ensure!(id == folded(volume.uuid), "it has another filesystem");
            volume.uuid
        }
    };
    ensure!(uuid == volume.uuid, "it has the filesystem {uuid}");
    Ok(())
}

fn refuse_other_device(mount_point: &File, device: &Path) -> Result<()> {
    let (mounted, wanted) = (mount_point.metadata()?.dev(), std::fs::metadata(device)?.rdev());
    ensure!(mounted == wanted, "it is another device");
    Ok(())
}

/// Whether the kernel's name leads to a device of ours, or to the one that ours shows as a whole.
fn is_same_disk(kernels: &Path, ours: &Path) -> Result<bool> {
    let wanted = std::fs::metadata(kernels).with_context(|| format!("looking at {}", kernels.display()))?;
    let mut own = ours.to_owned();
    for _ in 0..LOOPS_AT_MOST {
        if std::fs::metadata(&own)?.rdev() == wanted.rdev() {
            return Ok(true);
        }
        match LoopDevice::whole_backing(&own) {
            Some(backing) => own = backing,
            None => break,
        }
    }
    Ok(false)
}

/// What statfs(2) says of an ext filesystem: both halves of its UUID in one (fs/ext4/super.c).
fn folded(uuid: Uuid) -> u64 {
    let bytes = uuid.as_bytes();
    let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    half(0) ^ half(8)
}
