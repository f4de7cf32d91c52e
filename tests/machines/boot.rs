//! Disks that boot, in QEMU: to a login on the serial line, with every unit up; and what the guest's own tools do to
//! them afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::backup::{export, imported};
use crate::common::guest::{Firmware, Guest};
use crate::common::{GIB, Mounted, Node, log_of, partition_offset, read_data, root_offset, text, tool};

/// A network card on QEMU's own network, which has a DHCP server and a way out.
const USER_NIC: [&str; 2] = ["-nic", "user,model=virtio-net-pci,mac=aa:00:00:00:00:01"];

fn bootable_disk(node: &Node, name: &str, params: &[(&str, &str)]) -> PathBuf {
    let disk = node.disk(name, 3 * GIB);
    node.create(&node.kvm(&disk, params));
    disk
}

/// Boots a disk to a shell, with every unit up.
fn boot(firmware: Firmware, disk: &Path, options: &[&str]) -> Guest {
    let mut guest = Guest::boot(firmware, disk, &[&USER_NIC, options].concat());
    guest.login(None);
    guest.assert_running();
    guest
}

/// Three NICs as Ganeti describes them: static with both families and gateways, routed, and one for DHCP.
fn three_nics(env: &mut BTreeMap<String, String>) {
    for (name, value) in [
        ("NIC_COUNT", "3"),
        ("NIC_0_MAC", "aa:00:00:00:00:10"),
        ("NIC_0_IP", "198.51.100.2"),
        ("NIC_0_NETWORK_SUBNET", "198.51.100.0/24"),
        ("NIC_0_NETWORK_GATEWAY", "198.51.100.1"),
        ("NIC_0_NETWORK_SUBNET6", "2001:db8:1::/64"),
        ("NIC_0_NETWORK_GATEWAY6", "2001:db8:1::1"),
        ("NIC_1_MAC", "aa:00:00:00:00:11"),
        ("NIC_1_IP", "203.0.113.7"),
        ("NIC_1_MODE", "routed"),
        ("NIC_1_LINK", "100"),
        ("NIC_2_MAC", "aa:00:00:00:00:12"),
        ("NIC_2_MODE", "bridged"),
        ("NIC_2_LINK", "br0"),
    ] {
        env.insert(name.into(), value.into());
    }
}

/// QEMU's cards for [`three_nics`]; ssh on the third is a port of this machine.
fn cards(ssh_port: u16, reversed: bool) -> Vec<String> {
    let mut cards = vec![
        "user,model=virtio-net-pci,restrict=on,mac=aa:00:00:00:00:10".to_owned(),
        "user,model=virtio-net-pci,restrict=on,mac=aa:00:00:00:00:11".to_owned(),
        format!("user,model=virtio-net-pci,mac=aa:00:00:00:00:12,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"),
    ];
    if reversed {
        cards.reverse();
    }
    cards.into_iter().flat_map(|card| ["-nic".to_owned(), card]).collect()
}

/// What the guest's own tools say of the NICs, whatever the order of the devices is.
fn assert_network(guest: &mut Guest) {
    // A DHCP client goes to the background with its first address, which may be that of the other family.
    let mut address = |mac: &str, what: &str| {
        guest.run(&format!(
            "i=0; until ip -o addr show dev $(ip -br link | awk '/{mac}/ {{print $1}}') | grep -c ' {what} ' \
               || [ $((i += 1)) = 60 ]; do sleep 1; done | tail -n 1"
        ))
    };
    for (mac, what) in [
        ("aa:00:00:00:00:10", "198.51.100.2.24"),
        ("aa:00:00:00:00:10", "2001:db8:1:0:a800:ff:fe00:10.64"),
        ("aa:00:00:00:00:11", "203.0.113.7.32"),
        ("aa:00:00:00:00:12", "10.0.2.15.24"),
    ] {
        assert_eq!(address(mac, what), "1", "{mac} {what}");
    }
    assert!(guest.run("ip route show default").starts_with("default via 198.51.100.1 "));
    let route6 = guest.run("ip -6 route show default");
    assert!(route6.lines().next().unwrap().starts_with("default via 2001:db8:1::1 "), "{route6}");
    let resolver = guest.run("cat /etc/resolv.conf");
    assert!(resolver.contains("search example.com") || resolver.contains("nameserver"), "{resolver}");
}

