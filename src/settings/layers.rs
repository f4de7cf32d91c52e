//! The layers: defaults.toml < the predecessor's shell file < config.toml < the variant < OS parameters, read and merged;
//! each value remembers where it comes from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use toml::de::{DeTable, DeValue};

use super::files::{self, Role, TomlFile};
use super::origin::{DefaultsVersion, Layers, Origin, Value, Values};
use super::table::{self, KEYS};
use super::{parse, shell, variants};
use crate::admin_file::AdminFiles;
use crate::command::ToolError;
use crate::report;
use crate::request::{Api, Context, InstanceName, VariantName};

/// config.toml of the node.
pub fn config_path(context: &Context) -> PathBuf {
    context.places.config_dir.join("config.toml")
}

/// The merged layers, and what is wrong with their files.
pub struct Gathered {
    pub layers: Layers,
    /// As strict as these defaults are.
    pub files: AdminFiles,
    /// What holds where a text is wrong.
    pub defaults: Values,
    /// What is wrong with the files, a sentence each.
    pub problems: Vec<String>,
    /// Settings that may yet be others.
    pub uncertain: BTreeSet<&'static str>,
}

/// Reads all layers; an error is the node's, and not that of a setting.
pub fn gather(context: &Context, verb: &str) -> Result<Gathered> {
    let config_path = config_path(context);
    let mut found = Findings { files: AdminFiles::new(false), problems: Vec::new(), warnings: Vec::new() };
    let mut config = files::read(&config_path, Role::Config, &mut found.files).unwrap_or_default();
    expand(&mut config.values, &context.places.config_dir);
    found.problems.extend(config.problems.iter().cloned());
    let fault = found.files.look_in(&context.places.config_dir).err();
    found.problems.extend(fault.filter(|fault| !config.problems.iter().any(|known| known.contains(fault))));
    let legacy = Some(context.places.legacy_defaults.as_path()).filter(|path| path.is_file());
    let (version, defaults_reason) = defaults_version(&config, legacy, &mut found.problems);
    let defaults = defaults(version, context)?;
    let decided_by = config.defaults.as_ref().map(|_| config_path.as_path()).or(legacy);
    // The author of the file that says how strictly files are judged does not decide that about his own file.
    if version == DefaultsVersion::One || decided_by.is_some_and(|path| found.files.belongs_to_another(path))
    {
        found.problems.extend(found.files.be_strict());
    }

    let mut unresolved = Vec::new();
    let without_shell = merged(&[&defaults, &config.values]);
    let mut source =
        variants::resolve(context.variant.as_ref(), &context.places, &without_shell, &mut unresolved);
    let has_shell = legacy.is_some() || source.conf().is_some();
    let mut shell = shell::Evaluated::default();
    if has_shell {
        let files = shell_files(context, verb, legacy, source.conf());
        shell = evaluate(files, &defaults, &config.values, &mut found)?;
    }
    let below = merged(&[&defaults, &shell.defaults_file, &config.values]);
    // The shell file may change the variant, or move all variants.
    if shell.defaults_file.contains_key("variants_dir") || shell.variant_name.is_some() {
        unresolved.clear();
        let variant = variant(context, &shell, &mut found.problems);
        source = variants::resolve(variant.as_ref(), &context.places, &below, &mut unresolved);
    }
    let Findings { mut files, mut problems, mut warnings } = found;
    problems.extend(unresolved);
    problems.extend(look_in_variants_dir(&below, &mut files));
    let variant = source.read(&mut files, &mut problems, &mut warnings);
    let mut values = merged(&[
        &below,
        &source.implied_suite(&below),
        &shell.variant,
        &variant.values,
        &parameters(context),
    ]);
    expand(&mut values, &context.places.config_dir);
    let layers = Layers {
        defaults: version,
        defaults_reason,
        values,
        guest_name: guest_name(&shell, &mut problems),
        cache_dir: cache_dir(&shell, &mut problems),
        exports: shell.exports,
        shell_state: shell.state,
        warnings,
        exposed: Vec::new(),
    };
    let uncertain = uncertain(&layers.values, !problems.is_empty(), has_shell && !context.knows_instance());
    Ok(Gathered { layers, files, defaults, problems, uncertain })
}

