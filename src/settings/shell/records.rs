//! What bash reports: sections, each a list of fields. A section begins with the id of the run and
//! its name. A field ends in NUL, which no value of bash holds: no value can end a field or begin a
//! section.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::script;
use crate::request::Env;

/// Variable to value. A variable that is not set is not in it.
pub type Texts<'a> = BTreeMap<&'static str, &'a [u8]>;

/// A whole report.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Records<'a> {
    /// All variables before any file.
    pub names: BTreeSet<&'a [u8]>,
    /// After the defaults file.
    pub defaults: Texts<'a>,
    /// Before the variant's file: with the built-in defaults and config.toml.
    pub before: Texts<'a>,
    /// After the variant's file.
    pub variant: Texts<'a>,
    /// All variables at the end, each with its declaration.
    pub variables: Vec<(&'a [u8], &'a [u8])>,
    /// The definitions of all functions.
    pub functions: &'a [u8],
    /// The environment of a program that the shell starts.
    pub environment: Env,
}

/// A report of which a part is missing.
#[derive(Debug, PartialEq, Eq)]
pub struct Incomplete<'a> {
    /// The first section that is missing or malformed.
    pub section: &'static str,
    /// Empty if this section is missing too.
    pub before: Texts<'a>,
}

impl<'a> Records<'a> {
    /// Reads a report of the run `id`.
    pub fn parse(report: &'a [u8], id: &str) -> Result<Records<'a>, Incomplete<'a>> {
        let mut records = Records::default();
        match records.fill(sections(report, id.as_bytes())) {
            Ok(()) => Ok(records),
            Err(section) => Err(Incomplete { section, before: records.before }),
        }
    }

    fn fill(&mut self, sections: Vec<Vec<&'a [u8]>>) -> Result<(), &'static str> {
        let mut sections = sections.into_iter();
        let mut next = |name: &'static str| match sections.next().as_deref() {
            Some([found, fields @ ..]) if *found == name.as_bytes() => Ok(fields.to_vec()),
            _ => Err(name),
        };
        self.names = next("names")?.into_iter().collect();
        self.defaults = texts(&next("defaults")?).ok_or("defaults")?;
        self.before = texts(&next("before")?).ok_or("before")?;
        self.variant = texts(&next("variant")?).ok_or("variant")?;
        self.variables = pairs(&next("variables")?).ok_or("variables")?;
        self.functions = only(&next("functions")?).ok_or("functions")?;
        self.environment = environment(&next("environment")?).ok_or("environment")?;
        next("done").map(drop)
    }
}

/// The fields of each section, its name first. A last field without NUL was cut short and is left
/// out.
fn sections<'a>(report: &'a [u8], id: &[u8]) -> Vec<Vec<&'a [u8]>> {
    let mut fields: Vec<&[u8]> = report.split(|byte| *byte == 0).collect();
    fields.pop();
    fields.split(|field| *field == id).skip(1).map(<[&[u8]]>::to_vec).collect()
}

/// Two fields per variable: "set" or nothing, and the value.
fn texts<'a>(fields: &[&'a [u8]]) -> Option<Texts<'a>> {
    let pairs = pairs(fields)?;
    let whole = pairs.len() == script::reported().count();
    let set = script::reported().zip(pairs).filter(|(_, (set, _))| *set == b"set");
    whole.then(|| set.map(|(name, (_, value))| (name, value)).collect())
}

fn pairs<'a>(fields: &[&'a [u8]]) -> Option<Vec<(&'a [u8], &'a [u8])>> {
    let pair = |pair: &[&'a [u8]]| Some((*pair.first()?, *pair.get(1)?));
    fields.chunks(2).map(pair).collect()
}

fn only<'a>(fields: &[&'a [u8]]) -> Option<&'a [u8]> {
    match fields {
        [field] => Some(field),
        _ => None,
    }
}

fn environment(fields: &[&[u8]]) -> Option<Env> {
    let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let variable = |field: &&[u8]| {
        let equals = field.iter().position(|byte| *byte == b'=')?;
        Some((os(&field[..equals]), os(&field[equals + 1..])))
    };
    fields.iter().map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "__id";

    /// A whole report, in which every variable has this value.
    fn report(value: &str) -> Vec<u8> {
        let values = format!("set\0{value}\0").repeat(script::reported().count());
        let sections = [
            "names\0PATH\0_\0".to_owned(),
            format!("defaults\0{values}"),
            format!("before\0{values}"),
            format!("variant\0{values}"),
            format!("variables\0X\0declare -- X=\"{value}\"\n\0"),
            "functions\0f () \n{ \n    :\n}\n\0".to_owned(),
            format!("environment\0PATH=/bin\0X={value}\0"),
            "done\0".to_owned(),
        ];
        sections.map(|section| format!("{ID}\0{section}")).concat().into_bytes()
    }

    #[test]
    fn a_value_is_a_value_whatever_it_looks_like() {
        for value in ["", "a=b", "x\n__id\ndone\n", "\u{1}\u{2}\u{3}", "set"] {
            let report = report(value);
            let records = Records::parse(&report, ID).unwrap();
            assert_eq!(records.defaults["SUITE"], value.as_bytes());
            assert_eq!(records.environment["X".as_ref() as &std::ffi::OsStr], value);
        }
    }

    #[test]
    fn no_part_of_a_report_is_taken_for_a_report() {
        let whole = report("x");
        assert!(Records::parse(&whole, ID).is_ok());
        for length in 0..whole.len() {
            assert!(Records::parse(&whole[..length], ID).is_err(), "{length}");
        }
        assert!(Records::parse(&whole, "__other").is_err());
    }

    #[test]
    fn a_report_without_a_field_names_the_section() {
        let text = String::from_utf8(report("x")).unwrap();
        for (from, to, section) in [
            ("variant\0set\0x\0", "variant\0", "variant"),
            ("functions\0f", "functions\0\0f", "functions"),
            ("__id\0names", "__id\0other", "names"),
            ("environment\0PATH=/bin", "environment\0PATH", "environment"),
        ] {
            let broken = text.replacen(from, to, 1);
            assert_eq!(Records::parse(broken.as_bytes(), ID).unwrap_err().section, section);
        }
    }
}
