//! Ganeti's environment, or the flags of API 5, as typed values. Alone reads the environment; knows nothing of
//! settings. All that is missing or malformed is reported in one answer.
//!
//! Source: ganeti-os-interface(7), and environments recorded from a node daemon (tests/ganeti-env).

mod instance;
mod mac;
mod names;
mod reader;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

pub use instance::{Disk, DiskAddress, Instance, Nic, NicMode};
pub use mac::Mac;
pub use names::{InstanceName, VariantName};
use reader::Reader;

use crate::report::quoted;

/// Every variable of an environment.
pub type Env = BTreeMap<OsString, OsString>;

/// The process's environment, read once.
#[allow(clippy::disallowed_methods, reason = "this is the room")]
pub fn process_env() -> Env {
    std::env::vars_os().collect()
}

/// A verb of the OS interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Create,
    Import,
    Export,
    Rename,
    Verify,
}

impl Verb {
    pub const ALL: [Verb; 5] = [Verb::Create, Verb::Import, Verb::Export, Verb::Rename, Verb::Verify];

    /// The name Ganeti runs it by.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Import => "import",
            Verb::Export => "export",
            Verb::Rename => "rename",
            Verb::Verify => "verify",
        }
    }

    /// The verb of that name.
    pub fn from_name(name: &OsStr) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| name == verb.name())
    }
}

/// Version of the OS interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    V5 = 5,
    V10 = 10,
    V15 = 15,
    V20 = 20,
}

/// What the node's administrator moved by the environment: for tests, demonstrations and by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub config_dir: PathBuf,
    pub cache_dir: PathBuf,
    pub legacy_defaults: PathBuf,
    /// The OS directory: hooks and shell settings run there.
    pub os_dir: PathBuf,
}

impl Places {
    pub fn from_env(env: &Env) -> Places {
        let place = |name: &str, default: &str| {
            let given = env.get(OsStr::new(name)).filter(|value| !value.is_empty());
            PathBuf::from(given.cloned().unwrap_or_else(|| default.into()))
        };
        Places {
            config_dir: place("GANETI_DEBOOTSTRAP_CONFIG_DIR", "/etc/ganeti/instance-debootstrap"),
            cache_dir: place("GANETI_DEBOOTSTRAP_CACHE_DIR", "/var/cache/ganeti-instance-debootstrap"),
            legacy_defaults: place(
                "GANETI_DEBOOTSTRAP_LEGACY_DEFAULTS",
                "/etc/default/ganeti-instance-debootstrap",
            ),
            os_dir: os_dir(),
        }
    }
}

/// The directory through which Ganeti called us, else that of the installed OS definition, else where we are.
fn os_dir() -> PathBuf {
    let is_os_dir = |dir: &PathBuf| dir.is_absolute() && dir.join("ganeti_api_version").is_file();
    let called = std::env::args_os().next().and_then(|name| Some(PathBuf::from(name).parent()?.to_owned()));
    let exe = std::env::current_exe().ok();
    let beside = exe.and_then(|exe| Some(exe.parent()?.parent()?.join("share/ganeti/os/debootstrap")));
    let installed = PathBuf::from("/usr/share/ganeti/os/debootstrap");
    let found = [called, beside, Some(installed)].into_iter().flatten().find(is_os_dir);
    found.or_else(|| std::env::current_dir().ok()).unwrap_or_else(|| "/".into())
}

/// Part of every request: what the settings need to know.
#[derive(Debug, Clone)]
pub struct Context {
    pub api: Api,
    pub os_name: String,
    pub variant: Option<VariantName>,
    /// OS parameters, by lower-case name with `_` for `-`; empty values are not kept (they mean the default).
    pub parameters: BTreeMap<String, String>,
    /// DEBUG_LEVEL
    pub debug_level: u32,
    /// All of the environment; hooks and shell settings see it.
    pub env: Env,
    pub places: Places,
}

impl Context {
    /// Whether Ganeti said which instance it is about: verify, and commands by hand, know none.
    pub fn knows_instance(&self) -> bool {
        self.env.contains_key(OsStr::new("INSTANCE_NAME"))
    }
}

/// What a verb is asked for beyond its context.
#[derive(Debug, Clone)]
pub enum Task {
    Create(Instance),
    /// The new instance and its old name.
    Rename(Instance, InstanceName),
    /// The disk to read, its index, and the descriptor for the expected size.
    Export {
        instance: Instance,
        disk: DiskAddress,
        index: usize,
        size_fd: Option<i32>,
    },
    /// The disk to write and its index.
    Import {
        instance: Instance,
        disk: DiskAddress,
        index: usize,
    },
    /// What is malformed in the environment: verify tells it together with what is wrong in the settings.
    Verify {
        faults: Vec<String>,
    },
}

/// A verb's whole request.
#[derive(Debug, Clone)]
pub struct Request {
    pub context: Context,
    pub task: Task,
}

/// Why there is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Not called by Ganeti: neither its environment nor the flags of API 5.
    ByHand,
    /// Each fault as a sentence.
    Faults(Vec<String>),
}

/// The flags of API 5, as they were typed; all empty with a later API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Api5Flags {
    pub instance: Option<String>,
    pub device: Option<PathBuf>,
    pub swap: Option<PathBuf>,
    pub old_name: Option<String>,
}

