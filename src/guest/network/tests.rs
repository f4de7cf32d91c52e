//! NIC data to decisions, decisions to files.

use super::{Found, HEADER, Mode, Names, Network, any_nic, decide, ifupdown, netplan, networkd};
use crate::guest::Resolver;
use crate::request::{Mac, Nic, NicMode};
use crate::rootdir::RootDir;

/// A NIC as Ganeti describes one on a bridge, with the MAC aa:00:00:00:00:0N.
fn nic(n: usize) -> Nic {
    Nic {
        mac: Mac::parse(&format!("aa:00:00:00:00:{n:02x}")).unwrap(),
        ip: None,
        mode: NicMode::Bridged,
        name: None,
        link: Some("gntbr0".into()),
        network: None,
        subnet: None,
        gateway: None,
        subnet6: None,
        gateway6: None,
    }
}

/// As in a network of Ganeti's of both families.
fn networked(n: usize, ip: Option<&str>) -> Nic {
    Nic {
        ip: ip.map(|ip| ip.parse().unwrap()),
        network: Some("net1".into()),
        subnet: Some("198.51.100.0/24".parse().unwrap()),
        gateway: Some("198.51.100.1".parse().unwrap()),
        subnet6: Some("2001:db8:1::/64".parse().unwrap()),
        gateway6: Some("2001:db8:1::1".parse().unwrap()),
        ..nic(n)
    }
}

fn routed(n: usize, ip: &str) -> Nic {
    Nic { ip: Some(ip.parse().unwrap()), mode: NicMode::Routed, ..nic(n) }
}

/// What the dry run says of each NIC, without its MAC; then the warnings.
fn decided(nics: &[Nic], mode: Mode) -> Vec<String> {
    let network = decide(nics, mode, "kvm").unwrap();
    let shown = network.interfaces.iter().map(|interface| {
        let (nic, how) =
            interface.to_string().split_once("  ").map(|(n, h)| (n.to_owned(), h.to_owned())).unwrap();
        format!("{}: {how}", nic.split(' ').nth(1).unwrap())
    });
    shown.chain(network.warnings.iter().map(|warning| format!("warning: {warning}"))).collect()
}

fn refused(nics: &[Nic], mode: Mode) -> String {
    format!("{:#}", decide(nics, mode, "kvm").unwrap_err())
}

#[test]
fn each_nic_gets_what_ganeti_knows_of_it() {
    let no_gateway = Nic { gateway: None, gateway6: None, ..networked(0, Some("198.51.100.2")) };
    let wide = Nic { subnet6: Some("2001:db8::/56".parse().unwrap()), ..networked(0, Some("198.51.100.2")) };
    let near = Nic { gateway6: Some("fe80::1".parse().unwrap()), ..networked(0, Some("198.51.100.2")) };
    let routed_in_network = Nic { mode: NicMode::Routed, ..networked(0, Some("198.51.100.2")) };
    let both = "198.51.100.2/24 via 198.51.100.1, 2001:db8:1:0:a800:ff:fe00:0/64 via 2001:db8:1::1";
    let table: &[(&str, Vec<Nic>, Mode, &[&str])] = &[
        ("nothing known", vec![nic(0)], Mode::Auto, &["0: DHCP, IPv6 as advertised"]),
        ("a whole network", vec![networked(0, Some("198.51.100.2"))], Mode::Auto, &[&format!("0: {both}")]),
        (
            "the same, asked for",
            vec![networked(0, Some("198.51.100.2"))],
            Mode::Static,
            &[&format!("0: {both}")],
        ),
        (
            "DHCP asked for",
            vec![networked(0, Some("198.51.100.2"))],
            Mode::Dhcp,
            &["0: DHCP, IPv6 as advertised"],
        ),
        ("by hand", vec![networked(0, Some("198.51.100.2"))], Mode::Manual, &[]),
        (
            "a network without an address",
            vec![networked(0, None)],
            Mode::Auto,
            &["0: DHCP, 2001:db8:1:0:a800:ff:fe00:0/64 via 2001:db8:1::1"],
        ),
        ("no gateway", vec![no_gateway], Mode::Static, &["0: 198.51.100.2/24, IPv6 as advertised"]),
        (
            "no room for the MAC",
            vec![wide],
            Mode::Auto,
            &["0: 198.51.100.2/24 via 198.51.100.1, IPv6 as advertised"],
        ),
        (
            "a link-local gateway",
            vec![near],
            Mode::Auto,
            &["0: 198.51.100.2/24 via 198.51.100.1, 2001:db8:1:0:a800:ff:fe00:0/64 via fe80::1"],
        ),
        (
            "an address of IPv6 only",
            vec![networked(0, Some("2001:db8:1::7"))],
            Mode::Auto,
            &["0: 2001:db8:1::7/64 via 2001:db8:1::1"],
        ),
        (
            "an address without a subnet",
            vec![Nic { ip: "192.0.2.7".parse().ok(), ..nic(0) }],
            Mode::Auto,
            &[
                "0: DHCP, IPv6 as advertised",
                "warning: NIC 0 gets its address by DHCP: NIC_0_NETWORK_SUBNET is missing",
            ],
        ),
        (
            "routed, without a network",
            vec![routed(0, "203.0.113.7"), routed(1, "203.0.113.8")],
            Mode::Static,
            &[
                "0: 203.0.113.7/32, everything on the link, IPv6 as advertised",
                "1: 203.0.113.8/32, IPv6 as advertised",
            ],
        ),
        (
            "routed, IPv6",
            vec![routed(0, "2001:db8::7")],
            Mode::Static,
            &["0: 2001:db8::7/128, everything on the link"],
        ),
        (
            "routed, with a network",
            vec![routed_in_network],
            Mode::Auto,
            &[
                "0: 198.51.100.2/32 via 198.51.100.1 on the link, 2001:db8:1:0:a800:ff:fe00:0/128 via 2001:db8:1::1 on the link",
            ],
        ),
        (
            "the first gateway wins, per family",
            vec![routed(0, "203.0.113.7"), networked(1, Some("198.51.100.2")), nic(2)],
            Mode::Auto,
            &[
                "0: 203.0.113.7/32, everything on the link, IPv6 as advertised",
                "1: 198.51.100.2/24, 2001:db8:1:0:a800:ff:fe00:1/64 via 2001:db8:1::1",
                "2: DHCP, IPv6 as advertised",
            ],
        ),
    ];
    for (what, nics, mode, expected) in table {
        assert_eq!(decided(nics, *mode), *expected, "{what}");
    }
}

