//! Ganeti's environment, or the flags of API 5, as typed values. Alone reads the environment; knows nothing of
//! settings. All that is missing or malformed is reported in one answer.
//!
//! Source: ganeti-os-interface(7), and environments recorded from a node daemon (tests/ganeti-env).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

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

/// A host name as Ganeti allows it: labels of letters, digits and hyphens (and underscores, which it tolerates).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceName(String);

impl InstanceName {
    /// None where a shell, a file name or /etc/hosts could misread it.
    pub fn parse(text: &str) -> Option<InstanceName> {
        let label = |l: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !l.is_empty() && l.len() <= 63 && l.chars().all(plain) && !l.starts_with('-') && !l.ends_with('-')
        };
        (text.len() <= 253 && text.split('.').all(label)).then(|| InstanceName(text.to_owned()))
    }

    /// The whole name.
    pub fn full(&self) -> &str {
        &self.0
    }

    /// Its first label.
    pub fn short(&self) -> &str {
        self.0.split('.').next().unwrap_or(&self.0)
    }

    /// What stands after the first dot.
    pub fn domain(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, domain)| domain)
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that may stand for a file NAME.toml or NAME.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariantName(String);

impl VariantName {
    /// None where it could name another file than one of ours.
    pub fn parse(text: &str) -> Option<VariantName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let good = !text.is_empty() && text.len() <= 64 && !text.starts_with('.') && text.chars().all(plain);
        good.then(|| VariantName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VariantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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

/// Where a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskAddress {
    /// A file or a block device of the node.
    Path(PathBuf),
    /// Only reachable in userspace, as QEMU writes it.
    Uri(String),
}

impl DiskAddress {
    /// As text for messages.
    pub fn display(&self) -> String {
        match self {
            DiskAddress::Path(path) => path.display().to_string(),
            DiskAddress::Uri(uri) => uri.clone(),
        }
    }
}

/// One disk of the instance, as Ganeti describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub address: DiskAddress,
    /// DISK_n_SIZE; the device itself has the last word.
    pub size_mib: Option<u64>,
    pub read_only: bool,
    pub name: Option<String>,
    pub frontend: Option<String>,
}

/// How a NIC is attached to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicMode {
    Bridged,
    Routed,
    OpenVswitch,
}

/// One NIC of the instance, as Ganeti describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub mac: String,
    pub ip: Option<IpAddr>,
    pub mode: NicMode,
    pub name: Option<String>,
    pub network: Option<String>,
    pub subnet: Option<String>,
    pub gateway: Option<IpAddr>,
    pub subnet6: Option<String>,
    pub gateway6: Option<IpAddr>,
}

