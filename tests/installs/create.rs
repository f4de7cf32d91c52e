//! create on real loop devices, with a real bootstrapped tree.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use crate::common::{BlockDevice, GIB, Mounted, Node, SUITE, digest, fsck, log_of, root_offset, text, tool};

const DISK_BYTES: u64 = 2 * GIB;

/// What every guest must look like, whatever it was made from.
fn assert_is_guest(root: &Mounted, name: &str) {
    assert_eq!(root.read("etc/hostname"), format!("{name}\n"));
    assert_eq!(root.read("etc/mailname"), format!("{name}\n"));
    let short = name.split('.').next().unwrap();
    assert!(root.read("etc/hosts").contains(&format!("127.0.1.1\t{name} {short}\n")));
    for file in ["etc/hostname", "etc/hosts", "etc/fstab", "etc/mailname", "etc/resolv.conf"] {
        assert_eq!(root.mode(file), 0o644, "{file}, although noded's umask is 0077");
    }
    assert_eq!(root.mode("."), 0o755);
    assert_eq!(root.mode("tmp"), 0o1777);
    assert_eq!(root.read("etc/machine-id"), "");
    assert!(root.read("etc/shadow").lines().any(|line| line.starts_with("root::")));
    assert!(root.read("etc/network/interfaces").contains("iface lo inet loopback"));
    let sources = root.read("etc/apt/sources.list");
    assert!(sources.contains(" trixie main") && sources.contains(" trixie-updates main"), "{sources}");
    assert!(sources.contains(" trixie-security main"), "{sources}");
}

#[test]
fn every_recorded_create_makes_its_instance() {
    let node = Node::bootable(SUITE);
    for name in ["create", "create-api10", "create-api15", "create-full", "create-kvm", "create-reinstall"] {
        let disk = node.disk(name, 3 * GIB);
        let mut env = node.recorded(name, &disk);
        let mut others = Vec::new();
        for n in 1..env["DISK_COUNT"].parse().unwrap() {
            let other = node.disk(&format!("{name}.{n}"), 32 << 20);
            fs::write(&other, b"another disk's data").unwrap();
            env.insert(format!("DISK_{n}_PATH"), other.display().to_string());
            others.push(other);
        }
        let log = node.create(&env);
        assert!(log.is_ascii());
        assert!(log.contains("is installed"), "{log}");
        let root = Mounted::at(&disk, root_offset(&disk));
        assert_is_guest(&root, &env["INSTANCE_NAME"]);
        assert!(others.iter().all(|other| fs::read(other).unwrap() == b"another disk's data"), "{name}");
        drop(root);
        node.assert_nothing_left();
    }
}

#[test]
fn api_5_installs_on_a_bare_device_with_swap() {
    let node = Node::new();
    let (file, swap_file) = (node.disk("root", GIB), node.disk("swap", 64 << 20));
    let device = BlockDevice::over(&file, &[]);
    let swap = BlockDevice::over(&swap_file, &[]);
    let args = ["create", "-i", "old.example.com", "-b", device.0.to_str().unwrap(), "-s"];
    let output = node.command(&args).arg(&swap.0).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    let root = Mounted::with(&device.0, "ro");
    assert_is_guest(&root, "old.example.com");
    let uuid = tool("blkid", &["-p", "-o", "value", "-s", "UUID", swap.0.to_str().unwrap()]);
    assert!(root.read("etc/fstab").contains(&format!("UUID={} none swap sw 0 0", uuid.trim())));
    let label = tool("blkid", &["-p", "-o", "value", "-s", "LABEL", device.0.to_str().unwrap()]);
    assert_eq!(label.trim(), "", "the label of an incomplete filesystem is gone");
    drop((root, device, swap));
    node.assert_nothing_left();
}

