//! How a root tree is made: debootstrap, then updates and security, then a scrub. It knows neither cache nor disk.

mod boot;
mod sources;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

pub use boot::Kernel;

use crate::guest::identity;
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;
use crate::settings::{AptFile, Settings};
use crate::signals;
use crate::tool::Tool;

/// Bytes of the files of a bootstrapped tree that are read back; dpkg's status is the largest of them.
const MAX_BYTES: u64 = 64 << 20;

const POLICY_RC_D: &str = "usr/sbin/policy-rc.d";

/// Everything that shapes a tree, and what is needed to fetch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub suite: String,
    pub arch: String,
    /// debootstrap's last arguments.
    pub mirror: Vec<String>,
    pub components: Vec<String>,
    pub extra_pkgs: Vec<String>,
    /// More sources, and keys, for the guest's apt.
    pub apt_files: Vec<AptFile>,
    /// The tree boots, with this kernel.
    pub boot: Option<Kernel>,
    /// How it is fetched: shapes nothing.
    pub proxy: Option<String>,
    /// Who may choose the release need not be trusted with the node: what nobody signed is refused, not warned of.
    pub signed_only: bool,
    /// What the shell settings exported; debootstrap sees it, as it always did.
    pub exports: BTreeMap<OsString, OsString>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The release's code name: `trixie` also where the suite is `stable`.
    pub codename: String,
    /// Package to version.
    pub packages: BTreeMap<String, String>,
}

impl Recipe {
    /// The recipe that the settings describe.
    pub fn of(settings: &Settings, boot: Option<Kernel>) -> Recipe {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names.dedup();
            names
        };
        Recipe {
            suite: settings.suite.clone(),
            arch: settings.arch.clone(),
            mirror: settings.mirror.clone(),
            // The order of components is that of the admin's preference; of packages it means nothing.
            components: settings.components.clone(),
            extra_pkgs: sorted(&settings.extra_pkgs),
            apt_files: settings.apt_files.clone(),
            boot,
            proxy: settings.proxy.clone(),
            signed_only: ["suite", "mirror"].iter().any(|name| settings.is_parameter(name)),
            exports: settings.layers.exports.clone(),
        }
    }

    /// One line per fact that shapes the tree: the same lines, the same tree (of its day).
    pub fn shape(&self) -> String {
        let mut shape = format!(
            "bootstrapper debootstrap\nsuite {}\narch {}\nmirror {}\ncomponents {}\npackages {}\nboot {}\n",
            self.suite,
            self.arch,
            self.mirror.join(" "),
            self.components.join(","),
            self.extra_pkgs.join(","),
            self.boot.map_or("no", Kernel::name)
        );
        for file in &self.apt_files {
            shape += &format!("file {} sha256:{:x}\n", file.path, Sha256::digest(&file.content));
        }
        shape
    }

    /// Packages that debootstrap itself installs: it knows its one mirror only.
    fn included(&self) -> &[String] {
        if self.apt_files.is_empty() { &self.extra_pkgs } else { &[] }
    }

    /// Environment for the programs that fetch and install.
    fn env(&self) -> Vec<(OsString, OsString)> {
        let mut env: Vec<(OsString, OsString)> = vec![
            ("HOME".into(), "/root".into()),
            ("DEBIAN_FRONTEND".into(), "noninteractive".into()),
            ("DEBCONF_NONINTERACTIVE_SEEN".into(), "true".into()),
        ];
        env.extend(self.exports.iter().map(|(name, value)| (name.clone(), value.clone())));
        for name in ["http_proxy", "https_proxy"] {
            env.extend(self.proxy.as_ref().map(|proxy| (name.into(), proxy.into())));
        }
        env
    }
}

/// Makes the tree in an empty directory, which is the root of the filesystem on `device`.
pub fn make(recipe: &Recipe, target: &Path, device: &Path) -> Result<Made> {
    let root = RootDir::open(target)?;
    let what = format!("bootstrapping {} {} with debootstrap", recipe.suite, recipe.arch);
    report::long_step(&what, || debootstrap(recipe, &root, target))?;
    let codename = codename(&root)?.unwrap_or_else(|| recipe.suite.clone());
    report::long_step("adding updates", || sources::complete(recipe, &root, target, &codename))?;
    if !recipe.apt_files.is_empty() {
        report::long_step("adding the site's own apt sources", || sources::add_own(recipe, &root, target))?;
    }
    if let Some(kernel) = recipe.boot {
        let what = format!("adding the {} kernel and GRUB", kernel.name());
        report::long_step(&what, || boot::install(recipe, kernel, &root, target, device))?;
    }
    report::step("scrubbing the tree", || scrub(&root))?;
    Ok(Made { codename, packages: packages(&root)? })
}

