//! Request + settings + what is known of the disk -> the plan. Pure: it decides everything and touches nothing;
//! what follows reads no settings again. Its Display is the dry run.

mod image;
mod show;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use crate::bootstrap::{Kernel, Recipe};
use crate::debian;
use crate::disk::Medium;
use crate::filesystem::{Filesystem, KernelVersion, PartitionStyle};
use crate::guest::boot::Firmware;
use crate::guest::{Access, Console, Personality, Resolver, network};
use crate::partition_table::layout::{Layout, Purpose, Wishes};
use crate::report::WithHint;
use crate::request::{Context, DiskAddress, Instance};
use crate::settings::together::{self, Conflict};
use crate::settings::{BootWish, Compression, Problems, Settings, Source, SwapWish};
pub use image::ImagePlan;

/// What is known of the disk before the plan is made.
#[derive(Debug, Clone, Copy)]
pub struct DiskFacts {
    pub size_bytes: u64,
    pub medium: Medium,
    pub purpose: Purpose,
}

impl DiskFacts {
    /// Those of a disk that gets a new system.
    pub fn of_system(size_bytes: u64, medium: Medium) -> DiskFacts {
        DiskFacts { size_bytes, medium, purpose: Purpose::System }
    }
}

/// How the base tar is had.
#[derive(Debug, Clone)]
pub struct BasePlan {
    pub recipe: Recipe,
    pub cache_dir: PathBuf,
    pub generate_cache: bool,
    pub compression: Compression,
    pub clean_days: Option<u32>,
    /// How many root filesystems the cache keeps to be copied; 0: none is made or used.
    pub templates: usize,
}

/// How the hooks are run.
#[derive(Debug, Clone)]
pub struct HookPlan {
    pub dir: Option<PathBuf>,
    pub fail_fast: bool,
    pub namespace: bool,
}

/// What starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootPlan {
    pub kernel: Kernel,
    pub firmware: Firmware,
    /// The admin asked for this, it is not only what the layout has: a tree that cannot is an error.
    pub asked_for: bool,
}

/// Where swap is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwapPlan {
    None,
    /// A whole device of its own.
    Device(PathBuf),
    /// A partition of the root disk.
    Partition,
    /// A file in the root filesystem.
    File {
        size_bytes: u64,
    },
}

/// Everything that create will do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub disk_path: PathBuf,
    pub disk: DiskFacts,
    pub layout: Layout,
    pub filesystem: Filesystem,
    /// The guest's kernel, where it may be older than the node's tools.
    pub reader: Option<KernelVersion>,
    pub boot: Option<BootPlan>,
    /// The file that the tree comes from; None: the tree is that of the recipe.
    pub source: Option<String>,
    pub base: BasePlan,
    pub personality: Personality,
    pub swap: SwapPlan,
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
pub fn base_plan(context: &Context, settings: &Settings, kernel: Option<Kernel>) -> BasePlan {
    BasePlan {
        recipe: Recipe::of(settings, kernel),
        cache_dir: context.places.cache_dir.clone(),
        generate_cache: settings.generate_cache,
        compression: settings.cache_compression,
        clean_days: settings.clean_cache_days,
        templates: settings.templates,
    }
}

/// What starts an instance with these settings under this hypervisor; `device_types` are those of its disks and NICs.
pub fn boot_plan(settings: &Settings, hypervisor: &str, device_types: &[String]) -> Result<Option<BootPlan>> {
    let style = settings.partition_style;
    // These start no kernel of the guest's.
    let containers = ["lxc", "chroot", "fake", ""].contains(&hypervisor);
    let wish = settings.boot;
    if wish == BootWish::No || (wish == BootWish::Auto && (containers || style == PartitionStyle::None)) {
        return Ok(None);
    }
    refuse(together::against_boot(settings))?;
    let firmware = match (wish, style) {
        (BootWish::Bios, _) | (_, PartitionStyle::Msdos) => Firmware { bios: true, uefi: false },
        (BootWish::Uefi, _) => Firmware { bios: false, uefi: true },
        _ => Firmware { bios: true, uefi: true },
    };
    // PV-GRUB2 unpacks gzip, xz and lzo: bookworm's generic kernel, no cloud kernel, and none of trixie's (zstd), which
    // wants pygrub. Emulated devices have their drivers in the generic one.
    let paravirtual = hypervisor != "xen-pvm" && device_types.iter().all(|kind| kind == "paravirtual");
    let kernel = if paravirtual { Kernel::Cloud } else { Kernel::Generic };
    Ok(Some(BootPlan { kernel, firmware, asked_for: wish != BootWish::Auto }))
}

/// All conflicts in one answer.
fn refuse(conflicts: impl IntoIterator<Item = Conflict>) -> Result<()> {
    let sentences: Vec<String> = conflicts.into_iter().map(|conflict| conflict.sentence).collect();
    if sentences.is_empty() { Ok(()) } else { Err(Problems(sentences).into()) }
}

/// Debian's pygrub brings readers of its own: of ext2 to ext4, and of no xfs or btrfs that is made today.
fn refuse_pygrub(instance: &Instance, settings: &Settings) -> Result<()> {
    if !instance.pygrub || settings.filesystem.is_ext() {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "the instance is started by pygrub (use_bootloader), which cannot read {}{}",
        settings.filesystem,
        settings.set_in("filesystem")
    ))
    .hint("set filesystem to ext4, or start the instance by PV-GRUB2, or set boot to \"no\"")
}