/// A sentence where everybody could add the file of a variant.
fn look_in_variants_dir(values: &Values, files: &mut AdminFiles) -> Option<String> {
    let dir = Path::new(&values.get("variants_dir")?.text);
    files.look_in(dir).err()
}

/// What was found while the layers were read.
struct Findings {
    files: AdminFiles,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// Runs the shell files. The defaults file may name another file of the variant: that one runs the second time, when it was
/// looked at too.
fn evaluate(
    shell_files: shell::Files,
    defaults: &Values,
    config: &Values,
    found: &mut Findings,
) -> Result<shell::Evaluated> {
    let once = evaluate_looked_at(&shell_files, defaults, config, found)?;
    let Some(moved) = once.elsewhere.as_deref() else { return Ok(once) };
    let shell_files = shell::Files { variant_file: Some(moved), ..shell_files };
    let again = evaluate_looked_at(&shell_files, defaults, config, found)?;
    if again.elsewhere.is_some() {
        let problem = format!("the variant's file is {} once and another one the next time", moved.display());
        found.problems.push(problem);
    }
    Ok(again)
}

/// Runs the shell files, if nobody else could have written them.
fn evaluate_looked_at(
    shell_files: &shell::Files,
    defaults: &Values,
    config: &Values,
    found: &mut Findings,
) -> Result<shell::Evaluated> {
    let refused =
        refused(shell_files.defaults_file.into_iter().chain(shell_files.variant_file), &mut found.files);
    if !refused.is_empty() {
        found.problems.extend(refused);
        return Ok(shell::Evaluated::default());
    }
    shell::evaluate(shell_files, defaults, config)
        .or_else(|error| unevaluated(error, shell_files.verb, found))
}

/// A sentence for each shell file that others could have written.
fn refused<'a>(shell_files: impl Iterator<Item = &'a Path>, files: &mut AdminFiles) -> Vec<String> {
    shell_files
        .filter_map(|path| Some(format!("{}; {} is not run", files.open(path).err()?, path.display())))
        .collect()
}

/// Files that bash cannot evaluate are a problem, or only a warning. An error if bash is missing.
fn unevaluated(error: anyhow::Error, verb: &str, found: &mut Findings) -> Result<shell::Evaluated> {
    match report::cause(&error) {
        // Without bash it is the node that lacks something, and not the file.
        Some(ToolError::Missing(_)) => return Err(error),
        // What Ganeti gives verify tells too little for a file that looks at its instance.
        _ if verb == "verify" => found.warnings.push(report::sentence(&error)),
        _ => found.problems.push(report::sentence(&error)),
    }
    Ok(shell::Evaluated::default())
}

fn shell_files<'a>(
    context: &'a Context,
    verb: &'a str,
    defaults_file: Option<&'a Path>,
    variant_file: Option<&'a Path>,
) -> shell::Files<'a> {
    shell::Files {
        defaults_file,
        variant: context.variant.as_ref().map(|v| v.as_str()),
        variant_file,
        verb,
        env: &context.env,
        cwd: &context.places.os_dir,
        cache_dir: &context.places.cache_dir,
    }
}

/// The variant: what the defaults file left in OS_VARIANT.
fn variant(context: &Context, shell: &shell::Evaluated, problems: &mut Vec<String>) -> Option<VariantName> {
    match &shell.variant_name {
        None => context.variant.clone(),
        Some(Value { text, .. }) if text.is_empty() => None,
        Some(value) => {
            typed(value, "OS_VARIANT", "the name of a variant, or nothing", problems, VariantName::parse)
        }
    }
}

/// The name that the shell files give the guest.
fn guest_name(shell: &shell::Evaluated, problems: &mut Vec<String>) -> Option<InstanceName> {
    typed(shell.guest_name.as_ref()?, "the instance's name", "a host name", problems, InstanceName::parse)
}

