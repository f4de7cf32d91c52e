//! How a root tree is made: debootstrap or mmdebstrap, then updates and security, then a scrub. It knows neither cache
//! nor disk.

mod apt_file;
mod boot;
pub mod credentials;
mod debootstrap;
pub mod downloads;
mod keyring;
pub mod mmdebstrap;
pub mod scripts;
mod sources;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

pub use apt_file::AptFile;
pub use boot::Kernel;
pub use credentials::Credentials;
pub use downloads::Downloads;
pub use scripts::Scripts;

use crate::command::root::MadeRoot;
use crate::guest::identity;
use crate::report;
use crate::rootdir::RootDir;
use crate::sys::signals;

/// Bytes of the files of a bootstrapped tree that are read back; dpkg's status is the largest of them.
const MAX_BYTES: u64 = 64 << 20;

/// Of a directory that files are removed from.
const ENTRIES_MAX: usize = 16 << 10;

const POLICY_RC_D: &str = "usr/sbin/policy-rc.d";

/// dpkg(1) reads it whoever starts it. A tree that is half written is thrown away, whatever was flushed.
const UNFLUSHED: &str = "etc/dpkg/dpkg.cfg.d/unflushed";

/// Which program makes a root tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrapper {
    /// The faster one, where it makes the same tree.
    Auto,
    Debootstrap,
    Mmdebstrap,
}

impl fmt::Display for Bootstrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bootstrapper::Auto => "auto",
            Bootstrapper::Debootstrap => "debootstrap",
            Bootstrapper::Mmdebstrap => "mmdebstrap",
        })
    }
}

/// Everything that shapes a tree, and what is needed to fetch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub suite: String,
    pub arch: String,
    /// debootstrap's last arguments, without credentials.
    pub mirror: Vec<String>,
    /// Who may fetch from the mirror.
    pub credentials: Option<Credentials>,
    pub components: Vec<String>,
    pub extra_pkgs: Vec<String>,
    /// More sources, and keys, for the guest's apt.
    pub apt_files: Vec<AptFile>,
    /// Which program is to make it.
    pub bootstrapper: Bootstrapper,
    /// The tree boots, with this kernel.
    pub boot: Option<Kernel>,
    /// How it is fetched: shapes nothing.
    pub proxy: Option<String>,
    /// The keys that must have signed the release, as gpgv reads them; `None`: those of debootstrap's script.
    pub keys: Option<Vec<u8>>,
    /// What nobody signed is installed as well.
    pub allow_unsigned: bool,
    /// Why it may not be made, whatever is cached: what the settings ask for together.
    pub refusal: Option<String>,
    /// debootstrap's own scripts of the site, each a path and its digest.
    pub scripts: Vec<String>,
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
    /// The program that made it.
    pub bootstrapper: Program,
    /// Whether every package was signed by somebody.
    pub signed: bool,
}

/// A program that makes trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Debootstrap,
    Mmdebstrap,
}

impl Program {
    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Program::Debootstrap => "debootstrap",
            Program::Mmdebstrap => "mmdebstrap",
        }
    }
}

impl Recipe {
    /// One line per fact that shapes the tree: the same lines, the same tree (of its day). Whoever leaves the choice of the
    /// program open takes the tree of either, for they are equal; whoever names one gets what that one made.
    pub fn cache_key(&self) -> String {
        let mut key = format!(
            "bootstrapper {}\nsuite {}\narch {}\nmirror {}\ncomponents {}\npackages {}\nboot {}\n",
            self.bootstrapper,
            self.suite,
            self.arch,
            self.mirror.join(" "),
            self.components.join(","),
            self.extra_pkgs.join(","),
            self.boot.map_or("no", Kernel::name)
        );
        for file in &self.apt_files {
            key += &format!("file {} sha256:{:x}\n", file.path, Sha256::digest(&file.content));
        }
        // Only where they are set: what earlier versions made without them keeps its key.
        if let Some(keys) = &self.keys {
            key += &format!("keyring sha256:{:x}\n", Sha256::digest(keys));
        }
        if self.allow_unsigned {
            key += "unsigned\n";
        }
        for script in &self.scripts {
            key += &format!("script {script}\n");
        }
        key
    }

