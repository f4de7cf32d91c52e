//! Every filesystem on every layout and medium, and disks of odd sizes and pasts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::backup::dirty;
use crate::common::{BlockDevice, GIB, Mounted, Node, fsck, log_of, root_offset, text, tool};

/// What personalising changes or adds; all else must be as in the cache.
const PERSONAL: &[&str] = &[
    ".",
    "./etc",
    "./etc/fstab",
    "./etc/hostname",
    "./etc/hosts",
    "./etc/mailname",
    "./etc/machine-id",
    "./etc/resolv.conf",
    "./etc/shadow",
    "./etc/network",
    "./etc/network/interfaces",
    "./etc/network/interfaces.d",
    "./etc/network/interfaces.d/ganeti",
    "./etc/systemd/network",
    "./etc/systemd/network/10-ganeti-nic0.link",
    "./etc/systemd/system",
    "./etc/systemd/system/getty.target.wants",
    "./var/lib/dbus",
    "./var/lib/systemd",
    "./var/lib/systemd/random-seed",
    "./lost+found",
];

fn cached_tar(node: &Node) -> PathBuf {
    let mut entries = fs::read_dir(node.cache()).unwrap().flatten().map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|e| e == "tar")).unwrap()
}

/// GNU tar compares every file with the cache's; names that are in one alone are found by listing.
fn assert_tree_is_the_cached_one(root: &Mounted, tar: &Path) {
    let (tar, top) = (tar.to_str().unwrap(), root.path().to_str().unwrap());
    let args = ["--compare", "--numeric-owner", "--xattrs", "--acls", "-f", tar, "-C", top];
    let output = Command::new("tar").args(args).env("LC_ALL", "C").output().unwrap();
    let report = text(&output.stdout);
    let is_personal =
        |name: &str| PERSONAL.contains(&name.trim_end_matches('/')) || name.contains("serial-getty@");
    let different: Vec<&str> =
        report.lines().filter(|line| !is_personal(line.split(": ").next().unwrap())).collect();
    assert!(different.is_empty(), "{different:#?}\n{}", text(&output.stderr));
    let listed: BTreeSet<String> =
        tool("tar", &["-tf", tar]).lines().map(|name| name.trim_end_matches('/').to_owned()).collect();
    let mut found = BTreeSet::new();
    for entry in walkdir::WalkDir::new(root.path()) {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
        // Every name is opened: an index that lost one would show.
        entry.path().symlink_metadata().unwrap();
        found.insert(if name.is_empty() { ".".to_owned() } else { format!("./{name}") });
    }
    let odd: Vec<&String> = listed.symmetric_difference(&found).filter(|name| !is_personal(name)).collect();
    assert!(odd.is_empty(), "{odd:?}");
}

/// What a guest may be made on: filesystem, partition style, and what Ganeti gives.
type Medium = (&'static str, &'static str, &'static str);

const FILESYSTEMS: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "btrfs"];

fn every_medium() -> Vec<Medium> {
    let on = |filesystem| {
        ["gpt", "msdos", "none"]
            .into_iter()
            .flat_map(move |style| ["file", "block"].map(|given| (filesystem, style, given)))
    };
    FILESYSTEMS.into_iter().flat_map(on).collect()
}

/// Makes a guest on each and wants in it what is in the cache.
fn assert_all_hold_the_cached_tree(node: &Node, media: &[Medium]) {
    let tar = cached_tar(node);
    for (filesystem, style, given) in media {
        let file = node.disk("d", GIB);
        let device = (*given == "block").then(|| BlockDevice::over(&file, &[]));
        let disk = device.as_ref().map_or(file.as_path(), |device| device.0.as_path());
        let mut env = node.recorded("create-blockdev", disk);
        env.insert("OSP_PARTITION_STYLE".into(), (*style).into());
        env.insert("OSP_FILESYSTEM".into(), (*filesystem).into());
        node.create(&env);
        drop(device);
        let offset = if *style == "none" { 0 } else { root_offset(&file) };
        fsck(&file, offset, filesystem);
        let root = Mounted::at(&file, offset);
        assert_tree_is_the_cached_one(&root, &tar);
        assert_eq!(root.read("etc/hostname"), format!("{}\n", env["INSTANCE_NAME"]));
    }
    node.assert_nothing_left();
}

#[test]
fn every_filesystem_on_every_layout_and_medium_holds_the_cached_tree() {
    assert_all_hold_the_cached_tree(&Node::new(), &every_medium());
}

/// One of each filesystem, layout and medium.
#[test]
fn every_filesystem_holds_a_debian() {
    let media = [
        ("ext2", "gpt", "file"),
        ("ext3", "msdos", "block"),
        ("ext4", "none", "block"),
        ("xfs", "gpt", "block"),
        ("btrfs", "none", "file"),
    ];
    assert_eq!(media.map(|medium| medium.0), FILESYSTEMS);
    assert_all_hold_the_cached_tree(&Node::debian_without_templates(), &media);
}

