//! From NIC data to addresses and routes. Pure: it reads no tree and writes nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Assignment, DefaultRoute, Fixed, Interface, Mode, Network};
use crate::request::{Nic, NicMode};

/// Ganeti's own way to talk to an instance is a NIC of that name (or on that link, or of that network); Ganeti
/// sets it up itself.
const COMMUNICATION_PREFIX: &str = "gnt.com.";

/// Decides how each NIC is set up. An error names all that cannot work; nothing of it is then written anywhere.
pub fn decide(nics: &[Nic], mode: Mode, hypervisor: &str) -> Result<Network> {
    let mut network =
        Network { mode, in_container: hypervisor == "lxc", interfaces: Vec::new(), warnings: Vec::new() };
    if mode == Mode::Manual {
        return Ok(network);
    }
    let mut faults = Vec::new();
    let mut seen = BTreeMap::new();
    for (n, nic) in nics.iter().enumerate().filter(|(_, nic)| !is_communication(nic)) {
        if let Some(other) = seen.insert(nic.mac.to_string(), n) {
            faults.push(format!("NIC_{n}_MAC is {}, which is that of NIC {other} too", nic.mac));
        }
        let judged = if mode == Mode::Dhcp { Judged::default() } else { Judged::of(n, nic) };
        faults.extend(judged.faults);
        let is_fixed = judged.v4.is_some() || judged.v6.is_some();
        match (mode, judged.lacking) {
            // Also where IPv6 would follow from the MAC: who asks for addresses and forgets one is to know.
            (Mode::Static, Some(lacking)) => {
                faults.push(format!("NIC {n} has no static address: {lacking}"));
            }
            (Mode::Auto, Some(lacking)) if nic.ip.is_some() => {
                network.warnings.push(format!("NIC {n} gets its address by DHCP: {lacking}"));
            }
            _ => {}
        }
        // An address that is IPv6 says that IPv4 is not wanted.
        let no_dhcp = mode == Mode::Static || matches!(nic.ip, Some(IpAddr::V6(_)) if is_fixed);
        network.interfaces.push(Interface {
            index: n,
            mac: Some(nic.mac),
            v4: judged.v4.map_or(if no_dhcp { Assignment::Absent } else { Assignment::Automatic }, fixed),
            v6: judged.v6.map_or(Assignment::Automatic, fixed),
        });
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n  "));
    }
    keep_first_default(&mut network.interfaces, |interface| &mut interface.v4);
    keep_first_default(&mut network.interfaces, |interface| &mut interface.v6);
    Ok(network)
}

/// For a disk image: nobody knows the NICs of who will start it. By DHCP, unless the network is left to hooks.
pub fn any_nic(mode: Mode) -> Result<Network> {
    let interface = Interface { index: 0, mac: None, v4: Assignment::Automatic, v6: Assignment::Automatic };
    let interfaces = match mode {
        Mode::Manual => Vec::new(),
        Mode::Auto | Mode::Dhcp => vec![interface],
        Mode::Static => bail!("no NIC of an image is known, so none can have a static address"),
    };
    Ok(Network { mode, in_container: false, interfaces, warnings: Vec::new() })
}

fn fixed(fixed: Fixed) -> Assignment {
    Assignment::Fixed(fixed)
}

fn is_communication(nic: &Nic) -> bool {
    let names = [&nic.name, &nic.link, &nic.network];
    names.into_iter().flatten().any(|name| name.starts_with(COMMUNICATION_PREFIX))
}

/// A family has one default route: that of the first NIC with a gateway.
fn keep_first_default(interfaces: &mut [Interface], family: impl Fn(&mut Interface) -> &mut Assignment) {
    let mut taken = false;
    for interface in interfaces {
        if let Assignment::Fixed(fixed) = family(interface) {
            if taken {
                fixed.default = DefaultRoute::No;
            }
            taken |= fixed.default != DefaultRoute::No;
        }
    }
}

/// What a NIC's data allow.
#[derive(Default)]
struct Judged {
    v4: Option<Fixed>,
    v6: Option<Fixed>,
    /// Why NIC_n_IP makes no static address, where it does not.
    lacking: Option<String>,
    faults: Vec<String>,
}