/// Where swap comes.
fn swap_plan(instance: &Instance, settings: &Settings) -> Result<SwapPlan> {
    if let Some(device) = &instance.swap {
        return Ok(SwapPlan::Device(device.clone()));
    }
    let is_swap = |disk: &crate::request::Disk| disk.name.as_deref() == Some("swap");
    let index = match settings.swap {
        SwapWish::No => return Ok(SwapPlan::None),
        SwapWish::Size(_) if settings.partition_style != PartitionStyle::None => {
            return Ok(SwapPlan::Partition);
        }
        SwapWish::Size(size_bytes) => {
            refuse(together::against_swap_file(settings))?;
            return Ok(SwapPlan::File { size_bytes });
        }
        SwapWish::Disk(index) => index,
        SwapWish::Auto => match instance.disks.iter().skip(1).position(is_swap) {
            Some(position) => position + 1,
            None => return Ok(SwapPlan::None),
        },
    };
    let Some(disk) = instance.disks.get(index) else {
        let have = instance.disks.len();
        return Err(anyhow::anyhow!(
            "swap is \"disk{index}\"{}, but the instance has {have} disks",
            settings.set_in("swap")
        ))
        .hint("give it the disk (--disk 1:size=...), or set swap to a size or \"no\"");
    };
    ensure!(!disk.read_only, "disk {index}, {}, is to be swap but is read-only", disk.address.display());
    disk_path(&disk.address).map(SwapPlan::Device)
}

impl HookPlan {
    fn of(settings: &Settings) -> HookPlan {
        HookPlan {
            dir: settings.customize_dir.clone(),
            fail_fast: settings.hooks_fail_fast,
            namespace: settings.hooks_namespace,
        }
    }
}

/// What makes a tree this instance's guest.
fn personality(instance: &Instance, settings: &Settings, boots: bool) -> Result<Personality> {
    let network = match instance.nics_are_known {
        true => network::decide(&instance.nics, settings.network, &instance.hypervisor),
        false => network::any_nic(settings.network),
    };
    Ok(Personality {
        name: instance.name.clone(),
        filesystem: settings.filesystem,
        resolver: Resolver {
            servers: settings.dns.clone(),
            search: instance.name.domain().map(str::to_owned),
        },
        console: Console::of(instance),
        style: settings.partition_style,
        boots,
        network: network.context("setting up the guest's network").hint(format!(
            "network is {}{}; correct the NIC (gnt-instance modify --net), or set network to dhcp or manual",
            settings.network,
            settings.set_in("network")
        ))?,
        access: Access { keys: settings.ssh_keys.clone(), password: settings.password_hash.clone() },
        timezone: settings.timezone.clone(),
    })
}

/// The first disk, which must be there and take writes.
fn root_disk(instance: &Instance) -> Result<&crate::request::Disk> {
    let root_disk = instance.disks.first().context("an instance without disks")?;
    if root_disk.read_only {
        bail!("disk 0, {}, is read-only (DISK_0_ACCESS=ro)", root_disk.address.display());
    }
    Ok(root_disk)
}

impl Plan {
    /// Decides. Errors are refusals: nothing has been touched.
    pub fn new(context: &Context, instance: &Instance, settings: &Settings, disk: DiskFacts) -> Result<Plan> {
        let root_disk = root_disk(instance)?;
        let boot = boot_plan(settings, &instance.hypervisor, &instance.device_types)?;
        if boot.is_some() {
            refuse_pygrub(instance, settings)?;
        }
        let swap = swap_plan(instance, settings)?;
        let wishes = Wishes {
            alignment_sectors: settings.partition_alignment_sectors,
            loader: boot.is_some(),
            uefi: boot.is_some_and(|boot| boot.firmware.uefi),
            swap_bytes: match (&swap, settings.swap) {
                (SwapPlan::Partition, SwapWish::Size(bytes)) => Some(bytes),
                _ => None,
            },
            purpose: disk.purpose,
        };
        let layout = Layout::new(settings.partition_style, disk.size_bytes, wishes)
            .with_context(|| format!("dividing {}", root_disk.address.display()))
            .hint(format!(
                "partition_style is {}{}; give the instance another disk size, or set it to another style",
                settings.partition_style,
                settings.set_in("partition_style")
            ))?;
        let personality = personality(instance, settings, boot.is_some())?;
        Ok(Plan {
            disk_path: disk_path(&root_disk.address)?,
            disk,
            layout,
            filesystem: settings.filesystem,
            reader: reader(settings, disk.purpose),
            boot,
            source: None,
            base: base_plan(context, settings, boot.map(|boot| boot.kernel)),
            personality,
            swap,
            hooks: HookPlan::of(settings),
            keep_failed: settings.keep_failed,
            reinstall: instance.reinstall,
        })
    }
}

/// The oldest kernel that reads ext4 with checksums.
const OLDEST_READER: KernelVersion = KernelVersion(4, 9);

/// Who must read the root. A tree that somebody brings may be of any release: its ext4 has nothing new, and loses nothing.
fn reader(settings: &Settings, purpose: Purpose) -> Option<KernelVersion> {
    let named = debian::kernel(&settings.suite);
    let brought = purpose != Purpose::System || matches!(settings.source, Source::File(_));
    match settings.filesystem {
        Filesystem::Ext4 if brought => Some(named.map_or(OLDEST_READER, |kernel| kernel.min(OLDEST_READER))),
        _ => named,
    }
}
