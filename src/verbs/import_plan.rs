//! What an import is going to do, in words: what a disk becomes, and what a tree, for nothing of the backup is read.

use std::fmt::Write as _;

use anyhow::Result;

use crate::disk::{Disk, Medium};
use crate::partition_table::layout::Role;
use crate::plan::{Plan, SwapPlan};
use crate::report::{self, size};
use crate::request::InstanceName;
use crate::settings::Identity;

/// The answer of a dry run. `plan` is what a tree would get.
pub fn text(
    name: &InstanceName,
    index: usize,
    disk: &Disk,
    identity: Identity,
    plan: Result<Plan>,
) -> String {
    let medium = match disk.medium {
        Medium::File => "file",
        Medium::Block => "block device",
    };
    let (path, room) = (disk.path.display(), size(disk.size_bytes));
    let mut text = format!(
        "instance    {name}, disk {index}\n\
         disk        {path} ({medium}, {room})\n\
         backup      on standard input, of which a dry run reads nothing; what it holds decides:\n\
         a disk      comes back in its own layout if it had at most {room}; on a larger disk what lies last grows\n"
    );
    text += match identity {
        Identity::Keep => "identity    that of the guest that was backed up\n",
        Identity::New => "identity    another guest's: new UUIDs, machine-id and SSH host keys\n",
    };
    match plan {
        Ok(plan) => tree(&mut text, &plan),
        Err(error) => text += &format!("a tree      is refused: {}\n", report::sentence(&error)),
    }
    text
}

/// Of a dump(8), or a tar of a root.
fn tree(text: &mut String, plan: &Plan) {
    let mut line = |what: String| {
        let _ = writeln!(text, "{what}");
    };
    line(format!("a tree      gets a new layout, {}, and a new {}", plan.layout.style, plan.filesystem));
    for partition in &plan.layout.partitions {
        let role = match partition.role {
            Role::Root => "root",
            Role::BiosBoot => "BIOS boot",
            Role::Esp => "EFI system",
            Role::Swap => "swap",
        };
        line(format!("            {:2} {role:10} {}", partition.number, size(partition.size_bytes())));
    }
    if let SwapPlan::File { size_bytes } = plan.swap {
        line(format!("            /swapfile of {}", size(size_bytes)));
    }
    let boot = match plan.boot {
        Some(_) => "GRUB of this node, where the backup has a kernel",
        None => "no loader: nothing starts this disk by itself",
    };
    line(format!("            {boot}"));
}