#[test]
fn the_nic_that_ganeti_talks_over_is_left_alone() {
    let name = || Some("gnt.com.web.example.com".to_owned());
    for own in
        [Nic { name: name(), ..nic(0) }, Nic { link: name(), ..nic(0) }, Nic { network: name(), ..nic(0) }]
    {
        assert_eq!(decided(&[own, nic(1)], Mode::Auto), ["1: DHCP, IPv6 as advertised"]);
    }
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let gateway = |gateway: &str| Nic { gateway: gateway.parse().ok(), ..networked(0, Some("198.51.100.2")) };
    let gateway6 =
        |gateway: &str| Nic { gateway6: gateway.parse().ok(), ..networked(0, Some("198.51.100.2")) };
    let table: &[(&str, Vec<Nic>, Mode, &str)] = &[
        ("", vec![nic(0)], Mode::Static, "NIC 0 has no static address: NIC_0_IP is missing"),
        (
            "",
            vec![Nic { ip: "192.0.2.7".parse().ok(), ..nic(0) }],
            Mode::Static,
            "NIC 0 has no static address: NIC_0_NETWORK_SUBNET is missing",
        ),
        (
            "",
            vec![Nic { subnet6: None, ..networked(0, Some("2001:db8::7")) }],
            Mode::Static,
            "NIC 0 has no static address: NIC_0_NETWORK_SUBNET6 is missing",
        ),
        (
            "IPv6 alone is not what was asked for",
            vec![networked(0, None)],
            Mode::Static,
            "NIC 0 has no static address: NIC_0_IP is missing",
        ),
        (
            "routed",
            vec![Nic { mode: NicMode::Routed, ..nic(0) }],
            Mode::Static,
            "NIC 0 has no static address: NIC_0_IP is missing",
        ),
        (
            "",
            vec![networked(0, Some("192.0.2.7"))],
            Mode::Auto,
            "NIC_0_IP is 192.0.2.7; expected an address in NIC_0_NETWORK_SUBNET, 198.51.100.0/24",
        ),
        (
            "",
            vec![networked(0, Some("2001:db8:2::7"))],
            Mode::Auto,
            "NIC_0_IP is 2001:db8:2::7; expected an address in NIC_0_NETWORK_SUBNET6, 2001:db8:1::/64",
        ),
        (
            "",
            vec![gateway("192.0.2.1")],
            Mode::Auto,
            "NIC_0_NETWORK_GATEWAY is 192.0.2.1; expected an address in NIC_0_NETWORK_SUBNET, 198.51.100.0/24",
        ),
        (
            "",
            vec![gateway("198.51.100.2")],
            Mode::Auto,
            "NIC_0_NETWORK_GATEWAY is 198.51.100.2, the address of the NIC itself",
        ),
        (
            "",
            vec![gateway6("2001:db8:2::1")],
            Mode::Auto,
            "NIC_0_NETWORK_GATEWAY6 is 2001:db8:2::1; expected an address in NIC_0_NETWORK_SUBNET6, 2001:db8:1::/64",
        ),
        (
            "",
            vec![nic(0), Nic { mac: nic(0).mac, ..nic(1) }],
            Mode::Dhcp,
            "NIC_1_MAC is aa:00:00:00:00:00, which is that of NIC 0 too",
        ),
        (
            "all in one answer",
            vec![nic(0), networked(1, Some("192.0.2.7"))],
            Mode::Static,
            "NIC 0 has no static address: NIC_0_IP is missing\n  NIC_1_IP is 192.0.2.7; expected an address in NIC_1_NETWORK_SUBNET, 198.51.100.0/24\n  NIC_1_NETWORK_GATEWAY",
        ),
    ];
    for (what, nics, mode, expected) in table {
        let told = refused(nics, *mode);
        assert!(told.starts_with(expected), "{what}\n{told}\n{expected}");
    }
}

