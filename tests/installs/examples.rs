//! The hooks that come as examples, switched on exactly as their heads say.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::guest::{Firmware, Guest};
use crate::common::{GIB, Mounted, Node, log_of, project, root_offset, tool};

const ETC: &str = "/etc/ganeti/instance-debootstrap";
const KEYS: [&str; 3] = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGFsaWNlIG9uZQ alice@example.org",
    "from=\"192.0.2.0/24\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGFsaWNlIHR3bw alice@laptop",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJvYg bob@example.org",
];

/// Runs the command at the head of a hook, on the hooks of this node.
fn switch_on(node: &Node, hook: &str) {
    let script = fs::read_to_string(project().join("hooks").join(hook)).unwrap();
    let line = script.lines().find_map(|line| line.strip_prefix("# To switch it on: "));
    let line = line.unwrap_or_else(|| panic!("{hook} does not say how to switch it on"));
    assert!(line.contains(&format!("{ETC}/hooks/")), "{line}");
    let line = line.replace(ETC, node.etc().to_str().unwrap());
    let status =
        Command::new("sh").args(["-c", &line]).current_dir(project().join("hooks")).status().unwrap();
    assert!(status.success(), "{line}");
}

/// What a hook is told.
fn confdata(node: &Node, file: &str, text: &str) {
    let dir = node.etc().join("hooks/confdata");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(file), text).unwrap();
}

/// A proxy for plain http on this machine, and how many requests it has passed on.
fn proxy() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let counter = counter.clone();
            std::thread::spawn(move || pass_on(client, &counter));
        }
    });
    (address, count)
}

/// One request for each connection: the answer's end is the connection's.
fn pass_on(mut client: TcpStream, counter: &AtomicUsize) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut words = request.split(' ');
    let (method, url) = (words.next()?, words.next()?.strip_prefix("http://")?);
    let (host, path) = url.split_once('/')?;
    let mut head = format!("{method} /{path} HTTP/1.1\r\nConnection: close\r\n");
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let name = line.split(':').next()?.to_lowercase();
        if name != "connection" && name != "proxy-connection" {
            head += &format!("{line}\r\n");
        }
    }
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut server = TcpStream::connect(address).ok()?;
    server.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    counter.fetch_add(1, Ordering::SeqCst);
    std::io::copy(&mut server, &mut client).ok()?;
    client.shutdown(std::net::Shutdown::Both).ok()
}

