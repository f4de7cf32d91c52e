//! rename: on every layout and filesystem, whatever settings the disk was made with; what it accepts, what it leaves
//! alone, and what it says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::common::{GIB, Mounted, Node, fsck, log_of, root_offset, tool};

const OLD: &str = "lg1new.example.com";
const NEW: &str = "lg1.example.com";

/// A recorded rename, from `OLD` to `NEW`.
fn rename_env(node: &Node, disk: &Path) -> BTreeMap<String, String> {
    let mut env = node.recorded("rename", disk);
    env.insert("OLD_INSTANCE_NAME".into(), OLD.into());
    env.insert("INSTANCE_NAME".into(), NEW.into());
    env
}

fn rename(node: &Node, disk: &Path) -> (bool, String) {
    let output = node.verb("rename", &rename_env(node, disk)).output().unwrap();
    (output.status.success(), log_of(&output))
}

/// A disk with a guest called `OLD`, made with `settings`.
fn guest(node: &Node, name: &str, settings: &[(&str, &str)]) -> PathBuf {
    let disk = node.disk(name, 2 * GIB);
    let mut env = node.recorded("create", &disk);
    env.insert("INSTANCE_NAME".into(), OLD.into());
    env.extend(settings.iter().map(|(key, value)| (format!("OSP_{}", key.to_uppercase()), (*value).into())));
    node.create(&env);
    disk
}

fn root_of(disk: &Path, style: &str) -> u64 {
    if style == "none" { 0 } else { root_offset(disk) }
}

#[test]
fn a_guest_that_a_shell_file_names_is_renamed_to_what_the_file_makes_of_the_new_name() {
    let node = Node::new();
    fs::write(node.legacy_defaults(), "INSTANCE_NAME=${INSTANCE_NAME%%.*}\n").unwrap();
    let disk = guest(&node, "d", &[]);
    let hostname = || Mounted::at(&disk, root_offset(&disk)).read("etc/hostname");
    assert_eq!(hostname(), "lg1new\n");
    let (done, log) = rename(&node, &disk);
    assert!(done, "{log}");
    assert_eq!(hostname(), "lg1\n");
    node.assert_nothing_left();
}

#[test]
fn every_layout_and_filesystem_is_found_whatever_the_settings_are() {
    let node = Node::new();
    for (style, filesystem) in [
        ("gpt", "ext4"),
        ("gpt", "ext3"),
        ("msdos", "ext2"),
        ("none", "ext4"),
        ("none", "xfs"),
        ("msdos", "xfs"),
        ("gpt", "xfs"),
        ("gpt", "btrfs"),
        ("msdos", "btrfs"),
        ("none", "btrfs"),
    ] {
        let disk = guest(&node, "d", &[("partition_style", style), ("filesystem", filesystem)]);
        let (done, log) = rename(&node, &disk);
        assert!(done, "{style} {filesystem}\n{log}");
        assert!(log.contains(&format!("{filesystem}\n")), "it says what it found:\n{log}");
        let offset = root_of(&disk, style);
        fsck(&disk, offset, filesystem);
        let root = Mounted::at(&disk, offset);
        assert_eq!(root.read("etc/hostname"), format!("{NEW}\n"), "{style} {filesystem}");
        assert_eq!(root.read("etc/mailname"), format!("{NEW}\n"));
        assert_eq!(root.read("etc/hosts").matches("127.0.1.1\tlg1.example.com lg1\n").count(), 1);
        assert!(!root.read("etc/hosts").contains("lg1new"));
        for file in ["etc/hostname", "etc/hosts", "etc/mailname"] {
            assert_eq!(root.mode(file), 0o644, "{file}");
        }
        drop(root);
        fs::remove_file(&disk).unwrap();
        node.assert_nothing_left();
    }
}

/// Mounts a guest's root to change it.
fn change(disk: &Path, work: impl FnOnce(&Path)) {
    let offset = root_offset(disk);
    let mounted = Mounted::with(disk, &format!("loop,offset={offset}"));
    work(mounted.path());
}