#[test]
fn data_that_nobody_uses_stop_nothing() {
    let wrong = [networked(0, Some("192.0.2.7"))];
    assert_eq!(decided(&wrong, Mode::Dhcp), ["0: DHCP, IPv6 as advertised"]);
    assert!(decided(&wrong, Mode::Manual).is_empty());
}

/// A static NIC, a routed one with a gateway of its own, one by DHCP, and one that is routed and without a gateway.
fn several() -> Network {
    let routed_in_network = Nic {
        ip: "203.0.113.7".parse().ok(),
        mode: NicMode::Routed,
        gateway: "203.0.113.1".parse().ok(),
        subnet6: None,
        ..networked(0, None)
    };
    let nics = [routed_in_network, networked(1, Some("198.51.100.2")), nic(2)];
    decide(&nics, Mode::Auto, "kvm").unwrap()
}

fn only(nic: Nic) -> Network {
    decide(&[nic], Mode::Auto, "kvm").unwrap()
}

fn resolver() -> Resolver {
    Resolver {
        servers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        search: Some("example.com".into()),
    }
}

fn silent() -> Resolver {
    Resolver { servers: Vec::new(), search: None }
}

fn compare(name: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guest/network/expected").join(name);
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}");
}

#[test]
fn ifupdown_gets_stanzas_and_names() {
    compare("interfaces-several", &ifupdown::stanzas(&several(), Names::Links, &resolver()));
    compare("interfaces-dhcp", &ifupdown::stanzas(&only(nic(0)), Names::Kernel, &silent()));
    compare(
        "interfaces-device",
        &ifupdown::stanzas(&only(routed(0, "203.0.113.7")), Names::Links, &silent()),
    );
    compare(
        "interfaces-device6",
        &ifupdown::stanzas(&only(routed(0, "2001:db8::7")), Names::Links, &silent()),
    );
    compare("link", &ifupdown::link(&several().interfaces[1]));
}

#[test]
fn networkd_gets_a_file_for_each_nic() {
    for interface in &several().interfaces {
        compare(&format!("networkd-{}", interface.index), &networkd::file(interface, &resolver(), true));
    }
    compare("networkd-dhcp", &networkd::file(&only(nic(0)).interfaces[0], &silent(), false));
    compare(
        "networkd-device",
        &networkd::file(&only(routed(0, "203.0.113.7")).interfaces[0], &silent(), true),
    );
    compare(
        "networkd-device6",
        &networkd::file(&only(routed(0, "2001:db8::7")).interfaces[0], &silent(), true),
    );
}

#[test]
fn netplan_gets_one_file() {
    compare("netplan-several", &netplan::file(&several(), &resolver()));
    compare("netplan-device", &netplan::file(&only(routed(0, "203.0.113.7")), &silent()));
    compare("netplan-device6", &netplan::file(&only(routed(0, "2001:db8::7")), &silent()));
}

#[test]
fn an_image_takes_whatever_nic_there_is() {
    let network = any_nic(Mode::Auto).unwrap();
    let resolver = Resolver { servers: vec![], search: None };
    assert!(ifupdown::stanzas(&network, Names::Links, &resolver).contains("iface nic0 inet dhcp\n"));
    assert!(ifupdown::link(&network.interfaces[0]).contains("[Match]\nType=ether\n"));
    assert!(networkd::file(&network.interfaces[0], &resolver, false).contains("DHCP=ipv4\n"));
    assert!(netplan::file(&network, &resolver).contains("match:\n        name: \"e*\"\n"));
    assert!(any_nic(Mode::Manual).unwrap().interfaces.is_empty());
    assert!(any_nic(Mode::Static).is_err());
}

#[test]
fn a_file_of_ours_is_known_by_its_start_however_large_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("etc/systemd/network");
    std::fs::create_dir_all(&files).unwrap();
    for (name, start) in [("10-ganeti-nic0.link", HEADER), ("10-ganeti-nic1.link", "# mine\n")] {
        std::fs::write(files.join(name), start).unwrap();
        std::fs::File::options().write(true).open(files.join(name)).unwrap().set_len(1 << 40).unwrap();
    }
    std::fs::write(files.join("10-ganeti-nic2.link"), &HEADER[..HEADER.len() - 1]).unwrap();
    let Found { ours, theirs } = Found::in_tree(&RootDir::open(dir.path()).unwrap()).unwrap();
    assert_eq!(ours, ["etc/systemd/network/10-ganeti-nic0.link"]);
    assert_eq!(theirs.len(), 2, "{theirs:?}");
}
