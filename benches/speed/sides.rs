//! Both programs on the machine: their places, their settings, and how noded runs their verbs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::measure::Invocation;
use crate::{BENCH, CACHE, ETC, LEGACY, OS_DIR, common};

/// This program's OS directory.
pub const OURS: &str = "/srv/bench/os";
/// This program's cache.
pub const TREES: &str = "/srv/bench/cache";
/// Its trees that boot.
pub const BOOTABLE_TREES: &str = "/srv/bench/bootable";
/// Names the proxy that the bootstraps of both use.
pub const PROXY: &str = "/srv/bench/proxy";
/// The guests' release.
pub const SUITE: &str = common::SUITE;

/// This program's settings.
const SETTINGS: &str = "/srv/bench/etc";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Predecessor,
    Program,
    /// The bytes alone.
    Floor,
}

/// The file in which the predecessor looks for a tree.
pub fn predecessors_tree() -> String {
    let arch = crate::trees::Suite::new(SUITE, "").arch;
    format!("{CACHE}/cache-{SUITE}-{arch}.tar")
}

/// What both are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// One filesystem on the bare disk, no kernel, no swap, no hooks: what both can.
    SameWork,
    /// The same, bootstrapped each time, by way of the proxy.
    NoCache,
    /// A disk with a table, a kernel and a loader: this program alone.
    Bootable,
}

/// Both programs' settings.
pub fn write_settings(settings: Settings) -> Result<()> {
    let proxy = fs::read_to_string(PROXY).context("reading where the proxy is")?;
    let mut theirs = format!("SUITE={SUITE}\nPARTITION_STYLE=none\nCLEAN_CACHE=\nGENERATE_CACHE=no\n");
    let mut ours = format!("suite = \"{SUITE}\"\nclean_cache = \"\"\n");
    let (cache, trees) = (predecessors_tree(), format!("{CACHE}/away"));
    let away = Path::new(&trees);
    if settings == Settings::NoCache {
        theirs += &format!("PROXY={proxy}\n");
        ours += &format!("proxy = \"{proxy}\"\ngenerate_cache = false\n");
        if !away.exists() {
            fs::rename(&cache, away)?;
        }
    } else if away.exists() {
        fs::rename(away, &cache)?;
    }
    ours += match settings {
        Settings::Bootable => "defaults = \"1\"\n",
        _ => "defaults = \"0.17\"\npartition_style = \"none\"\n",
    };
    let trees = match settings {
        Settings::SameWork => TREES,
        Settings::NoCache => "/nonexistent",
        Settings::Bootable => BOOTABLE_TREES,
    };
    fs::write(LEGACY, theirs)?;
    fs::create_dir_all(format!("{ETC}/hooks"))?;
    fs::create_dir_all(format!("{SETTINGS}/hooks"))?;
    fs::write(format!("{SETTINGS}/config.toml"), ours).context("writing the settings")?;
    fs::write(format!("{SETTINGS}/trees"), trees)?;
    Ok(())
}

impl Side {
    /// A verb as noded runs it: in the OS directory, with the recorded environment of that request.
    pub fn verb(self, verb: &str, request: &str, disk: &Path) -> Result<Invocation> {
        let mut environment = recorded(request, disk)?;
        let directory = match self {
            Side::Program => {
                let place = |name: &str| format!("GANETI_DEBOOTSTRAP_{name}");
                environment.insert(place("CONFIG_DIR"), SETTINGS.into());
                environment.insert(place("LEGACY_DEFAULTS"), format!("{SETTINGS}/none"));
                environment.insert(place("CACHE_DIR"), fs::read_to_string(format!("{SETTINGS}/trees"))?);
                OURS
            }
            _ => OS_DIR,
        };
        let mut argv = vec![format!("{directory}/{verb}")];
        if verb == "verify" {
            argv.push("parameters".into());
        }
        Ok(Invocation { argv, environment, directory: directory.into() })
    }
}

/// What a node daemon sent, with another disk; nobody listens for the size of a backup.
fn recorded(request: &str, disk: &Path) -> Result<BTreeMap<String, String>> {
    let path = PathBuf::from(format!("{BENCH}/ganeti-env/{request}.env"));
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let mut environment: BTreeMap<String, String> =
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    environment.remove("EXP_SIZE_FD");
    for (name, value) in &mut environment {
        match name.as_str() {
            "DISK_0_PATH" | "EXPORT_DEVICE" | "EXPORT_DISK_PATH" | "IMPORT_DEVICE" | "IMPORT_DISK_PATH" => {
                *value = disk.display().to_string();
            }
            "OS_VARIANT" => *value = "default".into(),
            // The disk starts its own loader.
            "INSTANCE_HV_kernel_path" => value.clear(),
            _ => {}
        }
    }
    Ok(environment)
}
