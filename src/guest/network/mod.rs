//! The guest's network, from what Ganeti says of each NIC: decided by [`decide()`], which is pure, and written by
//! [`Network::write`] in the form of what the guest has. Knows no hypervisor's configuration and starts nothing.

mod decide;
mod ifupdown;
mod netplan;
mod networkd;
#[cfg(test)]
mod tests;
mod units;

use std::fmt;
use std::net::IpAddr;

use anyhow::{Result, anyhow};
use ipnet::IpNet;

pub use decide::{any_nic, decide};

use super::Resolver;
use crate::PROGRAM;
use crate::report::{self, WithHint};
use crate::request::Mac;
use crate::rootdir::{Kind, RootDir};

/// The first line of every file of ours: only such a file may be replaced or removed later.
pub const HEADER: &str = "# written by ganeti-instance-debootstrap\n";

/// The metric of an IPv6 default route of ours, below those of routes that routers advertise on other NICs: 512
/// with networkd, 1024 with the kernel. A DHCP client gives IPv4 routes 1002 and more, ours have 0.
const METRIC6: u32 = 100;

/// More entries than a directory of network files ever has.
const MAX_ENTRIES: usize = 4096;

/// The setting `network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A static address where Ganeti knows one, DHCP elsewhere.
    Auto,
    Dhcp,
    Static,
    /// Loopback alone: a hook does the rest.
    Manual,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::Dhcp => "dhcp",
            Mode::Static => "static",
            Mode::Manual => "manual",
        })
    }
}

/// Who names the guest's NICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// udev in the guest, by our .link files: nic0, nic1, ... Also a single NIC: one rule, and a name that neither
    /// the kernel nor udev gives by itself can always be given, with net.ifnames=0 and without. Renaming among
    /// ethN cannot: the other name is taken while both are there.
    Links,
    /// The kernel, or who starts the container: eth0, eth1, ... in Ganeti's order.
    Kernel,
}

/// Where a family's default route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultRoute {
    /// Another NIC has it, or nobody knows a gateway.
    No,
    /// To a gateway in the address's own subnet, or a link-local one.
    Via(IpAddr),
    /// To a gateway that is reached through the device although no subnet says so.
    OnLink(IpAddr),
    /// To the device itself: the node answers for everybody (proxy ARP, proxy NDP).
    Device,
}

/// A static address of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    pub net: IpNet,
    pub default: DefaultRoute,
}

/// How one family of an interface is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// Nothing of that family.
    Absent,
    /// IPv4 by DHCP, IPv6 as routers advertise it.
    Automatic,
    Fixed(Fixed),
}

/// A NIC that we set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Ganeti's index.
    pub index: usize,
    /// None: whatever NIC there is.
    pub mac: Option<Mac>,
    pub v4: Assignment,
    pub v6: Assignment,
}

impl Interface {
    /// What the interface is called by.
    fn name(&self, names: Names) -> String {
        match names {
            Names::Links => format!("nic{}", self.index),
            Names::Kernel => format!("eth{}", self.index),
        }
    }

    fn has_dhcp(&self) -> bool {
        self.v4 == Assignment::Automatic
    }

    fn fixed(&self) -> impl Iterator<Item = Fixed> {
        [self.v4, self.v6].into_iter().filter_map(|family| match family {
            Assignment::Fixed(fixed) => Some(fixed),
            _ => None,
        })
    }
}

impl fmt::Display for Interface {
    /// `NIC 0 aa:00:00:35:e8:90  192.0.2.7/24 via 192.0.2.1, IPv6 as advertised`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mac {
            Some(mac) => write!(f, "NIC {} {mac}  ", self.index)?,
            None => write!(f, "any NIC  ")?,
        }
        let family = |assignment, automatic: &str| match assignment {
            Assignment::Absent => None,
            Assignment::Automatic => Some(automatic.to_owned()),
            Assignment::Fixed(Fixed { net, default }) => Some(match default {
                DefaultRoute::No => net.to_string(),
                DefaultRoute::Via(gateway) => format!("{net} via {gateway}"),
                DefaultRoute::OnLink(gateway) => format!("{net} via {gateway} on the link"),
                DefaultRoute::Device => format!("{net}, everything on the link"),
            }),
        };
        let families = [family(self.v4, "DHCP"), family(self.v6, "IPv6 as advertised")];
        f.write_str(&families.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// The guest's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub mode: Mode,
    /// In a container nobody but its runtime names interfaces.
    pub in_container: bool,
    pub interfaces: Vec<Interface>,
    /// What an admin may have meant otherwise, each a sentence.
    pub warnings: Vec<String>,
}

/// What a guest sets its network up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renderer {
    Netplan,
    Ifupdown,
    Networkd,
}

