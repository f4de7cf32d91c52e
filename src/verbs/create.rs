//! create: a request becomes a disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::base::{self, Freshness, LARGER_DISK};
use super::{Outcome, answer, warn};
use crate::cache::BaseTar;
use crate::disk::{self, Disk, INCOMPLETE_LABEL, LoopDevice, PartitionStyle};
use crate::guest::{self, HookResolver, Root, Volumes, Workspace};
use crate::hooks::{self, Stage};
use crate::plan::{DiskFacts, Plan, disk_path};
use crate::report::{self, Hint, size};
use crate::request::{Context, Instance};
use crate::settings::Settings;
use crate::signals::Interrupted;
use crate::{signals, tool, tree};

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

    let mut work = Work { disk, swap, plan: &plan, device: None, root: None, root_device: None };
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
    let Some(path) = &plan.swap else { return Ok(None) };
    tool::require("mkswap")?;
    Disk::open(path).map(Some)
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
        report::step("wiping old signatures", || disk::wipe_ends(self.disk))?;
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
                disk::make_filesystem(&root_device, plan.filesystem, label)
            })?;
        let swap = self.swap.as_ref().map(make_swap).transpose()?;
        let root = self.root.insert(workspace.mount(&root_device, plan.filesystem, "target", "")?);
        report::long_step("unpacking", || unpack(base, root))?;
        report::step("personalising", || {
            let volumes = Volumes { root: formatted.uuid, swap };
            guest::personalise(root.dir()?, &plan.personality, volumes)
        })?;
        // All of the tree first: a power cut behind the table must find it whole.
        report::step("writing the tree out", || root.flush())?;
        self.add_table()?;
        self.run_hooks(context, instance, settings, workspace, &root_device)?;
        self.finish(label, &root_device)
    }

    /// From here on the disk looks like one with a system on it.
    fn add_table(&mut self) -> Result<()> {
        let (layout, device) = (&self.plan.layout, self.device.as_mut().context("an attached disk")?);
        if layout.partitions.is_empty() {
            return Ok(());
        }
        report::step(&format!("writing the {} table", layout.style), || {
            disk::write_table(device.file(), layout)?;
            for partition in layout.partitions.iter().filter(|p| Some(*p) != layout.root()) {
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
            .and_then(|()| self.disk.restore_size());
        match wiped {
            Ok(()) => report::line(&format!("{:>10}  the disk is wiped: nothing is installed on it", "")),
            Err(error) => report::warning(&format!("the disk could not be wiped: {error:#}")),
        }
    }
}

fn make_swap(swap: &Disk) -> Result<uuid::Uuid> {
    disk::wipe_ends(swap)?;
    disk::make_swap(&swap.path)
}

fn unpack(base: &BaseTar, root: &Root) -> Result<()> {
    let mut reader = Progress { inner: base.reader()?, done: 0, total: base.size_bytes() };
    let unpacked = tree::unpack(&mut reader, root.dir()?, &signals::check).map(drop);
    let is_system = || {
        let dir = root.dir()?;
        let is_system = dir.is_dir("etc")? && (dir.is_file("bin/sh")? || dir.is_file("usr/bin/sh")?);
        ensure!(is_system, "it holds no system: /etc or /bin/sh is missing");
        Ok(())
    };
    let unpacked = unpacked.and_then(|()| is_system());
    unpacked.with_context(|| format!("unpacking {}", base.name)).map_err(|error| explained(error, base, root))
}

/// Why a tree could not be unpacked, and what to do about it.
fn explained(error: anyhow::Error, base: &BaseTar, root: &Root) -> anyhow::Error {
    let no_space = |cause: &(dyn std::error::Error + 'static)| {
        let errno = cause.downcast_ref::<rustix::io::Errno>().copied();
        let errno = errno.or_else(|| rustix::io::Errno::from_io_error(cause.downcast_ref()?));
        errno == Some(rustix::io::Errno::NOSPC)
    };
    if error.is::<Interrupted>() {
        return error;
    }
    if error.chain().any(no_space) {
        let what = if root.has_inodes() { "is full" } else { "has no inode left" };
        return error.context(Hint(LARGER_DISK.into())).context(format!("the root filesystem {what}"));
    }
    error.context(Hint(format!("{} may be damaged; replace or remove it", base.name)))
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

/// Tells a terminal how far a reader is.
struct Progress<R> {
    inner: R,
    done: u64,
    total: u64,
}

impl<R: std::io::Read> std::io::Read for Progress<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let before = self.done >> 23;
        self.done += count as u64;
        if self.done >> 23 != before {
            report::progress(self.done, self.total);
        }
        Ok(count)
    }
}
