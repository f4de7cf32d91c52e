//! The layers: defaults.toml < the predecessor's shell file < config.toml < the variant < OS parameters, read and merged;
//! each value remembers where it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::files::{self, Role, TomlFile};
use super::table::{self, KEYS};
use super::{kind, shell, variants};
use crate::admin_file;
use crate::command::ToolError;
use crate::report;
use crate::request::{Api, Context};

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

/// config.toml of the node.
pub fn config_path(context: &Context) -> PathBuf {
    context.places.config_dir.join("config.toml")
}

/// The merged layers, and everything that is wrong with them.
pub struct Gathered {
    pub layers: Layers,
    pub problems: Vec<String>,
    /// Wrong settings, and those that may yet be others.
    pub uncertain: BTreeSet<&'static str>,
}

/// Reads all layers; an error is the node's, and not that of a setting.
pub fn gather(context: &Context, verb: &str) -> Result<Gathered> {
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
        warnings.extend(legacy.and_then(|path| admin_file::writable_by_others(path)));
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
pub fn unless_parameters(values: &Values) -> impl Iterator<Item = &'static str> {
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
            Origin::Parameter(name) => kind::refusal_as_parameter(name, &value.text).map(str::to_owned),
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
    use super::*;
    use crate::settings::table::Kind;

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