#[test]
fn the_short_name_stays_short_and_a_guest_keeps_what_it_wrote_itself() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    let hosts = "# mine\n127.0.0.1 localhost\n192.0.2.9 db.example.com lg1new # an alias\n192.0.2.7\tlg1new.example.com\tlg1new\n";
    let mut kept = (0, 0);
    change(&disk, |root| {
        fs::write(root.join("etc/hostname"), "# a comment\nlg1new\n").unwrap();
        fs::write(root.join("etc/hosts"), hosts).unwrap();
        std::os::unix::fs::chown(root.join("etc/hosts"), Some(7), Some(8)).unwrap();
        fs::write(root.join("etc/mailname"), "mail.example.net\n").unwrap();
        fs::write(root.join("etc/network/interfaces"), "# my own\nauto lo\niface lo inet loopback\n")
            .unwrap();
        let meta = fs::metadata(root.join("etc/mailname")).unwrap();
        kept = (meta.ino(), meta.mtime_nsec());
    });
    let (done, log) = rename(&node, &disk);
    assert!(done, "{log}");
    change(&disk, |root| {
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(read("etc/hostname"), "lg1\n");
        assert_eq!(
            read("etc/hosts"),
            "# mine\n127.0.0.1 localhost\n192.0.2.9 db.example.com lg1new # an alias\n192.0.2.7\tlg1.example.com\tlg1\n"
        );
        let owner = fs::metadata(root.join("etc/hosts")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (7, 8));
        assert_eq!(read("etc/mailname"), "mail.example.net\n");
        let meta = fs::metadata(root.join("etc/mailname")).unwrap();
        assert_eq!(kept, (meta.ino(), meta.mtime_nsec()), "the file was not touched");
        assert!(read("etc/network/interfaces").starts_with("# my own"));
    });
    // Once more: it has that name already.
    let (done, log) = rename(&node, &disk);
    assert!(done, "{log}");
    node.assert_nothing_left();
}

#[test]
fn the_network_is_that_of_the_new_nics_where_this_program_wrote_it() {
    let node = Node::new();
    let disk = guest(&node, "d", &[("dns", "192.0.2.53")]);
    let env = |mac: &str, ip: &str| {
        let mut env = rename_env(&node, &disk);
        env.insert("NIC_0_MAC".into(), mac.into());
        env.insert("NIC_0_IP".into(), ip.into());
        env.insert("NIC_0_NETWORK_SUBNET".into(), "192.0.2.0/24".into());
        env.insert("OSP_DNS".into(), "192.0.2.53".into());
        env.insert("INSTANCE_NAME".into(), "www.other.net".into());
        env
    };
    let log = log_of(&node.verb("rename", &env("aa:00:00:77:77:77", "192.0.2.77")).output().unwrap());
    change(&disk, |root| {
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        assert!(read("etc/systemd/network/10-ganeti-nic0.link").contains("aa:00:00:77:77:77"), "{log}");
        assert!(read("etc/network/interfaces.d/ganeti").contains("192.0.2.77/24"), "{log}");
        assert_eq!(read("etc/resolv.conf"), "search other.net\nnameserver 192.0.2.53\n");
        fs::remove_file(root.join("etc/systemd/network/10-ganeti-nic0.link")).unwrap();
        fs::write(root.join("etc/network/interfaces.d/ganeti"), "# mine now\n").unwrap();
    });
    let mut again = env("aa:00:00:88:88:88", "192.0.2.88");
    again.insert("OLD_INSTANCE_NAME".into(), "www.other.net".into());
    again.insert("INSTANCE_NAME".into(), "x.other.net".into());
    let output = node.verb("rename", &again).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    change(&disk, |root| {
        assert_eq!(fs::read_to_string(root.join("etc/network/interfaces.d/ganeti")).unwrap(), "# mine now\n");
        assert!(!root.join("etc/systemd/network/10-ganeti-nic0.link").exists());
        assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "x.other.net\n");
    });
    node.assert_nothing_left();
}

#[test]
fn another_name_is_refused_and_a_guest_without_one_is_left_alone() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    change(&disk, |root| fs::write(root.join("etc/hostname"), "somebody.else.net\n").unwrap());
    let before = crate::common::digest(&disk);
    let (done, log) = rename(&node, &disk);
    assert!(!done);
    for part in [
        format!("Cannot rename from {OLD} to {NEW}: instance has a different hostname"),
        "/etc/hostname says \"somebody.else.net\"".into(),
        "expected \"lg1new.example.com\" or \"lg1new\"".into(),
    ] {
        assert!(log.contains(&part), "{part}\n{log}");
    }
    change(&disk, |root| {
        assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "somebody.else.net\n");
        assert!(fs::read_to_string(root.join("etc/hosts")).unwrap().contains("lg1new.example.com"));
        fs::remove_file(root.join("etc/hostname")).unwrap();
    });
    assert_ne!(before, "");
    let (done, log) = rename(&node, &disk);
    assert!(done && log.contains("warning") && log.contains("no /etc/hostname"), "{log}");
    change(&disk, |root| {
        assert!(!root.join("etc/hostname").exists());
        assert!(fs::read_to_string(root.join("etc/hosts")).unwrap().contains("lg1new.example.com"));
    });
    node.assert_nothing_left();
}

