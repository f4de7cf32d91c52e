//! A formatted device with a guest on it: the mount, and what is written inside through [`RootDir`] alone.
//!
//! [`RootDir`]: crate::rootdir::RootDir

pub mod access;
pub mod boot;
mod console;
pub mod found_root;
pub mod fstab;
pub mod identity;
mod mount;
mod names;
pub mod network;
pub mod references;
mod resolver;
pub mod swap;
mod timezone;
mod unlocked_files;

use anyhow::Result;
use uuid::Uuid;

use crate::filesystem::{Filesystem, PartitionStyle};
use crate::rootdir::RootDir;

pub use access::Access;
pub use console::Console;
pub use mount::{Root, Trust, Workspace};
pub use names::{Called, called, edit_hosts, rename_in_hosts};
pub use network::Network;
pub use resolver::{HookResolver, Resolver};
pub use timezone::Zone;
pub use unlocked_files::UnlockedFiles;

use crate::request::InstanceName;

/// Everything that makes a tree this instance's guest. Decided by the plan; written by [`configure_guest()`].
#[derive(Debug, Clone)]
pub struct GuestConfig {
    pub name: InstanceName,
    pub filesystem: Filesystem,
    pub resolver: Resolver,
    pub console: Option<Console>,
    pub style: PartitionStyle,
    /// GRUB is to start it: its configuration is the guest's own.
    pub boots: bool,
    pub network: Network,
    pub access: Access,
    /// None: the tree's.
    pub timezone: Option<Zone>,
}

/// The identifiers that only exist once the disk is formatted.
#[derive(Debug, Clone)]
pub struct Volumes {
    pub root: Uuid,
    /// As fstab names it.
    pub swap: Option<String>,
    /// The EFI system partition's volume, as fstab names it.
    pub esp: Option<String>,
}

/// Makes a new tree this guest's: fstab and loader for its disk, and all that [`configure_identity()`] does.
pub fn configure_guest(root: &RootDir, guest_config: &GuestConfig, volumes: &Volumes) -> Result<()> {
    root.create_dir_all("etc", 0o755)?;
    fstab::write(root, guest_config.filesystem, volumes)?;
    if guest_config.boots {
        boot::configure_loader(root, guest_config.style, volumes.root, guest_config.console.as_ref())?;
    }
    configure_identity(root, guest_config)
}

/// Makes a tree this guest's: names, resolver, network, console, access, timezone, an identity of its own.
pub fn configure_identity(root: &RootDir, guest_config: &GuestConfig) -> Result<()> {
    let GuestConfig { name, resolver, console, network, access, timezone, .. } = guest_config;
    names::write(root, name)?;
    resolver.write(root)?;
    network.write(root, resolver)?;
    if let Some(console) = console {
        console.enable(root)?;
    }
    access.write(root)?;
    if let Some(timezone) = timezone {
        timezone.write(root)?;
    }
    identity::renew(root, name)
}

/// What changes in a guest that lives already when its instance gets another name.
#[derive(Debug, Clone)]
pub struct Renaming {
    pub old: InstanceName,
    pub new: InstanceName,
    pub network: Network,
    /// For the new name; the servers are those that the guest may have been given.
    pub resolver: Resolver,
}

/// Gives a guest its new name and NICs, where it has what this program wrote; says whether the network is among that.
pub fn rename(root: &RootDir, renaming: &Renaming, called: Called) -> Result<bool> {
    let Renaming { old, new, network, resolver } = renaming;
    let old_resolver = Resolver { search: old.domain().map(str::to_owned), ..resolver.clone() };
    resolver.rewrite(root, &old_resolver)?;
    let network_is_ours = network.rewrite(root, resolver)?;
    names::rename(root, old, new, called)?;
    Ok(network_is_ours)
}
