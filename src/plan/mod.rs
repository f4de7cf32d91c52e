//! Request + settings + what is known of the disk -> the plan. Pure: it decides everything and touches nothing; what follows
//! reads no settings. Its Display is the dry run.

mod boot;
mod hooks;
mod image;
mod import;
mod recipe;
mod show;
mod swap;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

pub use boot::{BootPlan, boot_plan};
pub use hooks::{HookPlan, assignment};
pub use image::ImagePlan;
pub use import::ImportPlan;
pub use recipe::BasePlan;
pub use swap::SwapPlan;

use crate::debian;
use crate::disk::{Disk, Medium};
use crate::filesystem::{Filesystem, KernelVersion};
use crate::guest::network::{self, Mode};
use crate::guest::{Access, Console, GuestConfig, Resolver};
use crate::partition_table::layout::{Layout, Purpose, Requirements};
use crate::report::WithHint;
use crate::request::{self, Context, DiskAddress, Instance};
use crate::settings::conflicts::{self, Conflict};
use crate::settings::{Problems, Settings};

/// What a plan is made from, beside the disk.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub context: &'a Context,
    pub instance: &'a Instance,
    pub settings: &'a Settings,
}

/// What is known of the disk before the plan is made.
#[derive(Debug, Clone, Copy)]
pub struct DiskFacts {
    pub size_bytes: u64,
    pub medium: Medium,
}

impl DiskFacts {
    pub fn of(disk: &Disk) -> DiskFacts {
        DiskFacts { size_bytes: disk.size_bytes, medium: disk.medium }
    }
}

/// What becomes of the disk of a run that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It is wiped: nothing that looks installed is left.
    Wipe,
    /// It stays as it is, to look at: `keep_failed` is set.
    Keep,
}

impl OnFailure {
    fn of(settings: &Settings) -> OnFailure {
        if settings.keep_failed { OnFailure::Keep } else { OnFailure::Wipe }
    }
}

/// Where the tree of a new disk comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeSource {
    /// It is that of the recipe: from the cache, or bootstrapped.
    Recipe,
    /// A root tar that the administrator sealed; its name.
    File(String),
    /// A backup on standard input.
    Backup,
}

/// Everything that is done to make a disk with a tree, by create or import.
#[derive(Debug, Clone)]
pub struct Plan {
    pub disk_path: PathBuf,
    pub disk: DiskFacts,
    pub layout: Layout,
    pub filesystem: Filesystem,
    /// The guest's kernel, where it may be older than the node's tools.
    pub oldest_kernel: Option<KernelVersion>,
    pub boot: Option<BootPlan>,
    pub source: TreeSource,
    pub base: BasePlan,
    pub guest_config: GuestConfig,
    pub swap: SwapPlan,
    pub hooks: HookPlan,
    pub on_failure: OnFailure,
    pub reinstall: bool,
}

/// What create and import decide otherwise.
struct Choices {
    disk_path: PathBuf,
    disk: DiskFacts,
    purpose: Purpose,
    source: TreeSource,
    boot: Option<BootPlan>,
    swap: SwapPlan,
    network: Mode,
    hooks: HookPlan,
}

impl Plan {
    /// Decides for a new instance. Errors are refusals: nothing has been touched.
    pub fn for_create(inputs: Inputs<'_>, disk: DiskFacts, source: TreeSource) -> Result<Plan> {
        let Inputs { instance, settings, .. } = inputs;
        if source == TreeSource::Recipe {
            refuse(conflicts::against_bootstrap(settings))?;
        }
        let choices = Choices {
            disk_path: disk_path(&root_disk(instance)?.address)?,
            disk,
            purpose: Purpose::System,
            source,
            boot: boot::of_instance(instance, settings)?,
            swap: SwapPlan::of_instance(instance, settings)?,
            network: settings.network,
            hooks: HookPlan::new(inputs),
        };
        Plan::new(inputs, choices)
    }

    /// Decides for disk `index` of an instance, of a stream that is a tree. The network's files are in the backup, and a rename
    /// gives them new NICs; no hook runs; only the first disk has a loader or swap.
    pub fn for_import(inputs: Inputs<'_>, (path, disk): (&Path, DiskFacts), index: usize) -> Result<Plan> {
        let Inputs { instance, settings, .. } = inputs;
        if let Some(disk) = instance.disks.get(index) {
            refuse_read_only(disk, index)?;
        }
        let is_root = index == 0;
        let choices = Choices {
            disk_path: path.to_owned(),
            disk,
            purpose: if is_root { Purpose::RestoredRoot } else { Purpose::RestoredData },
            source: TreeSource::Backup,
            boot: if is_root { boot::of_instance(instance, settings)? } else { None },
            swap: if is_root { SwapPlan::on_root_disk(settings)? } else { SwapPlan::None },
            network: Mode::Manual,
            hooks: HookPlan::default(),
        };
        Plan::new(inputs, choices)
    }

