//! The predecessor's shell files, evaluated by one bash in the predecessor's order, never parsed:
//! `case` and `$SUITE` in them are legal and used. What the files export is read back too; hooks
//! see it.
//!
//! script.rs writes what bash runs, records.rs reads what it reports, trace.rs finds the line of
//! each assignment, prints.rs what of their words the log shows. The report and the trace have a descriptor each, and what the files print goes
//! to the log: neither a value nor a print can imitate a report.

mod prints;
mod records;
mod script;
mod trace;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use uuid::Uuid;

use super::kind::Kind;
use super::origin::{Origin, Value, Values};
use super::table::Key;
use crate::command::{Channel, DEFAULT_PATH, Tool, ToolError};
use crate::report::{self, WithHint};
use crate::request::Env;
use prints::Prints;
use records::{Incomplete, Records, Texts};
use script::{Answers, legacy_keys};
use trace::{Lines, Trace};

/// The directory of the cache, which a variant's file can move.
const CACHE_DIR: &str = "CACHE_DIR";
/// The guest's name, which the predecessor took from INSTANCE_NAME after the defaults file.
const INSTANCE: &str = "instance";
const INSTANCE_NAME: &str = "INSTANCE_NAME";
/// The variant, which the defaults file can change.
const OS_VARIANT: &str = "OS_VARIANT";

/// Limit of a report and of a trace, in bytes. Files with variables of some megabytes exist.
const MAX_BYTES: u64 = 64 << 20;
/// The descriptors are a random number from here on: beyond those that files use by habit, below
/// the usual limit of 1024.
const MIN_DESCRIPTOR: i32 = 300;
const DESCRIPTORS: i32 = 600;

/// Variables that bash sets while it runs, besides those that begin with BASH.
const SET_BY_BASH: [&[u8]; 2] = [b"PIPESTATUS", b"FUNCNAME"];
/// Variables that every bash changes in its environment.
const OWN_EXPORTS: [&str; 4] = ["SHLVL", "_", "PWD", "OLDPWD"];

/// What is to be evaluated.
pub struct Files<'a> {
    /// The predecessor's defaults file, where there is one.
    pub defaults_file: Option<&'a Path>,
    /// OS_VARIANT. The shell looks for its file in VARIANTS_DIR, which the defaults file can set.
    pub variant: Option<&'a str>,
    /// The variant's file, where it is expected. No other one is run.
    pub variant_file: Option<&'a Path>,
    pub verb: &'a str,
    pub env: &'a Env,
    /// The OS directory.
    pub cwd: &'a Path,
    pub cache_dir: &'a Path,
}

/// What the files said.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// The variant's file, if the defaults file moved it: it was not run.
    pub elsewhere: Option<PathBuf>,
    /// Set by the defaults file.
    pub defaults_file: Values,
    /// Set by the variant's file.
    pub variant: Values,
    /// OS_VARIANT after the defaults file, if that changed it. Empty: no variant.
    pub variant_name: Option<Value>,
    /// The guest's name, if the files changed it.
    pub guest_name: Option<Value>,
    /// The directory of the cache, if the variant's file changed it.
    pub cache_dir: Option<Value>,
    /// Variables and functions that the files set, as `declare -p` and `declare -f` print them.
    pub state: Vec<u8>,
    /// Variables that the files exported, beyond the environment that they were given.
    pub exports: BTreeMap<OsString, OsString>,
}

/// Evaluates the shell files over the built-in `defaults` and what `config` says.
pub fn evaluate(files: &Files, defaults: &Values, config: &Values) -> Result<Evaluated> {
    let given = given_environment(files);
    let random = Uuid::new_v4();
    let id = format!("__{}", random.simple());
    let number = MIN_DESCRIPTOR + i32::from(random.as_fields().1) % DESCRIPTORS;
    let report = Channel::open("settings", number, MAX_BYTES)?;
    let trace = Channel::open("trace", number, MAX_BYTES)?;
    let answers = Answers { id: &id, report: report.number(), trace: trace.number() };
    // A setting may be secret, as a mirror's password is: every user of the node can read a command line.
    let script = script::text(files, &answers, defaults, config);
    let script = Channel::holding("script", number, script.as_encoded_bytes())?;
    let mut prints = Prints::of(files, &id);
    Tool::new("bash")
        .args(["--noprofile", "--norc", "-c"])
        .arg(format!("eval \"$(</dev/fd/{})\"", script.number()))
        // $0, as Ganeti calls a verb.
        .arg(files.cwd.join(files.verb))
        .channel(&script)
        .channel(&report)
        .channel(&trace)
        .bare_env()
        .envs(&given)
        .cwd(files.cwd)
        .run_showing(|line| prints.shown(line))
        .map_err(|error| shorten(error, files).context("evaluating the shell settings"))
        .hint("correct the file; by hand, give it what it looks at: HYPERVISOR=kvm before the command")?;
    let report = report.written()?;
    let records = Records::parse(&report, &id).map_err(|incomplete| explained(&incomplete, files))?;
    Outcome { files, records, trace: Trace::parse(&trace.written()?, &id) }.evaluated(&given)
}