fn debootstrap(recipe: &Recipe, root: &RootDir, target: &Path) -> Result<()> {
    // No service may start in the chroot while packages install.
    root.create_dir_all("usr/sbin", 0o755)?;
    root.write(POLICY_RC_D, b"#!/bin/sh\nexit 101\n", 0o755)?;
    let list = |option: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("--{option}={}", names.join(",")))
    };
    let env = recipe.env();
    let result = Tool::new("debootstrap")
        .args(["--arch", recipe.arch.as_str()])
        .args(list("include", recipe.included()))
        .args(list("components", &recipe.components))
        .args(recipe.signed_only.then_some("--force-check-gpg"))
        .arg(recipe.suite.as_str())
        .arg(target)
        .args(&recipe.mirror)
        .envs(env.iter().map(|(n, v)| (n, v)))
        .cwd("/")
        .isolated()
        .run();
    if let Err(error) = result {
        signals::check()?;
        show_log(root);
        let hint = remedy(&error.to_string());
        return Err(error).hint(hint);
    }
    Ok(())
}

/// By what debootstrap says of itself.
fn remedy(said: &str) -> &'static str {
    let table = [
        (
            "E: No such script",
            "correct suite, or install a debootstrap that knows it: apt-get install debootstrap",
        ),
        (
            "E: Release signed by unknown key",
            "install the keyring of who signs there (debian-archive-keyring), or do not trust that mirror",
        ),
        ("E: Invalid Release signature", "do not trust that mirror: somebody changed what it serves"),
        (
            "E: Keyring-based check was requested",
            "install the release's keyring: a suite or mirror that an OS parameter names must be signed",
        ),
        ("E: Failed getting release file", "check that the mirror can be reached, and has the suite"),
    ];
    let known = table.into_iter().find(|(words, _)| said.contains(words));
    known.map_or("check suite, mirror, components and extra_pkgs", |(_, hint)| hint)
}

/// debootstrap's own log says what its last line does not.
fn show_log(root: &RootDir) {
    if let Ok(Some(log)) = root.read("debootstrap/debootstrap.log", MAX_BYTES) {
        let lines: Vec<&[u8]> = log.split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
        for line in &lines[lines.len().saturating_sub(6)..] {
            report::tool_line(line);
        }
    }
}

/// `Codename:` of the release file that debootstrap verified.
fn codename(root: &RootDir) -> Result<Option<String>> {
    for name in root.list("var/lib/apt/lists", 1000)? {
        let name = name.to_string_lossy().into_owned();
        if !name.ends_with("Release") {
            continue;
        }
        let bytes = root.read(format!("var/lib/apt/lists/{name}"), MAX_BYTES)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        if let Some(codename) = text.lines().find_map(|line| line.strip_prefix("Codename: ")) {
            return Ok(Some(codename.trim().to_owned()));
        }
    }
    Ok(None)
}

/// What an installation leaves and no guest should share: packages, lists, logs, keys, ids, seeds, the node's own
/// resolver and name.
fn scrub(root: &RootDir) -> Result<()> {
    root.remove(POLICY_RC_D)?;
    for dir in ["var/lib/apt/lists", "var/cache/apt/archives", "var/log/apt", "tmp", "var/tmp", "run"] {
        root.clear_dir(dir)?;
    }
    for dir in ["var/cache/apt", "var/log"] {
        root.remove_files(dir, |name| {
            let name = name.as_encoded_bytes();
            name.ends_with(b".bin") || name.ends_with(b".log") || name == b"faillog" || name == b"lastlog"
        })?;
    }
    for dir in ["var/lib/dpkg", "var/cache/debconf", "etc"] {
        root.remove_files(dir, |name| name.as_encoded_bytes().ends_with(b"-old"))?;
    }
    root.remove_files("etc/udev/rules.d", |name| name.as_encoded_bytes().ends_with(b"persistent-net.rules"))?;
    for file in ["etc/hostname", "etc/resolv.conf", "root/.bash_history"] {
        root.remove(file)?;
    }
    identity::scrub(root)
}

/// Installed packages, from dpkg's own status.
fn packages(root: &RootDir) -> Result<BTreeMap<String, String>> {
    let status = root
        .read("var/lib/dpkg/status", MAX_BYTES)?
        .context("reading the list of packages: var/lib/dpkg/status is missing")?;
    Ok(parse_status(&String::from_utf8_lossy(&status)))
}

fn parse_status(text: &str) -> BTreeMap<String, String> {
    let paragraphs = text.split("\n\n");
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    paragraphs
        .filter(|p| field(p, "Status:").is_some_and(|status| status.ends_with(" installed")))
        .filter_map(|p| Some((field(p, "Package:")?, field(p, "Version:")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_are_listed() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1.0-1\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 2\n\n\
                      Package: c\nStatus: install ok installed\nDescription: x\n y\nVersion: 3\n";
        let packages = parse_status(status);
        assert_eq!(
            packages.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), "1.0-1".to_owned()), ("c".to_owned(), "3".to_owned())]
        );
    }
}
