//! import of a stream that is a tree: a dump(8), or a tar of a root. It gets a disk as a new instance would; nothing of it is
//! trusted, and none of its programs runs.

use std::io::{ErrorKind, Read};

use anyhow::{Context as _, Result};

use super::reidentify;
use crate::backup::dump::{self, Stats};
use crate::disk::Disk;
use crate::guest::{Root, Trust, UnlockedFiles, Workspace, boot, fstab};
use crate::install::grub_from_cache;
use crate::install::target_disk::{BlankDisk, TargetDisk, preconditions};
use crate::install::unpack::full_or;
use crate::plan::ImportPlan;
use crate::reader::Budget;
use crate::request::InstanceName;
use crate::{report, tar};

/// What is read at once behind the end of a tar.
const PIECE_BYTES: usize = 256 << 10;

/// What helps where a backup does not fit.
const LARGER_DISK: &str = "give the instance a larger disk; the backup holds more than this one";

/// A stream that is a tree and no disk.
pub enum TreeBackup {
    Dump(Box<dyn Read>),
    Tar(Box<dyn Read>),
}

/// Makes a disk with the tree of the stream.
pub fn restore(plan: ImportPlan, disk: &Disk, workspace: &Workspace, source: TreeBackup) -> Result<()> {
    let ImportPlan { tree, index, name, new_identity, .. } = plan;
    let plan = &tree?;
    let new_name = new_identity.then_some(name);
    let swap = preconditions(plan)?;
    let loader_files = grub_from_cache::files(plan, workspace)?;
    BlankDisk { disk, plan, swap }.make(|blank| {
        blank.format(workspace, Trust::Untrusted)?.build(|target| {
            fill(target, source, &Budget::of_stream(disk.size_bytes))?;
            if index == 0 {
                adapt(target, loader_files.as_ref())?;
                reidentify(target, new_name.as_ref())?;
            }
            target.complete()
        })
    })
}

/// Unpacks the stream, all of it.
fn fill(target: &TargetDisk<'_>, source: TreeBackup, budget: &Budget<'_>) -> Result<()> {
    let root = &target.root;
    report::long_step("restoring the tree", || match source {
        TreeBackup::Dump(mut dump) => {
            tell_losses(&dump::restore(&mut dump, root.dir()?, budget)?);
            Ok(())
        }
        TreeBackup::Tar(mut tar) => {
            tar::unpack(&mut tar, root.dir()?, budget)?;
            read_out(&mut tar, budget).context("reading the end of the tar")
        }
    })
    .map_err(|error| full_or(error, root, LARGER_DISK, "the backup is damaged or no backup; export it again"))
}

/// The sender pads the end of the tar, and would fail if nobody read that.
fn read_out(source: &mut dyn Read, budget: &Budget<'_>) -> Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => budget.read(count as u64)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => budget.look_at(0)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes what the tree says of its disk true of the new disk.
fn adapt(target: &mut TargetDisk<'_>, loader_files: Option<&Root>) -> Result<()> {
    let dir = target.root.dir()?.again()?;
    if !dir.is_dir("etc")? {
        report::warning("the backup holds no system, there is no /etc: it stays as it is");
        return Ok(());
    }
    let unlocked =
        UnlockedFiles::unlock(&dir, ["etc", fstab::PATH].into_iter().chain(boot::changed_paths()))?;
    grub_from_cache::prepare(target, &dir, loader_files, "the backup")?;
    target.make_swap()?;
    fstab::repair(&dir, target.plan.filesystem, &target.volumes)?;
    unlocked.relock(&dir)
}

/// Makes it another guest than the one that was backed up, if there is a new name.
fn reidentify(target: &TargetDisk<'_>, new_name: Option<&InstanceName>) -> Result<()> {
    let Some(name) = new_name else { return Ok(()) };
    let root = target.root.dir()?;
    if root.is_dir("etc").unwrap_or(false) { reidentify::renew_tree(root, name) } else { Ok(()) }
}

/// What dump(8) did not write, or this filesystem does not take.
fn tell_losses(stats: &Stats) {
    for (count, what) in [
        (stats.names_without_inode, "names had no file in the backup; it was made of a filesystem in use"),
        (stats.names_lost, "names of 255 bytes were lost by dump; their files are called # and a number"),
        (stats.inodes_without_name, "files had no name in the backup and are left out"),
        (stats.flags_not_set, "files have flags (chattr) that the new filesystem does not take"),
    ] {
        if count > 0 {
            report::warning(&format!("{count} {what}"));
        }
    }
}