#[test]
fn every_style_arrives_on_files_and_on_block_devices() {
    let node = Node::new();
    for style in ["gpt", "msdos", "none"] {
        for medium in ["file", "block"] {
            let file = node.disk(&format!("{style}-{medium}"), DISK_BYTES);
            let device = (medium == "block").then(|| BlockDevice::over(&file, &[]));
            let disk = device.as_ref().map_or(file.as_path(), |device| device.0.as_path());
            let mut env = node.recorded("create-blockdev", disk);
            env.insert("OSP_PARTITION_STYLE".into(), style.into());
            node.create(&env);
            drop(device);
            let offset = if style == "none" { 0 } else { root_offset(&file) };
            assert_eq!(
                offset,
                match style {
                    "gpt" => 262_144 * 512,
                    "msdos" => 2048 * 512,
                    _ => 0,
                }
            );
            fsck(&file, offset, "ext4");
            if style != "none" {
                let verdict = tool("sfdisk", &["-V", file.to_str().unwrap()]);
                assert!(verdict.contains("No errors"), "{verdict}");
            }
            let root = Mounted::at(&file, offset);
            assert_is_guest(&root, &env["INSTANCE_NAME"]);
            let fstab = root.read("etc/fstab");
            let uuid = tool(
                "blkid",
                &["-p", "-O", &offset.to_string(), "-o", "value", "-s", "UUID", file.to_str().unwrap()],
            );
            assert!(fstab.contains(&format!("UUID={} / ext4 errors=remount-ro 0 1", uuid.trim())), "{fstab}");
        }
    }
    node.assert_nothing_left();
}

#[test]
fn the_other_filesystems_arrive_too() {
    let node = Node::new();
    for filesystem in ["ext2", "ext3", "xfs", "btrfs"] {
        let disk = node.disk(filesystem, DISK_BYTES);
        let mut env = node.recorded("create", &disk);
        env.insert("OSP_FILESYSTEM".into(), filesystem.into());
        node.create(&env);
        let offset = root_offset(&disk);
        fsck(&disk, offset, filesystem);
        let found = tool(
            "blkid",
            &["-p", "-O", &offset.to_string(), "-o", "value", "-s", "TYPE", disk.to_str().unwrap()],
        );
        assert_eq!(found.trim(), filesystem);
        let root = Mounted::at(&disk, offset);
        assert_is_guest(&root, &env["INSTANCE_NAME"]);
        assert!(root.read("etc/fstab").contains(&format!(" / {filesystem} ")));
    }
    node.assert_nothing_left();
}

#[test]
fn nothing_of_the_node_and_of_the_installation_stays_in_the_tree() {
    let node = Node::debian();
    let disk = node.disk("d", DISK_BYTES);
    node.create_on(&disk);
    let root = Mounted::at(&disk, root_offset(&disk));
    let node_name = tool("hostname", &[]);
    let node_resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for entry in walkdir::WalkDir::new(root.path()) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root.path()).unwrap().display().to_string();
        let name = entry.file_name().to_string_lossy();
        assert!(!name.ends_with(".deb") && !name.starts_with("ssh_host_"), "{path}");
        assert!(!path.starts_with("var/lib/apt/lists/"), "{path}");
        assert!(!path.ends_with("policy-rc.d"), "{path}");
        let log = path.starts_with("var/log/") && entry.file_type().is_file();
        assert!(!log || entry.metadata().unwrap().len() == 0, "{path} is a log with something in it");
    }
    assert!(!root.read("etc/hosts").contains(node_name.trim()));
    let servers = node_resolver.lines().filter(|l| l.starts_with("nameserver"));
    for server in servers {
        assert!(!root.read("etc/resolv.conf").contains(server));
    }
    let dbus = root.path().join("var/lib/dbus/machine-id");
    assert!(!dbus.exists() || fs::read_link(dbus).is_ok_and(|to| to == Path::new("/etc/machine-id")));
    let device = fs::metadata(root.path().join("dev/null")).unwrap();
    assert!(device.file_type().is_char_device());
}

