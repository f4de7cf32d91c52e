//! Plans as people read them: the dry run.

use std::fmt;
use std::path::Path;

use super::{BootPlan, DiskFacts, HookPlan, ImagePlan, Plan, SwapPlan, TreeSource};
use crate::bootstrap::Recipe;
use crate::disk::Medium;
use crate::guest::GuestConfig;
use crate::guest::boot::Firmware;
use crate::partition_table::layout::Role;
use crate::report::size;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_target(f, &self.guest_config, self.reinstall, &self.disk_path, self.disk)?;
        writeln!(f, "layout      {}", self.layout.style)?;
        for partition in &self.layout.partitions {
            let role = match partition.role {
                Role::Root => "root",
                Role::BiosBoot => "BIOS boot",
                Role::Esp => "EFI system",
                Role::Swap => "swap",
            };
            let (start, bytes) = (partition.start_sector, size(partition.size_bytes()));
            writeln!(f, "            {:2} {role:10} from sector {start:7}, {bytes}", partition.number)?;
        }
        writeln!(f, "filesystem  {}", self.filesystem)?;
        match &self.source {
            TreeSource::File(file) => writeln!(f, "source      {file}, a root tar")?,
            TreeSource::Recipe | TreeSource::Backup => write_recipe(f, &self.base.recipe)?,
        }
        write_guest(f, &self.guest_config)?;
        match &self.boot {
            Some(BootPlan { kernel, firmware, .. }) => {
                let firmware = match firmware {
                    Firmware { bios: true, uefi: true } => "BIOS and UEFI",
                    Firmware { bios: true, uefi: false } => "BIOS",
                    Firmware { .. } => "UEFI",
                };
                writeln!(f, "boot        {firmware}, the {} kernel", kernel.name())?;
            }
            None => writeln!(f, "boot        not by itself")?,
        }
        match &self.swap {
            SwapPlan::None => {}
            SwapPlan::Device(path) => writeln!(f, "swap        {}", path.display())?,
            SwapPlan::Partition { .. } => writeln!(f, "swap        partition 2")?,
            SwapPlan::File { size_bytes } => writeln!(f, "swap        /swapfile, {}", size(*size_bytes))?,
        }
        write_hooks(f, &self.hooks)
    }
}

impl fmt::Display for ImagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_target(f, &self.guest_config, self.reinstall, &self.disk_path, self.disk)?;
        writeln!(f, "source      {}, a disk image; layout, filesystems and loader are its own", self.source)?;
        write_guest(f, &self.guest_config)?;
        write_hooks(f, &self.hooks)
    }
}

fn write_recipe(f: &mut fmt::Formatter<'_>, recipe: &Recipe) -> fmt::Result {
    writeln!(f, "release     {} {}", recipe.suite, recipe.arch)?;
    if !recipe.mirror.is_empty() {
        writeln!(f, "mirror      {}", recipe.mirror.join(" "))?;
    }
    if !recipe.components.is_empty() {
        writeln!(f, "components  {}", recipe.components.join(","))?;
    }
    if !recipe.extra_pkgs.is_empty() {
        writeln!(f, "packages    {}", recipe.extra_pkgs.join(","))?;
    }
    Ok(())
}

fn write_target(
    f: &mut fmt::Formatter<'_>,
    guest_config: &GuestConfig,
    reinstall: bool,
    path: &Path,
    disk: DiskFacts,
) -> fmt::Result {
    let medium = match disk.medium {
        Medium::File => "file",
        Medium::Block => "block device",
    };
    writeln!(f, "instance    {}{}", guest_config.name, if reinstall { " (made anew)" } else { "" })?;
    writeln!(f, "disk        {} ({medium}, {})", path.display(), size(disk.size_bytes))
}

fn write_guest(f: &mut fmt::Formatter<'_>, guest_config: &GuestConfig) -> fmt::Result {
    let GuestConfig { network, access, timezone, console, .. } = guest_config;
    match console {
        Some(console) => writeln!(f, "console     {} at {}", console.port, console.speed)?,
        None => writeln!(f, "console     none on a serial line")?,
    }
    writeln!(f, "network     {}", network.mode)?;
    for interface in &network.interfaces {
        writeln!(f, "            {interface}")?;
    }
    for warning in &network.warnings {
        writeln!(f, "            warning: {warning}")?;
    }
    writeln!(f, "access      {access}")?;
    match timezone {
        Some(zone) => writeln!(f, "timezone    {zone}"),
        None => Ok(()),
    }
}

fn write_hooks(f: &mut fmt::Formatter<'_>, hooks: &HookPlan) -> fmt::Result {
    match &hooks.dir {
        Some(dir) => writeln!(f, "hooks       {}", dir.display()),
        None => writeln!(f, "hooks       none"),
    }
}
