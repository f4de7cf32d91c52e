//! What starts a finished disk: prepared from its tree, and written when all else has succeeded.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use uuid::Uuid;

use crate::disk::{LoopDevice, boot_code, esp};
use crate::guest::boot::{EfiFile, LoaderFiles};
use crate::partition_table::layout::{Layout, Role};
use crate::plan::BootPlan;
use crate::report::{self, WithHint};

/// The last files of a disk that boots.
pub struct Loader {
    /// boot.img and core.img.
    bios: Option<(Vec<u8>, Vec<u8>)>,
    uefi: Option<Uefi>,
}

/// The EFI system partition: its node, its volume number, and the file that firmware starts from it.
struct Uefi {
    partition: PathBuf,
    volume: u32,
    first: EfiFile,
}

impl Loader {
    /// Fills the EFI system partition but for what firmware starts. None where the tree that the files are of has no GRUB: that is an error only if somebody asked for it.
    pub fn prepare(
        wanted: BootPlan,
        files: &LoaderFiles,
        device: &mut LoopDevice,
        layout: &Layout,
        root_uuid: Uuid,
    ) -> Result<Option<Loader>> {
        if !files.boot(wanted.firmware, layout.style) {
            let lacking = "the cached tree was not made to boot: it was made by hand, or by the predecessor";
            if wanted.asked_for {
                return Err(anyhow::anyhow!("a loader is wanted, but {lacking}"))
                    .hint("remove that cache file, or set boot = \"no\"");
            }
            report::warning(&format!("nothing will start this disk by itself: {lacking}"));
            return Ok(None);
        }
        let bios = wanted.firmware.bios.then(|| files.bios_images(layout.style)).transpose()?;
        let mut loader = Loader { bios, uefi: None };
        if wanted.firmware.uefi {
            let esp = *layout.partition(Role::Esp).context("an EFI system partition")?;
            let partition = device.add_partition(esp.number, esp.start_bytes(), esp.size_bytes())?;
            let volume = esp::make(&partition, esp.size_bytes(), &files.efi_files(root_uuid)?)?;
            loader.uefi = Some(Uefi { partition, volume, first: files.efi_loader()? });
        }
        Ok(Some(loader))
    }

    /// How fstab names the EFI system partition.
    pub fn esp(&self) -> Option<String> {
        self.uefi.as_ref().map(|uefi| format!("UUID={}", esp::volume_name(uefi.volume)))
    }

    /// What was prepared is on the disk.
    pub fn flush(&self) -> Result<()> {
        self.uefi.as_ref().map_or(Ok(()), |uefi| esp::flush(&uefi.partition))
    }

    /// Writes what firmware starts; a boot sector that a hook wrote stays.
    pub fn write(&self, device: &LoopDevice, layout: &Layout) -> Result<()> {
        if let Some(uefi) = &self.uefi {
            esp::add(&uefi.partition, std::slice::from_ref(&uefi.first))?;
        }
        let Some((boot, core)) = &self.bios else { return Ok(()) };
        if boot_code::has_boot_code(device.file())? {
            report::line(&format!("{:>10}  a hook wrote a boot sector of its own; it stays", ""));
            return Ok(());
        }
        boot_code::embed(device.file(), layout, boot, core)
    }
}
