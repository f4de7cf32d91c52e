//! Which hooks run, and what they find in their environment and in settings.sh. Owns all of it but the paths that exist only
//! while they run.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Inputs;
use crate::command;
use crate::request::Context;
use crate::settings::Settings;
use crate::settings::table::KEYS;

/// How the hooks are run.
#[derive(Debug, Clone, Default)]
pub struct HookPlan {
    /// None: no hook runs.
    pub dir: Option<PathBuf>,
    pub fail_fast: bool,
    pub namespace: bool,
    /// What others than root could have written is refused, and not only told of.
    pub strict: bool,
    /// What the settings told of already: a sentence each.
    pub exposed: Vec<String>,
    /// What Ganeti gave, what the shell settings export, and the documented variables.
    pub environment: Vec<(OsString, OsString)>,
    /// What a hook finds that sources common.sh: the state of the shell files, then the settings as
    /// assignments.
    pub shell_settings: Vec<u8>,
    /// Where they start: the OS directory.
    pub cwd: PathBuf,
}

impl HookPlan {
    pub(super) fn new(inputs: Inputs<'_>) -> HookPlan {
        let Inputs { context, settings, .. } = inputs;
        HookPlan {
            dir: settings.customize_dir.clone(),
            fail_fast: settings.hooks_fail_fast,
            namespace: settings.hooks_namespace,
            strict: settings.is_strict(),
            exposed: settings.layers.exposed.clone(),
            environment: environment(context, settings),
            shell_settings: shell_settings(inputs),
            cwd: context.places.os_dir.clone(),
        }
    }
}

fn environment(context: &Context, settings: &Settings) -> Vec<(OsString, OsString)> {
    let mut env = context.env.clone();
    env.extend(settings.layers.exports.clone());
    env.entry("PATH".into()).or_insert_with(|| command::DEFAULT_PATH.into());
    let mut set = |name: &str, value: &str| drop(env.insert(name.into(), value.into()));
    set("SUITE", &settings.suite);
    set("ARCH", &settings.arch);
    set("PARTITION_STYLE", settings.partition_style.name());
    set("EXTRA_PKGS", settings.text("extra_pkgs"));
    if let Some(proxy) = &settings.proxy {
        set("http_proxy", proxy);
        set("https_proxy", proxy);
    }
    env.into_iter().collect()
}

fn shell_settings(inputs: Inputs<'_>) -> Vec<u8> {
    let Inputs { context, instance, settings } = inputs;
    let mut text = String::new();
    for key in KEYS {
        if let (Some(legacy), Some(value)) = (key.legacy, settings.layers.values.get(key.name)) {
            text += &assignment(legacy, key.kind.shell_of_text(&value.text));
        }
    }
    let disk = instance.disks.first().map(|disk| disk.address.display()).unwrap_or_default();
    text += &assignment("CACHE_DIR", &settings.cache_dir(&context.places).display().to_string());
    text += &assignment("blockdev", &disk);
    text += &assignment("ARCH", &settings.arch);
    text += &assignment("instance", settings.guest_name(instance).full());
    [settings.layers.shell_state.as_slice(), text.as_bytes()].concat()
}

/// A line that assigns a value to a shell variable, whatever is in the value.
pub fn assignment(name: &str, value: &str) -> String {
    format!("{name}='{}'\n", value.replace('\'', "'\\''"))
}