    /// Which program makes it, on this node: refused where the one that is asked for cannot.
    pub fn program(&self) -> Result<Program> {
        if let Some(why) = &self.refusal {
            bail!("{why}");
        }
        // Whatever the settings said: nothing unsigned without leave.
        ensure!(
            self.allow_unsigned || !self.apt_files.iter().any(AptFile::is_unsigned),
            "a source in apt_dir has apt install what nobody signed"
        );
        let mmdebstrap = self.mmdebstrap_obstacle();
        match (self.bootstrapper, mmdebstrap) {
            (Bootstrapper::Mmdebstrap, Some(why)) => {
                bail!("mmdebstrap does not make this tree: {why}; set bootstrapper to \"auto\"")
            }
            (Bootstrapper::Mmdebstrap, None) => {
                mmdebstrap::refuse_missing()?;
                Ok(Program::Mmdebstrap)
            }
            (Bootstrapper::Auto, None) if mmdebstrap::refuse_missing().is_ok() => Ok(Program::Mmdebstrap),
            _ => {
                self.refuse_without_keys()?;
                Ok(Program::Debootstrap)
            }
        }
    }

    /// Refuses what debootstrap would refuse, for it does not find the release's keys on this node.
    pub fn refuse_without_keys(&self) -> Result<()> {
        match keyring::missing(self)? {
            Some(missing) if self.keys.is_none() && !self.allow_unsigned => Err(missing.refusal(&self.suite)),
            _ => Ok(()),
        }
    }

    /// Whether all that is installed is checked. Where unsigned packages may be installed, apt says nothing of those that were.
    fn is_signed(&self) -> bool {
        !self.allow_unsigned && !self.apt_files.iter().any(AptFile::is_unsigned)
    }