#[test]
fn apt_works_in_the_guest() {
    let node = Node::debian();
    let disk = node.disk("d", DISK_BYTES);
    node.create_on(&disk);
    let root = Mounted::with(&disk, &format!("loop,offset={}", root_offset(&disk)));
    fs::copy("/etc/resolv.conf", root.path().join("etc/resolv.conf")).unwrap();
    let script = "apt-get -q update && apt-get -qy --no-install-recommends install hello && hello";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "chroot"]).arg(root.path());
    command.args(["/bin/sh", "-c", script]).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    let output = command.output().unwrap();
    let log = log_of(&output);
    assert!(output.status.success() && log.contains("Hello, world!"), "{log}");
    assert!(log.contains("trixie-security") && log.contains("trixie-updates"), "{log}");
}

#[test]
fn the_console_is_what_ganeti_says() {
    let node = Node::new();
    let getty = "etc/systemd/system/getty.target.wants/serial-getty@";
    for (hypervisor, serial, port, speed) in
        [("kvm", "True", "ttyS0", "38400"), ("kvm", "False", "", ""), ("xen-pvm", "False", "hvc0", "38400")]
    {
        let disk = node.disk(&format!("{hypervisor}{serial}"), DISK_BYTES);
        let mut env = node.recorded("create-kvm", &disk);
        env.insert("HYPERVISOR".into(), hypervisor.into());
        env.insert("INSTANCE_HV_serial_console".into(), serial.into());
        env.insert("OSP_BOOT".into(), "no".into());
        node.create(&env);
        let root = Mounted::at(&disk, root_offset(&disk));
        for candidate in ["ttyS0", "hvc0"] {
            let link = root.path().join(format!("{getty}{candidate}.service"));
            assert_eq!(link.is_symlink(), candidate == port, "{hypervisor} {serial} {candidate}");
        }
        if !port.is_empty() {
            let drop_in = root.read(&format!("etc/systemd/system/serial-getty@{port}.service.d/speed.conf"));
            assert!(drop_in.contains(&format!("' {speed},")), "{drop_in}");
        }
    }
}

#[test]
fn a_dry_run_prints_the_plan_and_touches_nothing() {
    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    fs::write(&disk, b"precious").unwrap();
    fs::File::options().write(true).open(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let before = digest(&disk);
    let output = node.verb("create", &node.recorded("create", &disk)).arg("--dry-run").output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    let plan = text(&output.stdout);
    for fact in ["lg1.example.com", "gpt", "262144", "ext4", "trixie amd64"] {
        assert!(plan.contains(fact), "{fact} is missing in\n{plan}");
    }
    assert_eq!(digest(&disk), before);
}

#[test]
fn a_reinstall_makes_the_disk_anew() {
    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    let uuid = |disk: &Path| {
        tool(
            "blkid",
            &[
                "-p",
                "-O",
                &root_offset(disk).to_string(),
                "-o",
                "value",
                "-s",
                "UUID",
                disk.to_str().unwrap(),
            ],
        )
    };
    node.create_on(&disk);
    let first = uuid(&disk);
    let mut env = node.recorded("create-reinstall", &disk);
    env.insert("OSP_PARTITION_STYLE".into(), "msdos".into());
    node.create(&env);
    assert_ne!(uuid(&disk), first);
    let types = tool("blkid", &["-p", "-o", "value", "-s", "PTTYPE", disk.to_str().unwrap()]);
    assert_eq!(types.trim(), "dos", "of the former gpt nothing is left, at neither end");
}

#[test]
fn old_signatures_are_wiped_at_both_ends() {
    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    // A volume full of an earlier life: random bytes, a gpt with its backup, an md superblock at the end.
    tool(
        "sh",
        &[
            "-c",
            &format!(
                "head -c 8M /dev/urandom | dd of={0} conv=notrunc status=none; echo 'size=1G' | sfdisk -q --label gpt {0}",
                disk.display()
            ),
        ],
    );
    let md_magic = [0xfc, 0x4e, 0x2b, 0xa9];
    let at = DISK_BYTES - (64 << 10);
    use std::os::unix::fs::FileExt;
    fs::File::options().write(true).open(&disk).unwrap().write_all_at(&md_magic, at).unwrap();
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_PARTITION_STYLE".into(), "none".into());
    node.create(&env);
    let found = tool("wipefs", &["-n", "--output", "TYPE", "--noheadings", disk.to_str().unwrap()]);
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["ext4"]);
}