#[test]
#[ignore = "run by make test-full"]
fn every_filesystem_on_every_layout_and_medium_holds_a_debian() {
    assert_all_hold_the_cached_tree(&Node::debian_without_templates(), &every_medium());
}

#[test]
fn disks_of_odd_sizes_arrive() {
    let node = Node::new();
    let tar = cached_tar(&node);
    // Least sizes as the program states them: 511 MiB for the root, and what precedes and follows it.
    let least_gpt = 262_144 * 512 + 33 * 512 + (511 << 20);
    for (style, bytes) in [
        ("gpt", GIB + 512 * 777),
        ("none", GIB + 512 * 777),
        ("gpt", GIB + 100),
        ("none", GIB + 100),
        ("gpt", least_gpt),
        ("msdos", (512 << 20) + 512),
        ("none", 511 << 20),
        ("gpt", 1024 * GIB),
        ("none", 1024 * GIB),
    ] {
        let disk = node.disk("d", bytes);
        let mut env = node.recorded("create", &disk);
        env.insert("OSP_PARTITION_STYLE".into(), style.into());
        node.create(&env);
        assert_eq!(fs::metadata(&disk).unwrap().len(), bytes, "{style} {bytes}");
        let offset = if style == "none" { 0 } else { root_offset(&disk) };
        fsck(&disk, offset, "ext4");
        assert_tree_is_the_cached_one(&Mounted::at(&disk, offset), &tar);
        use std::os::unix::fs::MetadataExt;
        let used = fs::metadata(&disk).unwrap().blocks() * 512;
        // ext4's journal grows to 1 GiB with the disk; nothing else does.
        assert!(used < 2 * GIB, "{style} {bytes}: a sparse disk stays sparse, it takes {used}");
        fs::remove_file(&disk).unwrap();
    }
    for (style, bytes) in
        [("gpt", least_gpt - 512), ("msdos", (512 << 20) - 512), ("none", (511 << 20) - 512)]
    {
        let disk = node.disk("d", bytes);
        let mut env = node.recorded("create", &disk);
        env.insert("OSP_PARTITION_STYLE".into(), style.into());
        let output = node.verb("create", &env).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{style} {bytes}");
        assert!(log_of(&output).contains(&format!("({bytes} bytes), but partition_style {style} needs")));
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&disk).unwrap().blocks(), 0, "nothing was written");
    }
}

#[test]
fn devices_with_4096_byte_sectors_and_with_stale_partitions_arrive() {
    let node = Node::new();
    let tar = cached_tar(&node);
    let file = node.disk("d", GIB);
    {
        let device = BlockDevice::over(&file, &["-b", "4096"]);
        node.create(&node.recorded("create-blockdev", &device.0));
    }
    assert_tree_is_the_cached_one(&Mounted::at(&file, root_offset(&file)), &tar);

    // The kernel still knows a partition of the disk's earlier life, at another place.
    let device = BlockDevice::over(&file, &["-P"]);
    tool("addpart", &[device.0.to_str().unwrap(), "1", "4096", "100000"]);
    node.create(&node.recorded("create-blockdev", &device.0));
    let _ = Command::new("delpart").arg(&device.0).arg("1").status();
    drop(device);
    assert_tree_is_the_cached_one(&Mounted::at(&file, root_offset(&file)), &tar);
    node.assert_nothing_left();
}

#[test]
fn what_a_disk_held_before_is_gone_on_every_layout() {
    let node = Node::new();
    let tar = cached_tar(&node);
    for style in ["gpt", "msdos", "none"] {
        let disk = node.disk("d", GIB);
        let path = disk.to_str().unwrap();
        dirty(&disk, GIB);
        // An LVM label, md superblocks at both of their places, a gpt and its backup, a btrfs mirror.
        let lvm = "printf 'LABELONE\\001\\000\\000\\000\\000\\000\\000\\000' | dd bs=1 seek=512 conv=notrunc status=none of=";
        let md = "printf '\\374\\116\\053\\251' | dd bs=1 conv=notrunc status=none";
        tool(
            "sh",
            &[
                "-c",
                &format!(
                    "{lvm}{path}; {md} seek=$((1024*1048576-65536)) of={path}; {md} seek=4096 of={path}"
                ),
            ],
        );
        tool(
            "sh",
            &[
                "-c",
                &format!(
                    "printf '_BHRfS_M' | dd bs=1 seek=$((64*1048576+64)) conv=notrunc status=none of={path}"
                ),
            ],
        );
        tool("sh", &["-c", &format!("echo 'size=100M' | sfdisk -q --label gpt {path}")]);
        let mut env = node.recorded("create", &disk);
        env.insert("OSP_PARTITION_STYLE".into(), style.into());
        node.create(&env);
        let found = tool("wipefs", &["-n", "-O", "TYPE", "--noheadings", path]);
        let mut found: Vec<&str> = found.split_whitespace().collect();
        found.dedup();
        let expected: &[&str] = match style {
            "gpt" => &["gpt", "PMBR"],
            "msdos" => &["dos"],
            _ => &["ext4"],
        };
        assert_eq!(found, expected);
        let offset = if style == "none" { 0 } else { root_offset(&disk) };
        fsck(&disk, offset, "ext4");
        assert_tree_is_the_cached_one(&Mounted::at(&disk, offset), &tar);
    }
}

