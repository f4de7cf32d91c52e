//! A disk that is being made, by create or import: what is held meanwhile, in the order of ownership, and the steps that
//! both take. Until the end firmware starts nothing from it; given up, it is wiped.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, ensure};
use uuid::Uuid;

use super::loader::Loader;
use super::paste::paste;
use crate::cache::Template;
use crate::command::Tool;
use crate::disk::{self, Disk, Format, LoopDevice};
use crate::guest::boot::Pieces;
use crate::guest::{self, Root, Tree, Volumes, Workspace};
use crate::partition_table;
use crate::partition_table::layout::Role;
use crate::plan::{Plan, SwapPlan};
use crate::report::{self, Hint};
use crate::rootdir::RootDir;
use crate::sys::signals::Interrupted;

/// What is held.
pub struct Work<'a> {
    root: Option<Root>,
    device: Option<LoopDevice>,
    pub disk: &'a Disk,
    /// The device of the root, once there is one.
    root_device: Option<PathBuf>,
    swap: Option<Disk>,
    pub plan: &'a Plan,
    /// What the tree's loader is made of, where a template had it at hand.
    pieces: Option<Pieces>,
    /// What makes the finished disk start: written last.
    loader: Option<Loader>,
    pub volumes: Volumes,
}

impl<'a> Work<'a> {
    /// Nothing is touched yet. `swap` is the device for swap, where the plan has one.
    pub fn new(disk: &'a Disk, plan: &'a Plan, swap: Option<Disk>) -> Work<'a> {
        let volumes = Volumes { root: Uuid::new_v4(), swap: None, esp: None };
        let (root, device, root_device, pieces, loader) = (None, None, None, None, None);
        Work { root, device, disk, root_device, swap, plan, pieces, loader, volumes }
    }

    /// An empty filesystem, mounted for the tree that is to come. There is no table yet; without one the filesystem is labelled incomplete.
    pub fn format(&mut self, workspace: &Workspace, tree: Tree) -> Result<()> {
        self.wipe()?;
        let root_device = self.attach()?;
        let plan = self.plan;
        report::step(&format!("formatting {} as {}", root_device.display(), plan.filesystem), || {
            let (label, uuid, reader) = (plan.layout.unfinished_label(), self.volumes.root, plan.reader);
            disk::make_filesystem(
                &root_device,
                &Format { label, uuid, reader, ..Format::new(plan.filesystem) },
            )
        })?;
        self.root = Some(workspace.mount(&root_device, plan.filesystem, "target", tree)?);
        Ok(())
    }

    /// A copy of a template, mounted: the tree is there. Labelled like an empty one. False where the template was damaged.
    pub fn copy(&mut self, template: &Template, workspace: &Workspace, tree: Tree) -> Result<bool> {
        self.wipe()?;
        let (plan, uuid) = (self.plan, self.volumes.root);
        let start = plan.layout.root_extent().0;
        let pasted = report::step(&format!("copying {}", template.path.display()), || {
            paste(template, self.disk, start, uuid)
        })?;
        let Some(files) = pasted else { return Ok(false) };
        self.pieces = Some(Pieces::kept(files));
        let root_device = self.attach()?;
        if !template.content().uuid_stands_alone {
            report::step("giving the copy a UUID", || {
                Tool::new("tune2fs").args(["-U", &uuid.to_string()]).arg(&root_device).quiet().run()
            })?;
        }
        self.root = Some(workspace.mount(&root_device, plan.filesystem, "target", tree)?);
        Ok(true)
    }

    fn wipe(&self) -> Result<()> {
        report::step("wiping old signatures", || {
            disk::wipe_ends(self.disk)?;
            disk::wipe_partitions(self.disk, &self.plan.layout)
        })
    }

    /// The partition exists in the kernel alone: until the tree is complete there is no table on the disk.
    fn attach(&mut self) -> Result<PathBuf> {
        let device = self.device.insert(LoopDevice::attach(self.disk)?);
        let root_device = match self.plan.layout.root() {
            Some(root) => device.add_partition(root.number, root.start_bytes(), root.size_bytes())?,
            None => device.path(),
        };
        self.root_device = Some(root_device.clone());
        Ok(root_device)
    }

    /// The mounted root.
    pub fn root(&self) -> Result<&Root> {
        self.root.as_ref().context("a mounted root")
    }

    /// The attached disk.
    pub fn device(&self) -> Result<&LoopDevice> {
        self.device.as_ref().context("an attached disk")
    }

    /// The device of the root.
    pub fn root_device(&self) -> Result<&Path> {
        self.root_device.as_deref().context("a device of the root")
    }

    /// Whether a loader is prepared.
    pub fn boots(&self) -> bool {
        self.loader.is_some()
    }

    /// Prepares what starts the disk, where the plan wants that, of the pieces in a tree: the disk's own by default.
    pub fn prepare_loader(&mut self, pieces: Option<&RootDir>) -> Result<()> {
        let Some(wanted) = self.plan.boot else { return Ok(()) };
        let device = self.device.as_mut().context("an attached disk")?;
        self.loader = report::step("preparing the loader", || {
            let pieces = match (pieces, self.pieces.take()) {
                (Some(dir), _) => Pieces::of(dir)?,
                (None, Some(kept)) => kept,
                (None, None) => Pieces::of(self.root.as_ref().context("a mounted root")?.dir()?)?,
            };
            Loader::prepare(wanted, &pieces, device, &self.plan.layout, self.volumes.root)
        })?;
        self.volumes.esp = self.loader.as_ref().and_then(Loader::esp);
        Ok(())
    }

    /// Makes swap where the plan wants it.
    pub fn make_swap(&mut self) -> Result<()> {
        let uuid = match &self.plan.swap {
            SwapPlan::None => return Ok(()),
            SwapPlan::Device(_) => {
                let swap = self.swap.as_ref().context("a device for swap")?;
                disk::wipe_ends(swap)?;
                disk::make_swap(&swap.path)?
            }
            SwapPlan::Partition => disk::make_swap(&self.add_partition(Role::Swap)?)?,
            SwapPlan::File { size_bytes } => {
                let root = self.root.as_ref().context("a mounted root")?;
                report::step("making a swap file", || guest::swap::make_file(root, *size_bytes))?;
                self.volumes.swap = Some(format!("/{}", guest::swap::FILE));
                return Ok(());
            }
        };
        self.volumes.swap = Some(format!("UUID={uuid}"));
        Ok(())
    }

    fn add_partition(&mut self, role: Role) -> Result<PathBuf> {
        let partition = *self.plan.layout.partition(role).context("a partition of the layout")?;
        let device = self.device.as_mut().context("an attached disk")?;
        device.add_partition(partition.number, partition.start_bytes(), partition.size_bytes())
    }

    /// The tree is whole: it is written out, then the table.
    pub fn complete(&mut self) -> Result<()> {
        // All of the tree first: a power cut behind the table must find it whole.
        report::step("writing the tree out", || {
            self.root()?.flush()?;
            self.loader.as_ref().map_or(Ok(()), Loader::flush)
        })?;
        self.add_table()
    }

    /// From here on the disk looks like one with a system on it.
    fn add_table(&mut self) -> Result<()> {
        let (layout, device) = (&self.plan.layout, self.device.as_mut().context("an attached disk")?);
        if layout.partitions.is_empty() {
            return Ok(());
        }
        report::step(&format!("writing the {} table", layout.style), || {
            partition_table::write_table(device.file(), layout)?;
            for partition in &layout.partitions {
                if device.has_partition(partition.number) {
                    continue;
                }
                device.add_partition(partition.number, partition.start_bytes(), partition.size_bytes())?;
            }
            Ok(())
        })
    }

    /// Lets udev make its links for the root, from here on.
    pub fn show_to_udev(&self) -> Result<()> {
        self.device()?.show_to_udev(self.root_device()?, self.volumes.root)
    }

    /// Everything reaches the disk, and the kernel lets go of it; only then it is a success.
    pub fn finish(&mut self) -> Result<()> {
        report::step("flushing", || {
            if !self.plan.layout.unfinished_label().is_empty() {
                self.root()?.set_label(self.root_device()?, self.plan.filesystem, "")?;
            }
            if let Some(root) = &mut self.root {
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
            let table = partition_table::table_is_there(&self.disk.file, self.plan.layout.style)?;
            ensure!(table, "the partition table is gone; a hook wrote over it");
            Ok(())
        })
    }

    /// A failed verb leaves no disk that looks installed, unless the admin wants to look at it. Returns the error, with
    /// what is known of its reason.
    pub fn abandon(mut self, error: Error) -> Error {
        let error = full_backing(error, self.disk);
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
            return error;
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
        error
    }
}

/// A sparse file on a full filesystem shows as errors of input and output: say what it was.
fn full_backing(error: Error, disk: &Disk) -> Error {
    if !disk.backing_is_full() || error.is::<Interrupted>() {
        return error;
    }
    let dir = disk.path.parent().unwrap_or(&disk.path).display();
    // What seemed the remedy before is none.
    anyhow::anyhow!(report::sentence(&error))
        .context(format!("the filesystem of {dir} is full"))
        .context(Hint(format!("make room in {dir}")))
}
