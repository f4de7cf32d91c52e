//! create with a tree: the one of the recipe, from the cache or bootstrapped, or the one in a file that the administrator
//! sealed.

use anyhow::{Context as _, Result};

use super::base_tree::{self, Freshness};
use super::target_disk::{BlankDisk, TargetDisk, preconditions};
use super::unpack::unpack;
use super::{grub_from_cache, template};
use crate::cache::{BaseTar, Template};
use crate::disk::Disk;
use crate::guest::{self, GuestConfig, Trust, Workspace};
use crate::hooks::{self, Stage};
use crate::plan::{Plan, TreeSource};
use crate::report;

/// The disk's tree is the node's own: its programs run, in the hooks.
const OURS: Trust = Trust::Trusted { options: "" };

/// Makes a disk with a tree. `file` is the sealed root tar, where the plan's source is one.
pub fn install(plan: &Plan, disk: &Disk, workspace: &Workspace, file: Option<BaseTar>) -> Result<()> {
    for warning in &plan.guest_config.network.warnings {
        report::warning(warning);
    }
    let swap = preconditions(plan)?;
    let sealed = file.is_some();
    let base = match file {
        Some(tree) => tree,
        None => base_tree::ready(&plan.base, workspace, Freshness::Cached)?,
    };
    base_tree::refuse_misfit(&base, plan.layout.root_extent().1)?;
    let template = template::ready(plan, &base, workspace)?;
    if !sealed && template.is_none() {
        check(&base)?;
    }
    BlankDisk { disk, plan, swap }
        .make(|blank| make(blank, &base, template, workspace))
        .with_context(|| format!("installing {}", plan.guest_config.name))
}

/// From a blank disk to an installed one.
fn make(
    blank: &BlankDisk<'_>,
    base: &BaseTar,
    template: Option<Template>,
    workspace: &Workspace,
) -> Result<()> {
    if let Some(template) = template {
        if let Some(target) = blank.copy(&template, workspace, OURS)? {
            return target.build(|target| make_guest(target, workspace));
        }
        check(base)?;
    }
    blank.format(workspace, OURS)?.build(|target| {
        report::long_step("unpacking", || unpack(base, &target.root))?;
        make_guest(target, workspace)
    })
}

fn check(base: &BaseTar) -> Result<()> {
    report::step("checking the cache file", || base.verify())
}

/// The tree is there: it becomes this instance's guest.
fn make_guest(target: &mut TargetDisk<'_>, workspace: &Workspace) -> Result<()> {
    let plan = target.plan;
    match plan.source {
        TreeSource::File(_) => grub_from_cache::prepare_own(target, workspace)?,
        TreeSource::Recipe | TreeSource::Backup => target.prepare_loader(None)?,
    }
    target.make_swap()?;
    report::step("personalising", || {
        let guest_config = GuestConfig { boots: target.boots(), ..plan.guest_config.clone() };
        guest::configure_guest(target.root.dir()?, &guest_config, &target.volumes)?;
        match &plan.base.recipe.credentials {
            Some(credentials) if plan.source == TreeSource::Recipe => {
                credentials.write_for_guest(target.root.dir()?)
            }
            _ => Ok(()),
        }
    })?;
    target.complete()?;
    if hooks::any(&plan.hooks)? {
        target.show_to_udev()?;
    }
    let stage = Stage {
        target: target.root.path(),
        disk: &target.device.path(),
        root_device: &target.root_device,
        workspace: workspace.path(),
    };
    hooks::run(&plan.hooks, target.root.dir()?, &plan.guest_config.resolver, &stage)?;
    target.refuse_changed()
}
