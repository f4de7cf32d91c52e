//! Backups that the predecessor made of its own guests come back: its `create`, a life of the guest, its `export`, and
//! then our `import`, on every layout, under its settings and under ours; the trees are compared by rsync. And a guest
//! with a kernel and a boot loader, made by the hooks of the field, starts again from its new disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::common::{self, fsck, log_of, root_offset, tool};
use crate::held::{Held, Steps, scratch_dir};
use crate::node::Node;
use crate::trees::Suite;
use crate::tuned::{data_dir, noded_environment, plant_cache, write_resolver};
use crate::{DISK, DISK_BYTES, LEGACY, OS_DIR};

/// Where the node keeps what `export` wrote.
const BACKUP: &str = "/srv/backup";

/// What a guest does with its disk in the years before a backup.
const LIFE: &str = r#"
printf 'lg1new.example.com\n' > etc/hostname
printf '/dev/sdb none swap sw 0 0\nnas:/home /home nfs noauto 0 0\n' >> etc/fstab
chmod 640 etc/fstab && chgrp 42 etc/fstab
mkdir -p srv/data/deep && head -c 5M /dev/urandom > srv/data/random && ln srv/data/random srv/data/deep/hard
truncate -s 50M srv/data/hole && printf end >> srv/data/hole
head -c 2000 /dev/urandom > "srv/data/a name
of two lines" && chown 4000000:4000001 srv/data/a*
mkfifo -m 620 srv/fifo && mknod -m 660 srv/disk b 8 1
ln -s /nowhere "srv/$(printf '%0200d' 7)" && ln -s "$(printf '%0900d' 7)" srv/long-link
setfattr -n user.note -v mine srv/data/random && setfattr -n trusted.note -v root srv/data
setfacl -m u:1000:rw srv/data/random && setfacl -d -m g:4:rx srv/data/deep && setcap cap_net_raw+ep srv/data/random
for number in $(seq 2000); do echo "$number" > "srv/data/deep/a-file-with-a-name-$number"; done
rm -r usr/share/doc srv/data/deep/*7* && chmod 4755 srv/data/deep/*99 && touch -d 1999-12-31 srv/data/deep/*8
"#;

/// What our import writes, and nothing else: same mode and owner, another content.
const REPAIRED: [&str; 2] = [".d..t...... etc/", ">fcst...... etc/fstab"];

/// What the predecessor's import makes otherwise than ours: its table of inodes stays, and fstab changes hands.
const THEIRS: [&str; 3] = ["*deleting   restoresymtable", ".d..t...... etc/", ">fcstp.g... etc/fstab"];

/// Fast ones: what is packed does not matter.
const COMPRESSORS: [(&str, &[&str]); 3] = [("gzip", &["-1"]), ("zstd", &["-q", "-1"]), ("xz", &["-0"])];

#[test]
fn backups_of_the_predecessor_come_back_on_every_layout() -> Result<()> {
    let suite = Suite::of_this_machine();
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree())?;
    let step = Steps::new();
    node.apt_install(&suite.predecessor())?;
    write_resolver(&node)?;
    plant_cache(&node, &suite, &suite.guest_tree())?;
    fs::copy(data_dir().join("field/kpartx"), node.path("/sbin/kpartx"))?;
    step.done("predecessor installed");

    for style in ["none", "msdos"] {
        let backup = Backup::of_a_guest(&node, &suite, style)?;
        step.done(&format!("predecessor's create and export, {style}"));
        let theirs = backup.imported_by_the_predecessor(&node)?;
        step.done("predecessor's import");

        let tuned = common::Node::bare();
        fs::write(tuned.legacy_defaults(), &backup.settings)?;
        backup.comes_back(&tuned, style, &backup.file, Api::V20)?;
        backup.comes_back(&tuned, style, &backup.file, Api::V10)?;
        step.done("our imports under its settings, API 20 and 10");
        let ours = RootAt::of(tuned.path().join("disks/disk"), style);
        assert_eq!(differences(&ours, &theirs)?, THEIRS, "beside the predecessor's import");

        let new = common::Node::bare();
        for layout in ["gpt", "msdos", "none"] {
            new.config(&format!("defaults = \"1\"\nboot = \"no\"\npartition_style = \"{layout}\"\n"));
            backup.comes_back(&new, layout, &backup.file, Api::V20)?;
        }
        step.done("our imports under our own settings, each layout");
        if style == "msdos" {
            continue;
        }
        for (program, options) in COMPRESSORS {
            let stream = backup.compressed_by(program, options)?;
            backup.comes_back(&tuned, style, &stream, Api::V20)?;
        }
        step.done("our imports of what gzip, zstd and xz made of it");
    }
    before.nothing_new_is_left_by(&node)
}

#[test]
#[ignore = "run by make test-full"]
#[cfg(target_arch = "x86_64")]
fn a_guest_of_the_predecessor_starts_from_its_new_disk() -> Result<()> {
    use crate::common::guest::{Firmware, Guest};
    let suite = Suite::of_this_machine();
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree())?;
    let step = Steps::new();
    crate::field::set_up(&node, &suite, &suite.guest_tree_for_hooks())?;
    let create = noded_environment("create-kvm.env", "default")?;
    node.create_beside(&create, &["/srv/beside"])?.expect_success()?;
    step.done("predecessor's create with its hooks");
    let backup = export(&node, "export-kvm.env")?;
    step.done(&format!("predecessor's export of {} MiB", fs::metadata(&backup)?.len() >> 20));

    let ours = common::Node::bootable("trixie");
    ours.config("defaults = \"1\"\nsuite = \"trixie\"\nboot = \"auto\"\n");
    step.done("a cached tree with GRUB");
    for (style, firmwares) in
        [("gpt", &[Firmware::SeaBios, Firmware::Ovmf][..]), ("msdos", &[Firmware::SeaBios])]
    {
        let disk = ours.disk(&format!("{style}.img"), DISK_BYTES);
        let mut env = ours.recorded("import-kvm", &disk);
        env.extend(on_disk(&disk));
        env.insert("OSP_PARTITION_STYLE".into(), style.into());
        env.insert("INSTANCE_HV_kernel_path".into(), String::new());
        imported(&ours, &env, &backup)?;
        step.done(&format!("our import, {style}"));
        fsck(&disk, root_offset(&disk), "ext4");
        for firmware in firmwares {
            let mut guest = Guest::boot(*firmware, &disk, &[]);
            let seconds = guest.login(None);
            assert!(guest.log.contains("lk login: "), "{}", guest.log);
            eprintln!("{seconds:6.1} s  from the start to the login prompt");
            step.done(&format!("the guest, {style}, {firmware:?}"));
            let uuid = guest.run("findmnt -n -o UUID /");
            let (started, fstab) = (guest.run("cat /proc/cmdline"), guest.run("cat /etc/fstab"));
            assert!(started.contains(&format!("root=UUID={uuid} ")), "{uuid}: {started}");
            assert!(fstab.contains(&format!("UUID={uuid} / ext4 ")), "{uuid}: {fstab}");
            assert_eq!(guest.run("cat /etc/hostname"), "lk.example.com");
            guest.power_off();
        }
    }
    drop(ours);
    before.nothing_new_is_left_by(&node)
}

/// The root filesystem of a disk.
struct RootAt {
    disk: PathBuf,
    offset_bytes: u64,
}

impl RootAt {
    fn of(disk: PathBuf, style: &str) -> RootAt {
        let offset_bytes = if style == "none" { 0 } else { root_offset(&disk) };
        RootAt { disk, offset_bytes }
    }

    fn uuid(&self) -> String {
        let offset = self.offset_bytes.to_string();
        let disk = self.disk.display().to_string();
        tool("blkid", &["-p", "-O", &offset, "-s", "UUID", "-o", "value", &disk]).trim().to_owned()
    }
}

/// A guest and its backup.
struct Backup {
    style: &'static str,
    /// What the node's /etc/default file said when it was made.
    settings: String,
    /// The guest's disk, which stays as it was.
    original: RootAt,
    file: PathBuf,
}

impl Backup {
    /// By the predecessor: its create, the life of the guest, its export.
    fn of_a_guest(node: &Node, suite: &Suite, style: &'static str) -> Result<Backup> {
        let settings = format!("SUITE={}\nPARTITION_STYLE={style}\n", suite.name);
        fs::write(node.path(LEGACY), &settings)?;
        node.create(&noded_environment("create.env", "default")?)?.expect_success()?;
        in_roots("rw", &[&RootAt::of(node.path(DISK), style)], &format!("cd 0\n{LIFE}"))?;
        let file = export(node, "export.env")?;
        let kept = node.path(&format!("/srv/original-{style}"));
        fs::rename(node.path(DISK), &kept)?;
        Ok(Backup { style, settings, original: RootAt::of(kept, style), file })
    }

    /// What the predecessor's own import makes of it.
    fn imported_by_the_predecessor(&self, node: &Node) -> Result<RootAt> {
        File::create(node.path(DISK))?.set_len(DISK_BYTES)?;
        let script = format!("exec \"$0\" < {BACKUP}");
        let argv = ["bash", "-c", &script, &format!("{OS_DIR}/import")];
        node.run_with(&noded_environment("import.env", "default")?, 0o077, OS_DIR, &argv)?
            .expect_success()?;
        node.detached(DISK)?;
        Ok(RootAt::of(node.path(DISK), self.style))
    }

    /// Our import of a stream on a node with these settings, onto a disk of this style; wants the guest as it was.
    fn comes_back(&self, node: &common::Node, style: &str, stream: &Path, api: Api) -> Result<()> {
        let disk = node.disk("disk", DISK_BYTES);
        let mut env = node.recorded("import", &disk);
        env.extend(on_disk(&disk));
        if api == Api::V10 {
            env.retain(|name, _| name != "OS_VARIANT" && !name.starts_with("OSP_"));
            env.insert("OS_API_VERSION".into(), "10".into());
        }
        imported(node, &env, stream)?;
        let root = RootAt::of(disk, style);
        fsck(&root.disk, root.offset_bytes, "ext4");
        let different = differences(&self.original, &root)?;
        assert_eq!(different, REPAIRED, "{} as {style}", self.style);
        let fstab = |root: &RootAt| in_roots("ro", &[root], "cat 0/etc/fstab");
        let renamed = fstab(&self.original)?.replace(&self.original.uuid(), &root.uuid());
        let words = |fstab: &str| fstab.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&fstab(&root)?), words(&renamed), "only the root's UUID is another");
        assert_ne!(root.uuid(), self.original.uuid());
        Ok(())
    }

    /// The stream as a tool compresses it.
    fn compressed_by(&self, program: &str, options: &[&str]) -> Result<PathBuf> {
        let path = self.file.with_extension(program);
        let mut command = Command::new(program);
        let status =
            command.args(options).stdin(File::open(&self.file)?).stdout(File::create(&path)?).status()?;
        ensure!(status.success(), "{program}: {status}");
        Ok(path)
    }
}

/// The version of the interface that Ganeti speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Api {
    V10,
    V20,
}

/// The predecessor's export of the disk as it is, as noded runs it; returns where the stream is.
fn export(node: &Node, request: &str) -> Result<PathBuf> {
    let script = format!("exec \"$0\" > {BACKUP}");
    let argv = ["bash", "-c", &script, &format!("{OS_DIR}/export")];
    node.run_with(&noded_environment(request, "default")?, 0o077, OS_DIR, &argv)?.expect_success()?;
    node.detached(DISK)?;
    Ok(node.path(BACKUP))
}

/// What noded says of the disk that is imported to.
fn on_disk(disk: &Path) -> [(String, String); 2] {
    ["IMPORT_DEVICE", "IMPORT_DISK_PATH"].map(|name| (name.to_owned(), disk.display().to_string()))
}

/// Runs our import and wants it to succeed.
fn imported(node: &common::Node, env: &BTreeMap<String, String>, stream: &Path) -> Result<()> {
    let output = node.verb("import", env).stdin(File::open(stream)?).output()?;
    ensure!(output.status.success() && output.stdout.is_empty(), "{}", log_of(&output));
    node.assert_nothing_left();
    Ok(())
}

/// What rsync finds different, a line for each file: data, modes, owners, times, links, attributes, ACLs.
fn differences(original: &RootAt, copy: &RootAt) -> Result<Vec<String>> {
    let found = in_roots("ro", &[original, copy], "rsync -ncaHAXi --numeric-ids --delete 0/ 1/")?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Runs a script beside the roots of disks, mounted as 0, 1, ... in a namespace of its own; returns its stdout.
fn in_roots(options: &str, roots: &[&RootAt], script: &str) -> Result<String> {
    let dir = scratch_dir()?;
    let mut mounts = String::new();
    for (number, root) in roots.iter().enumerate() {
        fs::create_dir(dir.path().join(number.to_string()))?;
        let (disk, offset) = (root.disk.display(), root.offset_bytes);
        mounts += &format!("mount -o {options},loop,offset={offset} {disk} {number}\n");
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-euc"])
        .arg(format!("{mounts}(\n{script}\n)\numount *"))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "{}: {}", output.status, log_of(&output));
    Ok(String::from_utf8(output.stdout)?)
}
