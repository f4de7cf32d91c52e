//! Disks made of something else than a bootstrapped tree: images and root tars that an administrator sealed, or nothing; and
//! backups that come back as another guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::backup::{self, dirty};
use crate::common::guest::{Firmware, Guest};
use crate::common::{
    GIB, Mounted, Node, assert_every_release_reads, fsck, log_of, partition_offset, processor_time,
    root_offset, tool,
};
use ganeti_instance_debootstrap::backup::qcow2::{Piece, Qcow2};
use ganeti_instance_debootstrap::reader::ReadAt;
use sha2::{Digest, Sha256, Sha512};

const MIB: u64 = 1 << 20;

/// An image of a guest called golden.example.com, as an administrator makes one.
fn golden(node: &Node, name: &str, options: &[&str]) -> PathBuf {
    let path = node.path().join(name);
    let mut args = vec!["image", "--name", "golden.example.com", "--size", "1G", "--output"];
    args.push(path.to_str().unwrap());
    args.extend(options);
    let output = node.command(&args).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    path
}

fn sealed(path: &Path, algorithm: &str) -> String {
    fn sum<D: Digest + Write>(path: &Path) -> String {
        let mut digest = D::new();
        std::io::copy(&mut File::open(path).unwrap(), &mut digest).unwrap();
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
    let sum = if algorithm == "sha512" { sum::<Sha512>(path) } else { sum::<Sha256>(path) };
    format!("{} {algorithm}:{sum}", path.display())
}

/// A node whose images are of the small tree.
fn node() -> Node {
    let node = Node::new();
    node.config("boot = \"no\"\n");
    node
}

/// Makes `source` the source of the variant golden.
fn set_source(node: &Node, source: &str) {
    node.variant("golden.toml", &format!("source = \"{source}\"\n"));
}

fn golden_env(node: &Node, disk: &Path) -> BTreeMap<String, String> {
    let mut env = node.recorded("create", disk);
    env.insert("OS_VARIANT".into(), "golden".into());
    env
}

/// Runs a verb and wants it to fail; the log.
fn failure(node: &Node, verb: &str, env: &BTreeMap<String, String>) -> String {
    let output = node.verb(verb, env).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", log_of(&output));
    log_of(&output)
}

fn tag(disk: &Path, offset: u64, what: &str) -> String {
    let command = format!("blkid -p -s {what} -o value -O {offset} {} || true", disk.display());
    tool("sh", &["-c", &command]).trim().to_owned()
}

/// What differs between two trees, as rsync itemises it.
fn differences(one: &Path, other: &Path) -> Vec<String> {
    let slash = |path: &Path| format!("{}/", path.display());
    let listed = tool(
        "rsync",
        &["-naAXH", "--checksum", "--delete", "--out-format=%i %n", &slash(one), &slash(other)],
    );
    let names = listed.lines().map(|line| {
        // A directory's time changes with what is in it.
        line.trim_start_matches("*deleting").trim().rsplit(' ').next().unwrap().to_owned()
    });
    names.filter(|name| !name.ends_with('/')).collect()
}

#[test]
fn a_cloud_image_becomes_a_guest_of_its_own() {
    let node = Node::bootable("trixie");
    let image = golden(&node, "golden.qcow2", &["--format", "qcow2"]);
    node.hook("seen", "#!/bin/sh\necho \"$TARGET $BLOCKDEV $FSYSDEV\" > \"$TARGET/etc/hooked\"\nchroot \"$TARGET\" /bin/true\n");
    set_source(&node, &sealed(&image, "sha512"));
    // Larger, and not blank.
    let disk = node.path().join("disks/d");
    dirty(&disk, GIB + 512 * MIB);
    let log = node.create(&golden_env(&node, &disk));
    assert!(log.contains("golden.qcow2") && log.contains("growing partition 1: ext4"), "{log}");
    let raw = node.path().join("golden.raw");
    tool("qemu-img", &["convert", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);

    let verified = tool("sfdisk", &["--verify", disk.to_str().unwrap()]);
    assert!(verified.contains("No errors detected"), "{verified}");
    fsck(&disk, root_offset(&disk), "ext4");
    let root = Mounted::at(&disk, root_offset(&disk));
    let theirs = Mounted::at(&raw, root_offset(&raw));
    let size = tool("stat", &["-f", "-c", "%b %S", root.path().to_str().unwrap()]);
    let size: u64 = size.trim().split(' ').map(|n| n.parse::<u64>().unwrap()).product();
    assert!(size > 5 * GIB / 4, "{size}\n{log}");
    let name = node.recorded("create", &disk)["INSTANCE_NAME"].clone();
    assert_eq!(root.read("etc/hostname").trim(), name);
    assert!(!root.read("etc/hosts").contains("golden") || root.read("etc/hosts").contains(&name));
    assert_eq!(root.read("etc/machine-id"), "");
    let hooked = root.read("etc/hooked");
    assert!(hooked.contains("/dev/loop") && hooked.trim().ends_with("p1"), "{hooked}");
    let mut changed = differences(theirs.path(), root.path());
    changed.retain(|path| {
        let own =
            ["etc/hooked", "etc/hostname", "etc/hosts", "etc/mailname", "etc/resolv.conf", "etc/machine-id"];
        let dirs = ["etc/network", "etc/systemd/network", "etc/systemd/system", "etc/ssh", "var/lib/systemd"];
        !own.contains(&path.as_str()) && !dirs.iter().any(|dir| path.starts_with(dir))
    });
    assert_eq!(changed, Vec::<String>::new());
    drop((root, theirs));
    // What is on the disk is the image's own: its UUID, its boot code.
    assert_eq!(tag(&disk, root_offset(&disk), "UUID"), tag(&raw, root_offset(&raw), "UUID"));
    node.assert_nothing_left();
}

#[test]
fn a_failing_hook_leaves_no_disk_that_looks_installed() {
    let node = node();
    let image = golden(&node, "golden.img", &[]);
    set_source(&node, &sealed(&image, "sha256"));
    let disk = node.disk("d", GIB);
    node.hook("fails", "#!/bin/sh\nexit 7\n");
    let log = failure(&node, "create", &golden_env(&node, &disk));
    assert!(log.contains("exit status 7") && log.contains("the disk is wiped"), "{log}");
    assert_eq!(
        std::process::Command::new("blkid").arg("-p").arg(&disk).output().unwrap().status.code(),
        Some(2)
    );
    node.assert_nothing_left();
}

#[test]
fn an_image_without_a_table_is_called_incomplete_until_all_is_done() {
    let node = node();
    node.hook("look", "#!/bin/sh\nsync; blkid -p -s LABEL -o value \"$BLOCKDEV\" > \"$TARGET/etc/label\"\n");
    for filesystem in ["ext4", "xfs", "btrfs"] {
        let kind = format!("filesystem={filesystem}");
        let style =
            ["--param", "partition_style=none", "--param", "boot=no", "--param", "swap=no", "--force"];
        let image = golden(&node, "golden.img", &[&style[..], &["--param", &kind]].concat());
        set_source(&node, &sealed(&image, "sha256"));
        let disk = node.disk("d", GIB);
        let log = node.create(&golden_env(&node, &disk));
        fsck(&disk, 0, filesystem);
        assert_eq!(tag(&disk, 0, "LABEL"), "", "{log}");
        let root = Mounted::at(&disk, 0);
        assert_eq!(root.read("etc/label").trim(), "incomplete", "{filesystem}\n{log}");
        drop(root);
        fs::remove_file(&disk).unwrap();
    }
    node.assert_nothing_left();
}

#[test]
fn exports_and_raw_images_and_root_tars_are_sources_too() {
    let node = node();
    let raw = golden(&node, "golden.img", &[]);
    let export = node.path().join("golden.export");
    backup::export(&node, &raw, &export);
    let tar = node.path().join("golden.tar.zst");
    {
        let root = Mounted::at(&raw, root_offset(&raw));
        let (root, tar) = (root.path().to_str().unwrap(), tar.to_str().unwrap());
        tool("tar", &["--zstd", "--xattrs", "--acls", "--numeric-owner", "-cf", tar, "-C", root, "."]);
    }
    let name = node.recorded("create", &raw)["INSTANCE_NAME"].clone();
    for source in [&raw, &export, &tar] {
        set_source(&node, &sealed(source, "sha256"));
        let disk = node.disk("d", GIB + 300 * MIB);
        let env = golden_env(&node, &disk);
        let dry_run = node.verb("create", &env).arg("--dry-run").output().unwrap();
        assert!(
            dry_run.status.success() && log_of(&dry_run).contains("source      /"),
            "{}",
            log_of(&dry_run)
        );
        let log = node.create(&env);
        let offset = root_offset(&disk);
        fsck(&disk, offset, "ext4");
        let root = Mounted::at(&disk, offset);
        assert_eq!(root.read("etc/hostname").trim(), name, "{log}");
        assert!(root.read("etc/fstab").contains(&format!("UUID={} / ext4", tag(&disk, offset, "UUID"))));
        drop(root);
        fs::remove_file(&disk).unwrap();
        node.assert_nothing_left();
    }
}

#[test]
fn an_empty_disk_has_nothing_of_what_was_on_it() {
    let node = Node::new();
    let disk = node.disk("d", 2 * GIB);
    node.create(&node.recorded("create", &disk));
    let root = root_offset(&disk);
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_SOURCE".into(), "empty".into());
    let log = node.create(&env);
    assert!(log.contains("nothing was installed") && !log.contains("is installed"), "{log}");
    for offset in [0, root] {
        let found = tool("sh", &["-c", &format!("blkid -p -O {offset} {} || [ $? = 2 ]", disk.display())]);
        assert_eq!(found, "", "at {offset}");
    }
    assert_eq!(fs::metadata(&disk).unwrap().len(), 2 * GIB);
    node.assert_nothing_left();
}

#[test]
fn what_is_not_what_the_administrator_sealed_is_refused_and_the_disk_stays_as_it_was() {
    let node = Node::bare();
    let image = node.path().join("golden.img");
    dirty(&image, 8 * MIB);
    let disk = node.path().join("disks/d");
    dirty(&disk, 64 * MIB);
    let before = crate::common::digest(&disk);
    let good = sealed(&image, "sha256");
    let wrong = good.replace("sha256:", "sha256:0").split_at(good.len()).0.to_owned();
    let table: [(&str, &str); 3] = [
        (&wrong, "is not what source says"),
        (&good.replace("golden.img", "gone.img"), "gone.img"),
        (&good, "no known format"),
    ];
    for (source, wanted) in table {
        set_source(&node, source);
        let log = failure(&node, "create", &golden_env(&node, &disk));
        assert!(log.contains(wanted), "{wanted}\n{log}");
        assert_eq!(crate::common::digest(&disk), before, "{source}");
    }
    // Whoever may write it could change it behind the digest.
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    set_source(&node, &good);
    let log = failure(&node, "create", &golden_env(&node, &disk));
    assert!(log.contains("can be written by everybody"), "{log}");
    assert_eq!(crate::common::digest(&disk), before);
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    // A stranger may not have this node read a file of his choice.
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_SOURCE".into(), good.clone());
    for verb in ["create", "verify"] {
        let log = failure(&node, verb, &env);
        assert!(log.contains("expected \"bootstrap\" or \"empty\""), "{log}");
    }
    // What cannot be had is known before a create.
    set_source(&node, &good.replace("golden.img", "gone.img"));
    let mut verify = node.recorded("verify", &disk);
    verify.insert("OS_VARIANT".into(), "golden".into());
    assert!(failure(&node, "verify", &verify).contains("this node does not have it"));
    set_source(&node, &good);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(failure(&node, "verify", &verify).contains("can be written by everybody"));
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    // An image that does not fit, or holds no guest.
    let small = node.path().join("small.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", small.to_str().unwrap(), "65M"]);
    set_source(&node, &sealed(&small, "sha256"));
    let log = failure(&node, "create", &golden_env(&node, &disk));
    assert!(log.contains("64 MiB") && log.contains("65 MiB"), "{log}");
    assert_eq!(crate::common::digest(&disk), before);
    tool("qemu-img", &["resize", "-q", "--shrink", small.to_str().unwrap(), "32M"]);
    set_source(&node, &sealed(&small, "sha256"));
    let log = failure(&node, "create", &golden_env(&node, &disk));
    assert!(log.contains("no root of a guest is on the image"), "{log}");
    node.assert_nothing_left();
}

/// All of an image, as the reader hands it out.
fn read_all(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path)?;
    let image = Qcow2::open(&file)?;
    let mut all = vec![1; image.size_bytes() as usize];
    let mut next = 0;
    image.pieces(|offset, piece| {
        assert_eq!(offset, next, "in order and without a gap");
        let length = match piece {
            Piece::Data(bytes) => {
                all[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            Piece::Zeros(length) => {
                all[offset as usize..][..length as usize].fill(0);
                length as usize
            }
        };
        next = offset + length as u64;
        Ok(())
    })?;
    assert_eq!(next, image.size_bytes());
    for (offset, length) in [(0, 512), (65_000, 3000), (next - 700, 700)] {
        let mut bytes = vec![0; length];
        image.read_into(&mut bytes, offset)?;
        assert_eq!(bytes, all[offset as usize..][..length], "{offset}");
    }
    Ok(all)
}

#[test]
fn qcow2_images_of_every_kind_read_as_qemu_reads_them() {
    let dir = tempfile::tempdir_in(crate::common::scratch()).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let raw = at("raw");
    let file = File::create(&raw).unwrap();
    file.set_len(5 * MIB + 3 * 512).unwrap();
    let words: Vec<u8> = (0..700_000_u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
    file.write_all_at(&words, 100_000).unwrap();
    let random: Vec<u8> =
        (0..300_000_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    file.write_all_at(&random, 4 * MIB + 77).unwrap();
    let expected = fs::read(&raw).unwrap();
    let image = at("image");
    for (options, packed) in [
        ("compat=1.1", false),
        ("compat=0.10", false),
        ("compat=1.1,cluster_size=512", false),
        ("compat=1.1,cluster_size=2M", false),
        ("compat=1.1,lazy_refcounts=on,preallocation=metadata", false),
        ("compat=1.1", true),
        ("compat=0.10,cluster_size=4k", true),
        ("compat=1.1,compression_type=zstd", true),
        ("compat=1.1,compression_type=zstd,cluster_size=2M", true),
    ] {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend(packed.then_some("-c"));
        args.extend([raw.as_str(), &image]);
        tool("qemu-img", &args);
        assert_eq!(read_all(Path::new(&image)).unwrap(), expected, "{options} {packed}");
    }
    // What was overwritten with zeros, and a snapshot beside.
    tool("qemu-img", &["snapshot", "-c", "before", &image]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -z 1M 1M", "-c", "write -P 5 3M 64k", &image]);
    let now = at("now");
    tool("qemu-img", &["convert", "-O", "raw", &image, &now]);
    assert_eq!(read_all(Path::new(&image)).unwrap(), fs::read(&now).unwrap());

    let data_file = format!("data_file={}", at("data"));
    let luks = [
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "--object",
        "secret,id=s,data=x",
    ];
    let refused = at("refused");
    let table: [(&[&str], &str); 4] = [
        (&["-b", &image, "-F", "qcow2"], "backing file"),
        (&["-o", "extended_l2=on"], "subclusters"),
        (&["-o", &data_file], "another file"),
        (&luks, "encrypted"),
    ];
    for (options, why) in table {
        tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], options, &[&refused, "5M"]].concat());
        let error = read_all(Path::new(&refused)).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }

    // Emptiness takes no time, and a table without end is refused.
    let empty = at("empty");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &empty, "60T"]);
    let file = File::options().read(true).write(true).open(&empty).unwrap();
    let mut pieces = Vec::new();
    let (_, took) = processor_time(|| {
        let image = Qcow2::open(&file).unwrap();
        image.pieces(|offset, piece| {
            pieces.push((offset, matches!(piece, Piece::Zeros(length) if length == 60 << 40)));
            Ok(())
        })
    });
    assert_eq!(pieces, [(0, true)]);
    assert!(took.as_secs() < 1, "{took:?}");
    file.write_all_at(&9_u32.to_be_bytes(), 20).unwrap();
    let error = Qcow2::open(&file).err().unwrap();
    assert!(error.to_string().contains("too small clusters"), "{error:#}");

    // Whatever its bytes are, it is read or refused.
    let good = fs::read(&image).unwrap();
    let damaged = at("damaged");
    let mut refused = 0;
    for n in 0..400_usize {
        let mut bytes = good.clone();
        // Header and tables, most of all.
        let place = if n % 2 == 0 { n / 2 % 112 } else { n * 7919 % bytes.len() };
        bytes[place] ^= 1 << (n % 8);
        if n % 5 == 0 {
            bytes.truncate(n * 811 % bytes.len());
        }
        fs::write(&damaged, &bytes).unwrap();
        let file = File::open(&damaged).unwrap();
        let read = Qcow2::open(&file).and_then(|image| {
            let mut pieces = 0;
            image.pieces(|_, _| {
                pieces += 1;
                anyhow::ensure!(pieces < 5000, "a long one");
                Ok(())
            })
        });
        refused += u32::from(read.is_err());
    }
    assert!(refused > 100, "{refused}");
}