/// The directory that the variant's shell file moves the cache to.
fn cache_dir(shell: &shell::Evaluated, problems: &mut Vec<String>) -> Option<PathBuf> {
    let path = |text: &str| parse::path(text).ok();
    typed(shell.cache_dir.as_ref()?, "CACHE_DIR", "an absolute path", problems, path)
}

/// The parsed value of a shell variable that is not a setting. Adds a problem if it is malformed.
fn typed<T>(
    value: &Value,
    what: &str,
    expected: &str,
    problems: &mut Vec<String>,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let parsed = parse(&value.text);
    if parsed.is_none() {
        let (found, at) = (report::quoted(&value.text), &value.origin);
        problems.push(format!("{what} is {found}; expected {expected} (set in {at})"));
    }
    parsed
}

/// The settings that may yet be others: all that no OS parameter decides, where a file is wrong; those that a shell file
/// may set, where it may look at an instance that is not known.
fn uncertain(values: &Values, files_are_wrong: bool, shell_may_differ: bool) -> BTreeSet<&'static str> {
    let in_shell = |name: &str| table::find(name).is_some_and(|key| key.legacy.is_some());
    unless_parameters(values).filter(|name| files_are_wrong || (shell_may_differ && in_shell(name))).collect()
}

/// The settings that an instance's OS parameters do not decide.
pub fn unless_parameters(values: &Values) -> impl Iterator<Item = &'static str> {
    values.iter().filter(|(_, value)| !matches!(value.origin, Origin::Parameter(_))).map(|(name, _)| *name)
}

/// Whose defaults: the key `defaults`, else whether there is a file of the predecessor.
fn defaults_version(
    config: &TomlFile,
    legacy: Option<&Path>,
    problems: &mut Vec<String>,
) -> (DefaultsVersion, String) {
    match (&config.defaults, legacy) {
        (Some(value), _) => {
            let version = match value.text.as_str() {
                "1" => DefaultsVersion::One,
                "0.17" => DefaultsVersion::Predecessor,
                other => {
                    let (other, at) = (report::quoted(other), &value.origin);
                    problems.push(format!("defaults is {other}; expected \"1\" or \"0.17\" (set in {at})"));
                    DefaultsVersion::One
                }
            };
            (version, value.origin.to_string())
        }
        (None, Some(file)) => (
            DefaultsVersion::Predecessor,
            format!("{} is there and config.toml does not say", file.display()),
        ),
        (None, None) => (DefaultsVersion::One, "nothing on this node says otherwise".into()),
    }
}

/// defaults.toml, as compiled in.
fn defaults(version: DefaultsVersion, context: &Context) -> Result<Values> {
    let wrong = |what: String| anyhow!("defaults.toml: {what}");
    let all = DeTable::parse(include_str!("../../defaults.toml"));
    let all = all.map_err(|error| wrong(error.message().to_owned()))?.into_inner();
    let mut sections = vec!["all".to_owned(), version.to_string()];
    if context.api == Api::V5 {
        sections.push("api5".into());
    }
    let mut values = Values::new();
    for section in sections {
        let Some(DeValue::Table(table)) = all.get(section.as_str()).map(|section| section.get_ref()) else {
            return Err(wrong(format!("there is no section {section}")));
        };
        for key in KEYS {
            let Some(value) = table.get(key.name) else { continue };
            let text = key.kind.text_of_toml(value.get_ref());
            let text = text.map_err(|expected| wrong(format!("{}: expected {expected}", key.name)))?;
            values.insert(key.name, Value { text, origin: Origin::Default(version) });
        }
    }
    expand(&mut values, &context.places.config_dir);
    Ok(values)
}

/// CONFIG_DIR at the begin of a path is the node's directory of settings.
fn expand(values: &mut Values, config_dir: &Path) {
    let is_path = |name: &str| table::find(name).is_some_and(|key| key.kind == table::Kind::Path);
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
    let known = KEYS.iter().filter(|key| key.is_parameter());
    known
        .filter_map(|key| {
            let text = context.parameters.get(key.name)?.clone();
            Some((key.name, Value { text, origin: Origin::Parameter(key.name) }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_exactly_one_default_in_either_version() {
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
}
