//! systemd.network(5), and the service that reads it.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Assignment, DefaultRoute, Fixed, HEADER, Interface, METRIC6, Network, match_section, units};
use crate::guest::Resolver;
use crate::rootdir::RootDir;

/// What keeps a missing DHCP server from being a failed unit.
pub const WAIT_ONLINE: &str = "etc/systemd/system/systemd-networkd-wait-online.service.d/ganeti.conf";

const UNIT: &str = "systemd-networkd.service";

/// A file for each interface.
pub fn write(network: &Network, root: &RootDir, resolver: &Resolver) -> Result<()> {
    let dir = "etc/systemd/network";
    root.create_dir_all(dir, 0o755)?;
    let has_fixed = network.interfaces.iter().any(|interface| interface.fixed().next().is_some());
    for interface in &network.interfaces {
        let text = file(interface, resolver, has_fixed);
        root.write(format!("{dir}/50-ganeti-nic{}.network", interface.index), text.as_bytes(), 0o644)?;
    }
    if !has_fixed {
        let program = "lib/systemd/systemd-networkd-wait-online";
        let prefix = if root.is_file(format!("usr/{program}"))? { "/usr/" } else { "/" };
        // Of several NICs one is enough, and none at all is no failure.
        let text =
            format!("{HEADER}[Service]\nExecStart=\nExecStart=-{prefix}{program} --any --timeout=30\n");
        root.create_dir_all("etc/systemd/system/systemd-networkd-wait-online.service.d", 0o755)?;
        root.write(WAIT_ONLINE, text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Switches on the service that reads them.
pub fn enable(root: &RootDir) -> Result<()> {
    units::enable(root, UNIT)
}

/// `has_fixed`: some NIC of the guest has a static address, and is what the boot may wait for.
pub fn file(interface: &Interface, resolver: &Resolver, has_fixed: bool) -> String {
    let mut text = format!("{HEADER}{}", match_section(interface));
    if has_fixed && interface.fixed().next().is_none() {
        text += "\n[Link]\nRequiredForOnline=no\n";
    }
    text += "\n[Network]\n";
    if interface.has_dhcp() {
        text += "DHCP=ipv4\n";
    }
    for fixed in interface.fixed() {
        let _ = writeln!(text, "Address={}", fixed.net);
    }
    // A static address has its static gateway: no second one by a router.
    let advertised = if interface.v6 == Assignment::Automatic { "yes" } else { "no" };
    let _ = writeln!(text, "IPv6AcceptRA={advertised}");
    for server in &resolver.servers {
        let _ = writeln!(text, "DNS={server}");
    }
    if let Some(domain) = &resolver.search {
        let _ = writeln!(text, "Domains={domain}");
    }
    for fixed in interface.fixed() {
        text += &route(fixed);
    }
    text
}

fn route(Fixed { net, default }: Fixed) -> String {
    // Scopes are IPv4's.
    let (device, metric) = if net.addr().is_ipv4() {
        ("Destination=0.0.0.0/0\nScope=link\n", String::new())
    } else {
        ("Destination=::/0\n", format!("Metric={METRIC6}\n"))
    };
    match default {
        DefaultRoute::No => String::new(),
        DefaultRoute::Via(gateway) => format!("\n[Route]\nGateway={gateway}\n{metric}"),
        DefaultRoute::OnLink(gateway) => format!("\n[Route]\nGateway={gateway}\nGatewayOnLink=yes\n{metric}"),
        DefaultRoute::Device => format!("\n[Route]\n{device}{metric}"),
    }
}
