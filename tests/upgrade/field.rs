//! Hooks as they are found in the field, written for the predecessor (field/hooks): a swap file, SSH keys, puppet, a
//! kernel with its boot loader. Both programs run them; what they did is compared.
//!
//! Packages come from apt's archives in the guest's tree, so that nothing here needs a network. Two things that a
//! node has are stood in for: device-mapper behind kpartx (field/kpartx) and udev (field/beside).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::held::{Held, Steps};
use crate::installed::assert_unchanged;
use crate::node::{Node, Ran};
use crate::trees::{Suite, our_deb};
use crate::tuned::{copy_hooks, data_dir, noded_environment, plant_cache, write_resolver};
use crate::{DISK, ETC, LEGACY};

/// Where the one partition begins, and up to where grub writes itself.
const TRACK_BYTES: usize = 2048 * 512;
const BOOT_CODE_BYTES: usize = 440;
/// Behind the boot code lies the disk's signature, random, and then the partition table.
const TABLE_AT: usize = 446;

/// What hooks say, in the order in which they must say it.
const SAYINGS: [&str; 7] = [
    "swapfile: 32 MB for lk.example.com",
    "ssh-keys: 2 keys from authorized_keys",
    "Created symlink /etc/systemd/system/multi-user.target.wants/puppet.service",
    "puppet: certname lk.example.com",
    "Setting up grub-pc (",
    "Installation finished. No error reported.",
    "Found linux image: /boot/vmlinuz-",
];

/// How the names begin of what may differ in the guest, and why.
const DIFFERS: [(&str, &str); 13] = [
    ("boot/initrd.img-", "an archive with the times of its making"),
    ("etc/fstab", "other words; what the hook added is compared by itself"),
    ("etc/hostname", "0644, whatever stood in the cache"),
    ("etc/hosts", "the guest's own, not the node's"),
    ("etc/machine-id", "empty, so that the guest makes its own"),
    ("etc/mailname", "0644, whatever noded's umask"),
    ("etc/network/interfaces", "other words"),
    ("etc/resolv.conf", "the guest's own, not the node's"),
    ("etc/systemd/system/serial-getty@ttyS0.service.d", "a console that works under systemd"),
    ("etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service", "the same"),
    ("var/cache/ldconfig/aux-cache", "inodes and times"),
    ("var/log/", "times"),
    ("var/lib/systemd/random-seed", "a guest has one of its own from the start"),
];

#[test]
#[ignore = "run by make test-full"]
fn hooks_of_the_field_do_under_ours_what_they_did_under_the_predecessor() -> Result<()> {
    let suite = Suite::of_this_machine();
    let deb = our_deb()?;
    let tree = suite.guest_tree_for_hooks();
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree())?;
    let step = Steps::new();
    set_up(&node, &suite, &tree)?;
    step.done("predecessor and hooks installed");

    let old = Customised::by(&node, "predecessor")?;
    step.done("predecessor's create");
    let old_failure = Failure::by(&node)?;
    step.done("predecessor's create with hooks that fail");
    node.install_file(&deb)?;
    let node_before = node.listing()?;
    let new = Customised::by(&node, "ours")?;
    step.done("our create");
    assert_unchanged(&node_before, &node.listing()?, "create changed the node itself");
    let new_failure = Failure::by(&node)?;
    step.done("our create with hooks that fail");

    old.is_what_the_hooks_are_for().context("under the predecessor")?;
    new.is_what_the_hooks_are_for().context("under ours")?;
    assert_same(&old, &new);
    assert_eq!(old_failure, new_failure, "what hooks that fail said, and their exit statuses");
    let hooks = |(name, status): (&str, &str)| (format!("{ETC}/hooks/{name}"), status.to_owned());
    assert_eq!(new_failure.statuses, [("10-network", "2"), ("20-register", "3")].map(hooks));
    assert_eq!(new_failure.said.len(), 4, "all ran: {:?}", new_failure.said);
    before.nothing_new_is_left_by(&node)
}

/// The predecessor with its settings, its cache and its hooks, and what is stood in for.
pub fn set_up(node: &Node, suite: &Suite, tree: &Path) -> Result<()> {
    node.apt_install(&suite.predecessor())?;
    let default = fs::read_to_string(data_dir().join("field/default.in"))?.replace("@SUITE@", &suite.name);
    fs::write(node.path(LEGACY), default)?;
    write_resolver(node)?;
    plant_cache(node, suite, tree)?;
    place_hooks(node, "hooks")?;
    fs::copy(data_dir().join("field/beside"), node.path("/srv/beside"))?;
    fs::copy(data_dir().join("field/read"), node.path("/srv/read"))?;
    fs::copy(data_dir().join("field/kpartx"), node.path("/sbin/kpartx"))?;
    Ok(())
}

