//! create from a disk image that the administrator sealed with its digest: written, grown, made this instance's guest, and
//! customised. His image is as trusted as a tree of this node's: hooks may run its programs.

use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, anyhow};

use super::source_file::DiskImage;
use super::{DiskRestore, Sector, Seen, reidentify, with_first_sector};
use crate::disk::{Disk, boot_code};
use crate::guest::found_root::{GuestRoot, Sought};
use crate::guest::{self, Trust, Workspace};
use crate::hooks::{self, Stage};
use crate::install::teardown;
use crate::plan::ImagePlan;
use crate::probe::Content;
use crate::report::{self, WithHint};

/// Writes the image and makes it this instance's; a failure leaves a wiped disk.
pub fn install(plan: &ImagePlan, disk: &Disk, workspace: &Workspace, image: &DiskImage) -> Result<()> {
    for warning in &plan.guest_config.network.warnings {
        report::warning(warning);
    }
    let name = &plan.guest_config.name;
    let mut setup = |Seen { sector, bytes }: Seen<'_>| {
        if plan.new_identity {
            reidentify::renew(disk, workspace, Seen { sector, bytes }, name, plan.many_disks)?;
        }
        GuestSetup { plan, disk, workspace }.run(Seen { sector, bytes })
    };
    image
        .restore(DiskRestore { disk, workspace, on_failure: plan.on_failure, setup: &mut setup })
        .with_context(|| format!("installing {name}"))
}

/// A restored image that becomes a guest.
struct GuestSetup<'a> {
    plan: &'a ImagePlan,
    disk: &'a Disk,
    workspace: &'a Workspace,
}

impl GuestSetup<'_> {
    /// Makes the guest on the disk this instance's, and runs the hooks.
    fn run(&self, seen: Seen<'_>) -> Result<()> {
        let (disk, workspace) = (self.disk, self.workspace);
        with_first_sector(disk, seen.bytes, seen.sector, |survey, sector| {
            let has_table = survey.table.is_some();
            let guest = match GuestRoot::seek(disk, workspace, survey, Trust::Trusted { options: "" })? {
                Sought::Found(guest) => guest,
                Sought::Nothing(found) => {
                    return Err(anyhow!("no root of a guest is on the image: it holds {found}"))
                        .hint("an image wants its root on ext2, ext3, ext4, xfs or btrfs, on a partition or the bare disk");
                }
            };
            match self.make_guest(&guest, has_table.then_some(sector)) {
                Ok(()) => report::step("writing the guest out", || guest.finish(disk)),
                Err(error) => {
                    let (root, root_device, device) = guest.into_parts();
                    teardown::let_go(root, &root_device, device, self.plan.on_failure);
                    Err(error)
                }
            }
        })
    }

    fn make_guest(&self, guest: &GuestRoot, sector: Option<&mut Sector>) -> Result<()> {
        let own_label = guest.mark_incomplete()?;
        report::step("personalising", || guest::configure_identity(guest.tree(), &self.plan.guest_config))?;
        if hooks::any(&self.plan.hooks)? {
            self.customise(guest, sector)?;
        }
        own_label.map_or(Ok(()), |label| guest.relabel(&label))
    }

    /// Runs the hooks on a disk that has its table by now, but no boot code: nothing starts from it yet. Where a hook
    /// changes the first sector it stays so.
    fn customise(&self, guest: &GuestRoot, sector: Option<&mut Sector>) -> Result<()> {
        let before = sector.as_ref().map(|sector| boot_code::without_code(sector));
        if let Some(before) = &before {
            guest.device().file().write_all_at(before, 0).context("writing the partition table")?;
        }
        if let Content::Filesystem(volume) = guest.part.content {
            guest.device().show_to_udev(&guest.root_device(), volume.uuid)?;
        }
        let (target, root_device, device) = (guest.path(), guest.root_device(), guest.device().path());
        let stage = Stage {
            target: &target,
            disk: &device,
            root_device: &root_device,
            workspace: self.workspace.path(),
        };
        hooks::run(&self.plan.hooks, guest.tree(), &self.plan.guest_config.resolver, &stage)?;
        self.disk.refuse_changed()?;
        if let (Some(sector), Some(before)) = (sector, before) {
            let mut now = [0; size_of::<Sector>()];
            guest.device().file().read_exact_at(&mut now, 0).context("reading the first sector back")?;
            if now != before {
                report::line(&format!("{:>10}  a hook changed the first sector; it stays", ""));
                *sector = now;
            }
        }
        Ok(())
    }
}
