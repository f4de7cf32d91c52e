//! An instance as Ganeti describes it: its disks, its NICs, what its hypervisor shows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};

use super::{InstanceName, Mac};

/// Where a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskAddress {
    /// A file or a block device of the node.
    Path(PathBuf),
    /// Only reachable in userspace, as QEMU writes it.
    Uri(String),
}

impl DiskAddress {
    /// As text for messages.
    pub fn display(&self) -> String {
        match self {
            DiskAddress::Path(path) => path.display().to_string(),
            DiskAddress::Uri(uri) => uri.clone(),
        }
    }
}

/// One disk of the instance, as Ganeti describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub address: DiskAddress,
    /// DISK_n_SIZE; the device itself has the last word.
    pub size_mib: Option<u64>,
    pub read_only: bool,
    pub name: Option<String>,
    pub frontend: Option<String>,
}

/// How a NIC is attached to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicMode {
    Bridged,
    Routed,
    OpenVswitch,
}

/// One NIC of the instance, as Ganeti describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub mac: Mac,
    pub ip: Option<IpAddr>,
    pub mode: NicMode,
    pub name: Option<String>,
    /// The bridge, switch or routing table that it is attached to.
    pub link: Option<String>,
    pub network: Option<String>,
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub subnet6: Option<Ipv6Net>,
    pub gateway6: Option<Ipv6Addr>,
}

/// The instance that a verb is for.
#[derive(Debug, Clone)]
pub struct Instance {
    pub name: InstanceName,
    /// HYPERVISOR, empty with API 5.
    pub hypervisor: String,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// False for an image, which is started by who knows whom.
    pub nics_are_known: bool,
    pub reinstall: bool,
    /// API 5: the second device, for swap.
    pub swap: Option<PathBuf>,
    /// INSTANCE_HV_use_bootloader with pygrub: the node itself reads the guest's filesystem for its kernel.
    pub pygrub: bool,
    /// INSTANCE_HV_serial_console
    pub serial_console: bool,
    /// INSTANCE_HV_serial_speed
    pub serial_speed: Option<u32>,
    /// INSTANCE_HV_disk_type and INSTANCE_HV_nic_type, where they are given.
    pub device_types: Vec<String>,
}
