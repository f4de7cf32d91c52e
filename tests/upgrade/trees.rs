//! What is made once: our package, and the trees of a node and of its guests.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::common::trees::shared;
use crate::held::{remove_tree, run, scratch_dir};
use crate::node::Node;
use crate::{CACHE, PACKAGE};

/// The package of this checkout, as `make deb` left it.
pub fn our_deb() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("UPGRADE_TEST_DEB") {
        return fs::canonicalize(named).context("UPGRADE_TEST_DEB");
    }
    let mut debs = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../deb")).context("`make deb`")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{PACKAGE}_")) && name.ends_with(".deb") {
            debs.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    debs.sort();
    Ok(debs.pop().context("there is no package: `make deb` makes it")?.1)
}

/// What the hooks of the field want.
const HOOKS_PACKAGES: &str = "export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get -y --no-install-recommends install systemd-sysv initramfs-tools zstd puppet-agent
apt-get clean
apt-get -y --no-install-recommends --download-only install linux-image-cloud-amd64 grub-pc
";

/// A Debian release to be the node's, and the guests'.
pub struct Suite {
    pub name: String,
    /// The version of the predecessor that this release carries.
    pub version: &'static str,
    pub arch: String,
}

impl Suite {
    /// The release this machine runs where it carries a predecessor: a package built here needs
    /// no newer libraries than it has.
    pub fn of_this_machine() -> Suite {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if release.lines().any(|line| line == "VERSION_CODENAME=trixie") {
            Suite::trixie()
        } else {
            Suite::new("bookworm", "0.16-8")
        }
    }

    pub fn trixie() -> Suite {
        Suite::new("trixie", "0.17-1")
    }

    pub fn new(name: &str, version: &'static str) -> Suite {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Suite { name: name.to_owned(), version, arch: arch.to_owned() }
    }

    pub fn predecessor(&self) -> String {
        format!("{PACKAGE}={}", self.version)
    }

    pub fn cache_tar(&self) -> String {
        format!("{CACHE}/cache-{}-{}.tar", self.name, self.arch)
    }

    /// A bare system with apt's lists, and the packages of the predecessor and of mmdebstrap downloaded.
    pub fn node_tree(&self) -> PathBuf {
        self.trees().join("node.tar")
    }

    /// The same bare system as the predecessor would have cached it.
    pub fn guest_tree(&self) -> PathBuf {
        self.trees().join("guest.tar")
    }

    fn trees(&self) -> PathBuf {
        let origin = format!("1 {} {}", self.name, self.version);
        shared(&format!("upgrade-{}", self.name), &origin, |dir| {
            self.make_trees(dir).expect("the node's tree")
        })
    }

    /// The same bare system with what EXTRA_PKGS names (field/default.in), and with apt's lists and archives of
    /// a kernel and a boot loader: a hook installs them without a network.
    pub fn guest_tree_for_hooks(&self) -> PathBuf {
        let bare = self.guest_tree();
        let made = shared(&format!("upgrade-{}-hooks", self.name), HOOKS_PACKAGES, |dir| {
            make_tree_for_hooks(&bare, &dir.join("guest.tar")).expect("the tree for hooks");
        });
        made.join("guest.tar")
    }

    /// About a minute, and the only part that needs a network.
    fn make_trees(&self, made: &Path) -> Result<()> {
        let (node, guest) = (made.join("node.tar"), made.join("guest.tar"));
        let scratch = scratch_dir()?;
        let root = scratch.path().join("root");
        run(Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["debootstrap", "--variant=minbase", "--include=ifupdown", &self.name])
            .arg(&root))?;
        let archives = root.join("var/cache/apt/archives");
        for entry in fs::read_dir(&archives)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                fs::remove_file(entry.path())?;
            }
        }
        fs::write(root.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(root.join("usr/sbin/policy-rc.d"), Permissions::from_mode(0o755))?;
        run(Command::new("tar").arg("--create").arg("--file").arg(&guest).arg("-C").arg(&root).args([
            "--acls",
            "--xattrs",
            "--xattrs-include=*",
            "--exclude=./var/lib/apt/lists/*",
            "--exclude=./usr/sbin/policy-rc.d",
            ".",
        ]))?;

        // debootstrap left the lists of its mirror and the sources that name it.
        let resolver = root.join("etc/resolv.conf");
        fs::copy("/etc/resolv.conf", &resolver)?;
        let inside = Node { dir: None, root: root.clone() };
        inside
            .run(&[
                "apt-get",
                "-y",
                "--no-install-recommends",
                "--download-only",
                "install",
                &self.predecessor(),
                "mmdebstrap",
            ])?
            .expect_success()?;
        fs::write(&resolver, "")?;
        run(Command::new("tar").arg("--create").arg("--file").arg(&node).arg("-C").arg(&root).arg("."))?;
        remove_tree(scratch)
    }
}

fn make_tree_for_hooks(bare: &Path, tree: &Path) -> Result<()> {
    let scratch = scratch_dir()?;
    let root = scratch.path().join("root");
    fs::create_dir(&root)?;
    run(Command::new("tar").arg("--extract").arg("--file").arg(bare).arg("-C").arg(&root))?;
    prepare_for_hooks(&root)?;
    run(Command::new("tar").arg("--create").arg("--file").arg(tree).arg("-C").arg(&root).arg("."))?;
    remove_tree(scratch)
}

fn prepare_for_hooks(root: &Path) -> Result<()> {
    let (resolver, no_daemons) = (root.join("etc/resolv.conf"), root.join("usr/sbin/policy-rc.d"));
    fs::copy("/etc/resolv.conf", &resolver)?;
    fs::write(&no_daemons, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(&no_daemons, Permissions::from_mode(0o755))?;
    let inside = Node { dir: None, root: root.to_owned() };
    inside.run(&["sh", "-ec", HOOKS_PACKAGES])?.expect_success()?;
    fs::remove_file(no_daemons)?;
    fs::write(resolver, "")?;
    Ok(())
}
