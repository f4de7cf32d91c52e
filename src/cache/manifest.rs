//! What a cache file is: a TOML manifest beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::shown;
use crate::report::{Foreign, WithHint};

/// Every package was signed by somebody.
pub const CHECKED: &str = "checked";
/// Somebody allowed what nobody signed.
pub const NOT_CHECKED: &str = "not checked";

/// Larger ones are refused.
const MAX_BYTES: u64 = 4 << 20;

/// The facts of one cache file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The tar's name, in the same directory.
    pub file: String,
    pub suite: String,
    /// The release's code name, where `suite` is an alias like `stable`.
    #[serde(default)]
    pub codename: String,
    pub arch: String,
    #[serde(default)]
    pub mirror: Vec<String>,
    #[serde(default)]
    pub components: Vec<String>,
    #[serde(default)]
    pub extra_pkgs: Vec<String>,
    #[serde(default)]
    pub bootstrapper: String,
    /// The kernel of a tree that boots; empty for one that does not.
    #[serde(default)]
    pub boot: String,
    /// Whether every package was signed: [`CHECKED`] or [`NOT_CHECKED`]; empty where an earlier version made it.
    #[serde(default)]
    pub signatures: String,
    /// All that shaped the tree ([`Recipe::cache_key()`]); empty where an earlier version made it.
    ///
    /// [`Recipe::cache_key()`]: crate::bootstrap::Recipe::cache_key
    #[serde(default)]
    pub recipe: String,
    /// RFC 3339, UTC.
    pub made: String,
    /// Version of the program that made it.
    #[serde(default)]
    pub program: String,
    /// `sha256:HEX` of the file.
    pub digest: String,
    pub size_bytes: u64,
    /// What the tree's files need on a disk.
    #[serde(default)]
    pub unpacked_bytes: Option<u64>,
    /// The administrator vouches for it; it does not expire.
    #[serde(default)]
    pub sealed: bool,
    /// Package to version.
    #[serde(default)]
    pub packages: BTreeMap<String, String>,
}

impl Manifest {
    /// For a file that was made by hand.
    pub fn by_hand(suite: String, arch: String, file: &str, made: SystemTime) -> Manifest {
        Manifest {
            file: file.to_owned(),
            codename: suite.clone(),
            suite,
            arch,
            mirror: Vec::new(),
            components: Vec::new(),
            extra_pkgs: Vec::new(),
            bootstrapper: "by hand".into(),
            boot: String::new(),
            signatures: String::new(),
            recipe: String::new(),
            made: humantime::format_rfc3339_seconds(made).to_string(),
            program: crate::VERSION.into(),
            digest: String::new(),
            size_bytes: 0,
            unpacked_bytes: None,
            sealed: false,
            packages: BTreeMap::new(),
        }
    }

    /// Reads a manifest; None where there is none.
    pub fn read(path: &Path) -> Result<Option<Manifest>> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() <= MAX_BYTES => {}
            _ => return Ok(None),
        }
        let context = || format!("reading the manifest {}", shown(path));
        let text = std::fs::read_to_string(path).with_context(context)?;
        toml::from_str(&text)
            .map(Some)
            .map_err(|error| anyhow::anyhow!("{}", Foreign(error.message().as_bytes())))
            .with_context(context)
            .hint(format!("rm {}; what it described can be made or sealed anew", shown(path)))
    }

    /// Whether its tar is one that this manifest may name: of its own stem, beside it.
    pub fn names_own_file(&self, manifest: &Path) -> bool {
        let stem = manifest.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let rest = self.file.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'));
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
        rest.is_some_and(|rest| {
            rest.chars().all(plain) && (rest.ends_with(".tar") || rest.ends_with(".tar.gz"))
        })
    }

    /// When it was made.
    pub fn made_at(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.made).ok()
    }
}

/// This second, in RFC 3339.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
