//! What a create did, compared between the two programs: what hooks were given, and the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::DISK;
use crate::node::Node;
use crate::trees::Suite;

/// Variables of a hook's environment that may differ between the two programs, and why.
const ENVIRONMENT_DIFFERS: [(&str, &str); 6] = [
    ("TARGET", "a directory made for this run"),
    ("BLOCKDEV", "a loop device attached for this run"),
    ("FSYSDEV", "a loop device attached for this run"),
    ("ARCH", "never empty any more; checked by itself"),
    ("SHLVL", "counts the predecessor's own shell"),
    ("_", "bash's last command"),
];

/// Shell's own variables: the predecessor's bash exports them to hooks, a program has none.
const SHELL_OWN: [&str; 2] = ["PWD", "OLDPWD"];

/// What PROXY becomes in a hook's environment.
const PROXIES: [&str; 2] = ["http_proxy", "https_proxy"];

/// Files of the guest that may differ in size or mode, and why.
const GUEST_DIFFERS: [(&str, &str); 11] = [
    ("etc/fstab", "other words; the line of the root is compared by itself"),
    ("etc/hostname", "0644, whatever stood in the cache; the name is compared by itself"),
    ("etc/hosts", "the guest's own, not the node's"),
    ("etc/machine-id", "empty, so that the guest makes its own"),
    ("etc/mailname", "0644, whatever noded's umask"),
    ("etc/network/interfaces", "other words"),
    ("etc/resolv.conf", "the guest's own, not the node's"),
    ("etc/shadow-", "passwd(1) in the guest made it"),
    ("root/hook.env", "compared by itself"),
    ("root/hook.vars", "compared by itself"),
    ("var/lib/systemd/random-seed", "a guest has one of its own from the start"),
];

/// A finished `create`, seen from the guest it made.
pub struct Created {
    pub log: String,
    environment: BTreeMap<String, String>,
    /// The settings as a hook sees them that sources common.sh.
    pub settings: BTreeMap<String, String>,
    hook_cwd: String,
    hook_facts: String,
    hook_functions: String,
    files: BTreeMap<String, String>,
    /// Path to type, mode, owner, size and target of everything in the guest.
    listing: BTreeMap<String, String>,
    /// `blkid -p` on the disk, without its UUID.
    probed: BTreeMap<String, String>,
}

pub fn assert_same_effects(old: &Created, new: &Created, suite: &Suite, request: &str) {
    let mut differences = Differences::default();
    differences.in_environment(old, new, suite);
    differences.in_guest(old, new);
    assert!(
        differences.0.is_empty(),
        "{request}: the two programs differ\n  {}\npredecessor's log:\n{}\nour log:\n{}",
        differences.0.join("\n  "),
        old.log,
        new.log
    );
}

#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn add(&mut self, what: &str, name: &str, old: Option<&String>, new: Option<&String>) {
        self.0.push(format!("{what} {name}: {old:?} became {new:?}"));
    }

    fn in_environment(&mut self, old: &Created, new: &Created, suite: &Suite) {
        let excused: BTreeSet<&str> =
            ENVIRONMENT_DIFFERS.iter().map(|(name, _)| *name).chain(SHELL_OWN).collect();
        for name in keys_of(&old.environment, &new.environment) {
            let (before, after) = (old.environment.get(name), new.environment.get(name));
            if before != after && !excused.contains(name) && !PROXIES.contains(&name) {
                self.add("environment", name, before, after);
            }
        }
        // 0.16 exported them only when it bootstrapped; 0.17 always does, and so do we.
        for name in PROXIES {
            if new.environment.get(name) != old.settings.get("PROXY") {
                self.add("environment", name, old.settings.get("PROXY"), new.environment.get(name));
            }
        }
        if new.environment.get("ARCH") != Some(&suite.arch) {
            self.add("environment", "ARCH", Some(&suite.arch), new.environment.get("ARCH"));
        }
        for name in ["TARGET", "BLOCKDEV", "FSYSDEV"] {
            if new.environment.get(name).is_none_or(|value| !value.starts_with('/')) {
                self.add("environment", name, old.environment.get(name), new.environment.get(name));
            }
        }
        for name in keys_of(&old.settings, &new.settings) {
            let (before, after) = (old.settings.get(name), new.settings.get(name));
            if name == "ARCH" {
                if after != Some(&suite.arch) {
                    self.add("setting", name, Some(&suite.arch), after);
                }
            } else if before != after {
                self.add("setting", name, before, after);
            }
        }
    }

    fn in_guest(&mut self, old: &Created, new: &Created) {
        for (what, before, after) in [
            ("cwd", &old.hook_cwd, &new.hook_cwd),
            ("facts", &old.hook_facts, &new.hook_facts),
            ("functions of common.sh", &old.hook_functions, &new.hook_functions),
        ] {
            if before != after {
                self.add("hook's", what, Some(before), Some(after));
            }
        }
        for name in keys_of(&old.files, &new.files) {
            if old.files.get(name) != new.files.get(name) {
                self.add("file", name, old.files.get(name), new.files.get(name));
            }
        }
        for name in keys_of(&old.listing, &new.listing) {
            let excused = GUEST_DIFFERS.iter().any(|(path, _)| *path == name);
            if old.listing.get(name) != new.listing.get(name) && !excused {
                self.add("guest's", name, old.listing.get(name), new.listing.get(name));
            }
        }
        if old.probed != new.probed {
            self.0.push(format!("disk: {:?} became {:?}", old.probed, new.probed));
        }
    }
}

