//! The root of a guest on a disk that the guest wrote: found by what is on the disk, not by settings, and mounted so that
//! nothing of it reaches the node.

use anyhow::{Result, anyhow};

use crate::disk::foreign::{self, Content, Part, TableKind, Volume};
use crate::disk::{Disk, LoopDevice};
use crate::guest::{Root, Workspace};
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;

/// Partitions that are tried; the root is the first one wherever this program or its predecessor made the disk.
const CANDIDATES_MAX: usize = 16;

/// Where Debian's installer, and Ubuntu's, put the root on btrfs.
const SUBVOLUMES: [&str; 2] = ["@rootfs", "@"];

/// A guest's mounted root.
pub struct GuestRoot {
    // Dropped in this order.
    tree: RootDir,
    root: Root,
    device: LoopDevice,
    pub table: Option<TableKind>,
    pub part: Part,
}

impl GuestRoot {
    /// Finds the filesystem that has an /etc, and mounts it. The disk is written to only by that filesystem's own
    /// driver. An error says what was found instead.
    pub fn find(disk: &Disk, workspace: &Workspace) -> Result<GuestRoot> {
        let (table, parts) = foreign::survey(disk)?;
        let mut found = Vec::new();
        let mut tried = 0;
        for part in parts {
            let Content::Filesystem(volume) = part.content else {
                found.push(part.to_string());
                continue;
            };
            tried += 1;
            if tried > CANDIDATES_MAX {
                found.push("and more".into());
                break;
            }
            match mount(disk, workspace, &part, volume) {
                Ok((root, device)) => match tree_of(&root)? {
                    Some(tree) => return Ok(GuestRoot { tree, root, device, table, part }),
                    None => {
                        found.push(format!("{part} without /etc"));
                        let mut root = root;
                        root.finish()?;
                        device.finish()?;
                    }
                },
                // Nothing else can be the root then: partition 1 is damaged, and a data disk would be taken for it.
                Err(error) => return Err(error.context(format!("reading {part}"))),
            }
        }
        let found = if found.is_empty() { "a table without partitions".into() } else { found.join(", ") };
        Err(anyhow!("no guest's root was found on {}: it holds {found}", disk.path.display()))
            .hint("the guest stays as it is; what it is called is changed inside it, by hand")
    }

    /// The tree.
    pub fn tree(&self) -> &RootDir {
        &self.tree
    }

    /// Writes everything out, unmounts, and waits until the kernel has let go of the disk.
    pub fn finish(self, disk: &Disk) -> Result<()> {
        let GuestRoot { tree, mut root, device, .. } = self;
        drop(tree);
        root.finish()?;
        drop(root);
        device.finish()?;
        disk.flush_path_cache()
    }
}

fn mount(disk: &Disk, workspace: &Workspace, part: &Part, volume: Volume) -> Result<(Root, LoopDevice)> {
    let device = LoopDevice::attach_part(disk, part.start_bytes, part.size_bytes)?;
    let root = workspace.mount_foreign(&device.path(), volume, "guest")?;
    Ok((root, device))
}

/// The tree that has an /etc: the top, or the subvolume that installers make.
fn tree_of(root: &Root) -> Result<Option<RootDir>> {
    let top = root.dir()?;
    let has_etc = |tree: &RootDir| tree.is_dir("etc").unwrap_or(false);
    if has_etc(top) {
        return RootDir::open(root.path()).map(Some);
    }
    for name in SUBVOLUMES {
        if let Some(tree) = top.below(name)?.filter(has_etc) {
            report::detail(&format!("the root is the subvolume {name}"));
            return Ok(Some(tree));
        }
    }
    Ok(None)
}