impl Request {
    /// Reads `verb`'s request from an environment and the flags of API 5.
    pub fn read(verb: Verb, env: Env, flags: &Api5Flags) -> Result<Request, Refusal> {
        let no_flags = *flags == Api5Flags::default();
        let mut reader = Reader::new(&env);
        let version = reader.text("OS_API_VERSION");
        if !reader.faults.is_empty() {
            return Err(Refusal::Faults(reader.faults));
        }
        let api = match version.as_deref() {
            None if no_flags => return Err(Refusal::ByHand),
            None | Some("5") if verb == Verb::Verify => return Err(Refusal::ByHand),
            None | Some("5") => Api::V5,
            Some("10") => Api::V10,
            Some("15") => Api::V15,
            Some("20") => Api::V20,
            Some(other) => {
                let fault = format!("OS_API_VERSION is {}; expected 20, 15, 10 or 5", quoted(other));
                return Err(Refusal::Faults(vec![fault]));
            }
        };
        let context = reader.context(api);
        let task = match (verb, api) {
            (Verb::Verify, _) => Some(Task::Verify { faults: std::mem::take(&mut reader.faults) }),
            (_, Api::V5) => reader.task_of_flags(verb, flags),
            _ => reader.task(verb),
        };
        match (task, context, reader.faults) {
            (Some(task), Some(mut context), faults) if faults.is_empty() => {
                context.env = env;
                Ok(Request { context, task })
            }
            (_, _, faults) => Err(Refusal::Faults(faults)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect()
    }

    fn faults(verb: Verb, pairs: &[(&str, &str)]) -> Vec<String> {
        match Request::read(verb, env(pairs), &Api5Flags::default()) {
            Err(Refusal::Faults(faults)) => faults,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_ganetis_environment_it_was_called_by_hand() {
        for verb in Verb::ALL {
            let refusal = Request::read(verb, env(&[("HOME", "/root")]), &Api5Flags::default());
            assert_eq!(refusal.unwrap_err(), Refusal::ByHand);
        }
    }

    #[test]
    fn everything_missing_is_reported_in_one_answer() {
        let answer = faults(Verb::Rename, &[("OS_API_VERSION", "20")]);
        for name in ["INSTANCE_NAME", "HYPERVISOR", "DISK_COUNT", "OLD_INSTANCE_NAME"] {
            assert!(answer.iter().any(|fault| fault == &format!("{name} is missing")), "{name}: {answer:?}");
        }
    }

    #[test]
    fn everything_malformed_is_reported_in_one_answer() {
        let answer = faults(
            Verb::Create,
            &[
                ("OS_API_VERSION", "20"),
                ("OS_VARIANT", "../x"),
                ("INSTANCE_NAME", "a b"),
                ("HYPERVISOR", "kvm"),
                ("DISK_COUNT", "2"),
                ("DISK_0_PATH", "/d"),
                ("DISK_0_SIZE", "much"),
                ("NIC_COUNT", "1"),
                ("NIC_0_MAC", "generate"),
                ("NIC_0_IP", "1.2.3"),
                ("NIC_0_NETWORK_SUBNET", "2001:db8::/64"),
                ("NIC_0_NETWORK_GATEWAY", "2001:db8::1"),
                ("NIC_0_NETWORK_SUBNET6", "2001:db8::/129"),
                ("NIC_0_NETWORK_GATEWAY6", "192.0.2.1"),
                ("INSTANCE_HV_serial_speed", "fast"),
            ],
        );
        for text in [
            "OS_VARIANT",
            "INSTANCE_NAME",
            "DISK_0_SIZE",
            "DISK_1_PATH",
            "NIC_0_MAC",
            "NIC_0_IP",
            "NIC_0_NETWORK_SUBNET ",
            "NIC_0_NETWORK_GATEWAY ",
            "NIC_0_NETWORK_SUBNET6 ",
            "NIC_0_NETWORK_GATEWAY6 ",
            "serial_speed",
        ] {
            assert!(answer.iter().any(|fault| fault.contains(text)), "{text}: {answer:?}");
        }
        assert_eq!(answer.len(), 11);
    }

    #[test]
    fn an_unknown_api_is_named_with_the_known_ones() {
        assert_eq!(
            faults(Verb::Create, &[("OS_API_VERSION", "25")]),
            ["OS_API_VERSION is \"25\"; expected 20, 15, 10 or 5"]
        );
    }

    #[test]
    fn api_5_takes_its_values_from_flags() {
        let flags = Api5Flags {
            instance: Some("web.example.com".into()),
            device: Some("/dev/sdx".into()),
            swap: Some("/dev/sdy".into()),
            old_name: None,
        };
        let request = Request::read(Verb::Create, Env::new(), &flags).unwrap();
        let Task::Create(instance) = request.task else { panic!() };
        assert_eq!(request.context.api, Api::V5);
        assert_eq!(instance.name.short(), "web");
        assert_eq!(instance.swap, Some("/dev/sdy".into()));
        let some = Api5Flags { instance: Some("x_".into()), ..Api5Flags::default() };
        let Err(Refusal::Faults(faults)) = Request::read(Verb::Rename, Env::new(), &some) else { panic!() };
        assert_eq!(faults.len(), 3, "{faults:?}");
    }
}
