//! Where swap is made: on a device of its own, on a partition, or in a file.

use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};

use super::{disk_path, refuse};
use crate::filesystem::PartitionStyle;
use crate::report::WithHint;
use crate::request::{Disk, Instance};
use crate::settings::{Settings, SwapSetting, conflicts};

/// Where swap is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwapPlan {
    None,
    /// A whole device of its own.
    Device(PathBuf),
    /// A partition of the root disk.
    Partition {
        size_bytes: u64,
    },
    /// A file in the root filesystem.
    File {
        size_bytes: u64,
    },
}

impl SwapPlan {
    /// Of a new instance.
    pub(super) fn of_instance(instance: &Instance, settings: &Settings) -> Result<SwapPlan> {
        if let Some(device) = &instance.swap {
            return Ok(SwapPlan::Device(device.clone()));
        }
        let is_swap = |disk: &Disk| disk.name.as_deref() == Some("swap");
        let index = match settings.swap {
            SwapSetting::No => return Ok(SwapPlan::None),
            SwapSetting::Size(_) => return SwapPlan::on_root_disk(settings),
            SwapSetting::Disk(index) => index,
            SwapSetting::Auto => match instance.disks.iter().skip(1).position(is_swap) {
                Some(position) => position + 1,
                None => return Ok(SwapPlan::None),
            },
        };
        let Some(disk) = instance.disks.get(index) else {
            let have = instance.disks.len();
            return Err(anyhow!(
                "swap is \"disk{index}\"{}, but the instance has {have} disks",
                settings.set_in("swap")
            ))
            .hint("give it the disk (--disk 1:size=...), or set swap to a size or \"no\"");
        };
        ensure!(!disk.read_only, "disk {index}, {}, is to be swap but is read-only", disk.address.display());
        disk_path(&disk.address).map(SwapPlan::Device)
    }

    /// What the setting says of the root disk itself.
    pub(super) fn on_root_disk(settings: &Settings) -> Result<SwapPlan> {
        let SwapSetting::Size(size_bytes) = settings.swap else { return Ok(SwapPlan::None) };
        if settings.partition_style != PartitionStyle::None {
            return Ok(SwapPlan::Partition { size_bytes });
        }
        refuse(conflicts::against_swap_file(settings))?;
        Ok(SwapPlan::File { size_bytes })
    }
}
