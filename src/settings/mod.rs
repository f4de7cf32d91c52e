//! Layered settings: defaults.toml < the predecessor's shell file < config.toml < the variant < OS parameters.
//! Each value remembers where it comes from; all that is wrong is reported at once. Nothing here touches a disk.

mod apt;
mod files;
mod kind;
mod layers;
mod shell;
pub mod show;
mod syntax;
pub mod table;
pub mod together;
mod values;
mod variants;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::bootstrap::{AptFile, Bootstrapper};
use crate::cache::Compression;
use crate::filesystem::{Filesystem, PartitionStyle};
use crate::guest::access::{PasswordHash, parse_keys};
use crate::guest::{Zone, network};
use crate::request::Context;
pub use layers::{Era, Layers, Origin, Value, Values};
use syntax::split;
pub use values::{Identity, Source, SwapWish};
pub use variants::{published, with_files};

/// Everything that is wrong with the settings, a sentence each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Which firmware is to start the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootWish {
    /// Whatever the layout and the hypervisor have.
    Auto,
    Bios,
    Uefi,
    No,
}

/// Settings as the rest of the program uses them.
#[derive(Debug)]
pub struct Settings {
    pub suite: String,
    /// debootstrap's last arguments; empty for its default mirror.
    pub mirror: Vec<String>,
    pub proxy: Option<String>,
    /// The architecture to install; never empty.
    pub arch: String,
    pub components: Vec<String>,
    pub extra_pkgs: Vec<String>,
    pub bootstrapper: Bootstrapper,
    /// What apt_dir holds.
    pub apt_files: Vec<AptFile>,
    pub filesystem: Filesystem,
    pub partition_style: PartitionStyle,
    pub partition_alignment_sectors: u64,
    pub boot: BootWish,
    pub swap: SwapWish,
    pub network: network::Mode,
    pub dns: Vec<IpAddr>,
    /// Lines of authorized_keys.
    pub ssh_keys: Vec<String>,
    pub password_hash: Option<PasswordHash>,
    pub timezone: Option<Zone>,
    pub customize_dir: Option<PathBuf>,
    pub hooks_fail_fast: bool,
    pub hooks_namespace: bool,
    pub generate_cache: bool,
    pub cache_compression: Compression,
    /// How many templates the cache keeps; 0: none is made or used.
    pub templates: usize,
    /// None: cache files never expire.
    pub clean_cache_days: Option<u32>,
    pub keep_failed: bool,
    pub source: Source,
    pub import_identity: Identity,
    pub layers: Layers,
}

/// Settings, and all that is wrong with them: with each alone, at first.
#[derive(Debug)]
pub struct Judgement {
    /// What is wrong has its default here.
    pub settings: Settings,
    /// A sentence each.
    pub problems: Vec<String>,
    /// Wrong settings, and those that may yet be others.
    uncertain: BTreeSet<&'static str>,
}

impl Judgement {
    /// Only the OS parameters are known: which variant it is, for one, is not.
    pub fn trust_parameters_only(&mut self) {
        self.uncertain.extend(layers::unless_parameters(&self.settings.layers.values));
    }

    /// Whether nothing can change this setting any more.
    pub fn is_certain(&self, name: &str) -> bool {
        !self.uncertain.contains(name)
    }

    /// Adds what cannot work together, where all that takes part is certain.
    pub fn add_conflicts(&mut self) {
        let conflicts = together::conflicts(&self.settings).into_iter();
        let certain = conflicts.filter(|conflict| conflict.between.iter().all(|name| self.is_certain(name)));
        let sentences: Vec<String> = certain.map(|conflict| conflict.sentence).collect();
        self.problems.extend(sentences);
    }

    /// The settings, where nothing is wrong.
    pub fn into_settings(self) -> Result<Settings> {
        if self.problems.is_empty() { Ok(self.settings) } else { Err(Problems(self.problems).into()) }
    }
}