/// These and no others.
fn place_hooks(node: &Node, directory: &str) -> Result<()> {
    let hooks = node.path(ETC).join("hooks");
    fs::remove_dir_all(&hooks)?;
    fs::create_dir(hooks)?;
    copy_hooks(node, &data_dir().join("field").join(directory))
}

/// A create whose hooks failed.
#[derive(Debug, PartialEq)]
struct Failure {
    said: Vec<String>,
    /// The hooks that failed, and their exit statuses.
    statuses: Vec<(String, String)>,
}

impl Failure {
    fn by(node: &Node) -> Result<Failure> {
        place_hooks(node, "failing")?;
        let ran = node.create_beside(&noded_environment("create-kvm.env", "default")?, &["/srv/beside"])?;
        place_hooks(node, "hooks")?;
        ensure!(!ran.status.success(), "create succeeded although hooks failed:\n{}", ran.log);
        let mut failure = Failure { said: Vec::new(), statuses: Vec::new() };
        for line in ran.log.lines() {
            let theirs =
                line.strip_prefix("run-parts: ").and_then(|l| l.split_once(" exited with return code "));
            let ours = || line.split_once("the hook ")?.1.split_once(" ended with exit status ");
            if let Some((hook, status)) = theirs.or_else(ours) {
                let number = status.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                failure.statuses.push((hook.to_owned(), number.to_owned()));
            }
            let said = line.strip_prefix("    | ").unwrap_or(line).to_owned();
            let by_a_hook = ["network: ", "register: ", "motd: "].iter().any(|hook| said.starts_with(hook));
            // Our error repeats the last lines of a hook that failed.
            if by_a_hook && !failure.said.contains(&said) {
                failure.said.push(said);
            }
        }
        Ok(failure)
    }
}

/// A guest after its hooks.
struct Customised {
    log: String,
    /// The hooks' sayings, in the order of the log.
    said: Vec<&'static str>,
    /// Mount point and type of all that was mounted after create.
    mounts: BTreeSet<String>,
    /// Path to type, mode, owner and target.
    listing: BTreeMap<String, String>,
    /// Path to digest; the root's UUID and the loop device's number do not count.
    sums: BTreeMap<String, String>,
    /// The files in which one of them stood.
    texts: BTreeMap<String, String>,
    probed: String,
    fstab: String,
    track: Vec<u8>,
}

impl Customised {
    fn by(node: &Node, what: &str) -> Result<Customised> {
        let environment = noded_environment("create-kvm.env", "default")?;
        let ran = node.create_beside(&environment, &["/srv/beside"])?;
        ensure!(ran.status.success(), "{what}: {}\n{}", ran.status, ran.log);
        let read = node.run(&["/srv/read", DISK])?.expect_success();
        read.with_context(|| format!("reading what {what} made; its log:\n{}", ran.log))?;
        let out = node.path("/srv/out");
        let made = Customised::read(&out, &node.path(DISK), ran).with_context(|| what.to_owned())?;
        fs::remove_dir_all(out)?;
        Ok(made)
    }

    fn read(out: &Path, disk: &Path, ran: Ran) -> Result<Customised> {
        let text = |name: &str| fs::read_to_string(out.join(name)).with_context(|| format!("reading {name}"));
        let mut texts = BTreeMap::new();
        let naming = text("naming")?;
        for name in naming.split_terminator('\0') {
            texts.insert(name.to_owned(), text(&format!("texts/{name}"))?);
        }
        let mut track = vec![0; TRACK_BYTES];
        File::open(disk)?.read_exact_at(&mut track, 0)?;
        // Our log sets off what hooks print.
        let lines = ran.log.lines().map(|line| line.trim_start_matches("    | "));
        let said = lines.filter_map(|line| SAYINGS.into_iter().find(|says| line.starts_with(says))).collect();
        Ok(Customised {
            said,
            mounts: text("mounts")?.lines().map(mount_point_and_type).collect(),
            listing: pairs(&text("listing")?, |line| line.split_once('\t'), |name, facts| (name, facts)),
            sums: pairs(&text("sums")?, |line| line.split_once("  "), |sum, name| (name, sum)),
            fstab: texts.get("./etc/fstab").context("an fstab that names the root's UUID")?.clone(),
            texts,
            probed: text("probed")?,
            track,
            log: ran.log,
        })
    }