impl Created {
    /// Runs the installed `create` and reads the guest it made.
    pub fn by(node: &Node, environment: &[String], what: &str) -> Result<Created> {
        let ran = node.create(environment)?;
        ensure!(ran.status.success(), "{what}: {}\n{}", ran.status, ran.log);

        // Read inside the namespaces: what is mounted there ends there.
        let out = node.path("/srv/out");
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        fs::create_dir(&out)?;
        node.run(&[
            "sh",
            "-ec",
            "blkid -p -o export \"$0\" > /srv/out/probed
             mount -o ro,loop \"$0\" /mnt
             mkdir /srv/out/hook /srv/out/etc
             cp /mnt/root/hook.* /srv/out/hook/
             cp /mnt/etc/hostname /mnt/etc/mailname /mnt/etc/motd /mnt/etc/fstab /mnt/etc/shadow /srv/out/etc/
             cd /mnt && find . -xdev -type d -printf '%P\\t%y %m %U:%G\\n' \\
                 -o -printf '%P\\t%y %m %U:%G %s bytes %l\\n' > /srv/out/listing
             cd / && umount /mnt",
            DISK,
        ])?
        .expect_success()
        .with_context(|| format!("reading what {what} made; its log:\n{}", ran.log))?;
        let made = Created::read(&out, ran.log)?;
        fs::remove_dir_all(&out)?;
        Ok(made)
    }

    fn read(out: &Path, log: String) -> Result<Created> {
        let hook = out.join("hook");
        let text = |path: PathBuf| {
            fs::read_to_string(&path).with_context(|| format!("reading {} (log:\n{log})", path.display()))
        };
        let mut files = BTreeMap::new();
        for name in ["hostname", "mailname", "motd"] {
            files.insert(format!("/etc/{name}"), text(out.join("etc").join(name))?);
        }
        let fstab = text(out.join("etc/fstab"))?;
        let root = fstab
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|f| f.get(1) == Some(&"/"));
        let root = root.context("no root in fstab")?;
        let by_uuid = root[0].starts_with("UUID=");
        files.insert("root of /etc/fstab".into(), format!("by UUID: {by_uuid}, type {}", root[2]));
        let shadow = text(out.join("etc/shadow"))?;
        let password =
            shadow.lines().find_map(|line| line.strip_prefix("root:")).and_then(|l| l.split(':').next());
        files.insert("root's password".into(), format!("{password:?}"));
        for name in ["hook.cleaned-up", "hook.second"] {
            files.insert(name.to_owned(), text(hook.join(name))?);
        }
        if hook.join("hook.must-not-exist").exists() {
            bail!("a hook ran that run-parts passes over");
        }
        let listing = text(out.join("listing"))?;
        Ok(Created {
            environment: pairs(&text(hook.join("hook.env"))?, '\0', '='),
            settings: pairs(&text(hook.join("hook.vars"))?, '\0', '='),
            hook_cwd: text(hook.join("hook.cwd"))?,
            hook_facts: text(hook.join("hook.facts"))?,
            hook_functions: text(hook.join("hook.functions"))?,
            files,
            listing: pairs(&listing, '\n', '\t'),
            probed: pairs(&text(out.join("probed"))?, '\n', '=')
                .into_iter()
                .filter(|(name, _)| ["TYPE", "PTTYPE", "USAGE"].contains(&name.as_str()))
                .collect(),
            log,
        })
    }
}

fn keys_of<'a>(one: &'a BTreeMap<String, String>, other: &'a BTreeMap<String, String>) -> BTreeSet<&'a str> {
    one.keys().chain(other.keys()).map(String::as_str).collect()
}

fn pairs(text: &str, end: char, separator: char) -> BTreeMap<String, String> {
    text.split(end)
        .filter_map(|pair| pair.split_once(separator))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