fn restore(node: &Node, identity: &str, disk: &Path, stream: &Path) -> String {
    let mut env = backup::env_of(node, "import", disk);
    env.insert("INSTANCE_NAME".into(), "twin.example.com".into());
    env.insert("OSP_IMPORT_IDENTITY".into(), identity.into());
    let output = node.verb("import", &env).stdin(File::open(stream).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    log_of(&output)
}

/// UUIDs, PARTUUIDs and the like of a disk and everything on it.
fn identifiers(disk: &Path) -> Vec<String> {
    let probe = |offset: u64| -> Vec<String> {
        let command = format!("blkid -p -o export -O {offset} {} || true", disk.display());
        let lines = tool("sh", &["-c", &command]);
        let named = lines.lines().filter(|line| line.contains("UUID=") && !line.contains("UUID_SUB"));
        named.map(|line| line.split_once('=').unwrap().1.to_owned()).collect()
    };
    let mut found = probe(0);
    let json = tool("sh", &["-c", &format!("sfdisk --json {} 2>/dev/null || true", disk.display())]);
    if let Ok(table) = serde_json::from_str::<serde_json::Value>(&json) {
        let table = &table["partitiontable"];
        found.push(table["id"].as_str().unwrap().to_owned());
        for partition in table["partitions"].as_array().unwrap() {
            found.extend(partition["uuid"].as_str().map(str::to_owned));
            found.extend(probe(partition["start"].as_u64().unwrap() * 512));
        }
    }
    found
}

#[test]
fn a_backup_comes_back_as_itself_or_as_another_guest() {
    let node = Node::bootable("trixie");
    for (style, filesystem, swap) in
        [("gpt", "ext4", "128M"), ("msdos", "xfs", "no"), ("none", "btrfs", "no"), ("msdos", "ext3", "64M")]
    {
        let disk = node.disk("d", 2 * GIB);
        let boot = if style == "gpt" { "auto" } else { "no" };
        let params = [
            ("partition_style", style),
            ("filesystem", filesystem),
            ("swap", swap),
            ("boot", boot),
            ("suite", "trixie"),
        ];
        node.create(&node.kvm(&disk, &params));
        let offset = if style == "none" { 0 } else { root_offset(&disk) };
        let stream = node.path().join("stream");
        backup::export(&node, &disk, &stream);

        let kept = node.disk("kept", 2 * GIB);
        restore(&node, "keep", &kept, &stream);
        assert_eq!(identifiers(&kept), identifiers(&disk), "{style} {filesystem}");
        fs::remove_file(&kept).unwrap();

        let new = node.disk("new", 3 * GIB);
        let log = restore(&node, "new", &new, &stream);
        let (old_ids, new_ids) = (identifiers(&disk), identifiers(&new));
        assert_eq!(old_ids.len(), new_ids.len(), "{old_ids:?} {new_ids:?}");
        assert!(old_ids.len() >= if style == "gpt" { 9 } else { 1 }, "{old_ids:?}");
        assert!(new_ids.iter().all(|id| !old_ids.contains(id)), "{old_ids:?} {new_ids:?}\n{log}");
        fsck(&new, offset, filesystem);
        let root = Mounted::with(&new, &format!("ro,loop,offset={offset}"));
        let fstab = root.read("etc/fstab");
        assert!(fstab.contains(&format!("UUID={} / {filesystem}", tag(&new, offset, "UUID"))), "{fstab}");
        let all = old_ids.iter().map(|id| id.to_lowercase());
        for id in all.clone() {
            assert!(!fstab.to_lowercase().contains(&id), "{id} in {fstab}");
        }
        if swap != "no" {
            let number = 2;
            let swap = tag(&new, partition_offset(&new, number), "UUID");
            assert!(fstab.contains(&format!("UUID={swap} none swap")), "{fstab}");
        }
        if boot == "auto" {
            let grub = root.read("boot/grub/grub.cfg");
            assert!(grub.contains(&tag(&new, offset, "UUID")), "{grub}");
            assert!(all.clone().all(|id| !grub.contains(&id)), "{grub}");
            let esp = partition_offset(&new, 15);
            assert!(fstab.contains(&format!("UUID={} /boot/efi", tag(&new, esp, "UUID"))), "{fstab}");
            let uuid = tag(&new, offset, "UUID");
            let mut config = vec![0; (offset - esp) as usize];
            File::open(&new).unwrap().read_exact_at(&mut config, esp).unwrap();
            let is_named = |uuid: &str| config.windows(36).any(|word| word == uuid.as_bytes());
            assert!(
                is_named(&uuid) && !is_named(&tag(&disk, offset, "UUID")),
                "the EFI partition names the root"
            );
        }
        assert_eq!(root.read("etc/machine-id"), "");
        let name = root.read("etc/hostname");
        assert!(!name.contains("twin"), "names are for the rename that follows: {name}");
        drop(root);
        for path in [&disk, &new] {
            fs::remove_file(path).unwrap();
        }
        node.assert_nothing_left();
    }
}

#[test]
fn a_boot_partition_names_the_new_root_and_odd_tables_stay_within_the_disk() {
    let node = Node::bare();
    let image = node.path().join("image");
    File::create(&image).unwrap().set_len(96 * MIB).unwrap();
    let table = "label: gpt\nstart=1MiB, size=40MiB\nstart=41MiB, size=40MiB\n";
    tool("sh", &["-c", &format!("printf '{table}' | sfdisk -q {}", image.display())]);
    let uuid = "b5a70c8f-0000-4000-8000-0123456789ab";
    for (offset, id, path, text) in [
        (MIB, uuid, "etc/crypttab", format!("x UUID={}", uuid.replace('b', "c"))),
        (
            41 * MIB,
            "c5a70c8f-0000-4000-8000-0123456789ab",
            "grub/grub.cfg",
            format!("linux root=UUID={uuid}"),
        ),
    ] {
        let tree = node.path().join(offset.to_string());
        let file = tree.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        let (image, tree) = (image.to_str().unwrap(), tree.to_str().unwrap());
        let place = format!("offset={offset}");
        tool("mkfs.ext4", &["-q", "-F", "-U", id, "-d", tree, "-E", &place, image, "40M"]);
    }
    // A copy of the table far behind the end of the disk, as the primary has it.
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let mut header = [0; 92];
    file.read_exact_at(&mut header, 512).unwrap();
    header[32..40].copy_from_slice(&(1_u64 << 33).to_le_bytes());
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 512).unwrap();

    let disk = node.disk("d", 96 * MIB);
    let log = restore(&node, "new", &disk, &image);
    assert_eq!(fs::metadata(&disk).unwrap().len(), 96 * MIB, "{log}");
    let new = tag(&disk, MIB, "UUID");
    assert_ne!(new, uuid);
    let boot = Mounted::at(&disk, 41 * MIB);
    assert_eq!(boot.read("grub/grub.cfg"), format!("linux root=UUID={new}"), "{log}");
    drop(boot);
    fsck(&disk, 41 * MIB, "ext4");
    node.assert_nothing_left();
}

