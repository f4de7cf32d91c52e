//! Which files make up a variant, and what an unknown one is told.

use std::path::{Path, PathBuf};

use super::files::{self, Role, TomlFile};
use super::origin::{Origin, Value, Values};
use crate::admin_file::AdminFiles;
use crate::request::{Places, VariantName};

/// Names that need no file: the releases that debootstrap knows, and this name for the plain settings.
const SUITES: &[&str] = &[
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
    "sid",
    "duke",
    "forky",
    "trixie",
    "bookworm",
    "bullseye",
    "buster",
    "stretch",
    "jessie",
    "wheezy",
    "bionic",
    "focal",
    "jammy",
    "noble",
    "plucky",
    "questing",
    "resolute",
    "xenial",
];
const PLAIN: &str = "default";

/// What a variant is made of.
#[derive(Debug, Default)]
pub struct Source {
    name: Option<String>,
    conf: Option<PathBuf>,
    toml: Option<PathBuf>,
}

/// Finds the files of a variant; adds the predecessor's messages where there are none.
pub fn resolve(
    variant: Option<&VariantName>,
    places: &Places,
    below: &Values,
    problems: &mut Vec<String>,
) -> Source {
    let Some(name) = variant.map(VariantName::as_str) else { return Source::default() };
    let dir = below.get("variants_dir").map_or("", |value| &value.text);
    let file = |ending: &str| Some(Path::new(dir).join(format!("{name}.{ending}"))).filter(|f| f.is_file());
    let source = Source { name: Some(name.to_owned()), conf: file("conf"), toml: file("toml") };
    if source.conf.is_none() && source.toml.is_none() && name != PLAIN && !is_suite(name) {
        problems.push(unknown(places, name, dir));
    }
    source
}

fn is_suite(name: &str) -> bool {
    SUITES.contains(&name) || Path::new("/usr/share/debootstrap/scripts").join(name).is_file()
}

/// The predecessor's words, which admins and their scripts know.
fn unknown(places: &Places, name: &str, dir: &str) -> String {
    let file = format!("{dir}/{name}.toml");
    if published(places).iter().any(|listed| listed == name) {
        format!(
            "ERROR: instance-debootstrap configuration error\n  \
             Published variant {name} is missing its config file\n  \
             Please create {file} (or {name}.conf) or unpublish the variant\n  \
             (by removing {name} from variants.list)"
        )
    } else {
        format!(
            "Unofficial variant {name} is unsupported\n\
             Most probably this is a user error, forcing a wrong name\n\
             To support this variant please create file {file} (or {name}.conf)"
        )
    }
}

/// The names in variants.list.
pub fn published(places: &Places) -> Vec<String> {
    let text = std::fs::read_to_string(places.config_dir.join("variants.list")).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The names of all variants that have a file in `dir`.
pub fn with_files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".toml").or_else(|| name.strip_suffix(".conf")).map(str::to_owned)
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

impl Source {
    /// The shell file, which has to be evaluated.
    pub fn conf(&self) -> Option<&Path> {
        self.conf.as_deref()
    }

    /// The suite that a variant's name implies: below what its TOML file says, and where there is no shell file,
    /// which never implied anything.
    pub fn implied_suite(&self, below: &Values) -> Values {
        let mut values = Values::new();
        if let (Some(name), None) = (&self.name, &self.conf) {
            if name != PLAIN && is_suite(name) && below.contains_key("suite") {
                let origin = Origin::VariantName(name.clone());
                values.insert("suite", Value { text: name.clone(), origin });
            }
        }
        values
    }

    /// Reads the TOML file, and warns of what stands beside it.
    pub fn read(
        &self,
        files: &mut AdminFiles,
        problems: &mut Vec<String>,
        warnings: &mut Vec<String>,
    ) -> TomlFile {
        if let Some(conf) = &self.conf {
            if let Some(toml) = &self.toml {
                warnings.push(format!(
                    "{} and {} both exist; where they differ the former holds",
                    toml.display(),
                    conf.display()
                ));
            }
        }
        let file =
            self.toml.as_deref().and_then(|path| files::read(path, Role::Variant, files)).unwrap_or_default();
        problems.extend(file.problems.iter().cloned());
        file
    }
}
