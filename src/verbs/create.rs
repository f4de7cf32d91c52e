//! create: a request becomes a disk.

use anyhow::{Context as _, Result};

use super::base::{self, Freshness};
use super::source::{self, Opened};
use super::unpack::unpack;
use super::work::Work;
use super::{Outcome, adopted, answer, golden, template, warn};
use crate::cache::{BaseTar, Template};
use crate::command;
use crate::disk::{self, Disk, LoopDevice};
use crate::guest::{self, HookResolver, Resolver, Tree, Workspace};
use crate::hooks::{self, Stage};
use crate::plan::{DiskFacts, HookPlan, ImagePlan, Plan, SwapPlan, disk_path};
use crate::report::{self, size};
use crate::request::{Context, Instance};
use crate::rootdir::RootDir;
use crate::settings::{Settings, Source};

/// Installs an instance on its first disk.
pub fn create(context: &Context, instance: &Instance, dry_run: bool) -> Result<Outcome> {
    let settings = Settings::load(context, "create")?;
    let address = &instance.disks.first().context("an instance without disks")?.address;
    let disk = Disk::open(&disk_path(address)?)?;
    if dry_run {
        return show(context, instance, &settings, DiskFacts::of_system(disk.size_bytes, disk.medium));
    }
    let workspace = Workspace::enter()?;
    on_disk(context, instance, &settings, &disk, &workspace)?;
    Ok(Outcome::Done)
}

/// The dry run: what a create would do, or why it would not.
pub fn show(
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    facts: DiskFacts,
) -> Result<Outcome> {
    let text = match &settings.source {
        Source::Empty => {
            format!("instance    {}\nsource      empty: the disk is wiped, and that is all\n", instance.name)
        }
        Source::Bootstrap => tree_plan(context, instance, settings, facts, None)?.to_string(),
        Source::File(sealed) => match source::open(sealed)? {
            Opened::Tree(tree) => {
                tree_plan(context, instance, settings, facts, Some(&tree.name))?.to_string()
            }
            Opened::Image(image) => ImagePlan::new(instance, settings, facts, &image.name)?.to_string(),
        },
    };
    answer(&text)?;
    Ok(Outcome::Done)
}

fn tree_plan(
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    facts: DiskFacts,
    file: Option<&str>,
) -> Result<Plan> {
    let mut plan = Plan::new(context, instance, settings, facts)?;
    plan.source = file.map(str::to_owned);
    preconditions(&plan)?;
    Ok(plan)
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
    let guest = Guest { context, instance, settings };
    introduce(&guest, disk);
    match &settings.source {
        Source::Bootstrap => guest.install_tree(disk, workspace, None)?,
        Source::Empty => empty(disk)?,
        Source::File(sealed) => match source::open(sealed)? {
            Opened::Tree(tree) => guest.install_tree(disk, workspace, Some(tree))?,
            Opened::Image(image) => golden::install(&guest, disk, workspace, &image)?,
        },
    }
    let (seconds, name) = (start.elapsed().as_secs_f64(), &instance.name);
    report::line(&match settings.source {
        Source::Empty => {
            format!("{seconds:8.2} s  the disk of {name} is empty: nothing was installed, no hook ran")
        }
        _ => format!("{seconds:8.2} s  {name} is installed"),
    });
    Ok(())
}

/// Whose disk is made, and how its admin wants it.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    pub context: &'a Context,
    pub instance: &'a Instance,
    pub settings: &'a Settings,
}

/// All that can be known to be missing is asked for before anything is destroyed. Returns the device for swap,
/// locked and refused where in use like any disk.
pub fn preconditions(plan: &Plan) -> Result<Option<Disk>> {
    command::require(disk::mkfs_of(plan.filesystem))?;
    LoopDevice::control()?;
    if let Some(dir) = &plan.hooks.dir {
        hooks::list(dir)?;
    }
    if plan.swap != SwapPlan::None {
        command::require("mkswap")?;
    }
    match &plan.swap {
        SwapPlan::Device(path) => Disk::open(path).map(Some),
        SwapPlan::None | SwapPlan::Partition | SwapPlan::File { .. } => Ok(None),
    }
}

