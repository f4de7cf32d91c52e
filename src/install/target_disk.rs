//! A disk that is being made, by create or import: what is held meanwhile and the steps that both take. Until the end firmware
//! starts nothing from it. A run that fails leaves it wiped.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use uuid::Uuid;

use super::boot_loader::Loader;
use super::clone_template::clone_template;
use super::teardown;
use crate::cache::Template;
use crate::command::{self, Tool};
use crate::disk::{self, Disk, Format, LoopDevice};
use crate::guest::boot::LoaderFiles;
use crate::guest::{self, Root, Trust, Volumes, Workspace};
use crate::partition_table::layout::{Partition, Role};
use crate::plan::{Plan, SwapPlan};
use crate::rootdir::RootDir;
use crate::{hooks, partition_table, report};

/// Where swap goes.
pub enum SwapTarget {
    None,
    /// A device of its own: locked, and refused where it is in use like any disk.
    Device(Disk),
    Partition(Partition),
    File {
        size_bytes: u64,
    },
}

/// Refuses a plan for which something is missing on this node, before anything is destroyed.
pub fn preconditions(plan: &Plan) -> Result<SwapTarget> {
    command::require(disk::mkfs_of(plan.filesystem))?;
    LoopDevice::control()?;
    if let Some(dir) = &plan.hooks.dir {
        hooks::list(dir)?;
    }
    if plan.swap != SwapPlan::None {
        command::require("mkswap")?;
    }
    Ok(match &plan.swap {
        SwapPlan::None => SwapTarget::None,
        SwapPlan::Device(path) => SwapTarget::Device(Disk::open(path)?),
        SwapPlan::Partition { .. } => SwapTarget::Partition(
            *plan.layout.partition(Role::Swap).context("a swap partition in the layout")?,
        ),
        SwapPlan::File { size_bytes } => SwapTarget::File { size_bytes: *size_bytes },
    })
}

/// A disk before anything is written to it.
pub struct BlankDisk<'a> {
    pub disk: &'a Disk,
    pub plan: &'a Plan,
    pub swap: SwapTarget,
}

impl<'a> BlankDisk<'a> {
    /// Runs `make`, which formats or copies and builds the rest. An error leaves a wiped disk, unless the plan keeps it.
    pub fn make(self, make: impl FnOnce(&BlankDisk<'a>) -> Result<()>) -> Result<()> {
        make(&self).map_err(|error| {
            teardown::give_up(self.disk, self.plan.on_failure, error, || {
                let (start, size) = self.plan.layout.root_extent();
                disk::wipe_root(self.disk, start, size)?;
                self.wipe()?;
                self.disk.restore_size()
            })
        })
    }

    /// An empty filesystem, mounted for the tree that is to come. There is no table yet; without one the filesystem is labelled
    /// incomplete.
    pub fn format(&self, workspace: &Workspace, trust: Trust) -> Result<TargetDisk<'_>> {
        report::step("wiping old signatures", || self.wipe())?;
        let (plan, uuid) = (self.plan, Uuid::new_v4());
        let (device, root_device) = self.attach()?;
        report::step(&format!("formatting {} as {}", root_device.display(), plan.filesystem), || {
            let (label, oldest_kernel) = (plan.layout.unfinished_label(), plan.oldest_kernel);
            let format = Format { label, uuid, oldest_kernel, ..Format::new(plan.filesystem) };
            disk::make_filesystem(&root_device, &format)
        })?;
        let root = workspace.mount(&root_device, plan.filesystem, "target", trust)?;
        Ok(TargetDisk::new(self, root, device, root_device, uuid))
    }

    /// A copy of a template, mounted: the tree is there. It is labelled like an empty one. None: the template is damaged.
    pub fn copy(
        &self,
        template: &Template,
        workspace: &Workspace,
        trust: Trust,
    ) -> Result<Option<TargetDisk<'_>>> {
        report::step("wiping old signatures", || self.wipe())?;
        let (plan, uuid) = (self.plan, Uuid::new_v4());
        let start = plan.layout.root_extent().0;
        let copied = report::step(&format!("copying {}", template.path.display()), || {
            clone_template(template, self.disk, start, uuid)
        })?;
        let Some(files) = copied else { return Ok(None) };
        let (device, root_device) = self.attach()?;
        if !template.runs().uuid_stands_alone {
            report::step("giving the copy a UUID", || {
                Tool::new("tune2fs").args(["-U", &uuid.to_string()]).arg(&root_device).quiet().run()
            })?;
        }
        let root = workspace.mount(&root_device, plan.filesystem, "target", trust)?;
        let kept = Some(LoaderFiles::kept(files));
        Ok(Some(TargetDisk { kept, ..TargetDisk::new(self, root, device, root_device, uuid) }))
    }

    fn wipe(&self) -> Result<()> {
        disk::wipe_ends(self.disk)?;
        disk::wipe_partitions(self.disk, &self.plan.layout)
    }

    /// The root's partition exists in the kernel alone: until the tree is complete there is no table on the disk.
    fn attach(&self) -> Result<(LoopDevice, PathBuf)> {
        let mut device = LoopDevice::attach(self.disk)?;
        let root_device = match self.plan.layout.root() {
            Some(root) => add_partition(&mut device, root)?,
            None => device.path(),
        };
        Ok((device, root_device))
    }
}