impl Judged {
    fn of(n: usize, nic: &Nic) -> Judged {
        let mut judged = Judged::default();
        let routed = nic.mode == NicMode::Routed;
        let missing = |field: &str| Some(format!("NIC_{n}_{field} is missing"));
        match (nic.ip, nic.subnet, nic.subnet6) {
            (None, ..) => judged.lacking = missing("IP"),
            (Some(IpAddr::V4(_)), None, _) if !routed => judged.lacking = missing("NETWORK_SUBNET"),
            (Some(IpAddr::V6(_)), _, None) if !routed => judged.lacking = missing("NETWORK_SUBNET6"),
            (Some(ip), _, _) if routed => {
                judged.put(Fixed { net: IpNet::from(ip), default: routed_default(ip, nic) });
            }
            (Some(IpAddr::V4(ip)), Some(subnet), _) => {
                judged.require_inside(n, ("IP", ip.into()), ("NETWORK_SUBNET", subnet.into()));
                let net = Ipv4Net::new_assert(ip, subnet.prefix_len()).into();
                let default = judged.gateway(n, "NETWORK_GATEWAY", nic.gateway.map(IpAddr::V4), net);
                judged.put(Fixed { net, default });
            }
            (Some(IpAddr::V6(ip)), _, Some(subnet)) => {
                judged.require_inside(n, ("IP", ip.into()), ("NETWORK_SUBNET6", subnet.into()));
                judged.put_v6(n, nic, ip, subnet);
            }
            // Caught above: without a subnet and not routed.
            (Some(_), ..) => {}
        }
        judged.derive_v6(n, nic);
        judged
    }

    /// The address that follows from the MAC, where the network has a gateway to use it with; without one, routers
    /// advertise whatever there is.
    fn derive_v6(&mut self, n: usize, nic: &Nic) {
        let is_v6 = matches!(nic.ip, Some(IpAddr::V6(_)));
        let (Some(subnet), Some(gateway), false) = (nic.subnet6, nic.gateway6, is_v6) else { return };
        if subnet.prefix_len() != 64 {
            return;
        }
        let ip = nic.mac.eui64(subnet);
        if nic.mode == NicMode::Routed {
            let default = on_link(gateway.into());
            self.put(Fixed { net: IpNet::from(IpAddr::V6(ip)), default });
        } else {
            self.put_v6(n, nic, ip, subnet);
        }
    }

    fn put_v6(&mut self, n: usize, nic: &Nic, ip: Ipv6Addr, subnet: Ipv6Net) {
        let net = Ipv6Net::new_assert(ip, subnet.prefix_len()).into();
        let default = self.gateway(n, "NETWORK_GATEWAY6", nic.gateway6.map(IpAddr::V6), net);
        self.put(Fixed { net, default });
    }

    fn put(&mut self, fixed: Fixed) {
        let family = if fixed.net.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *family = Some(fixed);
    }

    fn gateway(&mut self, n: usize, field: &str, gateway: Option<IpAddr>, net: IpNet) -> DefaultRoute {
        let Some(gateway) = gateway else { return DefaultRoute::No };
        if !is_link_local(gateway) {
            let subnet_field = field.replace("GATEWAY", "SUBNET");
            self.require_inside(n, (field, gateway), (&subnet_field, net.trunc()));
        }
        if gateway == net.addr() {
            self.faults.push(format!("NIC_{n}_{field} is {gateway}, the address of the NIC itself"));
        }
        DefaultRoute::Via(gateway)
    }

    /// Of two variables of NIC `n`, each with its name: the address must be in the network.
    fn require_inside(&mut self, n: usize, (field, ip): (&str, IpAddr), (in_field, net): (&str, IpNet)) {
        if !net.contains(&ip) {
            self.faults
                .push(format!("NIC_{n}_{field} is {ip}; expected an address in NIC_{n}_{in_field}, {net}"));
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80)
}

fn on_link(gateway: IpAddr) -> DefaultRoute {
    if is_link_local(gateway) { DefaultRoute::Via(gateway) } else { DefaultRoute::OnLink(gateway) }
}

/// A routed NIC's way out: its gateway, else the node, which answers for everybody.
fn routed_default(ip: IpAddr, nic: &Nic) -> DefaultRoute {
    let gateway = match ip {
        IpAddr::V4(_) => nic.gateway.map(IpAddr::V4),
        IpAddr::V6(_) => nic.gateway6.map(IpAddr::V6),
    };
    gateway.filter(|gateway| *gateway != ip).map_or(DefaultRoute::Device, on_link)
}
