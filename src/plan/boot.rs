//! What starts the guest: kernel and firmware, from the settings, the hypervisor and its devices.

use anyhow::{Result, anyhow};

use super::refuse;
use crate::bootstrap::Kernel;
use crate::filesystem::PartitionStyle;
use crate::guest::boot::Firmware;
use crate::report::WithHint;
use crate::request::Instance;
use crate::settings::{BootSetting, Settings, conflicts};

/// What starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootPlan {
    pub kernel: Kernel,
    pub firmware: Firmware,
    /// The admin asked for this, it is not only what the layout has: a tree that cannot boot is an error.
    pub asked_for: bool,
}

/// What starts an instance under this hypervisor; `device_types` are those of its disks and NICs.
pub fn boot_plan(settings: &Settings, hypervisor: &str, device_types: &[String]) -> Result<Option<BootPlan>> {
    let style = settings.partition_style;
    // These start no kernel of the guest's.
    let containers = ["lxc", "chroot", "fake", ""].contains(&hypervisor);
    let setting = settings.boot;
    if setting == BootSetting::No
        || (setting == BootSetting::Auto && (containers || style == PartitionStyle::None))
    {
        return Ok(None);
    }
    refuse(conflicts::against_boot(settings))?;
    let firmware = match (setting, style) {
        (BootSetting::Bios, _) | (_, PartitionStyle::Msdos) => Firmware { bios: true, uefi: false },
        (BootSetting::Uefi, _) => Firmware { bios: false, uefi: true },
        _ => Firmware { bios: true, uefi: true },
    };
    // PV-GRUB2 unpacks gzip, xz and lzo: bookworm's generic kernel, but no cloud kernel, and none of trixie's (zstd), which
    // needs pygrub. The generic kernel has the drivers of emulated devices.
    let paravirtual = hypervisor != "xen-pvm" && device_types.iter().all(|kind| kind == "paravirtual");
    let kernel = if paravirtual { Kernel::Cloud } else { Kernel::Generic };
    Ok(Some(BootPlan { kernel, firmware, asked_for: setting != BootSetting::Auto }))
}

/// What starts this instance, refused where its hypervisor cannot read the root.
pub(super) fn of_instance(instance: &Instance, settings: &Settings) -> Result<Option<BootPlan>> {
    let boot = boot_plan(settings, &instance.hypervisor, &instance.device_types)?;
    if boot.is_some() {
        refuse_pygrub(instance, settings)?;
    }
    Ok(boot)
}

/// Debian's pygrub has its own readers of ext2 to ext4, and none of xfs or btrfs as they are made today.
fn refuse_pygrub(instance: &Instance, settings: &Settings) -> Result<()> {
    if !instance.pygrub || settings.filesystem.is_ext() {
        return Ok(());
    }
    Err(anyhow!(
        "the instance is started by pygrub (use_bootloader), which cannot read {}{}",
        settings.filesystem,
        settings.set_in("filesystem")
    ))
    .hint("set filesystem to ext4, or start the instance by PV-GRUB2, or set boot to \"no\"")
}
