//! interfaces(5), and the names that it needs: ifupdown knows no MAC.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Assignment, DefaultRoute, Fixed, HEADER, Interface, METRIC6, Names, Network, match_section};
use crate::guest::Resolver;
use crate::rootdir::RootDir;

/// Our part of interfaces(5).
pub const PATH: &str = "etc/network/interfaces.d/ganeti";

/// What dhcpcd puts above its own servers in /etc/resolv.conf, which it writes even when no server answers.
pub const RESOLVER_HEAD: &str = "etc/resolv.conf.head";

/// The first metric of routes that DHCP brings: they must neither win over a static one nor be in its way.
const DHCP_METRIC: usize = 1024;

/// The loopback interface, where the guest has ifupdown's directory; systemd needs nothing.
pub fn write_loopback(root: &RootDir) -> Result<()> {
    if !root.is_dir("etc/network")? {
        return Ok(());
    }
    let text = "# interfaces(5) file used by ifup(8) and ifdown(8)\n\
                source /etc/network/interfaces.d/*\n\n\
                auto lo\niface lo inet loopback\n";
    root.write("etc/network/interfaces", text.as_bytes(), 0o644)
}

/// The stanzas, and where udev can name interfaces a .link file for each.
pub fn write(network: &Network, root: &RootDir, resolver: &Resolver) -> Result<()> {
    let has_links = root.is_file("usr/lib/systemd/network/99-default.link")?
        || root.is_file("lib/systemd/network/99-default.link")?;
    let names = if has_links && !network.in_container { Names::Links } else { Names::Kernel };
    root.create_dir_all("etc/network/interfaces.d", 0o755)?;
    root.write(PATH, stanzas(network, names, resolver).as_bytes(), 0o644)?;
    let has_dhcp = network.interfaces.iter().any(Interface::has_dhcp);
    if has_dhcp && !resolver.servers.is_empty() && root.is_dir("usr/lib/dhcpcd")? {
        root.write(RESOLVER_HEAD, format!("{HEADER}{}", resolver.text()).as_bytes(), 0o644)?;
    }
    if names == Names::Links {
        root.create_dir_all("etc/systemd/network", 0o755)?;
        for interface in &network.interfaces {
            let path = format!("etc/systemd/network/10-ganeti-nic{}.link", interface.index);
            root.write(path, link(interface).as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// systemd.link(5): the name for a MAC.
pub fn link(interface: &Interface) -> String {
    let name = interface.name(Names::Links);
    format!("{HEADER}{}\n[Link]\nName={name}\n", match_section(interface))
}

/// interfaces(5).
pub fn stanzas(network: &Network, names: Names, resolver: &Resolver) -> String {
    let mut text = String::from(HEADER);
    for interface in &network.interfaces {
        let name = interface.name(names);
        // What waits for a server is started by udev, on its own: neither the boot nor a unit waits for it.
        let when = if interface.has_dhcp() { "allow-hotplug" } else { "auto" };
        let _ = write!(text, "\n{when} {name}\n");
        let mut dns = dns_lines(resolver);
        match interface.v4 {
            Assignment::Absent => {}
            Assignment::Automatic => {
                let _ = writeln!(text, "iface {name} inet dhcp");
                if network.interfaces.len() > 1 {
                    let _ = writeln!(text, "    metric {}", DHCP_METRIC + interface.index);
                }
                text += &std::mem::take(&mut dns);
            }
            Assignment::Fixed(fixed) => {
                let _ = writeln!(text, "iface {name} inet static");
                text += &fixed_lines(fixed);
                text += &std::mem::take(&mut dns);
            }
        }
        match (interface.v6, interface.v4) {
            (Assignment::Fixed(fixed), _) => {
                let _ = writeln!(text, "iface {name} inet6 static");
                text += &fixed_lines(fixed);
                // No second default route by a router, and no waiting for duplicates: without a carrier that
                // ends in a failed unit.
                text += "    accept_ra 0\n    autoconf 0\n    dad-attempts 0\n";
                text += &dns;
            }
            (Assignment::Automatic, Assignment::Automatic) => {
                let _ = writeln!(text, "iface {name} inet6 auto");
            }
            // Beside a static IPv4 address the kernel listens to routers by itself.
            _ => {}
        }
    }
    text
}

fn fixed_lines(Fixed { net, default }: Fixed) -> String {
    let is_v4 = net.addr().is_ipv4();
    let (ip, metric) = if is_v4 { ("ip", String::new()) } else { ("ip -6", format!(" metric {METRIC6}")) };
    let mut text = format!("    address {net}\n");
    match default {
        DefaultRoute::No => {}
        DefaultRoute::Via(gateway) => {
            let _ = writeln!(text, "    gateway {gateway}");
            if !is_v4 {
                let _ = writeln!(text, "    metric {METRIC6}");
            }
        }
        DefaultRoute::OnLink(gateway) => {
            let _ = writeln!(text, "    up {ip} route replace {gateway} dev $IFACE");
            let _ = writeln!(text, "    up {ip} route replace default via {gateway} dev $IFACE{metric}");
        }
        DefaultRoute::Device => {
            let _ = writeln!(text, "    up {ip} route replace default dev $IFACE{metric}");
        }
    }
    text
}

/// For resolvconf and its like; without one of them nobody reads these, and /etc/resolv.conf holds.
fn dns_lines(resolver: &Resolver) -> String {
    let mut text = String::new();
    if !resolver.servers.is_empty() {
        let servers: Vec<String> = resolver.servers.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "    dns-nameservers {}", servers.join(" "));
    }
    if let Some(domain) = &resolver.search {
        let _ = writeln!(text, "    dns-search {domain}");
    }
    text
}
