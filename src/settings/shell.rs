//! The predecessor's shell files, evaluated by one bash in the predecessor's order, never parsed: `case` and
//! `$SUITE` in them are legal and used. What the files export is read back too; hooks see it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::origin::{Origin, Value, Values};
use super::table::{KEYS, Key, Kind};
use crate::command::{DEFAULT_PATH, Tool};
use crate::report::{self, WithHint};
use crate::request::Env;

const SCRIPT: &str = include_str!("evaluate.sh");

/// What is to be evaluated.
pub struct Files<'a> {
    /// The predecessor's defaults file, where there is one.
    pub defaults_file: Option<&'a Path>,
    /// OS_VARIANT; its file is looked for in what VARIANTS_DIR then says.
    pub variant: Option<&'a str>,
    /// That file where it is expected, for messages.
    pub variant_file: Option<&'a Path>,
    pub verb: &'a str,
    pub env: &'a Env,
    pub cwd: &'a Path,
}

/// What the files said.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// Set by the defaults file.
    pub defaults_file: Values,
    /// Set by the variant's file.
    pub variant: Values,
    /// What they set and did not export: `declare -p` and `declare -f`.
    pub state: String,
    /// Variables that the files exported, beyond the environment that they were given.
    pub exports: BTreeMap<OsString, OsString>,
}

/// Evaluates the shell files over the built-in `defaults` and what `config` says.
pub fn evaluate(files: &Files, defaults: &Values, config: &Values) -> Result<Evaluated> {
    let legacy_keys = || KEYS.iter().filter_map(|key| key.legacy.map(|legacy| (key, legacy)));
    let pair = |values: &Values, key: &Key, legacy: &str| {
        values.get(key.name).map(|value| format!("{legacy}={}", key.kind.shell_of_text(&value.text)))
    };
    let default_pairs: Vec<String> =
        legacy_keys().filter_map(|(key, legacy)| pair(defaults, key, legacy)).collect();
    let config_pairs = legacy_keys().filter_map(|(key, legacy)| pair(config, key, legacy));

    let mut env = files.env.clone();
    for name in ["BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS"] {
        env.remove(OsString::from(name).as_os_str());
    }
    env.insert("OS_VARIANT".into(), files.variant.unwrap_or("").into());
    env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    let out = Tool::new("bash")
        .args(["--noprofile", "--norc", "-c", SCRIPT, files.verb])
        .arg(files.defaults_file.map(PathBuf::from).unwrap_or_default())
        .arg(files.verb)
        .arg(default_pairs.len().to_string())
        .args(&default_pairs)
        .args(config_pairs)
        .bare_env()
        .envs(&env)
        .cwd(files.cwd)
        .output()
        .map_err(|error| shorten(error, files))
        .context("evaluating the shell settings")
        .hint("correct the file; by hand, give it what it looks at: HYPERVISOR=kvm before the command")?;
    let records = Records::parse(&out)?;
    Ok(records.into_evaluated(files, &env))
}

/// The whole script in an error helps nobody: only what bash said.
fn shorten(error: anyhow::Error, files: &Files) -> anyhow::Error {
    use crate::command::ToolError;
    let names = || {
        let file = files.defaults_file.map(|f| f.display().to_string());
        let variant = files.variant_file.map(|f| f.display().to_string());
        file.into_iter().chain(variant).collect::<Vec<_>>().join(", ")
    };
    match report::cause::<ToolError>(&error) {
        Some(ToolError::Status(_, status, tail)) => {
            anyhow::anyhow!("bash stopped in {} with exit status {status}{tail}", names())
        }
        Some(ToolError::Signal(_, signal, tail)) => {
            anyhow::anyhow!("bash stopped in {} by signal {signal}{tail}", names())
        }
        _ => error,
    }
}

/// The records that evaluate.sh writes: \x02 NAME \0 (VALUE \0)* \x03, and bash's trace between them.
#[derive(Default)]
struct Records {
    legacy: BTreeMap<String, String>,
    before: BTreeMap<String, String>,
    variant: BTreeMap<String, String>,
    env: Env,
    state: String,
    /// Variable to file and line of its last assignment, for the two files in turn.
    legacy_lines: BTreeMap<String, (PathBuf, usize)>,
    variant_lines: BTreeMap<String, (PathBuf, usize)>,
}

