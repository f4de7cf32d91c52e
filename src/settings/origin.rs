//! The texts of settings, and where each comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::request::InstanceName;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// defaults.toml, and whose defaults.
    Default(DefaultsVersion),
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
            Origin::Default(version) => write!(f, "the built-in default of defaults = \"{version}\""),
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
pub enum DefaultsVersion {
    /// This program's.
    One,
    /// The predecessor's.
    Predecessor,
}

impl fmt::Display for DefaultsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DefaultsVersion::One => "1",
            DefaultsVersion::Predecessor => "0.17",
        })
    }
}

/// The merged layers: every setting has a value and an origin.
#[derive(Debug)]
pub struct Layers {
    pub defaults: DefaultsVersion,
    /// Why these defaults: a file and line, or the rule.
    pub defaults_reason: String,
    pub values: Values,
    /// What the shell files exported.
    pub exports: BTreeMap<OsString, OsString>,
    /// Variables and functions that the shell files set, as bash prints them.
    pub shell_state: Vec<u8>,
    /// The name that the shell files give the guest, if it is not Ganeti's.
    pub guest_name: Option<InstanceName>,
    /// The directory of the cache, if the variant's shell file moves it.
    pub cache_dir: Option<PathBuf>,
    /// What is not wrong but should be known.
    pub warnings: Vec<String>,
    /// Files that others could have written and that are used all the same, a sentence each.
    pub exposed: Vec<String>,
}