#[test]
fn a_disk_that_is_mounted_in_another_namespace_is_refused() {
    let node = Node::new();
    let file = node.disk("d", GIB);
    tool("mke2fs", &["-q", "-F", file.to_str().unwrap()]);
    let device = BlockDevice::over(&file, &[]);
    let script = "mount \"$1\" \"$2\" && echo mounted && exec sleep 600";
    let mut holder = Command::new("unshare");
    holder.args(["--mount", "sh", "-c", script, "sh"]).arg(&device.0).arg(node.path().join("disks"));
    let mut holder = crate::common::killed_with_us(&mut holder).stdout(Stdio::piped()).spawn().unwrap();
    use std::io::BufRead;
    let mut line = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mounted\n");
    let output = node.verb("create", &node.recorded("create-blockdev", &device.0)).output().unwrap();
    let log = log_of(&output);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("is in use"), "{log}");
    assert!(log.lines().last().unwrap().starts_with("hint: "), "{log}");
}

/// The node's tools make features by default that the tools, the kernel and the loader of an older release cannot read.
#[test]
fn an_older_release_gets_a_filesystem_that_it_can_read() {
    let node = Node::new();
    let arch = tool("dpkg", &["--print-architecture"]);
    let tree = cached_tar(&node);
    fs::hard_link(&tree, node.cache().join(format!("cache-bullseye-{}.tar", arch.trim()))).unwrap();
    for (filesystem, unwanted) in
        [("ext4", "metadata_csum_seed orphan_file"), ("xfs", "bigtime=1 inobtcount=1 nrext64=1")]
    {
        let disk = node.disk(filesystem, GIB);
        let mut env = node.recorded("create", &disk);
        for (name, value) in [("SUITE", "bullseye"), ("FILESYSTEM", filesystem), ("PARTITION_STYLE", "none")]
        {
            env.insert(format!("OSP_{name}"), value.into());
        }
        node.create(&env);
        let features = match filesystem {
            "ext4" => tool("dumpe2fs", &["-h", disk.to_str().unwrap()]),
            _ => tool("xfs_info", &[disk.to_str().unwrap()]),
        };
        assert!(features.contains("bigtime=0") || features.contains("metadata_csum"), "{features}");
        for feature in unwanted.split(' ') {
            assert!(
                !features.split_whitespace().any(|word| word.trim_end_matches(',') == feature),
                "{features}"
            );
        }
    }
}

#[test]
fn secrets_are_only_where_they_belong() {
    let node = Node::new();
    let canary = "canary-5f1dd3b8";
    fs::write(node.legacy_defaults(), "CLEAN_CACHE=14\n").unwrap();
    node.hook("slow", "#!/bin/sh\nsleep 0.5\ntest -n \"$OSP_SECP\"\n");
    let disk = node.disk("d", GIB);
    let mut env = node.recorded("create-full", &disk);
    for n in 1..3 {
        env.insert(format!("DISK_{n}_PATH"), node.disk(&n.to_string(), 1 << 20).display().to_string());
    }
    for name in ["OSP_SECP", "OSP_PRIVP", "OSP_PLAIN_PARAM"] {
        env.insert(name.into(), format!("{canary}-{name}"));
    }
    env.insert("DEBUG_LEVEL".into(), "1".into());
    let log_path = node.path().join("log");
    let log = fs::File::create(&log_path).unwrap();
    let mut child = node.verb("create", &env).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let mut seen = BTreeSet::new();
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
            let holds = |bytes: &[u8]| bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
            let command = text(&read("cmdline")).replace('\0', " ");
            assert!(!holds(&read("cmdline")), "{command}");
            // A process that is just being replaced shows no command.
            if holds(&read("environ")) && !command.is_empty() {
                seen.insert(command);
            }
        }
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        peak_kib = peak_kib.max(line.trim().split(' ').next().unwrap().parse::<u64>().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success(), "{}", fs::read_to_string(&log_path).unwrap());
    // The program, the bash that evaluates the settings and its look at the environment, init, the hook.
    let allowed = ["create", "bash", "/usr/bin/env -0", "/slow", "sleep", "init", "sh -c umask"];
    let strange: Vec<&String> = seen.iter().filter(|c| !allowed.iter().any(|a| c.contains(a))).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(seen.iter().any(|command| command.contains("/slow")), "the hook has them: {seen:?}");
    let holds =
        |path: &Path| Command::new("grep").args(["-aqr", canary]).arg(path).status().unwrap().success();
    assert!(!holds(&log_path) && !holds(&node.cache()) && !holds(&disk));
    assert!(peak_kib < 64 << 10, "peak memory {peak_kib} KiB");
    assert!(peak_kib > 0);
}