    /// Otherwise two guests without anything in them would be equal.
    fn is_what_the_hooks_are_for(&self) -> Result<()> {
        assert_eq!(self.said, SAYINGS, "what the hooks said:\n{}", self.log);
        assert!(self.fstab.lines().any(|line| line.starts_with("/var/swap ")), "fstab:\n{}", self.fstab);
        let boot_code = &self.track[..BOOT_CODE_BYTES];
        assert!(boot_code.windows(4).any(|window| window == b"GRUB"), "grub is in the boot sector");
        let grub = self.texts.get("./boot/grub/grub.cfg").context("no grub.cfg that names the root")?;
        let kernel = grub.lines().find(|line| line.trim_start().starts_with("linux")).context("no kernel")?;
        ensure!(kernel.contains("root=UUID=ROOT-UUID"), "the guest would not find its root: {kernel}");
        let facts = |name: &str| self.listing.get(name).map(String::as_str);
        assert_eq!(facts("root/.ssh"), Some("d 700 root:root "));
        assert_eq!(facts("root/.ssh/authorized_keys"), Some("f 600 root:root "));
        assert_eq!(facts("var/swap"), Some("f 600 root:root "));
        for name in ["etc/rc2.d/S01puppet", "etc/systemd/system/multi-user.target.wants/puppet.service"] {
            assert!(facts(name).is_some_and(|facts| facts.starts_with("l ")), "{name}");
        }
        Ok(())
    }
}

fn assert_same(old: &Customised, new: &Customised) {
    let mut differences = Vec::new();
    for (what, before, after) in [("", &old.listing, &new.listing), ("contents of ", &old.sums, &new.sums)] {
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names {
            let (was, is) = (before.get(name), after.get(name));
            if was != is && !may_differ(name) {
                differences.push(format!("{what}{name}: {was:?} became {is:?}"));
                for text in [old, new].into_iter().filter_map(|made| made.texts.get(name)) {
                    differences.push(format!("it has:\n{text}"));
                }
            }
        }
    }
    for (what, before, after) in [
        ("partitions", &partitions(&old.track), &partitions(&new.track)),
        ("blkid", &old.probed, &new.probed),
        ("hook's lines of fstab", &hooks_lines(&old.fstab), &hooks_lines(&new.fstab)),
        ("mounts", &format!("{:?}", old.mounts), &format!("{:?}", new.mounts)),
    ] {
        if before != after {
            differences.push(format!("{what}: {before} became {after}"));
        }
    }
    for (what, range) in
        [("boot code", 0..BOOT_CODE_BYTES), ("sectors before the partition", 512..TRACK_BYTES)]
    {
        let (before, after) = (&old.track[range.clone()], &new.track[range.clone()]);
        if let Some(at) = before.iter().zip(after).position(|(one, other)| one != other) {
            differences.push(format!("{what}: byte {} and perhaps others", range.start + at));
        }
    }
    assert!(
        differences.is_empty(),
        "the two programs differ\n  {}\npredecessor's log:\n{}\nour log:\n{}",
        differences.join("\n  "),
        old.log,
        new.log
    );
}

/// The table without cylinders, heads and sectors: they are of a geometry that everybody imagines in his own way.
fn partitions(track: &[u8]) -> String {
    let shown = track[TABLE_AT..510].chunks(16).map(|entry| {
        let number = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        format!("{:#x} {:#x} from {}, {} sectors", entry[0], entry[4], number(8), number(12))
    });
    shown.collect::<Vec<_>>().join("; ")
}

fn may_differ(name: &str) -> bool {
    let name = name.strip_prefix("./").unwrap_or(name);
    DIFFERS.iter().any(|(start, _)| name.starts_with(start.trim_start_matches("")))
}

/// All but what create itself wrote.
fn hooks_lines(fstab: &str) -> String {
    let own = |line: &&str| {
        let mount_point = line.split_whitespace().nth(1);
        !line.starts_with('#') && !matches!(mount_point, None | Some("/" | "/proc"))
    };
    fstab.lines().filter(own).collect::<Vec<_>>().join("\n")
}

fn mount_point_and_type(line: &str) -> String {
    let mut fields = line.split(' ');
    let mount_point = fields.nth(4).unwrap_or_default();
    let kind = fields.skip_while(|field| *field != "-").nth(1).unwrap_or_default();
    format!("{mount_point} {kind}")
}

fn pairs<'a>(
    text: &'a str,
    split: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
    ordered: impl Fn(&'a str, &'a str) -> (&'a str, &'a str),
) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(split)
        .map(|(one, other)| ordered(one, other))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