/// A port of this machine that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs a command in a guest by ssh, from this machine.
fn ssh(port: u16, options: &[&str], command: &str) -> Output {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    ssh.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "-p", &port.to_string()]);
    ssh.args(options).args(["root@127.0.0.1", command]).output().unwrap()
}

/// `openssl passwd -6 -salt salt secret`
const HASH_OF_SECRET: &str =
    "$6$salt$egUxKNxDs8kPfh8iPMNcosMhb2eWah6d3R44JDm5Rj/j/XWR5E33QPd0YmHXoDHOIDR6kL5D3JcQcz0O8FHE00";

#[test]
fn a_gpt_disk_boots_under_bios_with_its_network_and_its_owner_gets_in() {
    a_gpt_disk_boots(&[(Firmware::SeaBios, false)]);
}

/// One disk, under both.
#[test]
#[ignore = "run by make test-full"]
fn a_gpt_disk_boots_under_bios_and_under_uefi_with_its_network_and_its_owner_gets_in() {
    a_gpt_disk_boots(&[(Firmware::SeaBios, false), (Firmware::Ovmf, true)]);
}

/// With its network cards in the order of Ganeti's NICs, or in the reverse one.
fn a_gpt_disk_boots(under: &[(Firmware, bool)]) {
    let node = Node::bootable("trixie");
    let key = node.path().join("key");
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", key.to_str().unwrap()]);
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let params = [
        ("suite", "trixie"),
        ("swap", "256M"),
        ("timezone", "Europe/Berlin"),
        ("ssh_keys", public.trim()),
        ("password_hash", HASH_OF_SECRET),
    ];
    let disk = node.disk("d", 3 * GIB);
    let mut env = node.kvm(&disk, &params);
    three_nics(&mut env);
    let log = node.create(&env);
    for (firmware, reversed) in under.iter().copied() {
        let port = free_port();
        let cards = cards(port, reversed);
        let mut guest = Guest::boot(firmware, &disk, &cards.iter().map(String::as_str).collect::<Vec<_>>());
        guest.login(Some("secret"));
        guest.assert_running();
        let efi = guest.run("[ -d /sys/firmware/efi ] && echo efi || echo bios");
        assert_eq!(efi, if firmware == Firmware::SeaBios { "bios" } else { "efi" });
        assert_eq!(guest.run("findmnt -no SOURCE,FSTYPE /"), "/dev/vda1 ext4");
        assert_eq!(guest.run("findmnt -no SOURCE /boot/efi"), "/dev/vda15");
        assert_eq!(guest.run("swapon --noheadings --show=NAME,SIZE"), "/dev/vda2 256M");
        assert!(guest.run("cat /proc/cmdline").contains("console=ttyS0,115200n8"));
        let id = guest.run("cat /etc/machine-id");
        assert_eq!((id.len(), guest.run("cat /var/lib/dbus/machine-id")), (32, id));
        assert_eq!(guest.run("date +%Z -d 2026-07-01"), "CEST");
        assert_network(&mut guest);
        let by_key = ssh(port, &["-i", key.to_str().unwrap()], "cat /etc/ssh/ssh_host_ed25519_key.pub");
        assert!(by_key.status.success(), "{}", log_of(&by_key));
        fs::write(node.path().join("host.pub"), &by_key.stdout).unwrap();
        let shown = tool("ssh-keygen", &["-lf", node.path().join("host.pub").to_str().unwrap()]);
        assert!(log.contains(shown.split(' ').nth(1).unwrap()), "the log names {shown}:\n{log}");
        guest.power_off();
    }
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn secure_boot_starts_a_trixie_disk() {
    let node = Node::bootable("trixie");
    let disk = bootable_disk(&node, "d", &[("suite", "trixie"), ("boot", "uefi")]);
    let mut guest = boot(Firmware::SecureBoot, &disk, &[]);
    assert!(guest.run("dmesg").contains("Secure boot enabled"));
    // The empty password is the console's alone.
    let none =
        "ssh -o StrictHostKeyChecking=no -o BatchMode=yes -o PreferredAuthentications=none localhost true";
    assert_eq!(guest.try_run(none).0, 255);
    assert!(guest.run("sshd -T").contains("\npermitemptypasswords no"));
    // BIOS was not asked for.
    let mut code = [0; 440];
    fs::File::open(&disk).unwrap().read_exact_at(&mut code, 0).unwrap();
    assert_eq!(code, [0; 440]);
}

/// What an administrator does in the life of a guest, and then it still boots.
fn live_on(disk: &Path, firmware: Firmware, install: &str) {
    let drive = format!("file={},format=raw,if=virtio", disk.display());
    let options = [&["-drive", drive.as_str()], &USER_NIC[..]].concat();
    let mut guest = Guest::start(firmware, &options);
    guest.login(None);
    guest.assert_running();
    for command in [
        "apt-get -q -o APT::Update::Error-Mode=any update",
        "update-grub",
        install,
        "kernel=$(dpkg -S /boot/vmlinuz-$(uname -r) | cut -d: -f1) && \
         DEBIAN_FRONTEND=noninteractive apt-get -q -y --reinstall install $kernel",
    ] {
        guest.run(command);
    }
    guest.power_off();
    boot(firmware, disk, &[]).power_off();
}

#[test]
#[ignore = "run by make test-full"]
fn a_guest_that_updates_its_kernel_and_loader_still_boots() {
    let node = Node::bootable("trixie");
    let disk = bootable_disk(&node, "bios", &[("suite", "trixie")]);
    live_on(&disk, Firmware::SeaBios, "grub-install /dev/vda");
    let disk = bootable_disk(&node, "uefi", &[("suite", "trixie")]);
    live_on(&disk, Firmware::Ovmf, "grub-install --target=x86_64-efi --removable --no-nvram");
}

#[test]
#[ignore = "run by make test-full"]
fn an_msdos_disk_boots_under_bios_and_by_an_external_kernel() {
    let node = Node::bootable("trixie");
    let params = [("suite", "trixie"), ("partition_style", "msdos"), ("swap", "256M")];
    let disk = bootable_disk(&node, "d", &params);
    let mut guest = boot(Firmware::SeaBios, &disk, &[]);
    assert_eq!(guest.run("findmnt -no SOURCE /"), "/dev/vda1");
    assert_eq!(guest.run("swapon --noheadings --show=NAME"), "/dev/vda2");
    drop(guest);
    live_on(&disk, Firmware::SeaBios, "grub-install /dev/vda");
    let kernel = kernel_of(&node, &disk);
    let mut guest = boot(Firmware::SeaBios, &disk, &kernel.options("/dev/vda1"));
    assert_eq!(guest.run("findmnt -no SOURCE /"), "/dev/vda1");
}

#[test]
#[ignore = "run by make test-full"]
fn disks_without_a_loader_boot_by_an_external_kernel() {
    let node = Node::bootable("trixie");
    let kernel = kernel_of(&node, &bootable_disk(&node, "k", &[("suite", "trixie")]));
    let params = [("suite", "trixie"), ("partition_style", "none"), ("swap", "128M")];
    let disk = bootable_disk(&node, "d", &params);
    let mut guest = boot(Firmware::SeaBios, &disk, &kernel.options("/dev/vda"));
    assert_eq!(guest.run("findmnt -no SOURCE /"), "/dev/vda");
    assert_eq!(guest.run("swapon --noheadings --show=NAME,SIZE"), "/swapfile 128M");
    drop(guest);
    // With a table and boot = "no": the EFI system partition is empty, and nobody wants to mount it.
    let disk = bootable_disk(&node, "gpt", &[("suite", "trixie"), ("boot", "no")]);
    let mut guest = boot(Firmware::SeaBios, &disk, &kernel.options("/dev/vda1"));
    assert_eq!(guest.run("findmnt -no SOURCE /"), "/dev/vda1");
}

/// A guest without ifupdown: its tree is made by hand of the cached one.
#[test]
#[ignore = "run by make test-full"]
fn networkd_sets_the_same_network_up() {
    let node = Node::bootable("trixie");
    let cached =
        fs::read_dir(crate::common::bootable_cache("trixie")).unwrap().flatten().map(|entry| entry.path());
    let base = cached.into_iter().find(|path| path.extension().is_some_and(|e| e == "tar")).unwrap();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let (from, to) = (base.to_str().unwrap(), tree.to_str().unwrap());
    tool("tar", &["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", from, "-C", to]);
    tool("chroot", &[to, "dpkg", "--purge", "--force-depends", "ifupdown"]);
    let own = node.cache().join("cache-trixie-amd64.tar");
    let own = own.to_str().unwrap();
    tool("tar", &["--numeric-owner", "--xattrs", "--xattrs-include=*", "-cpf", own, "-C", to, "."]);
    let disk = node.disk("d", 3 * GIB);
    let mut env = node.kvm(&disk, &[("suite", "trixie"), ("dns", "192.0.2.53")]);
    three_nics(&mut env);
    node.create(&env);
    for reversed in [false, true] {
        let cards = cards(free_port(), reversed);
        let mut guest =
            Guest::boot(Firmware::SeaBios, &disk, &cards.iter().map(String::as_str).collect::<Vec<_>>());
        guest.login(None);
        guest.assert_running();
        assert_network(&mut guest);
        assert!(guest.run("cat /etc/resolv.conf").contains("nameserver 192.0.2.53"));
    }
}

#[test]
#[ignore = "run by make test-full"]
fn swap_is_on_a_disk_of_its_own() {
    let node = Node::bootable("trixie");
    let (disk, swap) = (node.disk("d", 3 * GIB), node.disk("swap", 128 << 20));
    let mut env = node.kvm(&disk, &[("suite", "trixie")]);
    for (name, value) in
        [("DISK_COUNT", "2"), ("DISK_1_NAME", "swap"), ("DISK_1_PATH", swap.to_str().unwrap())]
    {
        env.insert(name.into(), value.into());
    }
    node.create(&env);
    let drive = format!("file={},format=raw,if=virtio,snapshot=on", swap.display());
    let mut guest = boot(Firmware::SeaBios, &disk, &["-drive", &drive]);
    assert_eq!(guest.run("swapon --noheadings --show=NAME"), "/dev/vdb");
}

#[test]
#[ignore = "run by make test-full"]
fn xfs_and_btrfs_roots_boot() {
    let node = Node::bootable("trixie");
    for (filesystem, firmware) in [("xfs", Firmware::SeaBios), ("btrfs", Firmware::Ovmf)] {
        let disk = bootable_disk(&node, filesystem, &[("suite", "trixie"), ("filesystem", filesystem)]);
        let mut guest = boot(firmware, &disk, &[]);
        assert_eq!(guest.run("findmnt -no FSTYPE /"), filesystem);
    }
}

#[test]
#[ignore = "run by make test-full"]
fn a_backup_boots_on_a_larger_disk() {
    let node = Node::bootable("trixie");
    for (style, filesystem, firmwares) in [
        ("gpt", "ext4", &[Firmware::SeaBios, Firmware::Ovmf][..]),
        ("msdos", "ext4", &[Firmware::SeaBios]),
        ("gpt", "xfs", &[Firmware::SeaBios]),
        ("gpt", "btrfs", &[Firmware::Ovmf]),
    ] {
        let params =
            [("suite", "trixie"), ("partition_style", style), ("filesystem", filesystem), ("swap", "128M")];
        let disk = bootable_disk(&node, "d", &params);
        let stream = node.path().join("stream");
        export(&node, &disk, &stream);
        let size_bytes = fs::metadata(&disk).unwrap().len();
        fs::remove_file(&disk).unwrap();
        let larger = node.disk("larger", size_bytes + GIB + 512);
        imported(&node, &larger, &stream);
        for firmware in firmwares {
            let mut guest = boot(*firmware, &larger, &[]);
            assert_eq!(guest.run("findmnt -no SOURCE,FSTYPE /"), format!("/dev/vda1 {filesystem}"));
            assert_eq!(guest.run("swapon --noheadings --show=NAME,SIZE"), "/dev/vda2 128M");
            let room: u64 = guest.run("findmnt -bno SIZE /").parse().unwrap();
            assert!(room > size_bytes, "{style} {filesystem}: {room}");
            guest.power_off();
        }
        fs::remove_file(&larger).unwrap();
        node.assert_nothing_left();
    }
}

#[test]
#[ignore = "run by make test-full"]
fn bookworm_disks_boot() {
    let node = Node::bootable("bookworm");
    let gpt = bootable_disk(&node, "gpt", &[("suite", "bookworm")]);
    for firmware in [Firmware::SeaBios, Firmware::Ovmf] {
        let mut guest = boot(firmware, &gpt, &[]);
        assert!(guest.run("cat /etc/os-release").contains("bookworm"));
        let id = guest.run("cat /etc/machine-id");
        assert_eq!(guest.run("cat /var/lib/dbus/machine-id"), id);
    }
    live_on(&gpt, Firmware::Ovmf, "grub-install --target=x86_64-efi --removable --no-nvram");
    let msdos = bootable_disk(&node, "msdos", &[("suite", "bookworm"), ("partition_style", "msdos")]);
    live_on(&msdos, Firmware::SeaBios, "grub-install /dev/vda");
}

#[test]
#[ignore = "run by make test-full"]
fn emulated_devices_get_the_kernel_that_has_their_drivers() {
    let node = Node::bare();
    let disk = node.disk("d", 3 * GIB);
    let mut env = node.kvm(&disk, &[("suite", "trixie")]);
    env.insert("INSTANCE_HV_disk_type".into(), "ide".into());
    env.insert("INSTANCE_HV_nic_type".into(), "e1000".into());
    node.create(&env);
    let drive = format!("file={},format=raw,if=none,id=d,snapshot=on", disk.display());
    let options =
        ["-drive", &drive, "-device", "ide-hd,drive=d", "-nic", "user,model=e1000,mac=aa:00:00:00:00:01"];
    let mut guest = Guest::start(Firmware::SeaBios, &options);
    guest.login(None);
    guest.assert_running();
    assert_eq!(guest.run("findmnt -no SOURCE /"), "/dev/sda1");
    assert!(!guest.run("uname -r").contains("cloud"));
}

/// A kernel and its initramfs as files of the node.
struct ExternalKernel {
    kernel: PathBuf,
    initrd: PathBuf,
}

fn kernel_of(node: &Node, disk: &Path) -> ExternalKernel {
    let root = Mounted::at(disk, root_offset(disk));
    let copied = |prefix: &str| {
        let mut files = fs::read_dir(root.path().join("boot")).unwrap().flatten().map(|entry| entry.path());
        let file =
            files.find(|file| file.file_name().unwrap().to_str().unwrap().starts_with(prefix)).unwrap();
        let copy = node.path().join(prefix);
        fs::copy(file, &copy).unwrap();
        copy
    };
    ExternalKernel { kernel: copied("vmlinuz-"), initrd: copied("initrd.img-") }
}

impl ExternalKernel {
    fn options(&self, root: &str) -> Vec<&'static str> {
        let append = format!("root={root} ro console=ttyS0,115200n8");
        let words = [
            "-kernel",
            self.kernel.to_str().unwrap(),
            "-initrd",
            self.initrd.to_str().unwrap(),
            "-append",
            &append,
        ];
        words.map(|word| &*Box::leak(word.to_owned().into_boxed_str())).to_vec()
    }
}

