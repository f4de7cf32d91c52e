//! Settings shown and checked: `config show` and `config check`; knows no disk and no cache.

use anyhow::Result;
use serde_json::json;

use super::table::KEYS;
use super::{Judgement, Layers, Origin, Settings, published, with_files};
use crate::report;
use crate::request::{Context, VariantName};

/// One line per setting: name, value and, where asked for, origin.
pub fn as_text(layers: &Layers, with_origin: bool) -> String {
    let rows: Vec<(&str, String, String)> = rows(layers);
    let name_width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    let value_width = rows.iter().map(|row| row.1.len()).max().unwrap_or(0).min(48);
    let mut text = String::new();
    for (name, value, origin) in rows {
        let line = if with_origin {
            format!("{name:name_width$}  {value:value_width$}  {origin}")
        } else {
            format!("{name:name_width$}  {value}")
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn rows(layers: &Layers) -> Vec<(&'static str, String, String)> {
    let mut rows =
        vec![("defaults", format!("{:?}", layers.defaults.to_string()), layers.defaults_reason.clone())];
    for key in KEYS {
        if let Some(value) = layers.values.get(key.name) {
            rows.push((key.name, key.kind.toml_of_text(&value.text), value.origin.to_string()));
        }
    }
    rows
}

/// The same as JSON: an array of objects with key, value, origin, and file and line where there are.
pub fn as_json(layers: &Layers) -> serde_json::Value {
    let mut all = vec![json!({
        "key": "defaults", "value": layers.defaults.to_string(), "origin": layers.defaults_reason,
    })];
    for key in KEYS {
        let Some(value) = layers.values.get(key.name) else { continue };
        let mut object = json!({
            "key": key.name, "value": key.kind.shown(&value.text), "origin": value.origin.to_string(),
        });
        if let Origin::File { path, line } = &value.origin {
            object["file"] = json!(path);
            object["line"] = json!(line);
        }
        all.push(object);
    }
    serde_json::Value::Array(all)
}

/// What is wrong in all files, and what should be known, each a sentence.
#[derive(Debug, Default)]
pub struct Check {
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
    /// The variants that were looked at.
    pub variants: Vec<String>,
}

/// Loads the settings of every variant that is published or has a file, and gathers what is wrong with any; `refused` says why
/// a create with them would be refused all the same.
pub fn check(context: &Context, refused: &dyn Fn(&Settings) -> Option<String>) -> Result<Check> {
    let mut check = Check::default();
    // Many variants may be refused for one cause.
    let mut refusals: Vec<(String, Vec<String>)> = Vec::new();
    let mut gather = |check: &mut Check, variant: Option<VariantName>| {
        let name = variant.as_ref().map(ToString::to_string);
        let context = Context { variant, ..context.clone() };
        let dir = match Settings::judge(&context, "config") {
            Ok(mut judgement) => {
                judgement.add_conflicts();
                let Judgement { settings, problems, .. } = judgement;
                add(&mut check.problems, problems);
                add(&mut check.problems, missing_hooks(&settings).into_iter().collect());
                if let Some(cause) = refused(&settings) {
                    match refusals.iter_mut().find(|(known, _)| *known == cause) {
                        Some((_, variants)) => variants.extend(name),
                        None => refusals.push((cause, name.into_iter().collect())),
                    }
                }
                add(&mut check.problems, settings.layers.exposed);
                add(&mut check.warnings, settings.layers.warnings);
                Some(settings.variants_dir)
            }
            Err(error) => {
                add(&mut check.problems, vec![report::sentence(&error)]);
                None
            }
        };
        dir.unwrap_or_else(|| context.places.config_dir.join("variants"))
    };
    let dir = gather(&mut check, None);
    let mut names = published(&context.places);
    names.extend(with_files(&dir));
    names.sort();
    names.dedup();
    for name in names {
        match VariantName::parse(&name) {
            Some(variant) => drop(gather(&mut check, Some(variant))),
            None => add(&mut check.problems, vec![format!("\"{name}\" is no name for a variant")]),
        }
        check.variants.push(name);
    }
    add(&mut check.problems, refusals.into_iter().map(refusal).collect());
    Ok(check)
}

/// Why a create is refused, and with which variants.
fn refusal((cause, variants): (String, Vec<String>)) -> String {
    if variants.is_empty() { cause } else { format!("{cause}; create refuses: {}", variants.join(", ")) }
}

/// A directory of hooks that somebody named and that is not there: no hook would run. The default one may be missing.
fn missing_hooks(settings: &Settings) -> Option<String> {
    let dir = settings.customize_dir.as_deref()?;
    let is_default = matches!(settings.origin("customize_dir")?, Origin::Default(_));
    let missing = !is_default && dir.is_absolute() && !dir.is_dir();
    let origin = settings.set_in("customize_dir");
    missing.then(|| {
        format!("customize_dir is {}, which is no directory: no hook would run{origin}", dir.display())
    })
}

fn add(all: &mut Vec<String>, more: Vec<String>) {
    for sentence in more {
        if !all.contains(&sentence) {
            all.push(sentence);
        }
    }
}