impl Records {
    fn parse(out: &[u8]) -> Result<Records> {
        let mut records = Records::default();
        let mut rest = out;
        let mut complete = false;
        while let Some(start) = rest.iter().position(|b| *b == 2) {
            let lines = trace_lines(&rest[..start]);
            // The environment comes last, and may hold any byte.
            let mut ends = rest[start..].iter();
            let is_env = rest[start + 1..].starts_with(b"env\0");
            let end = if is_env { ends.rposition(|b| *b == 3) } else { ends.position(|b| *b == 3) };
            let Some(length) = end else { break };
            let mut fields = rest[start + 1..start + length].split(|b| *b == 0);
            let name = fields.next().unwrap_or_default();
            let pairs = fields.filter_map(|field| {
                let equals = field.iter().position(|b| *b == b'=')?;
                Some((field[..equals].to_vec(), field[equals + 1..].to_vec()))
            });
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            match name {
                b"legacy" => {
                    records.legacy = pairs.map(|(n, v)| (text(n), text(v))).collect();
                    records.legacy_lines = lines;
                }
                b"before" => records.before = pairs.map(|(n, v)| (text(n), text(v))).collect(),
                b"variant" => {
                    records.variant = pairs.map(|(n, v)| (text(n), text(v))).collect();
                    records.variant_lines = lines;
                }
                b"shell" => records.state = text(rest[start + 7..start + length].to_vec()),
                b"env" => {
                    let os = OsString::from_vec;
                    records.env = pairs.map(|(n, v)| (os(n), os(v))).collect();
                    complete = true;
                }
                _ => {}
            }
            rest = &rest[start + length + 1..];
        }
        if !complete {
            bail!("the settings ended the shell that reads them (does a file call exit?)");
        }
        Ok(records)
    }

    fn into_evaluated(self, files: &Files, given: &Env) -> Evaluated {
        let mut result = Evaluated::default();
        for key in KEYS {
            let Some(legacy) = key.legacy else { continue };
            let origin = |lines: &BTreeMap<String, (PathBuf, usize)>, file: PathBuf| {
                let (path, line) = lines.get(legacy).cloned().map_or((file, None), |(p, l)| (p, Some(l)));
                Origin::File { path, line }
            };
            let value = |text: &String, origin| Value { text: key.kind.text_of_shell(text), origin };
            let inherited = given.get(OsString::from(legacy).as_os_str());
            if let (Some(text), Some(file)) = (self.legacy.get(legacy), files.defaults_file) {
                let own =
                    inherited.is_none_or(|v| v != text.as_str()) || self.legacy_lines.contains_key(legacy);
                // An empty value is replaced by the default, as ever; but CLEAN_CACHE="" means never.
                if own && (!text.is_empty() || key.kind == Kind::Days) {
                    result
                        .defaults_file
                        .insert(key.name, value(text, origin(&self.legacy_lines, file.into())));
                }
            }
            if let (Some(text), Some(name)) = (self.variant.get(legacy), files.variant) {
                let changed = self.before.get(legacy) != Some(text);
                if changed || self.variant_lines.contains_key(legacy) {
                    let dir = self.before.get("VARIANTS_DIR").cloned().unwrap_or_default();
                    let file = Path::new(&dir).join(format!("{name}.conf"));
                    result.variant.insert(key.name, value(text, origin(&self.variant_lines, file)));
                }
            }
        }
        result.state = self.state;
        let own = ["SHLVL", "_", "PWD", "OLDPWD", "BASH_XTRACEFD", "OS_VARIANT"];
        result.exports = self
            .env
            .into_iter()
            .filter(|(name, value)| given.get(name) != Some(value) && !own.iter().any(|o| name == *o))
            .collect();
        result
    }
}

/// Assignments in bash's trace: `+\x01FILE\x01LINE\x01NAME=...`, also behind `export` and `declare`.
fn trace_lines(trace: &[u8]) -> BTreeMap<String, (PathBuf, usize)> {
    let mut lines = BTreeMap::new();
    for entry in String::from_utf8_lossy(trace).split('\n') {
        let mut parts = entry.trim_start_matches('+').splitn(4, '\x01');
        let (Some(""), Some(file), Some(line), Some(command)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let words = command
            .split(' ')
            .skip_while(|w| ["export", "declare", "typeset"].contains(w) || w.starts_with('-'));
        let names = words.map_while(|word| word.split_once('=').map(|(name, _)| name.trim_end_matches('+')));
        for name in names.take(1) {
            if let Ok(line) = line.parse() {
                lines.insert(name.to_owned(), (file.into(), line));
            }
        }
    }
    lines
}
