//! How the text of a setting is written in the node's files, and what may be shown of it. What it may say is its parser's.

use std::borrow::Cow;

use toml::de::DeValue;

use super::syntax::split;
use crate::guest::access::parse_keys;

/// How a setting is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that may hold a user's name and password.
    Url,
    /// Text; CONFIG_DIR at its begin is the node's directory of settings.
    Path,
    /// Words separated by commas or blanks.
    List,
    /// OpenSSH public keys separated by newlines or commas.
    SshKeys,
    /// Text that is never shown.
    Secret,
    Number,
    /// A number of days, or empty for never.
    Days,
    /// true or false; in a shell file yes or anything else.
    Bool,
}

impl Kind {
    /// Whether it is never shown.
    pub fn is_secret(self) -> bool {
        self == Kind::Secret
    }

    /// What a complaint may repeat of a wrong value, which may be a secret that went to the wrong place. `None` for
    /// nothing. Of a URL it is what follows the user and the password.
    pub fn repeatable(self, text: &str) -> Option<Cow<'_, str>> {
        match (self, text.rsplit_once('@')) {
            (Kind::Secret | Kind::SshKeys, _) => None,
            (Kind::Url, Some((before, after))) => {
                let scheme =
                    before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
                Some(Cow::Owned(format!("{scheme}...@{after}")))
            }
            _ => Some(Cow::Borrowed(text)),
        }
    }

    /// The text of a value of a TOML file; else what was expected.
    pub(super) fn text_of_toml(self, value: &DeValue) -> Result<String, &'static str> {
        match (self, value) {
            (Kind::Bool, DeValue::Boolean(value)) => Ok(value.to_string()),
            (Kind::Bool, _) => Err("true or false, without quotes"),
            (Kind::Number | Kind::Days, DeValue::Integer(value)) if value.radix() == 10 => {
                Ok(value.as_str().replace('_', ""))
            }
            (Kind::Days, DeValue::String(text)) if text.is_empty() => Ok(String::new()),
            (Kind::Number, _) => Err("a number, without quotes"),
            (Kind::Days, _) => Err("a number of days without quotes, or \"\" for never"),
            (Kind::List | Kind::SshKeys, DeValue::Array(members)) => {
                let word = |member: &DeValue| member.as_str().map(str::to_owned);
                let words = members.iter().map(|member| word(member.get_ref())).collect::<Option<Vec<_>>>();
                let separator = if self == Kind::SshKeys { "\n" } else { "," };
                words.map(|words| words.join(separator)).ok_or("an array of strings")
            }
            (_, DeValue::String(text)) => Ok(text.to_string()),
            (Kind::List | Kind::SshKeys, _) => Err("an array of strings, or a string"),
            _ => Err("a string"),
        }
    }

    /// The text as a value of a TOML file.
    pub(super) fn toml_of_text(self, text: &str) -> String {
        match self {
            Kind::Bool | Kind::Number => text.to_owned(),
            Kind::Days if !text.is_empty() => text.to_owned(),
            Kind::List => format!("{:?}", split(text).collect::<Vec<_>>()),
            Kind::SshKeys => match parse_keys(text) {
                Ok(keys) => format!("{keys:?}"),
                Err(_) => format!("{:?}", "(not shown: it is not right)"),
            },
            _ => format!("{:?}", self.shown(text)),
        }
    }

    /// The text, without what is never shown.
    pub(super) fn shown(self, text: &str) -> Cow<'_, str> {
        match self {
            Kind::Secret if !text.is_empty() => Cow::Borrowed("(set)"),
            Kind::Url => self.repeatable(text).unwrap_or_default(),
            _ => Cow::Borrowed(text),
        }
    }

    /// Whether a text holds what others should not read.
    pub(super) fn has_secret(self, text: &str) -> bool {
        match self {
            Kind::Secret => !text.is_empty(),
            Kind::Url => text.contains('@'),
            _ => false,
        }
    }

    /// The text as a shell file has it.
    pub fn shell_of_text(self, text: &str) -> &str {
        match (self, text) {
            (Kind::Bool, "true") => "yes",
            (Kind::Bool, _) => "no",
            _ => text,
        }
    }

    /// The text of a value of a shell file.
    pub(super) fn text_of_shell(self, value: &str) -> String {
        match self {
            Kind::Bool => (value == "yes").to_string(),
            Kind::Days => whole_days(value).unwrap_or_else(|| value.to_owned()),
            _ => value.to_owned(),
        }
    }
}

/// The longest life of a cache file that can be set.
pub(super) const MAX_DAYS: u32 = 36_500;

/// Whole days for what the predecessor gave to `find -mtime +DAYS`. An age counts in whole days, so
/// more than 1.5 means more than 1. `None` for a negative number: it made every cache file expire at
/// once, and no number of whole days means that.
fn whole_days(text: &str) -> Option<String> {
    let days: f64 = text.trim_start().parse().ok()?;
    (days >= 0.0).then(|| days.trunc().min(MAX_DAYS.into()).abs().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_what_find_takes() {
        let table = [
            ("14", "14"),
            ("+3", "3"),
            (" 3", "3"),
            ("00014", "14"),
            ("1.5", "1"),
            (".5", "0"),
            ("-0", "0"),
            ("1e1", "10"),
            ("99999999999", "36500"),
            ("inf", "36500"),
        ];
        for (text, days) in table {
            assert_eq!(Kind::Days.text_of_shell(text), days, "{text}");
        }
        for other in ["", "-1", "-0.5", "nan", "3 ", "3d", "+", "soon"] {
            assert_eq!(Kind::Days.text_of_shell(other), other);
        }
    }

    #[test]
    fn a_complaint_repeats_no_secret() {
        let repeated = |kind: Kind, text: &str| kind.repeatable(text).map(Cow::into_owned);
        assert_eq!(repeated(Kind::Secret, "hunter2"), None);
        assert_eq!(repeated(Kind::SshKeys, "hunter2"), None);
        let table = [
            ("http://user:hunter2@p.example.org:x", "http://...@p.example.org:x"),
            ("user:hunt@er2@p", "...@p"),
            ("http://p.example.org", "http://p.example.org"),
        ];
        for (text, shown) in table {
            assert_eq!(repeated(Kind::Url, text).as_deref(), Some(shown));
        }
    }
}
