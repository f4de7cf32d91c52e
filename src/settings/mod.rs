//! Layered settings: defaults.toml < the predecessor's shell file < config.toml < the variant < OS parameters.
//! Each value remembers where it comes from; all that is wrong is reported at once. Nothing here touches a disk.

mod apt;
mod files;
mod shell;
pub mod show;
pub mod table;
pub mod together;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::disk::{Filesystem, PartitionStyle};
use crate::guest::access::{PasswordHash, parse_keys};
use crate::guest::{Zone, network};
use crate::report;
use crate::request::{Api, Context};
use crate::tool::ToolError;
pub use apt::AptFile;
use files::{Role, TomlFile};
pub use table::SwapWish;
use table::{KEYS, split};
pub use variants::{published, with_files};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// defaults.toml, and whose defaults.
    Default(Era),
    /// A file of the node, and the line where it is known.
    File { path: PathBuf, line: Option<usize> },
    /// The variant is named like a suite.
    VariantName(String),
    /// An OS parameter of the instance.
    Parameter(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default(era) => write!(f, "the built-in default of defaults = \"{era}\""),
            Origin::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Origin::File { path, line: None } => write!(f, "{}", path.display()),
            Origin::VariantName(name) => write!(f, "the name of the variant {name}"),
            Origin::Parameter(name) => write!(f, "the OS parameter {name}"),
        }
    }
}

/// A value as text, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub text: String,
    pub origin: Origin,
}

/// Values by the name of their setting.
pub type Values = BTreeMap<&'static str, Value>;

/// Whose defaults hold on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// This program's.
    One,
    /// The predecessor's.
    Predecessor,
}

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Era::One => "1",
            Era::Predecessor => "0.17",
        })
    }
}

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

/// How a new cache file is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
}

/// The merged layers: every setting has a value and an origin.
#[derive(Debug)]
pub struct Layers {
    pub era: Era,
    /// Why that era: a file and line, or the rule.
    pub era_reason: String,
    pub values: Values,
    /// What the shell files exported.
    pub exports: BTreeMap<OsString, OsString>,
    /// Variables and functions that the shell files set and did not export, as bash prints them.
    pub shell_state: String,
    /// What is not wrong but should be known.
    pub warnings: Vec<String>,
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
    /// None: cache files never expire.
    pub clean_cache_days: Option<u32>,
    pub keep_failed: bool,
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
        self.uncertain.extend(unless_parameters(&self.settings.layers.values));
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
        let Gathered { layers, mut problems, uncertain } = gather_layers(context, verb)?;
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
            arch: optional("arch").unwrap_or_else(|| node_arch().to_owned()),
            components: names("components"),
            extra_pkgs: names("extra_pkgs"),
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
            clean_cache_days: text("clean_cache").parse().ok(),
            keep_failed: is("keep_failed"),
            layers,
        }
    }
}

/// The Debian architecture of this node: that of this program, which was built for it.
pub fn node_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "i386",
        "aarch64" => "arm64",
        "arm" => "armhf",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64el",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// config.toml of the node.
fn config_path(context: &Context) -> PathBuf {
    context.places.config_dir.join("config.toml")
}

/// The merged layers, and everything that is wrong with them.
struct Gathered {
    layers: Layers,
    problems: Vec<String>,
    uncertain: BTreeSet<&'static str>,
}

fn gather_layers(context: &Context, verb: &str) -> Result<Gathered> {
    let config_path = config_path(context);
    let mut config = files::read(&config_path, Role::Config).unwrap_or_default();
    expand(&mut config.values, &context.places.config_dir);
    let mut problems = config.problems.clone();
    let legacy = Some(&context.places.legacy_defaults).filter(|path| path.is_file());
    let (era, era_reason) = era(&config, legacy.map(|p| p.as_path()), &mut problems);
    let defaults = defaults(era, context);

    let mut warnings = Vec::new();
    let mut unresolved = Vec::new();
    let mut source = variants::resolve(context, &merged(&[&defaults, &config.values]), &mut unresolved);
    let mut shell = shell::Evaluated::default();
    let has_shell = legacy.is_some() || source.conf().is_some();
    if legacy.is_some() || source.conf().is_some() {
        warnings.extend(legacy.and_then(|path| files::writable_by_others(path)));
        let files = shell::Files {
            defaults_file: legacy.map(|p| p.as_path()),
            variant: context.variant.as_ref().map(|v| v.as_str()),
            variant_file: source.conf(),
            verb,
            env: &context.env,
            cwd: &context.places.os_dir,
        };
        match shell::evaluate(&files, &defaults, &config.values) {
            Ok(evaluated) => shell = evaluated,
            // Without bash it is the node that lacks something, and not the file.
            Err(error) if matches!(error.downcast_ref(), Some(ToolError::Missing(_))) => return Err(error),
            // What Ganeti gives verify tells too little for a file that looks at its instance.
            Err(error) if verb == "verify" => warnings.push(report::sentence(&error)),
            Err(error) => problems.push(report::sentence(&error)),
        }
    }
    // VARIANTS_DIR in the shell file may move the variants: only now their place is sure.
    let below = merged(&[&defaults, &shell.defaults_file, &config.values]);
    if shell.defaults_file.contains_key("variants_dir") {
        unresolved.clear();
        source = variants::resolve(context, &below, &mut unresolved);
    }
    problems.extend(unresolved);
    let variant = source.read(&mut problems, &mut warnings);
    let mut values = merged(&[
        &below,
        &source.implied_suite(&below),
        &shell.variant,
        &variant.values,
        &parameters(context),
    ]);
    expand(&mut values, &context.places.config_dir);
    let mut uncertain = BTreeSet::new();
    if !problems.is_empty() {
        uncertain.extend(unless_parameters(&values));
    } else if has_shell && !context.knows_instance() {
        // What a shell file says may hang on the instance.
        let legacy = |name: &&str| table::find(name).is_some_and(|key| key.legacy.is_some());
        uncertain.extend(unless_parameters(&values).filter(legacy));
    }
    for (name, complaint) in complaints(&values) {
        uncertain.insert(name);
        problems.push(complaint);
    }
    let layers =
        Layers { era, era_reason, values, exports: shell.exports, shell_state: shell.state, warnings };
    Ok(Gathered { layers, problems, uncertain })
}

