//! Layered settings: defaults.toml < the predecessor's shell file < config.toml < the variant < OS parameters.
//! Each value remembers where it comes from; all that is wrong is reported at once. Nothing here touches a disk.

mod apt;
pub mod conflicts;
mod files;
mod judge;
mod key;
mod keyring;
mod kind;
mod layers;
mod origin;
mod parse;
mod scripts;
mod shell;
pub mod show;
mod syntax;
pub mod table;
mod values;
mod variants;

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

use crate::admin_file::AdminFiles;
use crate::request::{Context, Instance, InstanceName, Places};
use judge::Judge;
pub use origin::{DefaultsVersion, Layers, Origin, Value, Values};
pub use table::Settings;
pub use values::{BootSetting, Identity, Source, SwapSetting};
pub use variants::{published, with_files};

/// Verbs that run hooks, or say whether they could.
const RUN_HOOKS: [&str; 3] = ["create", "verify", "config"];

/// Everything that is wrong with the settings, a sentence each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Settings, and all that is wrong with them: with each alone, at first.
#[derive(Debug)]
pub struct Judgement {
    /// What is wrong has its default here.
    pub settings: Settings,
    /// A sentence each.
    pub problems: Vec<String>,
    /// Wrong settings, and those that may yet be others.
    uncertain: BTreeSet<&'static str>,
}

impl Judgement {
    /// Only the OS parameters are known: which variant it is, for one, is not.
    pub fn trust_parameters_only(&mut self) {
        self.uncertain.extend(layers::unless_parameters(&self.settings.layers.values));
    }

    /// Whether nothing can change this setting any more.
    pub fn is_certain(&self, name: &str) -> bool {
        !self.uncertain.contains(name)
    }

    /// Adds what cannot work together, where all that takes part is certain.
    pub fn add_conflicts(&mut self) {
        let conflicts = conflicts::conflicts(&self.settings).into_iter();
        let certain = conflicts.filter(|conflict| conflict.between.iter().all(|name| self.is_certain(name)));
        let sentences: Vec<String> = certain.map(|conflict| conflict.sentence).collect();
        self.problems.extend(sentences);
    }

    /// The settings, where nothing is wrong.
    pub fn into_settings(self) -> Result<Settings> {
        if self.problems.is_empty() { Ok(self.settings) } else { Err(Problems(self.problems).into()) }
    }
}

/// A sentence for each hook, and what they read, that others could have written.
fn exposed_hooks(settings: &Settings, files: &mut AdminFiles) -> Vec<String> {
    let dir = settings.customize_dir.as_deref().filter(|dir| dir.is_dir());
    dir.map_or(Vec::new(), |dir| files.look_at_tree(dir))
}

/// A sentence for each secret in a file that others than root may read.
fn secrets_that_others_read(values: &Values) -> Vec<String> {
    let is_secret = |name: &str, text: &str| table::find(name).is_some_and(|key| key.kind.has_secret(text));
    let warning = |(name, value): (&&str, &Value)| {
        let Origin::File { path, .. } = &value.origin else { return None };
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        (is_secret(name, &value.text) && mode & 0o004 != 0).then(|| {
            format!("{name} in {} can be read by every user of this node; chmod o-r it", path.display())
        })
    };
    values.iter().filter_map(warning).collect()
}

impl Settings {
    /// Merges all layers for a request; `verb` is what shell files see as SCRIPT_NAME.
    pub fn load(context: &Context, verb: &str) -> Result<Settings> {
        Settings::judge(context, verb)?.into_settings()
    }

    /// The same for those who want to know all that is wrong. An error is the node's, and not that of a setting.
    pub fn judge(context: &Context, verb: &str) -> Result<Judgement> {
        let layers::Gathered { layers, mut files, defaults, mut problems, mut uncertain } =
            layers::gather(context, verb)?;
        let mut judge = Judge::new(&defaults);
        let mut settings = Settings::parse(layers, &mut judge)?;
        uncertain.extend(judge.wrong);
        problems.extend(judge.problems);
        if let Some(dir) = &settings.apt_dir {
            settings.apt_files = apt::read(dir, &mut files, &mut problems);
        }
        settings.layers.warnings.extend(secrets_that_others_read(&settings.layers.values));
        let keyring = settings.keyring.as_deref();
        settings.keys = keyring.and_then(|path| keyring::read(path, &mut files, &mut problems));
        let recipe = (settings.suite.as_str(), settings.mirror.as_slice());
        settings.scripts = scripts::read(recipe, &settings.layers.exports, &mut files, &mut problems);
        if RUN_HOOKS.contains(&verb) {
            problems.extend(exposed_hooks(&settings, &mut files));
        }
        settings.layers.exposed = files.tolerated().to_vec();
        Ok(Judgement { settings, problems, uncertain })
    }

    /// Opens other files of the administrator, as strictly as those of the settings.
    pub fn admin_files(&self) -> AdminFiles {
        AdminFiles::new(self.is_strict())
    }

    /// Whether what others than root could have written is refused; else it is told of. What everybody could have written is
    /// refused in both cases.
    pub fn is_strict(&self) -> bool {
        self.layers.defaults == DefaultsVersion::One
    }

    /// The text of a setting, as it was written.
    pub fn text(&self, name: &str) -> &str {
        self.layers.values.get(name).map_or("", |value| &value.text)
    }

    /// Where a setting comes from; `None` if there is no such setting.
    pub fn origin(&self, name: &str) -> Option<&Origin> {
        self.layers.values.get(name).map(|value| &value.origin)
    }

    /// ` (from FILE:LINE)`, to end a refusal.
    pub fn set_in(&self, name: &str) -> String {
        self.origin(name).map_or_else(String::new, |origin| format!(" (from {origin})"))
    }

    /// Whether what nobody signed may be installed. Whoever chooses an instance's variant, or its parameters, decides nothing
    /// of that: where one of those says what is fetched or from where, all of it must be signed.
    pub fn unsigned_is_allowed(&self) -> bool {
        let of_files = |name: &str| {
            !matches!(self.origin(name), None | Some(Origin::Parameter(_) | Origin::VariantName(_)))
        };
        self.allow_unsigned && ["suite", "mirror", "proxy"].into_iter().all(of_files)
    }

    /// The guest's name: what the shell files make of it, else Ganeti's.
    pub fn guest_name<'a>(&'a self, instance: &'a Instance) -> &'a InstanceName {
        self.layers.guest_name.as_ref().unwrap_or(&instance.name)
    }

    /// The directory of the cache: where the variant's shell file moves it to, else the node's.
    pub fn cache_dir<'a>(&'a self, places: &'a Places) -> &'a Path {
        self.layers.cache_dir.as_deref().unwrap_or(&places.cache_dir)
    }

    /// Whether an OS parameter of the instance decides it.
    pub fn is_parameter(&self, name: &str) -> bool {
        matches!(self.origin(name), Some(Origin::Parameter(_)))
    }
}