/// Makes the disk of a root tar that has a kernel, and no loader of ours.
fn disk_of_a_tar(node: &Node) -> (PathBuf, BTreeMap<String, String>) {
    let image = golden(node, "tree.img", &["--param", "suite=trixie"]);
    let tar = node.path().join("tree.tar.gz");
    {
        let root = Mounted::at(&image, root_offset(&image));
        tool(
            "tar",
            &[
                "--xattrs",
                "--acls",
                "--numeric-owner",
                "-czf",
                tar.to_str().unwrap(),
                "-C",
                root.path().to_str().unwrap(),
                ".",
            ],
        );
    }
    let old = tag(&image, root_offset(&image), "UUID");
    fs::remove_file(&image).unwrap();
    set_source(node, &sealed(&tar, "sha256"));
    let disk = node.disk("tar", 3 * GIB);
    let mut env = node.kvm(&disk, &[("suite", "trixie"), ("swap", "64M")]);
    env.insert("OS_VARIANT".into(), "golden".into());
    let log = node.create(&env);
    assert_every_release_reads(&disk, root_offset(&disk));
    let root = Mounted::at(&disk, root_offset(&disk));
    let (grub, fstab) = (root.read("boot/grub/grub.cfg"), root.read("etc/fstab"));
    let uuid = tag(&disk, root_offset(&disk), "UUID");
    assert!(grub.contains(&uuid) && !grub.contains(&old), "{grub}\n{log}");
    assert!(fstab.contains(&format!("UUID={uuid} / ext4")) && fstab.contains("/boot/efi"), "{fstab}");
    (disk.clone(), env)
}

