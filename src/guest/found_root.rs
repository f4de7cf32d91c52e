//! The root of a guest on a disk that the guest wrote: found by what is on the disk, not by settings, and mounted so that
//! nothing of it reaches the node.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};

use crate::disk::{Disk, LoopDevice};
use crate::filesystem::INCOMPLETE_LABEL;
use crate::guest::{Root, Trust, Workspace};
use crate::partition_table::TableKind;
use crate::probe::{Content, Part, Survey, Volume};
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
    /// Where it is, seen from the top of the filesystem.
    subvolume: &'static str,
    root: Root,
    device: LoopDevice,
    pub table: Option<TableKind>,
    pub part: Part,
}

/// What came of looking for one.
pub enum Sought {
    Found(Box<GuestRoot>),
    /// What is there instead.
    Nothing(String),
}

impl GuestRoot {
    /// Finds the root on a disk that a guest wrote. An error says what was found instead.
    pub fn find(disk: &Disk, workspace: &Workspace) -> Result<GuestRoot> {
        let survey = disk.survey()?;
        if survey.table.is_none() && survey.parts.iter().all(|part| part.content == Content::Unknown) {
            return Err(anyhow!(
                "no guest is on {}: nothing that is known stands there",
                disk.path.display()
            ))
            .hint("where an import came before, it failed; its log says why");
        }
        match GuestRoot::seek(disk, workspace, survey, Trust::Untrusted)? {
            Sought::Found(root) => Ok(*root),
            Sought::Nothing(found) => {
                Err(anyhow!("no guest's root was found on {}: it holds {found}", disk.path.display()))
                    .hint("the guest stays as it is; what it is called is changed inside it, by hand")
            }
        }
    }

    /// Finds the filesystem that has an /etc, and mounts it. The disk is written to only by that filesystem's own
    /// driver.
    pub fn seek(
        disk: &Disk,
        workspace: &Workspace,
        Survey { table, parts }: Survey,
        trust: Trust,
    ) -> Result<Sought> {
        let mut found = Vec::new();
        let mut tried = 0;
        for part in &parts {
            let Content::Filesystem(volume) = part.content else {
                found.push(part.to_string());
                continue;
            };
            tried += 1;
            if tried > CANDIDATES_MAX {
                found.push("and more".into());
                break;
            }
            // Nothing else can be the root where this fails: partition 1 is damaged, and a data disk would be taken for it.
            let (mut root, device) = Seen { disk, workspace, parts: &parts, trust }
                .mount(part, volume)
                .with_context(|| format!("reading {part}"))?;
            match tree_of(&root)? {
                Some((tree, subvolume)) => {
                    let part = part.clone();
                    let root = GuestRoot { tree, subvolume, root, device, table, part };
                    return Ok(Sought::Found(Box::new(root)));
                }
                None => {
                    found.push(format!("{part} without /etc"));
                    root.finish()?;
                    device.finish()?;
                }
            }
        }
        let nothing = || "a table without partitions".to_owned();
        Ok(Sought::Nothing(if found.is_empty() { nothing() } else { found.join(", ") }))
    }

    /// The tree.
    pub fn tree(&self) -> &RootDir {
        &self.tree
    }

    /// Where the tree is mounted.
    pub fn path(&self) -> PathBuf {
        self.root.path().join(self.subvolume)
    }

    /// The attached device: of a disk of ours all of it, with its partitions as nodes; else the part alone.
    pub fn device(&self) -> &LoopDevice {
        &self.device
    }

    /// The device of the filesystem.
    pub fn root_device(&self) -> PathBuf {
        match self.part.number {
            Some(number) if self.device.has_partition(number) => self.device.partition_path(number),
            _ => self.device.path(),
        }
    }

    /// Labels a filesystem that is all of the disk as incomplete; returns its own label, for [`GuestRoot::relabel()`].
    pub fn mark_incomplete(&self) -> Result<Option<String>> {
        let own = self.root.label().filter(|_| self.table.is_none());
        if own.is_some() {
            self.relabel(INCOMPLETE_LABEL)?;
            self.root.flush()?;
        }
        Ok(own)
    }

    /// Gives the filesystem a label.
    pub fn relabel(&self, label: &str) -> Result<()> {
        let Content::Filesystem(volume) = self.part.content else { return Ok(()) };
        self.root.set_label(&self.root_device(), volume.filesystem, label)
    }

    /// What is to be let go of where something went wrong: the mounted root, its device, and the attached device.
    pub fn into_parts(self) -> (Root, PathBuf, LoopDevice) {
        let root_device = self.root_device();
        (self.root, root_device, self.device)
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

/// A disk that a root is sought on.
struct Seen<'a> {
    disk: &'a Disk,
    workspace: &'a Workspace,
    parts: &'a [Part],
    trust: Trust,
}

impl Seen<'_> {
    /// A stranger's disk is attached part by part; of one of ours the kernel may see the partitions.
    fn mount(&self, part: &Part, volume: Volume) -> Result<(Root, LoopDevice)> {
        let Seen { disk, workspace, parts, trust } = *self;
        if trust == Trust::Untrusted {
            let device = LoopDevice::attach_part(disk, part.start_bytes, part.size_bytes)?;
            let root = workspace.mount_found(&device.path(), volume, "guest", trust)?;
            return Ok((root, device));
        }
        let mut device = LoopDevice::attach(disk)?;
        for part in parts {
            if let Some(number) = part.number {
                device.add_partition(number, part.start_bytes, part.size_bytes)?;
            }
        }
        let node = part.number.map_or_else(|| device.path(), |number| device.partition_path(number));
        let root = workspace.mount_found(&node, volume, "target", trust)?;
        Ok((root, device))
    }
}

/// The tree that has an /etc: the top, or the subvolume that installers make; and its path.
fn tree_of(root: &Root) -> Result<Option<(RootDir, &'static str)>> {
    let top = root.dir()?;
    let has_etc = |tree: &RootDir| tree.is_dir("etc").unwrap_or(false);
    if has_etc(top) {
        return Ok(Some((RootDir::open(root.path())?, "")));
    }
    for name in SUBVOLUMES {
        if let Some(tree) = top.below(name)?.filter(has_etc) {
            report::detail(&format!("the root is the subvolume {name}"));
            return Ok(Some((tree, name)));
        }
    }
    Ok(None)
}