/// The instance that a verb is for.
#[derive(Debug, Clone)]
pub struct Instance {
    pub name: InstanceName,
    /// HYPERVISOR, empty with API 5.
    pub hypervisor: String,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    pub reinstall: bool,
    /// API 5: the second device, for swap.
    pub swap: Option<PathBuf>,
    /// INSTANCE_HV_serial_console
    pub serial_console: bool,
    /// INSTANCE_HV_serial_speed
    pub serial_speed: Option<u32>,
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
    Verify,
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
        let mut reader = Reader { env: &env, faults: Vec::new() };
        let api = match reader.text("OS_API_VERSION").as_deref() {
            None if no_flags => return Err(Refusal::ByHand),
            None | Some("5") if verb == Verb::Verify => return Err(Refusal::ByHand),
            None | Some("5") => Api::V5,
            Some("10") => Api::V10,
            Some("15") => Api::V15,
            Some("20") => Api::V20,
            Some(other) => {
                let fault = format!("OS_API_VERSION is \"{other}\"; expected 20, 15, 10 or 5");
                return Err(Refusal::Faults(vec![fault]));
            }
        };
        let context = reader.context(api);
        let task = match (verb, api) {
            (Verb::Verify, _) => Some(Task::Verify),
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

/// Reads typed values and gathers what is wrong with them.
struct Reader<'a> {
    env: &'a Env,
    faults: Vec<String>,
}

impl Reader<'_> {
    /// A variable that is set and not empty.
    fn text(&mut self, name: &str) -> Option<String> {
        let value = self.env.get(OsStr::new(name)).filter(|value| !value.is_empty())?;
        match value.to_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.faults.push(format!("{name} is not UTF-8"));
                None
            }
        }
    }

    fn required(&mut self, name: &str) -> Option<String> {
        let before = self.faults.len();
        let value = self.text(name);
        if value.is_none() && self.faults.len() == before {
            self.faults.push(format!("{name} is missing"));
        }
        value
    }

    /// A variable that must satisfy `parse` where it is given; `expected` ends the complaint.
    fn parsed<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.faults.push(format!("{name} is \"{text}\"; expected {expected}"));
        }
        value
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.parsed(name, "a number", |text| text.parse().ok())
    }

    fn ip(&mut self, name: &str) -> Option<IpAddr> {
        self.parsed(name, "an IP address", |text| text.parse().ok())
    }

    fn count(&mut self, name: &str) -> Option<usize> {
        self.required(name)?;
        // Ganeti's own limits are 16 disks and 8 NICs.
        self.parsed(name, "a number up to 64", |text| text.parse().ok().filter(|n| *n <= 64))
    }

    fn context(&mut self, api: Api) -> Option<Context> {
        let variant = match api {
            Api::V5 | Api::V10 => None,
            _ => self.parsed("OS_VARIANT", "a name of letters, digits, '-', '_' and '.'", VariantName::parse),
        };
        let mut parameters = BTreeMap::new();
        for (name, value) in self.env {
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix("OSP_")) else { continue };
            match value.to_str() {
                Some("") => {}
                Some(value) => drop(parameters.insert(name.to_lowercase(), value.to_owned())),
                None => self.faults.push(format!("OSP_{name} is not UTF-8")),
            }
        }
        Some(Context {
            api,
            os_name: self.text("OS_NAME").unwrap_or_else(|| "debootstrap".into()),
            variant,
            parameters,
            debug_level: self.number("DEBUG_LEVEL").unwrap_or(0),
            env: Env::new(),
            places: Places::from_env(self.env),
        })
    }

    fn instance(&mut self) -> Option<Instance> {
        let name = self.required("INSTANCE_NAME").and_then(|_| self.instance_name("INSTANCE_NAME"));
        let hypervisor = self.required("HYPERVISOR");
        let disk_count = self.count("DISK_COUNT");
        let nic_count = if self.text("NIC_COUNT").is_some() { self.count("NIC_COUNT") } else { Some(0) };
        let disks = (0..disk_count.unwrap_or(0)).map(|n| self.disk(n)).collect::<Vec<_>>();
        let nics = (0..nic_count.unwrap_or(0)).map(|n| self.nic(n)).collect::<Vec<_>>();
        if disk_count == Some(0) {
            self.faults.push("DISK_COUNT is 0; at least one disk is needed".into());
        }
        Some(Instance {
            reinstall: self.text("INSTANCE_REINSTALL").as_deref() == Some("1"),
            serial_console: self.text("INSTANCE_HV_serial_console").as_deref() == Some("True"),
            serial_speed: self.number("INSTANCE_HV_serial_speed"),
            name: name?,
            hypervisor: hypervisor?,
            disks: disks.into_iter().collect::<Option<_>>()?,
            nics: nics.into_iter().collect::<Option<_>>()?,
            swap: None,
        })
    }

    fn instance_name(&mut self, variable: &str) -> Option<InstanceName> {
        self.parsed(variable, "a host name", InstanceName::parse)
    }

    fn disk(&mut self, n: usize) -> Option<Disk> {
        let address = self.address(&format!("DISK_{n}"))?;
        Some(Disk {
            address,
            size_mib: self.number(&format!("DISK_{n}_SIZE")),
            read_only: self.text(&format!("DISK_{n}_ACCESS")).as_deref() == Some("ro"),
            name: self.text(&format!("DISK_{n}_NAME")),
            frontend: self.text(&format!("DISK_{n}_FRONTEND_TYPE")),
        })
    }

    /// PREFIX_PATH, or PREFIX_URI where there is no path.
    fn address(&mut self, prefix: &str) -> Option<DiskAddress> {
        if let Some(path) = self.env.get(OsStr::new(&format!("{prefix}_PATH"))).filter(|p| !p.is_empty()) {
            return Some(DiskAddress::Path(path.into()));
        }
        if let Some(uri) = self.text(&format!("{prefix}_URI")) {
            return Some(DiskAddress::Uri(uri));
        }
        self.faults.push(format!("{prefix}_PATH is missing"));
        None
    }

    fn nic(&mut self, n: usize) -> Option<Nic> {
        let name = |field: &str| format!("NIC_{n}_{field}");
        let mac = self.required(&name("MAC"));
        let mode = self.parsed(&name("MODE"), "bridged, routed or openvswitch", |text| match text {
            "bridged" => Some(NicMode::Bridged),
            "routed" => Some(NicMode::Routed),
            "openvswitch" => Some(NicMode::OpenVswitch),
            _ => None,
        });
        Some(Nic {
            mac: mac?,
            ip: self.ip(&name("IP")),
            mode: mode.unwrap_or(NicMode::Bridged),
            name: self.text(&name("NAME")),
            network: self.text(&name("NETWORK_NAME")),
            subnet: self.text(&name("NETWORK_SUBNET")),
            gateway: self.ip(&name("NETWORK_GATEWAY")),
            subnet6: self.text(&name("NETWORK_SUBNET6")),
            gateway6: self.ip(&name("NETWORK_GATEWAY6")),
        })
    }

    fn task(&mut self, verb: Verb) -> Option<Task> {
        let instance = self.instance();
        match verb {
            Verb::Create => Some(Task::Create(instance?)),
            Verb::Rename => {
                self.required("OLD_INSTANCE_NAME")?;
                let old = self.instance_name("OLD_INSTANCE_NAME");
                Some(Task::Rename(instance?, old?))
            }
            Verb::Export => {
                let (disk, index) = self.transfer("EXPORT");
                let size_fd = self.number("EXP_SIZE_FD");
                Some(Task::Export { instance: instance?, disk: disk?, index, size_fd })
            }
            Verb::Import => {
                let (disk, index) = self.transfer("IMPORT");
                Some(Task::Import { instance: instance?, disk: disk?, index })
            }
            Verb::Verify => Some(Task::Verify),
        }
    }

    /// The disk of an export or import: X_DEVICE (the only one before API 20), X_DISK_PATH or X_DISK_URI.
    fn transfer(&mut self, prefix: &str) -> (Option<DiskAddress>, usize) {
        let device = self.env.get(OsStr::new(&format!("{prefix}_DEVICE"))).filter(|d| !d.is_empty());
        let disk = match device {
            Some(device) => Some(DiskAddress::Path(device.into())),
            None => {
                let before = self.faults.len();
                let address = self.address(&format!("{prefix}_DISK"));
                if address.is_none() {
                    self.faults.truncate(before);
                    self.faults.push(format!("{prefix}_DEVICE is missing"));
                }
                address
            }
        };
        (disk, self.number(&format!("{prefix}_INDEX")).unwrap_or(0))
    }

    fn task_of_flags(&mut self, verb: Verb, flags: &Api5Flags) -> Option<Task> {
        let mut missing = |flag: &str, what: &str| self.faults.push(format!("{flag} is missing: {what}"));
        if flags.instance.is_none() {
            missing("-i", "the instance's name");
        }
        if flags.device.is_none() {
            missing("-b", "the block device of the root disk");
        }
        if flags.swap.is_none() && verb != Verb::Export {
            missing("-s", "the block device for swap");
        }
        if flags.old_name.is_none() && verb == Verb::Rename {
            missing("-o", "the instance's old name");
        }
        let mut name = |flag: &str, text: &Option<String>| {
            let text = text.as_ref()?;
            let name = InstanceName::parse(text);
            if name.is_none() {
                self.faults.push(format!("{flag} is \"{text}\"; expected a host name"));
            }
            name
        };
        let (instance, old) = (name("-i", &flags.instance), name("-o", &flags.old_name));
        let disk = DiskAddress::Path(flags.device.clone()?);
        let instance = Instance {
            name: instance?,
            hypervisor: String::new(),
            disks: vec![Disk {
                address: disk.clone(),
                size_mib: None,
                read_only: false,
                name: None,
                frontend: None,
            }],
            nics: Vec::new(),
            reinstall: false,
            swap: flags.swap.clone(),
            serial_console: false,
            serial_speed: None,
        };
        Some(match verb {
            Verb::Create => Task::Create(instance),
            Verb::Rename => Task::Rename(instance, old?),
            Verb::Export => Task::Export { instance, disk, index: 0, size_fd: None },
            Verb::Import => Task::Import { instance, disk, index: 0 },
            Verb::Verify => Task::Verify,
        })
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
                ("NIC_0_MAC", "aa:00:00:00:00:01"),
                ("NIC_0_IP", "1.2.3"),
                ("INSTANCE_HV_serial_speed", "fast"),
            ],
        );
        for text in ["OS_VARIANT", "INSTANCE_NAME", "DISK_0_SIZE", "DISK_1_PATH", "NIC_0_IP", "serial_speed"]
        {
            assert!(answer.iter().any(|fault| fault.contains(text)), "{text}: {answer:?}");
        }
        assert_eq!(answer.len(), 6);
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

    #[test]
    fn host_names_that_could_be_misread_are_refused() {
        for good in ["a", "web-1.example.com", "x_y.z", "1.2"] {
            assert!(InstanceName::parse(good).is_some(), "{good}");
        }
        for bad in ["", ".", "a..b", "a b", "-a", "a-", "a/b", "a\nb", "$x", &"a".repeat(64)] {
            assert!(InstanceName::parse(bad).is_none(), "{bad}");
        }
    }
}