#[test]
fn two_guests_of_one_cache_share_no_identity() {
    let node = Node::bootable("trixie");
    let list = text(&node.command(&["cache", "list"]).output().unwrap().stdout);
    assert!(list.lines().any(|line| line.contains(" cloud ")) && list.contains(" -  "), "{list}");
    let disks = ["a", "b"].map(|name| bootable_disk(&node, name, &[("suite", "trixie"), ("swap", "64M")]));
    let identities = disks.each_ref().map(|disk| identity(disk));
    // Nothing of the guest runs to make it boot: no chroot, no loader's own installer.
    let mut env = node.kvm(&node.disk("c", 3 * GIB), &[("suite", "trixie")]);
    env.insert("DEBUG_LEVEL".into(), "1".into());
    let log = node.create(&env);
    let commands: Vec<&str> = log.lines().filter_map(|line| line.trim_start().strip_prefix("+ ")).collect();
    let (devices, programs): (Vec<&str>, Vec<&str>) =
        commands.into_iter().partition(|command| command.starts_with("/dev/loop"));
    assert_eq!((devices.len(), programs), (1, Vec::new()), "{log}");
    for (one, other) in identities[0].iter().zip(&identities[1]) {
        assert_eq!(one.0, other.0);
        assert!(!one.1.is_empty(), "{} is empty", one.0);
        assert_ne!(one.1, other.1, "{} is shared", one.0);
    }
    // Whatever is secret or unique of one is nowhere on the other.
    let pattern = node.path().join("pattern");
    let contents = disks.each_ref().map(|disk| {
        let content = disk.with_extension("content");
        let mut file = fs::File::create(&content).unwrap();
        read_data(disk, |_, piece| file.write_all(piece).unwrap());
        content
    });
    for (name, value) in identities[0].iter().filter(|(name, _)| name != "disk id") {
        fs::write(&pattern, value).unwrap();
        let found = |content: &Path| {
            let mut grep = Command::new("grep");
            grep.env("LC_ALL", "C").arg("-aqFf").args([&pattern, content]).status().unwrap().code()
        };
        // UUIDs of filesystems stand there in bytes; fstab has them as text.
        assert_eq!(found(&contents[0]), Some(0), "{name} is on its own disk");
        assert_eq!(found(&contents[1]), Some(1), "{name} of one disk stands on the other");
    }
}

