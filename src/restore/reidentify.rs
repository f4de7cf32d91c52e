//! A restored disk that is to be another guest's than the one that was backed up: no identifier of it is the old one's.

use anyhow::{Context as _, Result};

use super::{Seen, check_ext, with_first_sector};
use crate::command::Tool;
use crate::disk::{Disk, LoopDevice, Reidentify};
use crate::filesystem::Filesystem;
use crate::guest::found_root::{GuestRoot, Sought};
use crate::guest::{Trust, UnlockedFiles, Workspace, identity, one_device, references};
use crate::probe::{Content, Part, Survey, Volume};
use crate::report::{self, WithHint};
use crate::request::InstanceName;
use crate::rootdir::RootDir;
use crate::sys::signals;

/// Files and directories that [`identity::renew()`] changes; a guest's owner may have locked them.
const IDENTITY_PATHS: [&str; 6] =
    ["etc", "etc/machine-id", "etc/ssh", "var/lib/dbus", "var/lib/systemd", "var/lib/urandom"];

/// What a tree has of its own, for one that comes back as another guest.
pub fn renew_tree(root: &RootDir, name: &InstanceName) -> Result<()> {
    let unlocked = UnlockedFiles::unlock(root, IDENTITY_PATHS)?;
    identity::renew(root, name)?;
    unlocked.relock(root)
}

/// Gives a restored disk new identifiers everywhere: its table, its filesystems and swap, and what its root and its EFI
/// system partition say of them; its guest a new machine-id and new SSH host keys.
pub fn renew(
    disk: &Disk,
    workspace: &Workspace,
    seen: Seen<'_>,
    name: &InstanceName,
    many_disks: bool,
) -> Result<()> {
    report::step("giving it an identity of its own", || {
        with_first_sector(disk, seen.bytes, seen.sector, |survey, sector| {
            let mut renewal = Reidentify::new(name.full(), many_disks);
            renewal.table(&disk.file, disk.size_bytes, &survey, sector)?;
            for part in &survey.parts {
                renewal.part(&disk.file, part)?;
                if let Content::Other(what) = &part.content {
                    report::warning(&format!("{what} keeps the identifiers that it has"));
                }
            }
            for part in survey.parts.iter().filter(|part| matches!(part.content, Content::Fat(_))) {
                renewal.fat_texts(&disk.file, part)?;
            }
            disk.flush_path_cache()?;
            let root = renew_root(disk, workspace, survey.clone(), &renewal, name)?;
            for part in &survey.parts {
                if let Content::Filesystem(volume) = part.content {
                    if root.as_ref() != Some(part) {
                        renew_boot(disk, workspace, part, volume, &renewal)?;
                    }
                    renew_filesystem(disk, workspace, part, volume, &renewal)
                        .with_context(|| format!("giving {part} a new UUID"))?;
                }
            }
            Ok(())
        })
    })
    .hint("with import_identity = \"keep\" it stays what it is; what is wrong is repaired in the guest")
}

/// What the guest's root says; returns where that is.
fn renew_root(
    disk: &Disk,
    workspace: &Workspace,
    survey: Survey,
    renewal: &Reidentify,
    name: &InstanceName,
) -> Result<Option<Part>> {
    match GuestRoot::seek(disk, workspace, survey, Trust::Untrusted)? {
        Sought::Found(guest) => {
            references::rewrite(guest.tree(), |text, mounts| renewal.text(text, mounts))?;
            renew_tree(guest.tree(), name)?;
            let part = guest.part.clone();
            guest.finish(disk)?;
            Ok(Some(part))
        }
        Sought::Nothing(found) => {
            report::line(&format!("{:>10}  no root of a guest is on it: {found}", ""));
            Ok(None)
        }
    }
}

/// What a filesystem beside the root says of it, where it is the guest's /boot. One that cannot be mounted holds nothing
/// that would start.
fn renew_boot(
    disk: &Disk,
    workspace: &Workspace,
    part: &Part,
    volume: Volume,
    renewal: &Reidentify,
) -> Result<()> {
    let device = LoopDevice::attach_part(disk, part.start_bytes, part.size_bytes)?;
    match workspace.mount_found(&device.path(), volume, "boot", Trust::Untrusted) {
        Ok(mut root) => {
            references::rewrite_boot(root.dir()?, |text| renewal.text(text, false))
                .with_context(|| format!("changing what {part} says of the disk"))?;
            root.finish()?;
        }
        Err(error) => {
            signals::check()?;
            report::warning(&format!("what {part} says of the disk stays: {}", report::sentence(&error)));
        }
    }
    device.finish()?;
    disk.flush_path_cache()
}

/// By the filesystem's own tools, on a loop device that shows nothing else.
fn renew_filesystem(
    disk: &Disk,
    workspace: &Workspace,
    part: &Part,
    volume: Volume,
    renewal: &Reidentify,
) -> Result<()> {
    let device = LoopDevice::attach_part(disk, part.start_bytes, part.size_bytes)?;
    let (path, uuid) = (device.path(), renewal.uuid(volume.uuid).to_string());
    // The log is replayed by a mount; the tools want it empty.
    let replay = || -> Result<()> {
        workspace.mount_found(&path, volume, "renewed", Trust::Untrusted)?.finish()?;
        one_device::refuse_other(&path, volume)
    };
    let tool = match volume.filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => {
            check_ext(&path, volume)?;
            Tool::new("tune2fs").args(["-U", &uuid])
        }
        Filesystem::Xfs => {
            replay()?;
            Tool::new("xfs_admin").args(["-U", &uuid])
        }
        Filesystem::Btrfs => {
            replay()?;
            Tool::new("btrfstune").args(["-f", "-U", &uuid])
        }
    };
    tool.arg(&path).sees_only(&path).quiet().run()?;
    device.finish()?;
    disk.flush_path_cache()
}