    fn new(inputs: Inputs<'_>, choices: Choices) -> Result<Plan> {
        let Inputs { context, instance, settings } = inputs;
        let Choices { disk_path, disk, purpose, source, boot, swap, network, hooks } = choices;
        let requirements = Requirements {
            alignment_sectors: settings.partition_alignment_sectors,
            loader: boot.is_some(),
            uefi: boot.is_some_and(|boot| boot.firmware.uefi),
            swap_bytes: match swap {
                SwapPlan::Partition { size_bytes } => Some(size_bytes),
                SwapPlan::None | SwapPlan::Device(_) | SwapPlan::File { .. } => None,
            },
            purpose,
        };
        let layout = Layout::new(settings.partition_style, disk.size_bytes, requirements)
            .with_context(|| format!("dividing {}", disk_path.display()))
            .hint(format!(
                "partition_style is {}{}; give the instance another disk size, or set it to another style",
                settings.partition_style,
                settings.set_in("partition_style")
            ))?;
        Ok(Plan {
            disk_path,
            disk,
            layout,
            filesystem: settings.filesystem,
            oldest_kernel: oldest_kernel(settings, &source),
            base: BasePlan::new(context, settings, boot.map(|boot| boot.kernel)),
            guest_config: guest_config(instance, settings, network, boot.is_some())?,
            boot,
            source,
            swap,
            hooks,
            on_failure: OnFailure::of(settings),
            reinstall: instance.reinstall,
        })
    }
}

/// The path of a disk; what only has a URI cannot be installed.
pub fn disk_path(address: &DiskAddress) -> Result<PathBuf> {
    match address {
        DiskAddress::Path(path) => Ok(path.clone()),
        DiskAddress::Uri(uri) => Err(anyhow!(
            "the disk {uri} is only reachable in userspace; its access mode must be kernelspace to install it"
        )),
    }
}

/// The first disk, which must be there and take writes.
fn root_disk(instance: &Instance) -> Result<&request::Disk> {
    let root_disk = instance.disks.first().context("an instance without disks")?;
    refuse_read_only(root_disk, 0)?;
    Ok(root_disk)
}

fn refuse_read_only(disk: &request::Disk, index: usize) -> Result<()> {
    if disk.read_only {
        bail!("disk {index}, {}, is read-only (DISK_{index}_ACCESS=ro)", disk.address.display());
    }
    Ok(())
}

/// All conflicts in one answer.
fn refuse(conflicts: impl IntoIterator<Item = Conflict>) -> Result<()> {
    let sentences: Vec<String> = conflicts.into_iter().map(|conflict| conflict.sentence).collect();
    if sentences.is_empty() { Ok(()) } else { Err(Problems(sentences).into()) }
}

/// What makes a tree this instance's guest.
fn guest_config(instance: &Instance, settings: &Settings, mode: Mode, boots: bool) -> Result<GuestConfig> {
    let network = match instance.nics_are_known {
        true => network::decide(&instance.nics, mode, &instance.hypervisor),
        false => network::any_nic(mode),
    };
    Ok(GuestConfig {
        name: settings.guest_name(instance).clone(),
        filesystem: settings.filesystem,
        resolver: Resolver {
            servers: settings.dns.clone(),
            search: instance.name.domain().map(str::to_owned),
        },
        console: Console::of(instance),
        style: settings.partition_style,
        boots,
        network: network.context("setting up the guest's network").hint(format!(
            "network is {mode}{}; correct the NIC (gnt-instance modify --net), or set network to dhcp or manual",
            settings.set_in("network")
        ))?,
        access: Access { keys: settings.ssh_keys.clone(), password: settings.password_hash.clone() },
        timezone: settings.timezone.clone(),
    })
}

/// The oldest kernel that reads ext4 with checksums.
const OLDEST_WITH_CHECKSUMS: KernelVersion = KernelVersion(4, 9);

/// The oldest kernel that must read the root. The release of a tree from a backup or a file is unknown, so its ext4 uses only
/// features that stretch and later can read; it loses nothing by that.
fn oldest_kernel(settings: &Settings, source: &TreeSource) -> Option<KernelVersion> {
    let named = debian::kernel(&settings.suite);
    match (settings.filesystem, source) {
        (Filesystem::Ext4, TreeSource::File(_) | TreeSource::Backup) => {
            Some(named.map_or(OLDEST_WITH_CHECKSUMS, |kernel| kernel.min(OLDEST_WITH_CHECKSUMS)))
        }
        _ => named,
    }
}
