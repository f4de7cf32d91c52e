//! create: a request becomes a disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::base::{self, Freshness};
use super::loader::Loader;
use super::unpack::unpack;
use super::{Outcome, answer, warn};
use crate::cache::BaseTar;
use crate::disk::layout::Role;
use crate::disk::{self, Disk, Format, INCOMPLETE_LABEL, LoopDevice, PartitionStyle};
use crate::guest::{self, HookResolver, Root, Volumes, Workspace};
use crate::hooks::{self, Stage};
use crate::plan::{DiskFacts, Plan, SwapPlan, disk_path};
use crate::report::{self, Hint, size};
use crate::request::{Context, Instance};
use crate::settings::Settings;
use crate::signals::Interrupted;
use crate::tool;

/// Installs an instance on its first disk.
pub fn create(context: &Context, instance: &Instance, dry_run: bool) -> Result<Outcome> {
    let settings = Settings::load(context, "create")?;
    let address = &instance.disks.first().context("an instance without disks")?.address;
    let disk = Disk::open(&disk_path(address)?)?;
    if dry_run {
        let facts = DiskFacts { size_bytes: disk.size_bytes, medium: disk.medium };
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
    let facts = DiskFacts { size_bytes: disk.size_bytes, medium: disk.medium };
    let plan = Plan::new(context, instance, settings, facts)?;
    introduce(&plan, settings);
    let swap = preconditions(&plan)?;
    let base = base::ready(&plan.base, workspace, Freshness::Cached)?;
    base::refuse_misfit(&base, plan.layout.root_extent().1)?;
    report::step("checking the cache file", || base.verify())?;

    let mut work =
        Work { disk, swap, plan: &plan, device: None, root: None, root_device: None, loader: None };
    let result = work.install(context, instance, settings, &base, workspace);
    if let Err(error) = result {
        let error = full_backing(error, disk);
        work.abandon();
        return Err(error.context(format!("installing {}", instance.name)));
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

/// What is held while a disk is made, in the order of ownership.
struct Work<'a> {
    root: Option<Root>,
    device: Option<LoopDevice>,
    disk: &'a Disk,
    /// The device of the root, once there is one.
    root_device: Option<PathBuf>,
    swap: Option<Disk>,
    plan: &'a Plan,
    /// What makes the finished disk start: written last.
    loader: Option<Loader>,
}

impl Work<'_> {
    fn install(
        &mut self,
        context: &Context,
        instance: &Instance,
        settings: &Settings,
        base: &BaseTar,
        workspace: &Workspace,
    ) -> Result<()> {
        let plan = self.plan;
        report::step("wiping old signatures", || {
            disk::wipe_ends(self.disk)?;
            disk::wipe_partitions(self.disk, &plan.layout)
        })?;
        let device = self.device.insert(LoopDevice::attach(self.disk)?);
        // The partition exists in the kernel alone: until the tree is complete there is no table on the disk.
        let root_device = match plan.layout.root() {
            Some(root) => device.add_partition(root.number, root.start_bytes(), root.size_bytes())?,
            None => device.path(),
        };
        self.root_device = Some(root_device.clone());
        let label = if plan.layout.style == PartitionStyle::None { INCOMPLETE_LABEL } else { "" };
        let formatted =
            report::step(&format!("formatting {} as {}", root_device.display(), plan.filesystem), || {
                let format = Format { label, reader: plan.reader, ..Format::new(plan.filesystem) };
                disk::make_filesystem(&root_device, &format)
            })?;
        let mut volumes = Volumes { root: formatted.uuid, swap: None, esp: None };
        let root = workspace.mount(&root_device, plan.filesystem, "target", "")?;
        let root = self.root.insert(root);
        report::long_step("unpacking", || unpack(base, root))?;
        if let Some(wanted) = plan.boot {
            let prepare = || Loader::prepare(wanted, root.dir()?, device, &plan.layout, formatted.uuid);
            self.loader = report::step("preparing the loader", prepare)?;
        }
        volumes.esp = self.loader.as_ref().and_then(Loader::esp);
        let boots = self.loader.is_some();
        volumes.swap = self.make_swap()?;
        let root = self.root.as_ref().context("a mounted root")?;
        report::step("personalising", || {
            let personality = guest::Personality { boots, ..plan.personality.clone() };
            guest::personalise(root.dir()?, &personality, &volumes)
        })?;
        // All of the tree first: a power cut behind the table must find it whole.
        report::step("writing the tree out", || root.flush())?;
        self.add_table()?;
        if hooks::any(&plan.hooks)? {
            let device = self.device.as_ref().context("an attached disk")?;
            device.show_to_udev(&root_device, formatted.uuid)?;
        }
        self.run_hooks(context, instance, settings, workspace, &root_device)?;
        self.finish(label, &root_device)
    }

    /// Makes swap where the plan wants it; how fstab names it.
    fn make_swap(&mut self) -> Result<Option<String>> {
        let uuid = match &self.plan.swap {
            SwapPlan::None => return Ok(None),
            SwapPlan::Device(_) => {
                let swap = self.swap.as_ref().context("a device for swap")?;
                disk::wipe_ends(swap)?;
                disk::make_swap(&swap.path)?
            }
            SwapPlan::Partition => disk::make_swap(&self.add_partition(Role::Swap)?)?,
            SwapPlan::File { size_bytes } => {
                let root = self.root.as_ref().context("a mounted root")?;
                return report::step("making a swap file", || {
                    guest::swap::make_file(root, *size_bytes)?;
                    Ok(Some(format!("/{}", guest::swap::FILE)))
                });
            }
        };
        Ok(Some(format!("UUID={uuid}")))
    }

    fn add_partition(&mut self, role: Role) -> Result<PathBuf> {
        let partition = *self.plan.layout.partition(role).context("a partition of the layout")?;
        let device = self.device.as_mut().context("an attached disk")?;
        device.add_partition(partition.number, partition.start_bytes(), partition.size_bytes())
    }

    /// From here on the disk looks like one with a system on it.
    fn add_table(&mut self) -> Result<()> {
        let (layout, device) = (&self.plan.layout, self.device.as_mut().context("an attached disk")?);
        if layout.partitions.is_empty() {
            return Ok(());
        }
        report::step(&format!("writing the {} table", layout.style), || {
            disk::write_table(device.file(), layout)?;
            for partition in &layout.partitions {
                if device.has_partition(partition.number) {
                    continue;
                }
                device.add_partition(partition.number, partition.start_bytes(), partition.size_bytes())?;
            }
            Ok(())
        })
    }

    fn run_hooks(
        &self,
        context: &Context,
        instance: &Instance,
        settings: &Settings,
        workspace: &Workspace,
        root_device: &Path,
    ) -> Result<()> {
        let root = self.root.as_ref().context("a mounted root")?;
        let device = self.device.as_ref().context("an attached disk")?;
        let lent = HookResolver::lend(root.dir()?, &self.plan.personality.resolver)?;
        let stage =
            Stage { target: root.path(), disk: &device.path(), root_device, workspace: workspace.path() };
        hooks::run(&self.plan.hooks, context, instance, settings, &stage)?;
        lent.take_back(root.dir()?)?;
        self.disk.refuse_changed()?;
        Ok(())
    }

    /// Everything reaches the disk, and the kernel lets go of it; only then it is a success.
    fn finish(&mut self, label: &str, root_device: &Path) -> Result<()> {
        report::step("flushing", || {
            if let Some(root) = &mut self.root {
                if !label.is_empty() {
                    root.set_label(root_device, self.plan.filesystem, "")?;
                }
                root.finish()?;
            }
            self.root = None;
            if let Some(device) = self.device.take() {
                // The very last: from here on firmware starts the disk.
                self.loader.as_ref().map_or(Ok(()), |loader| loader.write(&device, &self.plan.layout))?;
                device.finish()?;
            }
            // What a hook wrote through the disk's own path lies in that path's page cache.
            self.disk.flush_path_cache()?;
            let table = disk::table_is_there(&self.disk.file, self.plan.layout.style)?;
            ensure!(table, "the partition table is gone; a hook wrote over it");
            Ok(())
        })
    }

    /// A failed create leaves no disk that looks installed, unless the admin wants to look at it.
    fn abandon(mut self) {
        let keep = self.plan.keep_failed;
        let unmounted = match self.root.take() {
            Some(mut root) if keep => root.finish(),
            Some(root) => root.give_up(),
            None => Ok(()),
        };
        let held_device = self.root_device.filter(|_| unmounted.is_err() && !keep);
        let wiped_held = held_device.map_or(Ok(()), |device| disk::wipe_held(&device));
        let detached = self.device.take().map_or(Ok(()), LoopDevice::finish);
        let held = [&unmounted, &detached].into_iter().filter_map(|result| result.as_ref().err());
        for error in held {
            report::warning(&report::sentence(error));
        }
        if keep {
            report::warning("keep_failed is set: the disk stays as it is, and is not fit for use");
            return;
        }
        let (start, size) = self.plan.layout.root_extent();
        let wiped = wiped_held
            .and_then(|()| disk::wipe_root(self.disk, start, size))
            .and_then(|()| disk::wipe_ends(self.disk))
            .and_then(|()| disk::wipe_partitions(self.disk, &self.plan.layout))
            .and_then(|()| self.disk.restore_size());
        match wiped {
            Ok(()) => report::line(&format!("{:>10}  the disk is wiped: nothing is installed on it", "")),
            Err(error) => report::warning(&format!("the disk could not be wiped: {error:#}")),
        }
    }
}

/// A sparse file on a full filesystem shows as errors of input and output: say what it was.
fn full_backing(error: anyhow::Error, disk: &Disk) -> anyhow::Error {
    if !disk.backing_is_full() || error.is::<Interrupted>() {
        return error;
    }
    let dir = disk.path.parent().unwrap_or(&disk.path).display();
    // What seemed the remedy before is none.
    anyhow::anyhow!(report::sentence(&error))
        .context(format!("the filesystem of {dir} is full"))
        .context(Hint(format!("make room in {dir}")))
}