impl Settings {
    /// Merges all layers for a request; `verb` is what shell files see as SCRIPT_NAME.
    pub fn load(context: &Context, verb: &str) -> Result<Settings> {
        Settings::judge(context, verb)?.into_settings()
    }

    /// The same for those who want to know all that is wrong. An error is the node's, and not that of a setting.
    pub fn judge(context: &Context, verb: &str) -> Result<Judgement> {
        let layers::Gathered { layers, mut problems, uncertain } = layers::gather(context, verb)?;
        let apt_dir = layers.values.get("apt_dir").filter(|value| !value.text.is_empty());
        let apt_files = apt_dir.map(|dir| apt::read(Path::new(&dir.text), &mut problems)).unwrap_or_default();
        Ok(Judgement { settings: Settings::typed(layers, apt_files), problems, uncertain })
    }

    /// The text of a setting, as it was written.
    pub fn text(&self, name: &str) -> &str {
        self.layers.values.get(name).map_or("", |value| &value.text)
    }

    /// ` (set in FILE:LINE)`, to end a refusal.
    pub fn set_in(&self, name: &str) -> String {
        self.layers.values.get(name).map_or_else(String::new, |value| format!(" (from {})", value.origin))
    }

    /// Whether an OS parameter of the instance decides it.
    pub fn is_parameter(&self, name: &str) -> bool {
        self.layers.values.get(name).is_some_and(|value| matches!(value.origin, Origin::Parameter(_)))
    }

    fn typed(layers: Layers, apt_files: Vec<AptFile>) -> Settings {
        let text = |name: &str| layers.values.get(name).map_or("", |value| value.text.as_str());
        let optional = |name: &str| Some(text(name)).filter(|t| !t.is_empty()).map(str::to_owned);
        let names = |name: &str| split(text(name)).map(str::to_owned).collect::<Vec<_>>();
        let is = |name: &str| text(name) == "true";
        Settings {
            suite: text("suite").to_owned(),
            mirror: text("mirror").split_ascii_whitespace().map(str::to_owned).collect(),
            proxy: optional("proxy"),
            arch: optional("arch").unwrap_or_else(|| crate::debian::node_arch().to_owned()),
            components: names("components"),
            extra_pkgs: names("extra_pkgs"),
            bootstrapper: match text("bootstrapper") {
                "debootstrap" => Bootstrapper::Debootstrap,
                "mmdebstrap" => Bootstrapper::Mmdebstrap,
                _ => Bootstrapper::Auto,
            },
            apt_files,
            filesystem: text("filesystem").parse().unwrap_or(Filesystem::Ext4),
            partition_style: text("partition_style").parse().unwrap_or(PartitionStyle::Gpt),
            partition_alignment_sectors: text("partition_alignment").parse().unwrap_or(2048),
            boot: match text("boot") {
                "bios" => BootWish::Bios,
                "uefi" => BootWish::Uefi,
                "auto" => BootWish::Auto,
                _ => BootWish::No,
            },
            swap: SwapWish::parse(text("swap")).unwrap_or(SwapWish::No),
            network: text("network").parse().unwrap_or(network::Mode::Manual),
            dns: split(text("dns")).filter_map(|word| word.parse().ok()).collect(),
            ssh_keys: parse_keys(text("ssh_keys")).unwrap_or_default(),
            password_hash: PasswordHash::parse(text("password_hash")),
            timezone: Zone::parse(text("timezone")),
            customize_dir: optional("customize_dir").map(PathBuf::from),
            hooks_fail_fast: is("hooks_fail_fast"),
            hooks_namespace: is("hooks_namespace"),
            generate_cache: is("generate_cache"),
            cache_compression: if text("cache_compression") == "gzip" {
                Compression::Gzip
            } else {
                Compression::None
            },
            templates: text("templates").parse().unwrap_or(4),
            clean_cache_days: text("clean_cache").parse().ok(),
            keep_failed: is("keep_failed"),
            source: Source::parse(text("source")).unwrap_or(Source::Bootstrap),
            import_identity: if text("import_identity") == "new" { Identity::New } else { Identity::Keep },
            layers,
        }
    }
}
