//! netplan(5), for either of its back ends.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Assignment, DefaultRoute, Fixed, HEADER, Interface, METRIC6, Names, Network};
use crate::guest::Resolver;
use crate::rootdir::RootDir;

/// Read after what cloud-init and installers write, and only by root: netplan warns of another mode.
pub const PATH: &str = "etc/netplan/50-ganeti.yaml";

/// One file for all interfaces.
pub fn write(network: &Network, root: &RootDir, resolver: &Resolver) -> Result<()> {
    root.create_dir_all("etc/netplan", 0o755)?;
    root.write(PATH, file(network, resolver).as_bytes(), 0o600)
}

/// The whole of it.
pub fn file(network: &Network, resolver: &Resolver) -> String {
    let mut text = format!("{HEADER}network:\n  version: 2\n  ethernets:\n");
    for interface in &network.interfaces {
        text += &ethernet(interface, resolver);
    }
    text
}

/// Every text is quoted: a MAC or an address without quotes may be a number to YAML.
fn ethernet(interface: &Interface, resolver: &Resolver) -> String {
    let mut text = format!("    {}:\n", interface.name(Names::Links));
    let which = interface.mac.map_or("name: \"e*\"".to_owned(), |mac| format!("macaddress: \"{mac}\""));
    let _ = writeln!(text, "      match:\n        {which}");
    if interface.has_dhcp() {
        // The boot does not wait for a server.
        text += "      dhcp4: true\n      optional: true\n";
    }
    if interface.v6 != Assignment::Automatic {
        text += "      accept-ra: false\n";
    }
    let fixed: Vec<Fixed> = interface.fixed().collect();
    if !fixed.is_empty() {
        text += "      addresses:\n";
        for fixed in &fixed {
            let _ = writeln!(text, "        - \"{}\"", fixed.net);
        }
    }
    let routes: String = fixed.into_iter().map(route).collect();
    if !routes.is_empty() {
        text += "      routes:\n";
        text += &routes;
    }
    text + &nameservers(resolver)
}

fn route(Fixed { net, default }: Fixed) -> String {
    let (anywhere, metric) = if net.addr().is_ipv4() {
        ("0.0.0.0/0", String::new())
    } else {
        ("::/0", format!("          metric: {METRIC6}\n"))
    };
    let to = format!("        - to: \"{anywhere}\"\n");
    match default {
        DefaultRoute::No => String::new(),
        DefaultRoute::Via(gateway) => format!("{to}          via: \"{gateway}\"\n{metric}"),
        DefaultRoute::OnLink(gateway) => {
            format!("{to}          via: \"{gateway}\"\n          on-link: true\n{metric}")
        }
        DefaultRoute::Device => format!("{to}          scope: link\n{metric}"),
    }
}

fn nameservers(resolver: &Resolver) -> String {
    let mut text = String::new();
    let list = |items: Vec<String>| {
        let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
        quoted.join(", ")
    };
    if !resolver.servers.is_empty() {
        let servers = list(resolver.servers.iter().map(ToString::to_string).collect());
        let _ = writeln!(text, "        addresses: [{servers}]");
    }
    if let Some(domain) = &resolver.search {
        let _ = writeln!(text, "        search: [\"{domain}\"]");
    }
    if text.is_empty() { text } else { format!("      nameservers:\n{text}") }
}
