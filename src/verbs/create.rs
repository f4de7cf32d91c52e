//! create: a request becomes a disk.

use anyhow::{Context as _, Result};

use super::base::{self, Freshness};
use super::unpack::unpack;
use super::work::Work;
use super::{Outcome, answer, warn};
use crate::cache::BaseTar;
use crate::disk::layout::Purpose;
use crate::disk::{self, Disk, LoopDevice};
use crate::guest::{self, HookResolver, Tree, Workspace};
use crate::hooks::{self, Stage};
use crate::plan::{DiskFacts, Plan, SwapPlan, disk_path};
use crate::report::{self, size};
use crate::request::{Context, Instance};
use crate::settings::Settings;
use crate::tool;

/// Installs an instance on its first disk.
pub fn create(context: &Context, instance: &Instance, dry_run: bool) -> Result<Outcome> {
    let settings = Settings::load(context, "create")?;
    let address = &instance.disks.first().context("an instance without disks")?.address;
    let disk = Disk::open(&disk_path(address)?)?;
    if dry_run {
        let facts = DiskFacts { size_bytes: disk.size_bytes, medium: disk.medium, purpose: Purpose::System };
        let plan = Plan::new(context, instance, &settings, facts)?;
        preconditions(&plan)?;
        answer(&plan.to_string())?;
        return Ok(Outcome::Done);
    }
    let workspace = Workspace::enter()?;
    on_disk(context, instance, &settings, &disk, &workspace)?;
    Ok(Outcome::Done)
}

/// The whole way of a create, on a disk that is ours.
pub fn on_disk(
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    disk: &Disk,
    workspace: &Workspace,
) -> Result<()> {
    let start = std::time::Instant::now();
    let facts = DiskFacts { size_bytes: disk.size_bytes, medium: disk.medium, purpose: Purpose::System };
    let plan = Plan::new(context, instance, settings, facts)?;
    introduce(&plan, settings);
    let swap = preconditions(&plan)?;
    let base = base::ready(&plan.base, workspace, Freshness::Cached)?;
    base::refuse_misfit(&base, plan.layout.root_extent().1)?;
    report::step("checking the cache file", || base.verify())?;

    let mut work = Work::new(disk, &plan, swap);
    if let Err(error) = install(&mut work, context, instance, settings, &base, workspace) {
        return Err(work.abandon(error).context(format!("installing {}", instance.name)));
    }
    report::line(&format!("{:8.2} s  {} is installed", start.elapsed().as_secs_f64(), instance.name));
    Ok(())
}

/// All that can be known to be missing is asked for before anything is destroyed. Returns the device for swap,
/// locked and refused where in use like any disk.
pub fn preconditions(plan: &Plan) -> Result<Option<Disk>> {
    tool::require(disk::mkfs_of(plan.filesystem))?;
    LoopDevice::control()?;
    if let Some(dir) = &plan.hooks.dir {
        hooks::list(dir)?;
    }
    if plan.swap != SwapPlan::None {
        tool::require("mkswap")?;
    }
    match &plan.swap {
        SwapPlan::Device(path) => Disk::open(path).map(Some),
        SwapPlan::None | SwapPlan::Partition | SwapPlan::File { .. } => Ok(None),
    }
}

fn introduce(plan: &Plan, settings: &Settings) {
    let layers = &settings.layers;
    report::line(&format!(
        "{} {}: {} on {} ({}), {} {}, {} on {}",
        crate::PROGRAM,
        crate::VERSION,
        plan.personality.name,
        plan.disk_path.display(),
        size(plan.disk.size_bytes),
        plan.base.recipe.suite,
        plan.base.recipe.arch,
        plan.filesystem,
        plan.layout.style
    ));
    report::line(&format!("{:>10}  defaults = \"{}\": {}", "settings", layers.era, layers.era_reason));
    warn(settings);
    for warning in &plan.personality.network.warnings {
        report::warning(warning);
    }
}

/// From a blank disk to an installed one.
fn install(
    work: &mut Work<'_>,
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    base: &BaseTar,
    workspace: &Workspace,
) -> Result<()> {
    let plan = work.plan;
    work.format(workspace, Tree::Ours { options: "" })?;
    report::long_step("unpacking", || unpack(base, work.root()?))?;
    work.prepare_loader(None)?;
    work.make_swap()?;
    report::step("personalising", || {
        let personality = guest::Personality { boots: work.boots(), ..plan.personality.clone() };
        guest::personalise(work.root()?.dir()?, &personality, &work.volumes)
    })?;
    work.complete()?;
    if hooks::any(&plan.hooks)? {
        work.show_to_udev()?;
    }
    run_hooks(work, context, instance, settings, workspace)?;
    work.finish()
}

fn run_hooks(
    work: &Work<'_>,
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    workspace: &Workspace,
) -> Result<()> {
    let (plan, root) = (work.plan, work.root()?);
    let lent = HookResolver::lend(root.dir()?, &plan.personality.resolver)?;
    let stage = Stage {
        target: root.path(),
        disk: &work.device()?.path(),
        root_device: work.root_device()?,
        workspace: workspace.path(),
    };
    hooks::run(&plan.hooks, context, instance, settings, &stage)?;
    lent.take_back(root.dir()?)?;
    work.disk.refuse_changed()
}