/// The environment that bash gets: Ganeti's, without variables that change how bash starts. Of the
/// settings only OS parameters stay in it: any other one comes from a file.
fn given_environment(files: &Files) -> Env {
    let mut env = files.env.clone();
    let settings = legacy_keys().map(|(_, name)| name).filter(|name| !name.starts_with("OSP_"));
    let startup = ["BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "BASH_XTRACEFD", "PS4"];
    for name in settings.chain(startup) {
        env.remove(OsStr::new(name));
    }
    env.insert(OS_VARIANT.into(), files.variant.unwrap_or("").into());
    env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    env
}

/// The error of bash, without the script, which is long.
fn shorten(error: anyhow::Error, files: &Files) -> anyhow::Error {
    let names = file_names(files);
    match report::cause::<ToolError>(&error) {
        Some(ToolError::Status(_, script::INCOMPLETE, tail)) => anyhow!(
            "bash could not report what {names} set; a file must not close descriptors that it did not open, and an \
             exported variable has 128 KiB at most{tail}"
        ),
        Some(ToolError::Status(_, status, tail)) => {
            anyhow!("bash stopped in {names} with exit status {status}{tail}")
        }
        Some(ToolError::Signal(_, signal, tail)) => {
            anyhow!("bash stopped in {names} by signal {signal}{tail}")
        }
        _ => error,
    }
}

fn file_names(files: &Files) -> String {
    let all = files.defaults_file.into_iter().chain(files.variant_file);
    all.map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Why the report is incomplete although bash ended with status 0.
fn explained(incomplete: &Incomplete<'_>, files: &Files) -> anyhow::Error {
    let file = match (incomplete.section, files.defaults_file) {
        ("defaults", Some(file)) => file.display().to_string(),
        ("variant", _) => variant_file(&incomplete.before).display().to_string(),
        (section, _) => return anyhow!("bash did not report the {section} of {}", file_names(files)),
    };
    anyhow!("{file} ended the shell that reads it, or took its descriptors (does it call exit or exec?)")
}

/// The path of the variant's file, as the shell made it.
fn variant_file(before: &Texts) -> PathBuf {
    let text =
        |name: &str| before.get(name).map_or(String::new(), |text| String::from_utf8_lossy(text).into());
    format!("{}/{}.conf", text("VARIANTS_DIR"), text(OS_VARIANT)).into()
}

/// What bash reported, and where the files assigned it.
struct Outcome<'a> {
    files: &'a Files<'a>,
    records: Records<'a>,
    trace: Trace,
}

impl Outcome<'_> {
    fn evaluated(self, given: &Env) -> Result<Evaluated> {
        let instance = given.get(OsStr::new(INSTANCE_NAME)).map_or(&b""[..], |name| name.as_encoded_bytes());
        let variant = self.files.variant.unwrap_or_default().as_bytes();
        let cache_dir = self.files.cache_dir.as_os_str().as_encoded_bytes();
        let Records { before, variant: after, .. } = &self.records;
        Ok(Evaluated {
            elsewhere: self.elsewhere(),
            defaults_file: self.of_defaults_file(given)?,
            variant: self.of_variant()?,
            variant_name: self.changed(before, OS_VARIANT, variant)?,
            guest_name: self.changed(after, INSTANCE, instance)?,
            cache_dir: self.changed(after, CACHE_DIR, cache_dir)?,
            state: self.state(),
            exports: self.exports(given),
        })
    }

    fn elsewhere(&self) -> Option<PathBuf> {
        let Records { before, .. } = &self.records;
        let file = variant_file(before);
        let has_variant = before.get(OS_VARIANT).is_some_and(|name| !name.is_empty());
        // By their bytes, as the shell compared them.
        let moved = self.files.variant_file.is_none_or(|known| known.as_os_str() != file.as_os_str());
        (has_variant && moved && file.is_file()).then_some(file)
    }

    fn of_defaults_file(&self, given: &Env) -> Result<Values> {
        let mut values = Values::new();
        let Some(file) = self.files.defaults_file else { return Ok(values) };
        let lines = &self.trace.defaults_file;
        for (key, legacy) in legacy_keys() {
            let Some(text) = self.records.defaults.get(legacy) else { continue };
            let inherited = given.get(OsStr::new(legacy)).map(|text| text.as_encoded_bytes());
            let own = inherited != Some(text) || lines.contains_key(legacy);
            // An empty value is replaced by the default, as ever; but CLEAN_CACHE="" means never.
            if own && (!text.is_empty() || key.kind == Kind::Days) {
                values.insert(key.name, setting(key, text, origin(lines, legacy, file))?);
            }
        }
        Ok(values)
    }

    fn of_variant(&self) -> Result<Values> {
        let mut values = Values::new();
        let Records { before, variant, .. } = &self.records;
        let file = variant_file(before);
        let lines = &self.trace.variant;
        for (key, legacy) in legacy_keys() {
            let Some(text) = variant.get(legacy) else { continue };
            if before.get(legacy) != Some(text) || lines.contains_key(legacy) {
                values.insert(key.name, setting(key, text, origin(lines, legacy, &file))?);
            }
        }
        Ok(values)
    }

    /// A variable that is not a setting, if the files changed it from `found`.
    fn changed(&self, texts: &Texts, variable: &str, found: &[u8]) -> Result<Option<Value>> {
        let text = texts.get(variable).copied().unwrap_or_default();
        if text == found {
            return Ok(None);
        }
        let origin = self.place(variable);
        Ok(Some(Value { text: utf8(variable, text, &origin)?, origin }))
    }

    /// Where the files assigned to such a variable last.
    fn place(&self, variable: &str) -> Origin {
        let Trace { defaults_file, variant } = &self.trace;
        let variant_file = variant_file(&self.records.before);
        match (variable, self.files.defaults_file) {
            (INSTANCE, Some(file)) if !variant.contains_key(INSTANCE) => {
                origin(defaults_file, INSTANCE_NAME, file)
            }
            (OS_VARIANT, Some(file)) => origin(defaults_file, OS_VARIANT, file),
            _ => origin(variant, variable, &variant_file),
        }
    }

    /// What a hook finds that sources common.sh: the predecessor's common.sh sourced the files
    /// itself. The settings are left out, because a hook gets the merged ones.
    fn state(&self) -> Vec<u8> {
        let new = |name: &[u8]| {
            !self.records.names.contains(name)
                && !SET_BY_BASH.contains(&name)
                && !name.starts_with(b"BASH")
                && !script::reported().any(|reported| reported.as_bytes() == name)
        };
        let variables = self.records.variables.iter().filter(|(name, _)| new(name));
        let declarations = variables.map(|(_, declaration)| *declaration);
        declarations.chain([self.records.functions]).collect::<Vec<_>>().concat()
    }

    fn exports(&self, given: &Env) -> BTreeMap<OsString, OsString> {
        let changed = |(name, value): &(&OsString, &OsString)| {
            given.get(*name) != Some(*value) && !OWN_EXPORTS.iter().any(|own| name.as_os_str() == *own)
        };
        let all = self.records.environment.iter().filter(changed);
        all.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

fn setting(key: &Key, text: &[u8], origin: Origin) -> Result<Value> {
    let text = utf8(key.name, text, &origin)?;
    Ok(Value { text: key.kind.text_of_shell(&text), origin })
}

fn utf8(name: &str, text: &[u8], origin: &Origin) -> Result<String> {
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => bail!("{name} holds bytes that are not UTF-8 (set in {origin})"),
    }
}

fn origin(lines: &Lines, variable: &str, file: &Path) -> Origin {
    match lines.get(variable) {
        Some((path, line)) => Origin::File { path: path.clone(), line: Some(*line) },
        None => Origin::File { path: file.to_owned(), line: None },
    }
}