/// Names and values of everything that tells a guest from its twin.
fn identity(disk: &Path) -> Vec<(String, Vec<u8>)> {
    let root = Mounted::at(disk, root_offset(disk));
    let key = |kind: &str| {
        let text = root.read(&format!("etc/ssh/ssh_host_{kind}_key"));
        text.lines().nth(2).unwrap().as_bytes().to_owned()
    };
    assert_eq!(root.read("etc/machine-id"), "", "made at the first boot");
    assert_eq!(root.mode("var/lib/systemd/random-seed"), 0o600);
    // A pattern of grep's is a line.
    let seed = fs::read(root.path().join("var/lib/systemd/random-seed")).unwrap();
    let part = seed.split(|byte| *byte == b'\n').max_by_key(|part| part.len()).unwrap();
    let mut all = vec![
        ("ed25519 key".to_owned(), key("ed25519")),
        ("ecdsa key".to_owned(), key("ecdsa")),
        ("random seed".to_owned(), part[..12].to_vec()),
    ];
    drop(root);
    let table = tool("sfdisk", &["--dump", disk.to_str().unwrap()]);
    all.push(("disk id".into(), table.lines().find_map(|l| l.strip_prefix("label-id: ")).unwrap().into()));
    for number in [1, 2, 15] {
        let start = partition_offset(disk, number).to_string();
        let args = ["-p", "-O", &start, "-o", "value", "-s", "UUID", disk.to_str().unwrap()];
        all.push((format!("UUID of partition {number}"), tool("blkid", &args).trim().into()));
    }
    all
}
