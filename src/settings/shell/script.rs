//! What bash runs: evaluate.sh with its marks filled in. All values are literals in the script,
//! because a file could change arguments and variables.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::Files;
use crate::settings::kind::Kind;
use crate::settings::origin::Values;
use crate::settings::table::{KEYS, Key};

const TEMPLATE: &str = include_str!("evaluate.sh");

/// Variables that are not settings and that this program reads back.
const OTHERS: [&str; 3] = [super::CACHE_DIR, super::INSTANCE, super::OS_VARIANT];

/// The functions of evaluate.sh, without the id in front.
const FUNCTIONS: [&str; 10] = [
    "builtins",
    "settings",
    "names",
    "variables",
    "functions",
    "environment",
    "done",
    "incomplete",
    "is_function",
    "failed",
];

/// The exit status of a bash that could not report everything. What it printed says why.
pub const INCOMPLETE: i32 = 77;

/// How the bash of one run answers.
pub struct Answers<'a> {
    /// A random word, which is also the beginning of a name.
    pub id: &'a str,
    /// Descriptors.
    pub report: RawFd,
    pub trace: RawFd,
}

/// The variables of a section of values, in their order.
pub fn reported() -> impl Iterator<Item = &'static str> {
    legacy_keys().map(|(_, name)| name).chain(OTHERS)
}

/// The settings that a shell file can set, each with its variable.
pub fn legacy_keys() -> impl Iterator<Item = (&'static Key, &'static str)> {
    KEYS.iter().filter_map(|key| key.legacy.map(|legacy| (key, legacy)))
}

/// The script, which takes no arguments. `defaults` hold where the defaults file sets nothing,
/// `config` replaces what it sets.
pub fn text(files: &Files, answers: &Answers, defaults: &Values, config: &Values) -> OsString {
    let source = |path| [b". ", &*quoted(path)].concat();
    let defaults_file = files.defaults_file.map(|path| path.as_os_str());
    let value_of = |mark: &str| -> Vec<u8> {
        match mark {
            "ID" => answers.id.into(),
            "REPORT" => answers.report.to_string().into(),
            "TRACE" => answers.trace.to_string().into(),
            "INCOMPLETE" => INCOMPLETE.to_string().into(),
            "VERB" => quoted(OsStr::new(files.verb)),
            "CACHE_DIR" => quoted(files.cache_dir.as_os_str()),
            "DEFAULTS_FILE" => quoted(defaults_file.unwrap_or_default()),
            "VARIANT_FILE" => quoted(files.variant_file.unwrap_or(Path::new("")).as_os_str()),
            "SOURCE_DEFAULTS" => defaults_file.map(source).unwrap_or_default(),
            "DEFAULTS" => assignments(defaults, unless_set).into(),
            "CONFIG" => assignments(config, unless_readonly).into(),
            "VALUES" => words(reported(), |name| format!("\"${{{name}+set}}\" \"${{{name}-}}\"")).into(),
            "NAMES" => words(('A'..='Z').chain('a'..='z').chain(['_']), |c| format!("\"${{!{c}@}}\"")).into(),
            "FUNCTIONS" => words(FUNCTIONS, |name| format!("{}_{name}", answers.id)).into(),
            _ => Vec::new(),
        }
    };
    OsString::from_vec(fill(TEMPLATE, value_of))
}

/// Replaces each `{{MARK}}` by its value. A mark in a value stays.
fn fill(template: &str, value_of: impl Fn(&str) -> Vec<u8>) -> Vec<u8> {
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (mark, rest) = part.split_once("}}").unwrap_or(("", part));
        text.extend(value_of(mark));
        text.extend(rest.as_bytes());
    }
    text
}

fn words<T>(items: impl IntoIterator<Item = T>, word: impl Fn(T) -> String) -> String {
    items.into_iter().map(word).collect::<Vec<_>>().join(" ")
}

fn assignments(values: &Values, condition: fn(&Key, &str) -> String) -> String {
    let assignment = |(key, legacy): (&'static Key, &'static str)| {
        let value = values.get(key.name)?;
        let text = quoted(OsStr::new(key.kind.shell_of_text(&value.text)));
        Some(format!("{} || {legacy}={}\n", condition(key, legacy), String::from_utf8_lossy(&text)))
    };
    legacy_keys().filter_map(assignment).collect()
}

/// CLEAN_CACHE="" is documented to mean never; any other empty value means the default.
fn unless_set(key: &Key, variable: &str) -> String {
    match key.kind {
        Kind::Days => format!("[[ -v {variable} ]]"),
        _ => format!("[[ -n ${{{variable}-}} ]]"),
    }
}

/// A variable that a file made readonly keeps its value in the shell. The setting is that of
/// config.toml all the same: layers.rs merges the layers.
fn unless_readonly(_: &Key, variable: &str) -> String {
    format!("[[ ${{{variable}@a}} == *r* ]]")
}

/// A word that the shell takes literally.
fn quoted(text: &OsStr) -> Vec<u8> {
    let parts: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b'\'').collect();
    [b"'", &*parts.join(&b"'\\''"[..]), b"'"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_no_template() {
        let value_of = |mark: &str| match mark {
            "A" => b"{{B}}".to_vec(),
            _ => b"b".to_vec(),
        };
        assert_eq!(fill("x {{A}} {{B}}y", value_of), b"x {{B}} by");
    }

    #[test]
    fn every_mark_of_the_template_is_filled_in_and_every_function_is_known() {
        let marks = TEMPLATE.split("{{").skip(1).filter_map(|part| Some(part.split_once("}}")?.0));
        let known = "ID REPORT TRACE INCOMPLETE VERB CACHE_DIR DEFAULTS_FILE VARIANT_FILE SOURCE_DEFAULTS DEFAULTS CONFIG VALUES NAMES FUNCTIONS";
        for mark in marks {
            assert!(known.split(' ').any(|known| known == mark), "{mark}");
        }
        let functions: Vec<&str> = TEMPLATE
            .lines()
            .filter_map(|line| line.strip_prefix("{{ID}}_")?.split_once("() "))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(functions, FUNCTIONS);
    }

    #[test]
    fn a_word_is_quoted_whatever_it_holds() {
        assert_eq!(quoted(OsStr::new("a'b $(c)\n")), b"'a'\\''b $(c)\n'");
        assert_eq!(quoted(OsStr::new("")), b"''");
    }
}