fn introduce(guest: &Guest<'_>, disk: &Disk) {
    let settings = guest.settings;
    let layers = &settings.layers;
    let what = match &settings.source {
        Source::Bootstrap => format!(
            "{} {}, {} on {}",
            settings.suite, settings.arch, settings.filesystem, settings.partition_style
        ),
        Source::Empty => "empty".into(),
        Source::File(file) => format!("from {}", file.path.display()),
    };
    report::line(&format!(
        "{} {}: {} on {} ({}), {what}",
        crate::PROGRAM,
        crate::VERSION,
        guest.instance.name,
        disk.path.display(),
        size(disk.size_bytes),
    ));
    report::line(&format!("{:>10}  defaults = \"{}\": {}", "settings", layers.era, layers.era_reason));
    warn(settings);
}

/// Nothing but a wiped disk, for a guest that is installed otherwise.
fn empty(disk: &Disk) -> Result<()> {
    report::step("wiping the disk", || {
        // What an earlier table names would be found again by the next one that has a partition there.
        let parts = disk.survey().map(|survey| survey.parts).unwrap_or_default();
        for part in parts {
            disk::wipe_root(disk, part.start_bytes, part.size_bytes)?;
        }
        disk::wipe_ends(disk)
    })
}

fn check(base: &BaseTar) -> Result<()> {
    report::step("checking the cache file", || base.verify())
}

impl Guest<'_> {
    /// A disk as the settings want it, with a tree: that of the recipe, or the one in a file.
    fn install_tree(&self, disk: &Disk, workspace: &Workspace, file: Option<BaseTar>) -> Result<()> {
        let facts = DiskFacts::of_system(disk.size_bytes, disk.medium);
        let plan = Plan::new(self.context, self.instance, self.settings, facts)?;
        for warning in &plan.personality.network.warnings {
            report::warning(warning);
        }
        let swap = preconditions(&plan)?;
        let sealed = file.is_some();
        let base = match file {
            Some(tree) => tree,
            None => base::ready(&plan.base, workspace, Freshness::Cached)?,
        };
        base::refuse_misfit(&base, plan.layout.root_extent().1)?;
        let template = template::ready(&plan, &base, workspace)?;
        if !sealed && template.is_none() {
            check(&base)?;
        }
        let mut work = Work::new(disk, &plan, swap);
        if let Err(error) = self.install(&mut work, &base, template, workspace) {
            return Err(work.abandon(error).context(format!("installing {}", self.instance.name)));
        }
        Ok(())
    }

    /// From a blank disk to an installed one.
    fn install(
        &self,
        work: &mut Work<'_>,
        base: &BaseTar,
        template: Option<Template>,
        workspace: &Workspace,
    ) -> Result<()> {
        let plan = work.plan;
        let ours = Tree::Ours { options: "" };
        let pasted = template.map(|template| work.copy(&template, workspace, ours)).transpose()?;
        if pasted != Some(true) {
            if pasted.is_some() {
                check(base)?;
            }
            work.format(workspace, ours)?;
            report::long_step("unpacking", || unpack(base, work.root()?))?;
        }
        match self.settings.source {
            Source::File(_) => adopted::prepare_own(work, workspace)?,
            Source::Bootstrap | Source::Empty => work.prepare_loader(None)?,
        }
        work.make_swap()?;
        report::step("personalising", || {
            let personality = guest::Personality { boots: work.boots(), ..plan.personality.clone() };
            guest::personalise(work.root()?.dir()?, &personality, &work.volumes)
        })?;
        work.complete()?;
        if hooks::any(&plan.hooks)? {
            work.show_to_udev()?;
        }
        let (root, device) = (work.root()?, work.device()?.path());
        let stage = Stage {
            target: root.path(),
            disk: &device,
            root_device: work.root_device()?,
            workspace: workspace.path(),
        };
        self.run_hooks(&plan.hooks, &plan.personality.resolver, root.dir()?, &stage)?;
        work.disk.refuse_changed()?;
        work.finish()
    }

    /// Runs the hooks in a tree that has a resolver while they run.
    pub fn run_hooks(
        &self,
        plan: &HookPlan,
        resolver: &Resolver,
        tree: &RootDir,
        stage: &Stage<'_>,
    ) -> Result<()> {
        let lent = HookResolver::lend(tree, resolver)?;
        hooks::run(plan, self.context, self.instance, self.settings, stage)?;
        lent.take_back(tree)
    }
}