#[test]
fn a_root_tar_gets_a_loader_for_its_disk() {
    let node = Node::bootable("trixie");
    disk_of_a_tar(&node);
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn a_golden_image_and_a_backup_with_a_new_identity_boot() {
    let node = Node::bootable("trixie");
    let image = golden(
        &node,
        "golden.qcow2",
        &["--format", "qcow2", "--param", "suite=trixie", "--param", "swap=64M"],
    );
    set_source(&node, &sealed(&image, "sha256"));
    let boot = |disk: &Path, name: &str| {
        for firmware in [Firmware::SeaBios, Firmware::Ovmf] {
            let mut guest =
                Guest::boot(firmware, disk, &["-nic", "user,model=virtio-net-pci,mac=aa:00:00:00:00:01"]);
            guest.login(None);
            guest.assert_running();
            assert_eq!(guest.run("hostname"), name);
            assert_eq!(guest.run("swapon --noheadings --show=NAME,SIZE"), "/dev/vda2 64M");
            assert_eq!(guest.run("findmnt -no SOURCE /boot/efi"), "/dev/vda15");
        }
    };
    let disk = node.disk("d", 3 * GIB);
    let mut env = node.kvm(&disk, &[]);
    env.insert("OS_VARIANT".into(), "golden".into());
    node.variant(
        "golden.toml",
        &format!("source = \"{}\"\nimport_identity = \"new\"\n", sealed(&image, "sha256")),
    );
    node.create(&env);
    boot(&disk, &env["INSTANCE_NAME"]);
    let (disk, env) = disk_of_a_tar(&node);
    boot(&disk, &env["INSTANCE_NAME"]);
    node.assert_nothing_left();
}
