//! The guest's network, access and timezone: what is written is judged by the programs that read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{GIB, Mounted, Node, SUITE, digest, log_of, root_offset, shared_cache, text, tool};
use ganeti_instance_debootstrap::debian::node_arch;

const DISK_BYTES: u64 = 2 * GIB;
const HEADER: &str = "# written by ganeti-instance-debootstrap\n";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmAp9hKsBInMOVUYgvtKSzVEXumn7A0aztcBBK62iZy admin@example.org";
/// Of "correct horse".
const HASH: &str = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$zwtVrjrUCmXcyLTs6oxLTQlzifSUkF8RHJ./tK5KU79";

/// The recorded instance with three NICs: one in a network of both families, one routed, one plain.
fn three_nics(node: &Node, disk: &Path) -> BTreeMap<String, String> {
    let mut env = node.recorded("create-full", disk);
    for n in 1..env["DISK_COUNT"].parse().unwrap() {
        let other = node.disk(&format!("other.{n}"), 1 << 20);
        env.insert(format!("DISK_{n}_PATH"), other.display().to_string());
    }
    env.insert("OSP_DNS".into(), "192.0.2.53".into());
    env
}

/// A tree made by hand: the shared one without some paths, and with files besides.
fn hand_made_tree(node: &Node, without: &[&str], with: &[(&str, &str)]) {
    let shared = fs::read_dir(shared_cache()).unwrap().flatten().map(|entry| entry.path());
    let tar = shared.into_iter().find(|path| path.extension().is_some_and(|e| e == "tar")).unwrap();
    let added = node.path().join("added");
    for (path, content) in with {
        let path = added.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let mut command = Command::new("bsdtar");
    command.arg("-cf").arg(node.cache().join(format!("cache-{SUITE}-{}.tar", node_arch())));
    command.args(without.iter().map(|path| format!("--exclude=./{path}")));
    command.arg(format!("@{}", tar.display()));
    if !with.is_empty() {
        command.arg("-C").arg(&added).args(with.iter().map(|(path, _)| format!("./{path}")));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
}

fn writable(disk: &Path) -> Mounted {
    Mounted::with(disk, &format!("loop,offset={}", root_offset(disk)))
}

/// Runs a script in namespaces of its own with three NICs whose other ends are up; `$1` is the guest's root, where
/// /proc, /sys and /run are mounted. Returns what it printed.
fn with_nics(root: &Mounted, env: &BTreeMap<String, String>, names: [&str; 3], script: &str) -> String {
    let mut all = String::from(
        "set -e\nmount -t proc proc $1/proc\nmount -o ro -t sysfs sys $1/sys\nmount -t tmpfs run $1/run\nip link set lo up\n",
    );
    for (n, name) in names.into_iter().enumerate() {
        let mac = &env[&format!("NIC_{n}_MAC")];
        all +=
            &format!("ip link add {name} address {mac} type veth peer name far{n}\nip link set far{n} up\n");
    }
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "timeout", "120", "/bin/sh", "-c"])
        .arg(all + script)
        .arg("sh")
        .arg(root.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    log_of(&output)
}

/// Wants the addresses and routes of the recorded instance; `nic` names the NIC of an index.
fn assert_addresses(shown: &str, nic: impl Fn(usize) -> String) {
    let line = |start: String| {
        let found = shown.lines().find(|line| line.starts_with(&start));
        found.unwrap_or_else(|| panic!("{start}\n{shown}")).to_owned()
    };
    let address = |n: usize| {
        let line = line(format!("{}@", nic(n)));
        line.split_ascii_whitespace().skip(2).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        address(0),
        words(&["198.51.100.2/24", "2001:db8:1:0:a800:1ff:fed8:a35b/64", "fe80::a800:1ff:fed8:a35b/64"])
    );
    assert_eq!(address(1), words(&["203.0.113.7/32", "fe80::a800:ff:fe35:e890/64"]));
    let routes: Vec<&str> = shown.lines().filter(|line| line.starts_with("default ")).collect();
    let first = nic(0);
    for via in ["198.51.100.1", "2001:db8:1::1"] {
        let to_it = routes.iter().filter(|r| r.starts_with(&format!("default via {via} dev {first} ")));
        assert_eq!(to_it.count(), 1, "{via}\n{shown}");
    }
    assert!(routes.iter().all(|route| !route.contains(&format!("dev {} ", nic(1)))), "{shown}");
}

#[test]
fn ifupdown_brings_up_what_ganeti_says() {
    let node = Node::debian();
    let disk = node.disk("d", DISK_BYTES);
    let env = three_nics(&node, &disk);
    let plan = log_of(&node.verb("create", &env).arg("--dry-run").output().unwrap());
    for line in [
        "network     auto\n",
        "            NIC 0 aa:00:01:d8:a3:5b  198.51.100.2/24 via 198.51.100.1, \
         2001:db8:1:0:a800:1ff:fed8:a35b/64 via 2001:db8:1::1\n",
        "            NIC 1 aa:00:00:35:e8:90  203.0.113.7/32, IPv6 as advertised\n",
        "            NIC 2 aa:00:00:11:22:33  DHCP, IPv6 as advertised\n",
        "access      root with an empty password, on the console only\n",
    ] {
        assert!(plan.contains(line), "{line}\n{plan}");
    }
    node.create(&env);
    let root = writable(&disk);
    assert!(root.read("etc/network/interfaces").contains("source /etc/network/interfaces.d/*\n"));
    for file in ["etc/network/interfaces.d/ganeti", "etc/systemd/network/10-ganeti-nic0.link"] {
        assert!(root.read(file).starts_with(HEADER), "{file}");
        assert_eq!(root.mode(file), 0o644, "{file}");
    }
    assert!(root.read("etc/resolv.conf.head").contains("nameserver 192.0.2.53\n"));

    // udev's own opinion of the names, and that another device with the same MAC keeps its own.
    let named = with_nics(
        &root,
        &env,
        ["eth0", "eth2", "eth1"],
        "ip link add br0 address aa:00:00:35:e8:90 type bridge
         for name in eth0 eth1 eth2 br0; do chroot $1 udevadm test-builtin net_setup_link /sys/class/net/$name; done",
    );
    let names: Vec<&str> = named.lines().filter_map(|line| line.strip_prefix("ID_NET_NAME=")).collect();
    assert_eq!(names, ["nic0", "nic2", "nic1", "br0"], "{named}");

    let shown = with_nics(
        &root,
        &env,
        ["nic0", "nic1", "nic2"],
        "chroot $1 /usr/sbin/ifup -a
         chroot $1 /usr/sbin/ifquery --list --allow=hotplug
         # No server answers: it must neither fail nor take a route away.
         chroot $1 /usr/sbin/ifup --allow=hotplug nic2
         ip -br addr show; ip route; ip -6 route; cat $1/etc/resolv.conf
         chroot $1 /usr/sbin/ifdown -a 2>/dev/null; chroot $1 /usr/sbin/ifup -a",
    );
    assert_addresses(&shown, |n| format!("nic{n}"));
    assert!(shown.lines().any(|line| line == "nic2"), "udev starts it: {shown}");
    assert!(shown.contains("nameserver 192.0.2.53\n"), "{shown}");
    drop(root);
    node.assert_nothing_left();
}

#[test]
fn networkd_brings_up_what_ganeti_says_where_ifupdown_is_absent() {
    let node = Node::debian();
    hand_made_tree(&node, &["usr/sbin/ifup"], &[]);
    let disk = node.disk("d", DISK_BYTES);
    let mut env = three_nics(&node, &disk);
    node.create(&env);
    let root = writable(&disk);
    for n in 0..3 {
        let file = format!("etc/systemd/network/50-ganeti-nic{n}.network");
        assert!(root.read(&file).starts_with(HEADER) && root.mode(&file) == 0o644, "{file}");
    }
    assert!(!root.path().join("etc/network/interfaces.d/ganeti").exists());

    // The links are those that systemctl makes.
    let ours = unit_links(&root);
    let enable =
        |what: &str| tool("chroot", &[root.path().to_str().unwrap(), "systemctl", what, "systemd-networkd"]);
    enable("disable");
    assert_ne!(unit_links(&root), ours);
    enable("enable");
    assert_eq!(unit_links(&root), ours);

    fs::write(root.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let networkd = "
         mkdir -p $1/run/systemd/netif; chown -R --reference=$1/run/systemd/netif $1/run/systemd
         chroot $1 chown -R systemd-network: /run/systemd/netif
         ip link add br0 address aa:00:00:35:e8:90 type bridge
         chroot $1 /usr/lib/systemd/systemd-networkd & sleep 1
         chroot $1 /usr/lib/systemd/systemd-networkd-wait-online --timeout=30
         sleep 3; ip -br addr show; ip route; ip -6 route";
    let shown = with_nics(&root, &env, ["ens1", "ens2", "ens3"], networkd);
    assert_addresses(&shown, |n| format!("ens{}", n + 1));
    assert!(shown.contains("br0 ") && !shown.contains("br0: Configuring"), "{shown}");
    drop(root);

    // Where there is only DHCP, nobody waits for ever.
    env.insert("OSP_NETWORK".into(), "dhcp".into());
    node.create(&env);
    let root = Mounted::at(&disk, root_offset(&disk));
    let patience = root.read("etc/systemd/system/systemd-networkd-wait-online.service.d/ganeti.conf");
    assert!(
        patience.contains("ExecStart=-/usr/lib/systemd/systemd-networkd-wait-online --any"),
        "{patience}"
    );
    assert!(root.read("etc/systemd/network/50-ganeti-nic0.network").contains("DHCP=ipv4\n"));
    drop(root);
    node.assert_nothing_left();
}

/// Links to units below /etc/systemd/system and where they lead.
fn unit_links(root: &Mounted) -> BTreeSet<(PathBuf, PathBuf)> {
    let links = walkdir::WalkDir::new(root.path().join("etc/systemd/system")).into_iter().flatten();
    let links = links.filter(|entry| entry.path_is_symlink());
    links.map(|entry| (entry.path().to_owned(), fs::read_link(entry.path()).unwrap())).collect()
}

/// What netplan's generator makes of its file for so many NICs.
fn generate(root: &Mounted, count: usize) -> Vec<String> {
    let output = Command::new("netplan").args(["generate", "--root-dir"]).arg(root.path()).output();
    let output = output.expect("the package netplan.io");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", log_of(&output));
    (0..count).map(|n| root.read(&format!("run/systemd/network/10-netplan-nic{n}.network"))).collect()
}

#[test]
fn netplan_understands_what_it_gets() {
    let node = Node::debian();
    let stale = format!("{HEADER}[Link]\nName=other\n");
    let with = [
        ("usr/sbin/netplan", ""),
        ("etc/systemd/network/10-ganeti-nic7.link", stale.as_str()),
        ("etc/systemd/network/50-ganeti-nicer.network", "[Match]\nName=mine\n"),
    ];
    hand_made_tree(&node, &[], &with);
    let disk = node.disk("d", DISK_BYTES);
    let mut env = three_nics(&node, &disk);
    node.create(&env);
    let root = writable(&disk);
    assert_eq!(root.mode("etc/netplan/50-ganeti.yaml"), 0o600);
    assert!(root.read("etc/netplan/50-ganeti.yaml").starts_with(HEADER));
    let files: Vec<String> = generate(&root, 3);
    for (n, line) in [
        (0, "MACAddress=aa:00:01:d8:a3:5b\n"),
        (0, "\nAddress=198.51.100.2/24\n"),
        (0, "\nAddress=2001:db8:1:0:a800:1ff:fed8:a35b/64\n"),
        (0, "\nIPv6AcceptRA=no\n"),
        (0, "\nGateway=198.51.100.1\n"),
        (0, "\nGateway=2001:db8:1::1\n"),
        (0, "\nDNS=192.0.2.53\n"),
        (0, "\nDomains=example.com\n"),
        (1, "\nAddress=203.0.113.7/32\n"),
        (2, "\nDHCP=ipv4\n"),
        (2, "\nRequiredForOnline=no\n"),
    ] {
        assert!(files[n].contains(line), "{line}{}", files[n]);
    }
    assert!(!files[1].contains("[Route]"), "{}", files[1]);
    // What another guest's create had left in the tree is gone, what somebody else wrote is not.
    assert!(!root.path().join("etc/systemd/network/10-ganeti-nic7.link").exists());
    assert!(root.path().join("etc/systemd/network/50-ganeti-nicer.network").exists());
    assert!(!root.path().join("etc/network/interfaces.d/ganeti").exists());
    drop(root);

    // A routed NIC alone, without a gateway and with one.
    env.insert("NIC_COUNT".into(), "1".into());
    env.insert("NIC_0_MODE".into(), "routed".into());
    env.insert("OSP_NETWORK".into(), "static".into());
    node.create(&env);
    let root = writable(&disk);
    let file = &generate(&root, 1)[0];
    assert!(
        file.contains("\nAddress=198.51.100.2/32\n") && file.contains("\nGatewayOnLink=true\n"),
        "{file}"
    );
    drop(root);
    node.assert_nothing_left();
}

#[test]
fn what_cannot_work_leaves_the_disk_untouched() {
    let node = Node::debian();
    let disk = node.disk("d", DISK_BYTES / 4);
    fs::OpenOptions::new().write(true).open(&disk).unwrap().write_all(b"somebody's data").unwrap();
    let table: &[(&str, &str, &[&str])] = &[
        (
            "OSP_NETWORK",
            "static",
            &[
                "NIC 2 has no static address: NIC_2_IP is missing\n",
                "hint: network is static (from the OS parameter network); correct the NIC",
            ],
        ),
        (
            "NIC_0_IP",
            "192.0.2.9",
            &["NIC_0_IP is 192.0.2.9; expected an address in NIC_0_NETWORK_SUBNET, 198.51.100.0/24\n"],
        ),
        ("NIC_0_NETWORK_GATEWAY", "198.51.101.1", &["NIC_0_NETWORK_GATEWAY is 198.51.101.1; expected"]),
        ("NIC_1_MAC", "aa:00:01:d8:a3:5b", &["NIC_1_MAC is aa:00:01:d8:a3:5b, which is that of NIC 0 too"]),
        ("NIC_1_MAC", "auto", &["NIC_1_MAC is \"auto\"; expected a MAC address"]),
        (
            "NIC_0_NETWORK_SUBNET",
            "198.51.100.0",
            &["NIC_0_NETWORK_SUBNET is \"198.51.100.0\"; expected a subnet"],
        ),
        (
            "OSP_NETWORK",
            "none",
            &["network is \"none\"; expected \"auto\", \"dhcp\", \"static\" or \"manual\""],
        ),
        ("OSP_TIMEZONE", "../UTC", &["timezone is \"../UTC\"; expected a timezone like \"Europe/Berlin\""]),
        (
            "OSP_SSH_KEYS",
            "secretword",
            &["ssh_keys is not right; expected OpenSSH public keys", "number 1 does not"],
        ),
        (
            "OSP_PASSWORD_HASH",
            "secretword",
            &[
                "password_hash is not right; expected a whole hash of crypt(3)",
                "set in the OS parameter password_hash",
            ],
        ),
    ];
    let before = digest(&disk);
    for (name, value, told) in table {
        let mut env = three_nics(&node, &disk);
        env.insert("OSP_PARTITION_STYLE".into(), "none".into());
        env.insert((*name).into(), (*value).into());
        let output = node.verb("create", &env).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{name}={value}\n{log}");
        for text in *told {
            assert!(log.contains(text), "{name}={value}: {text}\n{log}");
        }
        assert!(!log.contains("secretword"), "{log}");
        assert_eq!(digest(&disk), before, "{name}={value}");
    }
    // Ganeti's check of parameters knows no NIC: there the word alone is judged.
    let mut env = node.recorded("verify-full", Path::new("/none"));
    for (network, right) in [("static", true), ("sttic", false)] {
        env.insert("OSP_NETWORK".into(), network.into());
        assert_eq!(node.verb("verify", &env).output().unwrap().status.success(), right, "{network}");
    }
    node.assert_nothing_left();
}

#[test]
fn with_the_predecessors_defaults_hooks_do_the_network() {
    let node = Node::debian();
    node.config("defaults = \"0.17\"\n");
    let disk = node.disk("d", DISK_BYTES);
    node.create(&three_nics(&node, &disk));
    let root = Mounted::at(&disk, root_offset(&disk));
    assert!(root.read("etc/network/interfaces").ends_with("\nauto lo\niface lo inet loopback\n"));
    for dir in ["etc/network/interfaces.d", "etc/systemd/network"] {
        assert_eq!(fs::read_dir(root.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
    drop(root);
    node.assert_nothing_left();
}

fn root_field(root: &Mounted) -> String {
    let shadow = root.read("etc/shadow");
    let line = shadow.lines().find_map(|line| line.strip_prefix("root:")).unwrap();
    line.split(':').next().unwrap().to_owned()
}

#[test]
fn root_gets_in_by_keys_and_by_a_password_that_nobody_is_shown() {
    let node = Node::debian();
    let disk = node.disk("d", DISK_BYTES);
    node.hook("secret", "#!/bin/sh\n[ -z \"$OSP_PASSWORD_HASH\" ] || echo there > $TARGET/root/hook\n");
    let table = [
        (Some(KEY), None, "*", "1 SSH key, no password"),
        (None, Some(HASH), HASH, "root's password by its hash"),
        (Some(KEY), Some(HASH), HASH, "1 SSH key, root's password by its hash"),
        (None, None, "", "root with an empty password, on the console only"),
    ];
    for (keys, hash, field, planned) in table {
        let mut env = node.recorded("create", &disk);
        env.insert("DEBUG_LEVEL".into(), "1".into());
        env.extend(keys.map(|keys| ("OSP_SSH_KEYS".into(), keys.into())));
        env.extend(hash.map(|hash| ("OSP_PASSWORD_HASH".into(), hash.into())));
        let plan = log_of(&node.verb("create", &env).arg("--dry-run").output().unwrap());
        assert!(plan.contains(&format!("access      {planned}\n")), "{plan}");
        let log = node.create(&env);
        assert!(!log.contains(&HASH[3..]) && !plan.contains(&HASH[3..]), "{log}");
        let root = Mounted::at(&disk, root_offset(&disk));
        assert_eq!(root_field(&root), field);
        assert_eq!(root.path().join("root/hook").exists(), hash.is_some(), "hooks see what Ganeti gave");
        let file = root.path().join("root/.ssh/authorized_keys");
        assert_eq!(file.exists(), keys.is_some());
        if keys.is_some() {
            assert_eq!(root.read("root/.ssh/authorized_keys"), format!("{KEY}\n"));
            assert_eq!((root.mode("root/.ssh"), root.mode("root/.ssh/authorized_keys")), (0o700, 0o600));
            assert!(log.contains("warning: ssh_keys is set and the guest has no sshd"), "{log}");
        }
        for entry in walkdir::WalkDir::new(root.path().join("etc/ssh")).into_iter().flatten() {
            let is_file = entry.file_type().is_file();
            let words = if is_file { text(&fs::read(entry.path()).unwrap()) } else { String::new() };
            assert!(!words.lines().any(|line| line.starts_with("PermitEmptyPasswords yes")), "{entry:?}");
        }
    }
    node.assert_nothing_left();
}

#[test]
fn settings_show_that_there_is_a_hash_and_not_which() {
    let node = Node::bare();
    node.config(&format!("password_hash = \"{HASH}\"\nssh_keys = [\"{KEY}\"]\n"));
    for args in [
        &["config", "show"][..],
        &["config", "show", "--origin"],
        &["config", "show", "--json"],
        &["config", "check"],
    ] {
        let output = node.command(args).output().unwrap();
        let answer = log_of(&output);
        assert!(output.status.success() && !answer.contains(&HASH[3..]), "{answer}");
        assert!(args[1] == "check" || answer.contains("\"(set)\""), "{answer}");
        assert!(args[1] == "check" || answer.contains(KEY), "{answer}");
    }
    for wrong in ["password_hash = \"$6$secretword\"\n", "password_hash = [\"$6$secretword\"]\n"] {
        node.config(wrong);
        let answer = log_of(&node.command(&["config", "check"]).output().unwrap());
        assert!(answer.contains("config.toml:1") && answer.contains("password_hash"), "{answer}");
        assert!(!answer.contains("secretword"), "{answer}");
    }
}

#[test]
fn the_guest_lives_in_its_timezone() {
    let node = Node::debian();
    let disk = node.disk("d", DISK_BYTES);
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_TIMEZONE".into(), "Europe/Berlin".into());
    node.create(&env);
    let root = Mounted::at(&disk, root_offset(&disk));
    let date = ["chroot", root.path().to_str().unwrap(), "date", "-d", "@1750000000", "+%Z"];
    assert_eq!(tool(date[0], &date[1..]), "CEST\n");
    assert_eq!(root.read("etc/timezone"), "Europe/Berlin\n");
    drop(root);
    for absent in ["Europe/Atlantis", "Europe", "leapseconds"] {
        env.insert("OSP_TIMEZONE".into(), absent.into());
        let output = node.verb("create", &env).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1));
        let fact = format!("no timezone \"{absent}\": /usr/share/zoneinfo/{absent} is missing or no zone\n");
        assert!(log.contains(&fact) && log.contains("\nhint: correct timezone"), "{log}");
    }
    node.assert_nothing_left();
}