/// A disk with a mounted root.
pub struct TargetDisk<'a> {
    blank: &'a BlankDisk<'a>,
    pub plan: &'a Plan,
    pub root: Root,
    pub device: LoopDevice,
    pub root_device: PathBuf,
    /// What a template has of its tree's loader beside the tree.
    kept: Option<LoaderFiles>,
    /// What makes the finished disk start: written last. None: nothing does.
    loader: Option<Loader>,
    pub volumes: Volumes,
}

impl<'a> TargetDisk<'a> {
    fn new(
        blank: &'a BlankDisk<'a>,
        root: Root,
        device: LoopDevice,
        root_device: PathBuf,
        uuid: Uuid,
    ) -> TargetDisk<'a> {
        let volumes = Volumes { root: uuid, swap: None, esp: None };
        TargetDisk { blank, plan: blank.plan, root, device, root_device, kept: None, loader: None, volumes }
    }

    /// Runs `work`, and finishes the disk: only when the kernel has let go of it, it is a success. After an error the kernel
    /// has let go of it too.
    pub fn build(mut self, work: impl FnOnce(&mut TargetDisk<'a>) -> Result<()>) -> Result<()> {
        match work(&mut self) {
            Ok(()) => report::step("flushing", || self.finish()),
            Err(error) => Err(self.let_go(error)),
        }
    }

    fn let_go(self, error: anyhow::Error) -> anyhow::Error {
        teardown::let_go(self.root, &self.root_device, self.device, self.plan.on_failure);
        error
    }

    fn finish(mut self) -> Result<()> {
        if let Err(error) = self.close() {
            return Err(self.let_go(error));
        }
        let TargetDisk { blank, plan, device, .. } = self;
        device.finish()?;
        // What a hook wrote through the disk's own path is in that path's page cache.
        blank.disk.flush_path_cache()?;
        let table = partition_table::table_is_there(&blank.disk.file, plan.layout.style)?;
        ensure!(table, "the partition table is gone; a hook wrote over it");
        Ok(())
    }

    /// Unmounts the root, and as the very last write has firmware start the disk.
    fn close(&mut self) -> Result<()> {
        if !self.plan.layout.unfinished_label().is_empty() {
            self.root.set_label(&self.root_device, self.plan.filesystem, "")?;
        }
        self.root.finish()?;
        self.loader.as_ref().map_or(Ok(()), |loader| loader.write(&self.device, &self.plan.layout))
    }

    /// Whether a loader is prepared.
    pub fn boots(&self) -> bool {
        self.loader.is_some()
    }

    /// Prepares what starts the disk, where the plan wants that, from the loader's files in a tree: the disk's own by default.
    pub fn prepare_loader(&mut self, tree: Option<&RootDir>) -> Result<()> {
        let Some(wanted) = self.plan.boot else { return Ok(()) };
        self.loader = report::step("preparing the loader", || {
            let files = match (tree, self.kept.take()) {
                (Some(dir), _) => LoaderFiles::of(dir)?,
                (None, Some(kept)) => kept,
                (None, None) => LoaderFiles::of(self.root.dir()?)?,
            };
            Loader::prepare(wanted, &files, &mut self.device, &self.plan.layout, self.volumes.root)
        })?;
        self.volumes.esp = self.loader.as_ref().and_then(Loader::esp);
        Ok(())
    }

    /// Makes swap where the plan wants it.
    pub fn make_swap(&mut self) -> Result<()> {
        let uuid = match &self.blank.swap {
            SwapTarget::None => return Ok(()),
            SwapTarget::Device(swap) => {
                disk::wipe_ends(swap)?;
                disk::make_swap(&swap.path)?
            }
            SwapTarget::Partition(partition) => {
                disk::make_swap(&add_partition(&mut self.device, partition)?)?
            }
            SwapTarget::File { size_bytes } => {
                report::step("making a swap file", || guest::swap::make_file(self.root.dir()?, *size_bytes))?;
                self.volumes.swap = Some(format!("/{}", guest::swap::FILE));
                return Ok(());
            }
        };
        self.volumes.swap = Some(format!("UUID={uuid}"));
        Ok(())
    }

    /// Writes the complete tree out, then the table: a power cut after the table must find the whole tree.
    pub fn complete(&mut self) -> Result<()> {
        report::step("writing the tree out", || {
            self.root.flush()?;
            self.loader.as_ref().map_or(Ok(()), Loader::flush)
        })?;
        self.add_table()
    }

    /// From here on the disk looks like one with a system on it.
    fn add_table(&mut self) -> Result<()> {
        let layout = &self.plan.layout;
        if layout.partitions.is_empty() {
            return Ok(());
        }
        report::step(&format!("writing the {} table", layout.style), || {
            partition_table::write_table(self.device.file(), layout)?;
            for partition in &layout.partitions {
                if !self.device.has_partition(partition.number) {
                    add_partition(&mut self.device, partition)?;
                }
            }
            Ok(())
        })
    }

    /// Lets udev make its links for the root, from here on.
    pub fn show_to_udev(&self) -> Result<()> {
        self.device.show_to_udev(&self.root_device, self.volumes.root)
    }

    /// Refuses a disk whose file or device a hook replaced.
    pub fn refuse_changed(&self) -> Result<()> {
        self.blank.disk.refuse_changed()
    }
}

fn add_partition(device: &mut LoopDevice, partition: &Partition) -> Result<PathBuf> {
    device.add_partition(partition.number, partition.start_bytes(), partition.size_bytes())
}
