//! One TOML file of settings: read, checked for who may write it, each value with its line.

use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::origin::{Origin, Value, Values};
use super::table::{self, KEYS};
use crate::admin_file::AdminFiles;
use crate::report;

/// Larger files are refused: nobody writes a megabyte of settings.
const MAX_BYTES: u64 = 1 << 20;

/// What a TOML file said, and everything that is wrong with it.
#[derive(Debug, Default)]
pub struct TomlFile {
    pub values: Values,
    /// The key `defaults`, where the file may have it.
    pub defaults: Option<Value>,
    pub problems: Vec<String>,
}

/// Which file it is: only config.toml may say whose defaults hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Config,
    Variant,
}

/// Reads a file; None where there is none.
pub fn read(path: &Path, role: Role, files: &mut AdminFiles) -> Option<TomlFile> {
    let text = match read_guarded(path, files) {
        Ok(None) => return None,
        Ok(Some(text)) => text,
        Err(problem) => return Some(TomlFile { problems: vec![problem], ..TomlFile::default() }),
    };
    Some(parse(&text, path, role))
}

fn read_guarded(path: &Path, files: &mut AdminFiles) -> Result<Option<String>, String> {
    let problem = |error: std::io::Error| format!("reading {}: {error}", path.display());
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(problem(error)),
    };
    let unfit = || format!("{} is not a file of settings (a regular file of 1 MiB at most)", path.display());
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Err(unfit());
    }
    let file = files.open(path).map_err(|fault| format!("{fault}; {} is not read", path.display()))?;
    // It may have grown since, and half of it may mean something else.
    let text = std::io::read_to_string(file.take(MAX_BYTES + 1)).map_err(problem)?;
    if text.len() as u64 > MAX_BYTES { Err(unfit()) } else { Ok(Some(text)) }
}

fn parse(text: &str, path: &Path, role: Role) -> TomlFile {
    let mut file = TomlFile::default();
    let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let line = error.span().map_or(1, |span| line_of(span.start));
            file.problems.push(format!("{}:{line}: {}", path.display(), error.message()));
            return file;
        }
    };
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let line = line_of(key.span().start);
        let name = key.into_inner();
        let origin = Origin::File { path: PathBuf::from(path), line: Some(line) };
        let at = format!("{}:{line}", path.display());
        if name == "defaults" {
            match (role, value.get_ref()) {
                (Role::Config, DeValue::String(text)) => {
                    file.defaults = Some(Value { text: text.to_string(), origin });
                }
                (Role::Config, _) => {
                    file.problems.push(format!("{at}: defaults is a string: \"1\" or \"0.17\""))
                }
                (Role::Variant, _) => {
                    file.problems
                        .push(format!("{at}: defaults belongs into config.toml, it holds for the node"));
                }
            }
            continue;
        }
        let Some(key) = table::find(&name) else {
            file.problems.push(format!("{at}: unknown key {}{}", report::quoted(&name), nearest(&name)));
            continue;
        };
        match key.kind.text_of_toml(value.get_ref()) {
            Ok(text) => drop(file.values.insert(key.name, Value { text, origin })),
            Err(expected) => {
                file.problems.push(format!("{at}: {} is of the wrong type; expected {expected}", key.name))
            }
        }
    }
    file
}

/// `; the nearest known one is "suite"`
fn nearest(name: &str) -> String {
    // Longer than any of ours by far, and the distance costs the product of both lengths.
    let lower = name.chars().take(64).collect::<String>().to_lowercase();
    let legacy = KEYS.iter().find(|key| key.legacy.is_some_and(|l| l.eq_ignore_ascii_case(name)));
    let names = KEYS.iter().map(|key| key.name).chain(["defaults"]);
    let by_distance = || names.min_by_key(|known| strsim::damerau_levenshtein(known, &lower));
    let known = legacy.map(|key| key.name).or_else(by_distance).unwrap_or_default();
    format!("; the nearest known one is \"{known}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> TomlFile {
        parse(text, Path::new("/c.toml"), Role::Config)
    }

    #[test]
    fn each_value_knows_its_line() {
        let file =
            config("# head\ndefaults = \"1\"\n\nsuite = \"sid\"\nextra_pkgs = [\"vim\",\n  \"less\"]\n");
        assert_eq!(file.problems, Vec::<String>::new());
        let line = |value: &Value| match &value.origin {
            Origin::File { line, .. } => line.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(file.defaults.as_ref().map(line), Some(2));
        assert_eq!((file.values["suite"].text.as_str(), line(&file.values["suite"])), ("sid", 4));
        assert_eq!(file.values["extra_pkgs"].text, "vim,less");
    }

    #[test]
    fn all_that_is_wrong_is_reported_at_once() {
        let file =
            config("suit = \"x\"\nPARTITION_STYLE = \"gpt\"\nkeep_failed = \"yes\"\nclean_cache = 1.5\n");
        assert_eq!(
            file.problems,
            [
                "/c.toml:1: unknown key \"suit\"; the nearest known one is \"suite\"",
                "/c.toml:2: unknown key \"PARTITION_STYLE\"; the nearest known one is \"partition_style\"",
                "/c.toml:3: keep_failed is of the wrong type; expected true or false, without quotes",
                "/c.toml:4: clean_cache is of the wrong type; expected a number of days without quotes, or \"\" for never",
            ]
        );
    }

    #[test]
    fn an_unknown_key_cannot_break_a_line() {
        let file = config("\"a\\nb\" = 1\n");
        assert_eq!(file.problems, ["/c.toml:1: unknown key \"a\\nb\"; the nearest known one is \"arch\""]);
    }

    #[test]
    fn an_error_of_syntax_names_its_line() {
        let file = config("suite = \"x\"\nmirror = \n");
        assert_eq!(file.problems.len(), 1);
        assert!(file.problems[0].starts_with("/c.toml:2: "), "{:?}", file.problems);
    }

    #[test]
    fn a_variant_cannot_change_whose_defaults_hold() {
        let file = parse("defaults = \"1\"\n", Path::new("/v.toml"), Role::Variant);
        assert_eq!(file.problems.len(), 1);
    }
}