/// Who owns a file of a guest, by the guest's own names.
fn owner(root: &Mounted, file: &str) -> String {
    let meta = fs::symlink_metadata(root.path().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let name = |database: &str, id: u32| {
        let text = root.read(database);
        let line = text.lines().find(|line| line.split(':').nth(2) == Some(&id.to_string()));
        line.unwrap().split(':').next().unwrap().to_owned()
    };
    format!("{}:{}", name("etc/passwd", meta.uid()), name("etc/group", meta.gid()))
}

fn inside(root: &Mounted, command: &[&str]) -> String {
    tool("chroot", &[&[root.path().to_str().unwrap()], command].concat())
}

#[test]
fn the_examples_do_what_their_heads_say_also_when_an_instance_is_installed_again() {
    let node = Node::debian();
    let (address, requests) = proxy();
    node.config(&format!("defaults = \"1\"\nboot = \"no\"\nproxy = \"{address}\"\n"));
    for hook in ["apt-proxy", "motd", "users-and-sudo", "unattended-upgrades", "swapfile"] {
        switch_on(&node, hook);
    }
    let users =
        format!("# who gets in\n\nalice  sudo  {}\nbob\t-\t{}\n  alice sudo {}\n", KEYS[0], KEYS[2], KEYS[1]);
    confdata(&node, "users", &users);
    confdata(&node, "unattended-upgrades", "REBOOT=02:00\n");
    let disk = node.disk("d", 3 * GIB);
    for _ in ["installed", "installed again"] {
        let before = requests.load(Ordering::SeqCst);
        node.create_on(&disk);
        assert!(requests.load(Ordering::SeqCst) > before, "packages came through the proxy");
        assert_effects(&Mounted::at(&disk, root_offset(&disk)), &address);
        node.assert_nothing_left();
    }
}

fn assert_effects(root: &Mounted, proxy: &str) {
    let motd = root.read("etc/motd");
    assert!(motd.contains("lg1.example.com: trixie "), "{motd}");

    assert_eq!(
        root.read("etc/apt/apt.conf.d/30proxy"),
        format!("Acquire::http::Proxy \"{proxy}\";\nAcquire::https::Proxy \"{proxy}\";\n")
    );
    let apt = inside(root, &["apt-config", "dump"]);
    for line in [
        &format!("Acquire::http::Proxy \"{proxy}\";"),
        "APT::Periodic::Update-Package-Lists \"1\";",
        "APT::Periodic::Unattended-Upgrade \"1\";",
        "Unattended-Upgrade::Automatic-Reboot \"true\";",
        "Unattended-Upgrade::Automatic-Reboot-Time \"02:00\";",
    ] {
        assert!(apt.lines().any(|found| found == line), "{line} is not in\n{apt}");
    }
    assert!(apt.contains("label=Debian-Security"), "{apt}");
    let installed =
        inside(root, &["dpkg-query", "-W", "-f", "${db:Status-Status}\n", "unattended-upgrades", "sudo"]);
    assert_eq!(installed, "installed\ninstalled\n");
    assert!(root.path().join("etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer").is_symlink());
    assert!(!root.path().join("usr/sbin/policy-rc.d").exists());
    assert_eq!(root.read("etc/resolv.conf"), "search example.com\n");

    for (name, keys) in [("alice", &KEYS[..2]), ("bob", &KEYS[2..])] {
        let file = format!("home/{name}/.ssh/authorized_keys");
        assert_eq!(root.read(&file), format!("{}\n", keys.join("\n")));
        assert_eq!((root.mode(&file), owner(root, &file)), (0o600, format!("{name}:{name}")));
        let dir = format!("home/{name}/.ssh");
        assert_eq!((root.mode(&dir), owner(root, &dir)), (0o700, format!("{name}:{name}")));
        assert!(root.path().join(format!("home/{name}/.profile")).exists());
        let shadow = root.read("etc/shadow");
        assert!(shadow.contains(&format!("\n{name}:*:")), "no password opens it: {shadow}");
    }
    let sudoers = "etc/sudoers.d/90-users-and-sudo";
    assert_eq!(root.read(sudoers), "alice ALL=(ALL:ALL) NOPASSWD: ALL\n");
    assert_eq!((root.mode(sudoers), owner(root, sudoers)), (0o440, "root:root".to_owned()));

    let fstab = root.read("etc/fstab");
    assert_eq!(fstab.lines().filter(|line| *line == "/swapfile none swap sw 0 0").count(), 1, "{fstab}");
    assert_eq!((root.mode("swapfile"), owner(root, "swapfile")), (0o600, "root:root".to_owned()));
    let swap = root.path().join("swapfile");
    let meta = fs::metadata(&swap).unwrap();
    assert_eq!(meta.len(), 512 << 20);
    assert!(meta.blocks() * 512 >= meta.len(), "it has holes");
    assert_eq!(tool("blkid", &["-p", "-o", "value", "-s", "TYPE", swap.to_str().unwrap()]).trim(), "swap");
}

/// Runs a create that a hook refuses, and wants its sentence at the log's end.
fn assert_refused(node: &Node, params: &[(&str, &str)], sentence: &str) {
    let disk = node.disk("refused", GIB);
    let mut env = node.recorded("create", &disk);
    env.extend(params.iter().map(|(name, value)| (format!("OSP_{name}"), (*value).to_owned())));
    let output = node.verb("create", &env).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let last: Vec<&str> = log.lines().rev().take(4).collect();
    assert!(last.iter().any(|line| line.contains(sentence)), "{sentence}\n{log}");
    assert!(log.contains("the disk is wiped: nothing is installed on it"), "{log}");
    node.assert_nothing_left();
}

/// A node with these hooks alone.
fn node_with(hooks: &[&str]) -> Node {
    let node = Node::debian();
    node.config("defaults = \"1\"\nboot = \"no\"\n");
    for hook in hooks {
        switch_on(&node, hook);
    }
    node
}

#[test]
fn a_hook_that_cannot_do_its_work_says_why() {
    let node = node_with(&["swapfile"]);
    assert_refused(&node, &[("FILESYSTEM", "btrfs")], "swapfile: on btrfs a swap file needs a subvolume");
    confdata(&node, "swapfile", "SIZE_MIB=5000\n");
    assert_refused(&node, &[], "too little for a swap file of 5000 MiB");
    confdata(&node, "swapfile", "SIZE_MIB=5G\n");
    assert_refused(&node, &[], "swapfile: SIZE_MIB is a number of MiB, not '5G'");

    let node = node_with(&["grub"]);
    assert_refused(
        &node,
        &[("PARTITION_STYLE", "none")],
        "grub: partition_style none leaves no room for GRUB",
    );

    let node = node_with(&["extlinux"]);
    assert_refused(&node, &[], "extlinux: it starts disks of partition_style msdos, not gpt");
    let msdos = ("PARTITION_STYLE", "msdos");
    assert_refused(&node, &[msdos], "extlinux: it cannot read ext4 with the feature 64bit");
    assert_refused(&node, &[msdos, ("FILESYSTEM", "xfs")], "extlinux: it cannot read xfs");

    let node = node_with(&["users-and-sudo"]);
    assert_refused(&node, &[], "confdata/users is missing, which says who gets in");
    confdata(&node, "users", &format!("alice sudo {}\nbob {}\n", KEYS[0], KEYS[2]));
    assert_refused(&node, &[], "is not NAME sudo|- KEY: bob ssh-ed25519");
    confdata(&node, "users", &format!("alice sudo {}\nalice - {}\n", KEYS[0], KEYS[1]));
    assert_refused(&node, &[], "gives alice sudo in one line and not in another");
}

#[test]
fn a_guest_that_has_what_a_hook_would_give_it_stays_as_it_is() {
    let node = node_with(&["swapfile", "apt-proxy"]);
    let disk = node.disk("d", GIB);
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_SWAP".into(), "64M".into());
    let log = node.create(&env);
    assert!(log.contains("swapfile: fstab names swap already"), "{log}");
    assert!(log.contains("apt-proxy: no proxy is set"), "{log}");
    let root = Mounted::at(&disk, root_offset(&disk));
    assert!(!root.path().join("swapfile").exists());
    assert!(!root.path().join("etc/apt/apt.conf.d/30proxy").exists());
    assert_eq!(root.read("etc/fstab").matches("swap sw").count(), 1);
    drop(root);

    // Where a file system cannot allocate without writing, the file is written; what confdata says holds.
    confdata(&node, "swapfile", "SIZE_MIB=64\n");
    confdata(&node, "apt-proxy", "PROXY=http://proxy.example.org:3128\nHTTPS=DIRECT\n");
    env.insert("OSP_SWAP".into(), "no".into());
    env.insert("OSP_FILESYSTEM".into(), "ext3".into());
    node.create(&env);
    let root = Mounted::at(&disk, root_offset(&disk));
    let meta = fs::metadata(root.path().join("swapfile")).unwrap();
    assert_eq!(meta.len(), 64 << 20);
    assert!(meta.blocks() * 512 >= meta.len(), "it has holes");
    assert_eq!(
        root.read("etc/apt/apt.conf.d/30proxy"),
        "Acquire::http::Proxy \"http://proxy.example.org:3128\";\nAcquire::https::Proxy \"DIRECT\";\n"
    );
    drop(root);
    node.assert_nothing_left();
}

#[test]
fn a_guest_with_a_loader_of_ours_gets_no_second_one() {
    let node = Node::bootable("trixie");
    for hook in ["grub", "extlinux"] {
        switch_on(&node, hook);
    }
    let disk = node.disk("d", 3 * GIB);
    let log = node.create(&node.kvm(&disk, &[("suite", "trixie"), ("partition_style", "msdos")]));
    for hook in ["grub", "extlinux"] {
        assert!(log.contains(&format!("{hook}: the setting boot gave this guest its loader")), "{log}");
    }
    node.assert_nothing_left();
}

/// A disk that a hook made bootable, with a small kernel.
fn disk_with_loader_by(hook: &str, node: &Node, style: &str, filesystem: &str) -> PathBuf {
    confdata(node, hook, "KERNEL=linux-image-cloud-amd64\n");
    let disk = node.disk(style, 3 * GIB);
    node.create(&node.kvm(&disk, &[("partition_style", style), ("filesystem", filesystem)]));
    assert_eq!(fs::metadata(&disk).unwrap().len(), 3 * GIB, "the disk keeps its size");
    node.assert_nothing_left();
    disk
}

/// Boots a disk under BIOS, wants every unit up, and a kernel that was told the consoles.
fn assert_boots(disk: &Path, filesystem: &str) {
    let mut guest = Guest::boot(Firmware::SeaBios, disk, &["-nic", "user,model=virtio-net-pci"]);
    guest.login(None);
    guest.assert_running();
    assert_eq!(guest.run("findmnt -no SOURCE,FSTYPE /"), format!("/dev/vda1 {filesystem}"));
    let cmdline = guest.run("cat /proc/cmdline");
    assert!(cmdline.contains("root=UUID="), "{cmdline}");
    assert!(cmdline.contains("net.ifnames=0 "), "{cmdline}");
    assert!(cmdline.contains(" console=tty0 console=ttyS0,115200n8"), "{cmdline}");
    guest.power_off();
}

#[test]
#[ignore = "run by make test-full"]
fn the_grub_hook_makes_an_msdos_disk_that_boots() {
    let node = node_with(&["grub"]);
    assert_boots(&disk_with_loader_by("grub", &node, "msdos", "ext4"), "ext4");
}

#[test]
#[ignore = "run by make test-full"]
fn the_grub_hook_makes_a_gpt_disk_that_boots() {
    let node = node_with(&["grub"]);
    // What it mounts ends with it, also where nobody else sees to that.
    node.config("defaults = \"1\"\nboot = \"no\"\nhooks_namespace = false\n");
    assert_boots(&disk_with_loader_by("grub", &node, "gpt", "xfs"), "xfs");
}

#[test]
#[ignore = "run by make test-full"]
fn the_extlinux_hook_makes_a_disk_that_boots() {
    let node = node_with(&["extlinux"]);
    assert_boots(&disk_with_loader_by("extlinux", &node, "msdos", "ext3"), "ext3");
}