#[test]
fn installers_layouts_are_found_too() {
    let node = Node::bare();
    // Logical partitions, a root behind an EFI partition, and a subvolume.
    for (script, number, filesystem) in [
        (
            "label: dos\n1: size=200MiB, type=83\n2: size=1500MiB, type=5\n5: size=1400MiB, type=83\n",
            5,
            "ext4",
        ),
        ("label: gpt\nsize=200MiB, type=U\nsize=1500MiB, type=L\n", 2, "btrfs"),
    ] {
        let disk = node.disk("d", 2 * GIB);
        let file = node.path().join("script");
        fs::write(&file, script).unwrap();
        tool("sh", &["-c", &format!("sfdisk -q {} < {}", disk.display(), file.display())]);
        let offset = crate::common::partition_offset(&disk, number);
        let device = crate::common::BlockDevice::over(
            &disk,
            &["-o", &offset.to_string(), "--sizelimit", &(1300u64 << 20).to_string()],
        );
        let node_path = device.0.to_str().unwrap();
        if filesystem == "btrfs" {
            tool("mkfs.btrfs", &["-q", "-f", node_path]);
        } else {
            tool("mke2fs", &["-q", "-F", "-t", filesystem, node_path]);
        }
        let target = tempfile::tempdir().unwrap();
        tool("mount", &[node_path, target.path().to_str().unwrap()]);
        let top = match filesystem {
            "btrfs" => {
                let top = target.path().join("@rootfs");
                tool("btrfs", &["-q", "subvolume", "create", top.to_str().unwrap()]);
                top
            }
            _ => target.path().to_owned(),
        };
        fs::create_dir(top.join("etc")).unwrap();
        fs::write(top.join("etc/hostname"), "lg1new\n").unwrap();
        tool("umount", &[target.path().to_str().unwrap()]);
        drop(device);
        let (done, log) = rename(&node, &disk);
        assert!(done, "{log}");
        assert!(log.contains(&format!("partition {number}: {filesystem}")), "{log}");
        let root = Mounted::with(&disk, &format!("ro,loop,offset={offset}"));
        let top = if filesystem == "btrfs" { "@rootfs/" } else { "" };
        assert_eq!(root.read(&format!("{top}etc/hostname")), "lg1\n");
        drop(root);
        fs::remove_file(&disk).unwrap();
        node.assert_nothing_left();
    }
}

#[test]
fn a_disk_without_a_guest_is_named_for_what_it_holds() {
    let node = Node::bare();
    let disk = node.disk("d", GIB);
    let (done, log) = rename(&node, &disk);
    assert!(!done && log.contains("nothing that is known stands there"), "{log}");
    tool("mkswap", &["-q", disk.to_str().unwrap()]);
    let (done, log) = rename(&node, &disk);
    assert!(!done && log.contains("the bare disk: swap") && log.contains("hint:"), "{log}");
    tool("mke2fs", &["-q", "-F", disk.to_str().unwrap()]);
    let (done, log) = rename(&node, &disk);
    assert!(!done && log.contains("ext2 without /etc"), "{log}");
    node.assert_nothing_left();
}

#[test]
fn a_dry_run_shows_what_it_finds_and_changes_nothing() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    let before = crate::common::digest(&disk);
    let mut command = node.command(&["rename", "--dry-run"]);
    let output = command.envs(rename_env(&node, &disk)).output().unwrap();
    let log = log_of(&output);
    assert!(output.status.success(), "{log}");
    for part in [format!("{OLD} -> {NEW}"), "layout      gpt".into(), "partition 1: ext4".into()] {
        assert!(log.contains(&part), "{part}\n{log}");
    }
    assert_eq!(crate::common::digest(&disk), before);
    node.assert_nothing_left();
}
