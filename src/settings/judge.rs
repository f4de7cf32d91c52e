//! Each text parsed once, and what is wrong with it as a sentence. A wrong setting has its default, so that all that is wrong
//! is found in one run.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow};

use super::key::Key;
use super::origin::{Origin, Value, Values};
use super::parse::Expected;
use crate::report;

/// Parses settings, and gathers what is wrong with them.
pub struct Judge<'a> {
    /// What holds instead of a wrong text.
    defaults: &'a Values,
    /// A sentence each.
    pub problems: Vec<String>,
    /// The settings that are wrong.
    pub wrong: BTreeSet<&'static str>,
}

impl Judge<'_> {
    pub fn new(defaults: &Values) -> Judge<'_> {
        Judge { defaults, problems: Vec::new(), wrong: BTreeSet::new() }
    }

    /// The value of a setting, of which the text is in `values`. An error only if its default is not there or not right.
    pub fn parse<T>(
        &mut self,
        values: &Values,
        key: &Key,
        parse: fn(&str) -> Result<T, Expected>,
    ) -> Result<T> {
        let name = key.name;
        let missing = || format!("defaults.toml does not set {name}");
        let value = values.get(name).with_context(missing)?;
        let parsed = parse(&value.text).and_then(|parsed| match refusal(key, value) {
            Some(expected) => Err(expected.to_owned()),
            None => Ok(parsed),
        });
        match parsed {
            Ok(parsed) => Ok(parsed),
            Err(expected) => {
                self.wrong.insert(name);
                self.problems.push(sentence(key, value, &expected));
                let default = self.defaults.get(name).with_context(missing)?;
                parse(&default.text).map_err(|expected| anyhow!(sentence(key, default, &expected)))
            }
        }
    }
}

/// What is expected of an OS parameter that says what only the node's files may say.
fn refusal(key: &Key, value: &Value) -> Option<&'static str> {
    match value.origin {
        Origin::Parameter(_) => key.refusal_as_parameter(&value.text),
        _ => None,
    }
}

fn sentence(key: &Key, value: &Value, expected: &str) -> String {
    let fact = key.kind.repeatable(&value.text).map_or("not right".into(), |text| report::quoted(&text));
    format!("{} is {fact}; expected {expected} (set in {})", key.name, value.origin)
}
