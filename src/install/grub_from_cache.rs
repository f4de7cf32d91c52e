//! GRUB for a tree that was not made here, from a tree of this node's cache: none of its own programs makes one.

use anyhow::{Result, anyhow};

use super::base_tree::{self, Freshness};
use super::target_disk::TargetDisk;
use crate::guest::boot::{self, LoaderFiles};
use crate::guest::{Root, Workspace};
use crate::plan::Plan;
use crate::reader::Budget;
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;
use crate::sys::signals;
use crate::tar;

/// The files of a loader, where the plan wants the disk to start by itself and they can be had.
pub fn files(plan: &Plan, workspace: &Workspace) -> Result<Option<Root>> {
    let Some(wanted) = plan.boot else { return Ok(None) };
    let files = || -> Result<Root> {
        let base = base_tree::ready(&plan.base, workspace, Freshness::Cached)?;
        let files = workspace.scratch("files", boot::LOADER_FILES_MAX_BYTES)?;
        report::step("taking GRUB from the cached tree", || {
            let budget = Budget::unlimited();
            tar::unpack_only(&mut base.reader()?, files.dir()?, boot::is_loader_file, &budget)
        })?;
        Ok(files)
    };
    match files() {
        Ok(files) => Ok(Some(files)),
        Err(error) => {
            signals::check()?;
            if wanted.asked_for {
                return Err(error.context("preparing the loader"));
            }
            report::warning(&format!("nothing will start this disk by itself: {}", report::sentence(&error)));
            Ok(None)
        }
    }
}

/// Has the tree in `dir`, that of the disk being made, name its new root, and prepares the loader. `what` it is, for messages.
pub fn prepare(target: &mut TargetDisk<'_>, dir: &RootDir, files: Option<&Root>, what: &str) -> Result<()> {
    let (plan, uuid) = (target.plan, target.volumes.root);
    boot::repair(dir, uuid)?;
    let Some(files) = files else { return Ok(()) };
    let files = files.dir()?;
    let console = plan.guest_config.console.as_ref();
    if boot::install_grub_for(dir, files, plan.layout.style, uuid, console)? {
        return target.prepare_loader(Some(files));
    }
    if plan.boot.is_some_and(|boot| boot.asked_for) {
        return Err(anyhow!("a loader is wanted, but {what} has no kernel in /boot"))
            .hint("set boot = \"no\", and let the hypervisor start its own kernel");
    }
    report::warning(&format!("nothing will start this disk by itself: {what} has no kernel in /boot"));
    Ok(())
}

/// The same for a sealed tree, which may have been made to boot already.
pub fn prepare_own(target: &mut TargetDisk<'_>, workspace: &Workspace) -> Result<()> {
    let plan = target.plan;
    let Some(wanted) = plan.boot else { return Ok(()) };
    let dir = target.root.dir()?.again()?;
    if LoaderFiles::of(&dir)?.boot(wanted.firmware, plan.layout.style) {
        return target.prepare_loader(None);
    }
    let files = files(plan, workspace)?;
    prepare(target, &dir, files.as_ref(), "the tree")
}