#[test]
fn a_disk_that_is_absent_small_or_in_use_is_refused_untouched() {
    let node = Node::new();
    let refused = |env: &std::collections::BTreeMap<String, String>, expected: &[&str]| {
        let output = node.verb("create", env).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let last: Vec<&str> = log.lines().rev().take(4).collect();
        for part in expected {
            assert!(last.iter().any(|line| line.contains(part)), "{part} is not in the last lines of\n{log}");
        }
    };
    refused(&node.recorded("create", Path::new("/nonexistent/disk")), &["/nonexistent/disk", "hint: "]);
    refused(&node.recorded("create", Path::new("/etc")), &["neither a file nor a block device"]);

    let small = node.disk("small", 600 << 20);
    refused(&node.recorded("create", &small), &["600 MiB (629145600 bytes)", "needs 639"]);

    let disk = node.disk("mounted", DISK_BYTES);
    tool("mke2fs", &["-q", "-F", disk.to_str().unwrap()]);
    let before = digest(&disk);
    let device = BlockDevice::over(&disk, &[]);
    refused(&node.recorded("create", &disk), &["in use: attached as /dev/loop", "losetup -d"]);
    let mounted = Mounted::with(&device.0, "ro");
    refused(&node.recorded("create", &device.0), &["in use: mounted on", "hint: "]);
    drop((mounted, device));
    assert_eq!(digest(&disk), before);

    let locked = node.disk("locked", DISK_BYTES);
    let mut holder =
        Command::new("flock").arg("--no-fork").arg(&locked).args(["sleep", "60"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    refused(&node.recorded("create", &locked), &["is locked by process", "hint: "]);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn what_ganeti_left_open_reaches_no_hook() {
    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    node.hook("fds", "#!/bin/sh\nls -l /proc/self/fd > $TARGET/root/fds\n");
    let mut command = node.verb("create", &node.recorded("create", &disk));
    command.env("EXP_SIZE_FD", "11");
    let shell = format!(
        "exec 4>/dev/null 6>/dev/null 8>/dev/null 11>/dev/null; exec {}",
        node.path().join("os/create").display()
    );
    let mut outer = Command::new("bash");
    outer.args(["-c", &shell]).env_clear();
    for (name, value) in command.get_envs() {
        outer.env(name, value.unwrap());
    }
    let output = outer.current_dir(node.path().join("os")).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    let root = Mounted::at(&disk, root_offset(&disk));
    let fds = root.read("root/fds");
    let open: Vec<&str> = fds.lines().filter_map(|l| l.split(" -> ").next()?.rsplit(' ').next()).collect();
    assert!(open.iter().all(|fd| ["0", "1", "2", "3"].contains(fd)), "{fds}");
    assert!(!fds.contains("/dev/null 6"), "{fds}");
}

#[test]
fn a_resolver_that_is_a_link_stays_one_and_dns_is_written_otherwise() {
    let node = Node::bare();
    // A hand-made cache whose resolv.conf is a link.
    let tree = tempfile::tempdir_in(node.path()).unwrap();
    let base = fs::read_dir(crate::common::shared_cache()).unwrap().flatten().map(|e| e.path());
    let tar = base.into_iter().find(|p| p.extension().is_some_and(|e| e == "tar")).unwrap();
    tool("tar", &["-C", tree.path().to_str().unwrap(), "-xf", tar.to_str().unwrap(), "--xattrs", "--acls"]);
    let resolv = tree.path().join("etc/resolv.conf");
    let _ = fs::remove_file(&resolv);
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", &resolv).unwrap();
    fs::write(tree.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    fs::create_dir_all(tree.path().join("etc/ssh")).unwrap();
    fs::write(tree.path().join("etc/ssh/sshd_config"), "").unwrap();
    fs::write(tree.path().join("etc/ssh/ssh_host_rsa_key"), "shared").unwrap();
    fs::write(tree.path().join("etc/hand-made"), "yes").unwrap();
    fs::write(tree.path().join("etc/inittab"), "id:2:initdefault:\n").unwrap();
    tool(
        "tar",
        &[
            "-C",
            tree.path().to_str().unwrap(),
            "-cf",
            node.cache().join("cache-trixie-amd64.tar").to_str().unwrap(),
            "--xattrs",
            "--acls",
            ".",
        ],
    );

    let disk = node.disk("d", DISK_BYTES);
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_DNS".into(), "192.0.2.53".into());
    env.insert("INSTANCE_HV_serial_console".into(), "True".into());
    env.insert("INSTANCE_HV_serial_speed".into(), "115200".into());
    let log = node.create(&env);
    assert!(log.contains("made by hand"), "{log}");
    let root = Mounted::at(&disk, root_offset(&disk));
    assert_eq!(root.read("etc/hand-made"), "yes");
    let inittab = "id:2:initdefault:\nT0:23:respawn:/sbin/getty -L ttyS0 115200 vt100\n";
    assert_eq!(root.read("etc/inittab"), inittab, "a guest with sysvinit has its console too");
    assert_eq!(root.read("etc/machine-id"), "");
    let link = fs::read_link(root.path().join("etc/resolv.conf")).unwrap();
    assert_eq!(link, Path::new("../run/systemd/resolve/stub-resolv.conf"));
    assert!(
        !root.path().join("etc/ssh/ssh_host_rsa_key").exists(),
        "keys of a hand-made cache are not shared"
    );
    for kind in ["ed25519", "ecdsa"] {
        let key = format!("etc/ssh/ssh_host_{kind}_key");
        assert_eq!((root.mode(&key), root.mode(&format!("{key}.pub"))), (0o600, 0o644));
        let public = tool("ssh-keygen", &["-y", "-f", root.path().join(&key).to_str().unwrap()]);
        assert!(root.read(&format!("{key}.pub")).starts_with(public.trim()), "{public}");
    }

    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_DNS".into(), "192.0.2.53,2001:db8::53".into());
    node.create(&env);
    let root = Mounted::at(&disk, root_offset(&disk));
    let expected = "search example.com\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n";
    assert_eq!(root.read("etc/resolv.conf"), expected);
}

#[test]
fn a_failed_create_leaves_no_disk_that_looks_installed() {
    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    node.hook("fail", "#!/bin/sh\nexit 3\n");
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(log.contains("fail ended with exit status 3"), "{log}");
    let probe = Command::new("blkid").args(["-p", disk.to_str().unwrap()]).output().unwrap();
    assert_eq!(
        (probe.status.code(), text(&probe.stdout)),
        (Some(2), String::new()),
        "nothing is found on it"
    );
    let probe = Command::new("blkid").args(["-p", "-O", "134217728"]).arg(&disk).output().unwrap();
    assert_eq!(probe.status.code(), Some(2), "the root's superblock is gone too");
    node.assert_nothing_left();

    node.config("keep_failed = true\n");
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let root = Mounted::at(&disk, root_offset(&disk));
    assert_eq!(root.read("etc/hostname"), "lg1.example.com\n");
}

#[test]
fn signals_stop_it_and_leave_nothing() {
    let node = Node::new();
    node.hook("wait", "#!/bin/sh\ntouch $TARGET/started; sleep 600\n");
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGKILL] {
        let disk = node.disk("d", DISK_BYTES);
        let log = node.path().join("log");
        let mut command = node.verb("create", &node.recorded("create", &disk));
        let file = fs::File::create(&log).unwrap();
        let mut child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        for _ in 0..600 {
            if fs::read_to_string(&log).unwrap().contains("running 1 hooks") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        nix::sys::signal::kill(pid, signal).unwrap();
        let status = child.wait().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(signal as i32), "{}", fs::read_to_string(&log).unwrap());
        node.wait_until_killed();
        node.assert_nothing_left();
        if signal == nix::sys::signal::Signal::SIGTERM {
            let probe = Command::new("blkid").args(["-p", disk.to_str().unwrap()]).output().unwrap();
            assert_eq!(probe.status.code(), Some(2), "a caught signal wipes the disk");
            let text = fs::read_to_string(&log).unwrap();
            assert!(text.contains("stopped by SIGTERM"), "{text}");
        }
    }
}

/// A cache file that was made by hand is used as it is: auto says that nothing will start the disk, and who asks for a
/// loader is refused.
#[test]
fn a_tree_made_by_hand_without_a_loader_is_told_of_or_refused() {
    let node = Node::new();
    let tree = fs::read_dir(node.cache()).unwrap().flatten().map(|entry| entry.path());
    let tree = tree.into_iter().find(|path| path.extension().is_some_and(|e| e == "tar")).unwrap();
    let arch = tool("dpkg", &["--print-architecture"]);
    fs::rename(tree, node.cache().join(format!("cache-{SUITE}-{}.tar", arch.trim()))).unwrap();
    let disk = node.disk("d", DISK_BYTES);
    let log = node.create(&node.kvm(&disk, &[("suite", SUITE)]));
    assert!(log.contains("warning: nothing will start this disk by itself"), "{log}");
    let root = Mounted::at(&disk, root_offset(&disk));
    assert!(!root.read("etc/fstab").contains("/boot/efi"));
    drop(root);
    let refused =
        node.verb("create", &node.kvm(&disk, &[("suite", SUITE), ("boot", "bios")])).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let log = log_of(&refused);
    assert!(log.contains("a loader is wanted, but the cached tree was not made to boot"), "{log}");
    assert!(log.lines().last().unwrap().starts_with("hint: remove that cache file"), "{log}");
}

#[test]
fn an_image_is_made_in_both_formats() {
    let node = Node::bootable(SUITE);
    let (raw, qcow2) = (node.path().join("a.img"), node.path().join("a.qcow2"));
    for (path, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
        let args = ["image", "--name", "img.example.com", "--size", "3G", "--format", format, "--output"];
        let output = node.command(&args).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
    }
    let root = Mounted::at(&raw, root_offset(&raw));
    assert_is_guest(&root, "img.example.com");
    drop(root);
    let info = tool("qemu-img", &["info", qcow2.to_str().unwrap()]);
    assert!(info.contains("file format: qcow2") && info.contains("virtual size: 3 GiB"), "{info}");

    let again =
        node.command(&["image", "--name", "x.y", "--size", "2G", "--output"]).arg(&raw).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("exists"), "{}", text(&again.stderr));
    let names: Vec<_> = fs::read_dir(node.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{names:?}");
    node.assert_nothing_left();
}

#[test]
fn two_nodes_settings_make_two_guests_of_one_request() {
    let (here, there) = (Node::new(), Node::new());
    here.config("defaults = \"1\"\ndns = [\"192.0.2.1\"]\n");
    fs::write(there.legacy_defaults(), "PARTITION_STYLE=none\nGENERATE_CACHE=yes\nCLEAN_CACHE=14\n").unwrap();
    let mut shown = Vec::new();
    for node in [&here, &there] {
        let disk = node.disk("d", DISK_BYTES);
        node.create_on(&disk);
        let kind = tool("blkid", &["-p", "-o", "export", disk.to_str().unwrap()]);
        let origin = node.command(&["config", "show", "--origin"]).output().unwrap();
        shown.push((kind, text(&origin.stdout)));
    }
    assert!(shown[0].0.contains("PTTYPE=gpt"), "{}", shown[0].0);
    assert!(shown[1].0.contains("TYPE=ext4"), "{}", shown[1].0);
    let line = |text: &str, key: &str| text.lines().find(|l| l.starts_with(key)).unwrap().to_owned();
    assert!(line(&shown[0].1, "dns").ends_with("config.toml:2"), "{}", shown[0].1);
    assert!(line(&shown[0].1, "defaults").contains("\"1\""));
    assert!(line(&shown[1].1, "partition_style").ends_with("default-file:1"), "{}", shown[1].1);
    assert!(line(&shown[1].1, "defaults").contains("\"0.17\""));
}

#[test]
fn what_is_missing_is_told_before_anything_is_destroyed() {
    let node = Node::new();
    let disk = node.disk("d", GIB);
    fs::write(&disk, b"precious").unwrap();
    fs::File::options().write(true).open(&disk).unwrap().set_len(GIB).unwrap();
    let before = digest(&disk);
    let refused = |command: &mut Command, expected: &[&str]| {
        let output = command.output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        for part in expected {
            assert!(log.contains(part), "{part} is not in\n{log}");
        }
        assert_eq!(digest(&disk), before, "{log}");
    };
    // Its tool is hidden in a mount namespace of the test's own.
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_FILESYSTEM".into(), "btrfs".into());
    let verb = node.verb("create", &env);
    let mut hidden = Command::new("unshare");
    let script = "for f in $(readlink -f /usr/sbin/mkfs.btrfs /sbin/mkfs.btrfs /usr/bin/mkfs.btrfs); do \
                  [ ! -e $f ] || mount --bind /dev/null $f; done; exec \"$0\"";
    hidden.args(["--mount", "sh", "-c", script]).arg(node.path().join("os/create")).env_clear();
    for (name, value) in verb.get_envs() {
        hidden.env(name, value.unwrap());
    }
    refused(&mut hidden, &["mkfs.btrfs is not installed", "hint: apt-get install btrfs-progs"]);

    let flags = ["create", "-i", "a.example.com", "-b", disk.to_str().unwrap(), "-s", "/nonexistent/swap"];
    refused(&mut node.command(&flags), &["/nonexistent/swap"]);
    node.config("customize_dir = \"/etc/hostname\"\n");
    refused(
        &mut node.verb("create", &node.recorded("create", &disk)),
        &["reading the hooks in /etc/hostname"],
    );
    node.config("");
    let mut env = node.recorded("create", &disk);
    env.insert("DISK_0_ACCESS".into(), "ro".into());
    refused(&mut node.verb("create", &env), &["is read-only"]);
    env.remove("DISK_0_PATH");
    env.insert("DISK_0_URI".into(), "rbd:pool/volume".into());
    refused(&mut node.verb("create", &env), &["rbd:pool/volume is only reachable in userspace"]);
    node.assert_nothing_left();
}

#[test]
fn the_log_has_steps_with_times_and_a_higher_debug_level_the_commands() {
    let node = Node::new();
    let disk = node.disk("d", DISK_BYTES);
    let mut env = node.recorded("create", &disk);
    let log = node.create(&env);
    for step in [" s  copying", " s  personalising", " s  flushing", " s  lg1.example.com is installed"] {
        assert!(log.contains(step), "{log}");
    }
    assert!(!log.contains("direct I/O") && !log.contains("buffered I/O"), "{log}");
    env.insert("DEBUG_LEVEL".into(), "1".into());
    env.insert("OSP_FILESYSTEM".into(), "xfs".into());
    let log = node.create(&env);
    for step in ["+ mkfs.xfs -f -q", " s  unpacking"] {
        assert!(log.contains(step), "{log}");
    }
    assert!(log.contains("direct I/O") || log.contains("buffered I/O"), "{log}");
}

#[test]
fn a_terminal_gets_a_progress_display() {
    let node = Node::debian_without_templates();
    node.config("templates = 0\nboot = \"no\"\n");
    let image = node.path().join("t.img");
    let command = format!(
        "{} image --name t.example.com --size 2G --output {}",
        crate::common::PROGRAM,
        image.display()
    );
    let places = node.command(&[]);
    let mut script = Command::new("script");
    script
        .args(["-qec", &command, "/dev/null"])
        .env_clear()
        .env("TERM", "xterm")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    for (name, value) in places.get_envs().filter(|(name, _)| name.to_string_lossy().starts_with("GANETI_")) {
        script.env(name, value.unwrap());
    }
    let output = script.stdin(std::process::Stdio::null()).output().unwrap();
    let screen = text(&output.stdout);
    assert!(output.status.success(), "{screen}");
    assert!(screen.contains("00:00:00  unpacking"), "the spinner with its clock: {screen:?}");
    assert!(screen.is_ascii());
}
