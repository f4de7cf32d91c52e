//! Request + settings + what is known of the disk -> the plan. Pure: it decides everything and touches nothing;
//! what follows reads no settings again. Its Display is the dry run.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::bootstrap::Recipe;
use crate::disk::layout::{Layout, Role};
use crate::disk::{Filesystem, Medium};
use crate::guest::{Console, Personality, Resolver};
use crate::report::{WithHint, size};
use crate::request::{Context, DiskAddress, Instance};
use crate::settings::{Compression, Settings};

/// What is known of the disk before the plan is made.
#[derive(Debug, Clone, Copy)]
pub struct DiskFacts {
    pub size_bytes: u64,
    pub medium: Medium,
}

/// How the base tar is had.
#[derive(Debug, Clone)]
pub struct BasePlan {
    pub recipe: Recipe,
    pub cache_dir: PathBuf,
    pub generate_cache: bool,
    pub compression: Compression,
    pub clean_days: Option<u32>,
}

/// How the hooks are run.
#[derive(Debug, Clone)]
pub struct HookPlan {
    pub dir: Option<PathBuf>,
    pub fail_fast: bool,
    pub namespace: bool,
}

/// Everything that create will do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub disk_path: PathBuf,
    pub disk: DiskFacts,
    pub layout: Layout,
    pub filesystem: Filesystem,
    pub base: BasePlan,
    pub personality: Personality,
    /// API 5: a device that becomes swap.
    pub swap: Option<PathBuf>,
    pub hooks: HookPlan,
    pub keep_failed: bool,
    pub reinstall: bool,
}

/// The path of a disk; what only has a URI cannot be installed.
pub fn disk_path(address: &DiskAddress) -> Result<PathBuf> {
    match address {
        DiskAddress::Path(path) => Ok(path.clone()),
        DiskAddress::Uri(uri) => Err(anyhow::anyhow!(
            "the disk {uri} is only reachable in userspace; its access mode must be kernelspace to install it"
        )),
    }
}

/// How a root tree is had with these settings.
pub fn base_plan(context: &Context, settings: &Settings) -> BasePlan {
    BasePlan {
        recipe: Recipe::of(settings),
        cache_dir: context.places.cache_dir.clone(),
        generate_cache: settings.generate_cache,
        compression: settings.cache_compression,
        clean_days: settings.clean_cache_days,
    }
}

impl Plan {
    /// Decides. Errors are refusals: nothing has been touched.
    pub fn new(context: &Context, instance: &Instance, settings: &Settings, disk: DiskFacts) -> Result<Plan> {
        let root_disk = instance.disks.first().context("an instance without disks")?;
        if root_disk.read_only {
            bail!("disk 0, {}, is read-only (DISK_0_ACCESS=ro)", root_disk.address.display());
        }
        let layout = Layout::new(
            settings.partition_style,
            disk.size_bytes,
            settings.partition_alignment_sectors,
        )
        .with_context(|| format!("dividing {}", root_disk.address.display()))
        .hint(format!(
            "partition_style is {}{}; give the instance another disk size, or set it to another style",
            settings.partition_style,
            settings.set_in("partition_style")
        ))?;
        let personality = Personality {
            name: instance.name.clone(),
            filesystem: settings.filesystem,
            resolver: Resolver {
                servers: settings.dns.clone(),
                search: instance.name.domain().map(str::to_owned),
            },
            console: Console::of(instance),
        };
        Ok(Plan {
            disk_path: disk_path(&root_disk.address)?,
            disk,
            layout,
            filesystem: settings.filesystem,
            base: base_plan(context, settings),
            personality,
            swap: instance.swap.clone(),
            hooks: HookPlan {
                dir: settings.customize_dir.clone(),
                fail_fast: settings.hooks_fail_fast,
                namespace: settings.hooks_namespace,
            },
            keep_failed: settings.keep_failed,
            reinstall: instance.reinstall,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let medium = match self.disk.medium {
            Medium::File => "file",
            Medium::Block => "block device",
        };
        let (recipe, name) = (&self.base.recipe, &self.personality.name);
        writeln!(f, "instance    {name}{}", if self.reinstall { " (made anew)" } else { "" })?;
        writeln!(f, "disk        {} ({medium}, {})", self.disk_path.display(), size(self.disk.size_bytes))?;
        writeln!(f, "layout      {}", self.layout.style)?;
        for partition in &self.layout.partitions {
            let role = match partition.role {
                Role::Root => "root",
                Role::BiosBoot => "BIOS boot",
                Role::Esp => "EFI system",
            };
            let (start, bytes) = (partition.start_sector, size(partition.size_bytes()));
            writeln!(f, "            {:2} {role:10} from sector {start:7}, {bytes}", partition.number)?;
        }
        writeln!(f, "filesystem  {}", self.filesystem)?;
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
        match &self.personality.console {
            Some(console) => writeln!(f, "console     {} at {}", console.port, console.speed)?,
            None => writeln!(f, "console     none on a serial line")?,
        }
        if let Some(swap) = &self.swap {
            writeln!(f, "swap        {}", swap.display())?;
        }
        match &self.hooks.dir {
            Some(dir) => writeln!(f, "hooks       {}", dir.display()),
            None => writeln!(f, "hooks       none"),
        }
    }
}