    /// Why mmdebstrap cannot make it.
    fn mmdebstrap_obstacle(&self) -> Option<&'static str> {
        let own_scripts = self.exports.contains_key(OsStr::new(scripts::DIR_VARIABLE));
        let why = own_scripts.then_some("DEBOOTSTRAP_DIR is exported, which names debootstrap's scripts");
        why.or_else(|| mmdebstrap::obstacle(&self.suite, &self.arch, &self.mirror))
    }

    /// Whether all its packages but those of `apt_files` come from Debian, by Debian's own signature.
    pub fn is_debians(&self) -> bool {
        let own_keys = self.keys.is_some() || self.allow_unsigned;
        !own_keys && self.mmdebstrap_obstacle().is_none() && mmdebstrap::has_keyring()
    }

    /// Packages that debootstrap itself installs: it knows its one mirror only.
    fn included(&self) -> &[String] {
        if self.apt_files.is_empty() { &self.extra_pkgs } else { &[] }
    }

    /// The root for a bootstrapper that works on `target`: with what the recipe names on this node.
    fn made_root(&self, target: &Path) -> Result<MadeRoot> {
        let own = |word: &String| {
            let path =
                ["file://", "file:", "copy://", "copy:"].iter().find_map(|head| word.strip_prefix(head));
            Some(PathBuf::from(path.unwrap_or(word))).filter(|path| path.is_absolute())
        };
        let mut readable: Vec<PathBuf> = self.mirror.iter().filter_map(own).collect();
        readable.extend(Scripts::of(&self.suite, &self.mirror, &self.exports)?.files);
        readable.extend(self.exports.get(OsStr::new(scripts::DIR_VARIABLE)).map(PathBuf::from));
        readable.extend(self.keys.as_ref().map(|_| keyring::place(target)));
        Ok(MadeRoot {
            at: target.with_file_name("bootstrapper"),
            target: target.to_owned(),
            readable,
            home: self.credentials.as_ref().map(|_| credentials::home(target)),
        })
    }

    /// Options for apt in the tree.
    fn apt_options(&self) -> &'static [&'static str] {
        match self.allow_unsigned {
            true => &[
                "-o",
                "Acquire::AllowInsecureRepositories=true",
                "-o",
                "APT::Get::AllowUnauthenticated=true",
            ],
            false => &[],
        }
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
pub fn make(recipe: &Recipe, target: &Path, device: &Path, downloads: Option<&Downloads>) -> Result<Made> {
    let program = recipe.program()?;
    let root = RootDir::open(target)?;
    if let Some(downloads) = downloads {
        let first = match program {
            Program::Debootstrap => downloads::PARTIAL,
            Program::Mmdebstrap => downloads::ARCHIVES,
        };
        report::step("taking packages that were fetched before", || downloads.lend(&root, first))?;
    }
    prepare(&root)?;
    let place = target.with_file_name("bootstrapper");
    std::fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    if let Some(credentials) = &recipe.credentials {
        credentials.write(&root)?;
        credentials.write_home(&credentials::home(target))?;
    }
    if let Some(keys) = &recipe.keys {
        keyring::write(keys, target, &root)?;
    }
    let what = format!("bootstrapping {} {} with {}", recipe.suite, recipe.arch, program.name());
    report::long_step(&what, || match program {
        Program::Debootstrap => debootstrap::run(recipe, &root, target),
        Program::Mmdebstrap => mmdebstrap::run(recipe, &root, target),
    })?;
    // Some of it is soon replaced by an update, and wanted again by the next bootstrap.
    keep(downloads, &root)?;
    if let Some(downloads) = downloads.filter(|_| program == Program::Debootstrap) {
        // apt would ask the mirror for the rest of what lies whole in the wrong place.
        root.clear_dir(downloads::PARTIAL, signals::check)?;
        downloads.lend(&root, downloads::ARCHIVES)?;
    }
    let codename = codename(&root)?.unwrap_or_else(|| recipe.suite.clone());
    report::long_step("adding updates", || sources::complete(recipe, &root, target, &codename))?;
    if !recipe.apt_files.is_empty() {
        // What comes from here on is not Debian's alone.
        keep(downloads, &root)?;
        report::long_step("adding the site's own apt sources", || sources::add_own(recipe, &root, target))?;
    }
    if let Some(kernel) = recipe.boot {
        let what = format!("adding the {} kernel and GRUB", kernel.name());
        report::long_step(&what, || boot::install(recipe, kernel, &root, target, device))?;
    }
    if recipe.apt_files.is_empty() {
        keep(downloads, &root)?;
    }
    report::step("scrubbing the tree", || scrub(&root))?;
    // The cache is everybody's; each guest gets those of its own mirror.
    credentials::scrub(&root)?;
    let signed = recipe.is_signed();
    Ok(Made { codename, packages: packages(&root)?, bootstrapper: program, signed })
}

/// What holds while packages install: no service starts in the chroot, and nothing is flushed.
fn prepare(root: &RootDir) -> Result<()> {
    root.create_dir_all("usr/sbin", 0o755)?;
    root.write(POLICY_RC_D, b"#!/bin/sh\nexit 101\n", 0o755)?;
    root.create_dir_all("etc/dpkg/dpkg.cfg.d", 0o755)?;
    root.write(UNFLUSHED, b"force-unsafe-io\n", 0o644)
}

/// A tree is no worse for packages that could not be kept.
fn keep(downloads: Option<&Downloads>, root: &RootDir) -> Result<()> {
    let Some(downloads) = downloads else { return Ok(()) };
    let kept = report::step("keeping what was fetched", || downloads.keep(root, &packages(root)?));
    if let Err(error) = kept {
        signals::check()?;
        report::warning(&report::sentence(&error));
    }
    Ok(())
}

/// `Codename:` of the release file that debootstrap verified.
fn codename(root: &RootDir) -> Result<Option<String>> {
    for name in root.list("var/lib/apt/lists", 1000)? {
        signals::check()?;
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
    root.remove(UNFLUSHED)?;
    for dir in ["var/lib/apt/lists", "var/cache/apt/archives", "var/log/apt", "tmp", "var/tmp", "run"] {
        root.clear_dir(dir, signals::check)?;
    }
    for dir in ["var/cache/apt", "var/log"] {
        remove_files(root, dir, |name| {
            name.ends_with(b".bin") || name.ends_with(b".log") || name == b"faillog" || name == b"lastlog"
        })?;
    }
    for dir in ["var/lib/dpkg", "var/cache/debconf", "etc"] {
        remove_files(root, dir, |name| name.ends_with(b"-old"))?;
    }
    remove_files(root, "etc/udev/rules.d", |name| name.ends_with(b"persistent-net.rules"))?;
    // ldconfig would compare the inodes of this filesystem with the guest's.
    for file in ["etc/hostname", "etc/resolv.conf", "root/.bash_history", "var/cache/ldconfig/aux-cache"] {
        root.remove(file)?;
    }
    identity::scrub(root)
}

/// Removes the regular files of a directory that have such a name.
fn remove_files(root: &RootDir, dir: &str, matches: impl Fn(&[u8]) -> bool) -> Result<()> {
    root.remove_files(dir, ENTRIES_MAX, |name| {
        signals::check()?;
        Ok(matches(name.as_encoded_bytes()))
    })?;
    Ok(())
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