impl Renderer {
    /// What is there; netplan and ifupdown are there because somebody wants them, networkd comes with systemd.
    fn of(root: &RootDir) -> Result<Option<Renderer>> {
        let any =
            |paths: [&str; 2]| -> Result<bool> { Ok(root.is_file(paths[0])? || root.is_file(paths[1])?) };
        if root.is_file("usr/sbin/netplan")? {
            return Ok(Some(Renderer::Netplan));
        }
        if any(["sbin/ifup", "usr/sbin/ifup"])? && root.is_dir("etc/network")? {
            return Ok(Some(Renderer::Ifupdown));
        }
        let networkd = any(["usr/lib/systemd/systemd-networkd", "lib/systemd/systemd-networkd"])?;
        Ok(networkd.then_some(Renderer::Networkd))
    }
}

impl Network {
    /// That of a guest trust NICs are nobody's business here.
    pub fn none() -> Network {
        Network { mode: Mode::Manual, in_container: false, interfaces: Vec::new(), warnings: Vec::new() }
    }

    /// Writes the files of what the guest has. Files of ours that the tree brought along are another guest's, and
    /// go. An error where addresses were asked for and the guest has nothing to set them up with.
    pub fn write(&self, root: &RootDir, resolver: &Resolver) -> Result<()> {
        ifupdown::write_loopback(root)?;
        self.replace(root, &Found::in_tree(root)?.ours, resolver)?;
        if !self.interfaces.is_empty() && Renderer::of(root)? == Some(Renderer::Networkd) {
            networkd::enable(root)?;
        }
        Ok(())
    }

    /// Writes our files anew where a guest has some, for NICs that are others now; all else is its owner's, and so is
    /// which services it starts. Says whether it did.
    pub fn rewrite(&self, root: &RootDir, resolver: &Resolver) -> Result<bool> {
        let Found { ours, theirs } = Found::in_tree(root)?;
        if ours.is_empty() || self.interfaces.is_empty() {
            return Ok(false);
        }
        if let Some(path) = theirs.first() {
            let fact = format!("/{path} is no longer a file that {PROGRAM} wrote");
            report::warning(&format!("{fact}: the guest's network is left to it"));
            return Ok(false);
        }
        self.replace(root, &ours, resolver)?;
        Ok(true)
    }

    fn replace(&self, root: &RootDir, old: &[String], resolver: &Resolver) -> Result<()> {
        for path in old {
            root.remove(path)?;
        }
        if self.interfaces.is_empty() {
            return Ok(());
        }
        match Renderer::of(root)? {
            Some(Renderer::Netplan) => netplan::write(self, root, resolver),
            Some(Renderer::Ifupdown) => ifupdown::write(self, root, resolver),
            Some(Renderer::Networkd) => networkd::write(self, root, resolver),
            None => self.unwritten(),
        }
    }

    fn unwritten(&self) -> Result<()> {
        let fact = "the guest has neither netplan nor ifupdown nor systemd-networkd";
        if self.mode == Mode::Auto {
            report::warning(&format!("{fact}: its network is left to it"));
            return Ok(());
        }
        Err(anyhow!("{fact}, and network is \"{}\"", self.mode))
            .hint("add one of them to extra_pkgs, or set network to manual")
    }
}

/// What stands where a run of ours writes.
#[derive(Default)]
struct Found {
    /// Written by an earlier run.
    ours: Vec<String>,
    /// Put there by the guest's owner.
    theirs: Vec<String>,
}

impl Found {
    /// Looks wherever it may be.
    fn in_tree(root: &RootDir) -> Result<Found> {
        let numbered = [("etc/systemd/network", "10-ganeti-nic"), ("etc/systemd/network", "50-ganeti-nic")];
        let single = [ifupdown::PATH, ifupdown::RESOLVER_HEAD, netplan::PATH, networkd::WAIT_ONLINE];
        let mut paths: Vec<String> = single.map(str::to_owned).into();
        for (dir, prefix) in numbered {
            if root.is_dir(dir)? {
                let names =
                    root.list(dir, MAX_ENTRIES)?.into_iter().filter_map(|name| name.into_string().ok());
                paths.extend(
                    names.filter(|name| name.starts_with(prefix)).map(|name| format!("{dir}/{name}")),
                );
            }
        }
        let mut found = Found::default();
        for path in paths {
            let is_ours = match root.kind(&path)? {
                None => continue,
                Some(Kind::File) => root.begins_with(&path, HEADER.as_bytes())?,
                Some(_) => false,
            };
            if is_ours { found.ours.push(path) } else { found.theirs.push(path) }
        }
        Ok(found)
    }
}

/// What picks a NIC in systemd's files. A VLAN, bridge or bond that an admin adds later has the NIC's MAC too: only
/// the NIC itself is meant. (systemd before 251 warns of the second line and ignores it.)
fn match_section(interface: &Interface) -> String {
    let which = interface.mac.map_or("Type=ether".to_owned(), |mac| format!("MACAddress={mac}"));
    format!("[Match]\n{which}\nKind=!bond bridge ipvlan macvlan vlan\n")
}
