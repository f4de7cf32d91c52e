//! What an import will do: with a disk, and with a tree, for the stream is not read before. Its Display is the dry run.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{DiskFacts, Inputs, OnFailure, Plan, SwapPlan};
use crate::disk::Medium;
use crate::partition_table::layout::Role;
use crate::report::{self, size};
use crate::request::InstanceName;
use crate::settings::Identity;

/// Everything that import will do.
#[derive(Debug)]
pub struct ImportPlan {
    pub name: InstanceName,
    /// Which disk of the instance it is.
    pub index: usize,
    pub disk_path: PathBuf,
    pub disk: DiskFacts,
    /// What comes back is another guest than the one that was backed up.
    pub new_identity: bool,
    /// The instance has other disks, whose UUIDs its fstab may name.
    pub many_disks: bool,
    pub on_failure: OnFailure,
    /// What is made of a stream that is a tree; an error says why none is.
    pub tree: Result<Plan>,
}

impl ImportPlan {
    /// Decides. Nothing has been touched.
    pub fn new(inputs: Inputs<'_>, (path, disk): (&Path, DiskFacts), index: usize) -> ImportPlan {
        let Inputs { instance, settings, .. } = inputs;
        ImportPlan {
            name: instance.name.clone(),
            index,
            disk_path: path.to_owned(),
            disk,
            new_identity: settings.import_identity == Identity::New,
            many_disks: instance.disks.len() > 1,
            on_failure: OnFailure::of(settings),
            tree: Plan::for_import(inputs, (path, disk), index),
        }
    }
}

impl fmt::Display for ImportPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let medium = match self.disk.medium {
            Medium::File => "file",
            Medium::Block => "block device",
        };
        let room = size(self.disk.size_bytes);
        writeln!(f, "instance    {}, disk {}", self.name, self.index)?;
        writeln!(f, "disk        {} ({medium}, {room})", self.disk_path.display())?;
        writeln!(
            f,
            "backup      on standard input, of which a dry run reads nothing; what it holds decides:"
        )?;
        writeln!(
            f,
            "a disk      comes back in its own layout if it had at most {room}; on a larger disk what lies last grows"
        )?;
        writeln!(
            f,
            "identity    {}",
            match self.new_identity {
                false => "that of the guest that was backed up",
                true => "another guest's: new UUIDs, machine-id and SSH host keys",
            }
        )?;
        match &self.tree {
            Ok(plan) => write_tree(f, plan),
            Err(error) => writeln!(f, "a tree      is refused: {}", report::sentence(error)),
        }
    }
}

/// Of a dump(8), or a tar of a root.
fn write_tree(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    writeln!(f, "a tree      gets a new layout, {}, and a new {}", plan.layout.style, plan.filesystem)?;
    for partition in &plan.layout.partitions {
        let role = match partition.role {
            Role::Root => "root",
            Role::BiosBoot => "BIOS boot",
            Role::Esp => "EFI system",
            Role::Swap => "swap",
        };
        writeln!(f, "            {:2} {role:10} {}", partition.number, size(partition.size_bytes()))?;
    }
    if let SwapPlan::File { size_bytes } = plan.swap {
        writeln!(f, "            /swapfile of {}", size(size_bytes))?;
    }
    let boot = match plan.boot {
        Some(_) => "GRUB of this node, where the backup has a kernel",
        None => "no loader: nothing starts this disk by itself",
    };
    writeln!(f, "            {boot}")
}