/// The settings that an instance's OS parameters do not decide.
fn unless_parameters(values: &Values) -> impl Iterator<Item = &'static str> {
    values.iter().filter(|(_, value)| !matches!(value.origin, Origin::Parameter(_))).map(|(name, _)| *name)
}

/// Whose defaults: the key `defaults`, else whether there is a file of the predecessor.
fn era(config: &TomlFile, legacy: Option<&Path>, problems: &mut Vec<String>) -> (Era, String) {
    match (&config.defaults, legacy) {
        (Some(value), _) => {
            let era = match value.text.as_str() {
                "1" => Era::One,
                "0.17" => Era::Predecessor,
                other => {
                    let (other, at) = (report::quoted(other), &value.origin);
                    problems.push(format!("defaults is {other}; expected \"1\" or \"0.17\" (set in {at})"));
                    Era::One
                }
            };
            (era, value.origin.to_string())
        }
        (None, Some(file)) => {
            (Era::Predecessor, format!("{} is there and config.toml does not say", file.display()))
        }
        (None, None) => (Era::One, "nothing on this node says otherwise".into()),
    }
}

/// defaults.toml, as compiled in.
fn defaults(era: Era, context: &Context) -> Values {
    let all: toml::Table = toml::from_str(include_str!("../../defaults.toml")).unwrap_or_default();
    let mut sections = vec!["all", if era == Era::One { "1" } else { "0.17" }];
    if context.api == Api::V5 {
        sections.push("api5");
    }
    let mut values = Values::new();
    for section in sections {
        let Some(table) = all.get(section).and_then(toml::Value::as_table) else { continue };
        for key in KEYS {
            if let Some(value) = table.get(key.name) {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    toml::Value::Array(_) => String::new(),
                    other => other.to_string(),
                };
                values.insert(key.name, Value { text, origin: Origin::Default(era) });
            }
        }
    }
    expand(&mut values, &context.places.config_dir);
    values
}

/// CONFIG_DIR at the begin of a path is the node's directory of settings.
fn expand(values: &mut Values, config_dir: &Path) {
    let is_path =
        |name: &str| table::find(name).is_some_and(|key| matches!(key.kind, table::Kind::Path { .. }));
    for (_, value) in values.iter_mut().filter(|(name, _)| is_path(name)) {
        if let Some(rest) = value.text.strip_prefix("CONFIG_DIR/") {
            value.text = config_dir.join(rest).display().to_string();
        }
    }
}

fn merged(layers: &[&Values]) -> Values {
    let mut all = Values::new();
    for layer in layers {
        all.extend(layer.iter().map(|(name, value)| (*name, value.clone())));
    }
    all
}

/// OS parameters of the request; those that are no settings of ours are Ganeti's business.
fn parameters(context: &Context) -> Values {
    let known = KEYS.iter().filter(|key| key.parameter);
    known
        .filter_map(|key| {
            let text = context.parameters.get(key.name)?.clone();
            Some((key.name, Value { text, origin: Origin::Parameter(key.name) }))
        })
        .collect()
}

/// Each wrong value: its setting, and what was expected.
fn complaints(values: &Values) -> Vec<(&'static str, String)> {
    let complaint = |key: &table::Key| {
        let value = values.get(key.name)?;
        let as_parameter = match value.origin {
            Origin::Parameter(name) => table::refusal_as_parameter(name, &value.text).map(str::to_owned),
            _ => None,
        };
        let expected = key.kind.complaint(&value.text).or(as_parameter)?;
        let fact = key.kind.repeatable(&value.text).map_or("not right".into(), |text| report::quoted(&text));
        Some((key.name, format!("{} is {fact}; expected {expected} (set in {})", key.name, value.origin)))
    };
    KEYS.iter().filter_map(complaint).collect()
}

#[cfg(test)]
mod tests {
    use super::table::Kind;
    use super::*;

    #[test]
    fn every_setting_has_exactly_one_default_per_era() {
        let all: toml::Table = toml::from_str(include_str!("../../defaults.toml")).unwrap();
        let has = |section: &str, name: &str| all[section].as_table().unwrap().contains_key(name);
        for key in KEYS {
            let general = has("all", key.name);
            assert_eq!(has("1", key.name), !general, "{}", key.name);
            assert_eq!(has("0.17", key.name), !general, "{}", key.name);
        }
        for (section, table) in &all {
            for name in table.as_table().unwrap().keys() {
                assert!(table::find(name).is_some(), "[{section}] {name} is no setting");
            }
        }
    }

    #[test]
    fn kinds_of_days_and_bools_have_typed_defaults() {
        let all: toml::Table = toml::from_str(include_str!("../../defaults.toml")).unwrap();
        for key in KEYS.iter().filter(|key| key.kind == Kind::Bool) {
            assert!(all["all"][key.name].is_bool(), "{}", key.name);
        }
    }
}
