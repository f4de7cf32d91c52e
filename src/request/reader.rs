//! One variable after the other, as typed values; what is missing or malformed is gathered.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use super::{
    Api, Api5Flags, Context, Disk, DiskAddress, Env, Instance, InstanceName, Mac, Nic, NicMode, Places, Task,
    VariantName, Verb,
};
use crate::report::quoted;

/// Reads typed values and gathers what is wrong with them.
pub struct Reader<'a> {
    env: &'a Env,
    /// Each fault as a sentence.
    pub faults: Vec<String>,
}

impl<'a> Reader<'a> {
    pub fn new(env: &'a Env) -> Reader<'a> {
        Reader { env, faults: Vec::new() }
    }

    /// A variable that is set and not empty.
    pub fn text(&mut self, name: &str) -> Option<String> {
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
            self.faults.push(format!("{name} is {}; expected {expected}", quoted(&text)));
        }
        value
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.parsed(name, "a number", |text| text.parse().ok())
    }

    /// An address or a subnet; its type says of which family.
    fn address_like<T: std::str::FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        self.parsed(name, expected, |text| text.parse().ok())
    }

    fn count(&mut self, name: &str) -> Option<usize> {
        self.required(name)?;
        // Ganeti's own limits are 16 disks and 8 NICs.
        self.parsed(name, "a number up to 64", |text| text.parse().ok().filter(|n| *n <= 64))
    }

    pub fn context(&mut self, api: Api) -> Option<Context> {
        let variant = match api {
            Api::V5 | Api::V10 => None,
            _ => self.parsed(
                "OS_VARIANT",
                "a name of up to 64 letters, digits, '-', '_' and '.' that does not begin with '.'",
                VariantName::parse,
            ),
        };
        let mut parameters = BTreeMap::new();
        for (name, value) in self.env {
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix("OSP_")) else { continue };
            match value.to_str() {
                Some("") => {}
                Some(value) => drop(parameters.insert(name.to_lowercase(), value.to_owned())),
                None => self.faults.push(format!("OSP_{} is not UTF-8", name.escape_default())),
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
            pygrub: self.text("INSTANCE_HV_use_bootloader").as_deref() == Some("True")
                && self.text("INSTANCE_HV_bootloader_path").is_some_and(|path| path.ends_with("pygrub")),
            serial_console: self.text("INSTANCE_HV_serial_console").as_deref() == Some("True"),
            serial_speed: self.number("INSTANCE_HV_serial_speed"),
            device_types: ["disk_type", "nic_type"]
                .iter()
                .filter_map(|what| self.text(&format!("INSTANCE_HV_{what}")))
                .collect(),
            name: name?,
            hypervisor: hypervisor?,
            disks: disks.into_iter().collect::<Option<_>>()?,
            nics: nics.into_iter().collect::<Option<_>>()?,
            nics_are_known: true,
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
        let mac = self
            .required(&name("MAC"))
            .and_then(|_| self.parsed(&name("MAC"), "a MAC address like \"aa:00:00:35:e8:90\"", Mac::parse));
        let mode = self.parsed(&name("MODE"), "bridged, routed or openvswitch", |text| match text {
            "bridged" => Some(NicMode::Bridged),
            "routed" => Some(NicMode::Routed),
            "openvswitch" => Some(NicMode::OpenVswitch),
            _ => None,
        });
        Some(Nic {
            ip: self.address_like(&name("IP"), "an IP address"),
            mode: mode.unwrap_or(NicMode::Bridged),
            name: self.text(&name("NAME")),
            link: self.text(&name("LINK")),
            network: self.text(&name("NETWORK_NAME")),
            subnet: self.address_like(&name("NETWORK_SUBNET"), "a subnet like \"192.0.2.0/24\""),
            gateway: self.address_like(&name("NETWORK_GATEWAY"), "an IPv4 address"),
            subnet6: self.address_like(&name("NETWORK_SUBNET6"), "a subnet like \"2001:db8::/64\""),
            gateway6: self.address_like(&name("NETWORK_GATEWAY6"), "an IPv6 address"),
            // Last: what else is malformed is to be told too.
            mac: mac?,
        })
    }

    pub fn task(&mut self, verb: Verb) -> Option<Task> {
        let instance = self.instance();
        match verb {
            Verb::Create => Some(Task::Create(instance?)),
            Verb::Rename => {
                self.required("OLD_INSTANCE_NAME")?;
                let old = self.instance_name("OLD_INSTANCE_NAME");
                Some(Task::Rename(instance?, old?))
            }
            Verb::Export => {
                let (disk, index) = self.transfer("EXPORT", instance.as_ref());
                let size_fd = self.number("EXP_SIZE_FD");
                Some(Task::Export { instance: instance?, disk: disk?, index, size_fd })
            }
            Verb::Import => {
                let (disk, index) = self.transfer("IMPORT", instance.as_ref());
                Some(Task::Import { instance: instance?, disk: disk?, index })
            }
            Verb::Verify => Some(Task::Verify { faults: Vec::new() }),
        }
    }

    /// The disk of an export or import: X_DEVICE (the only one before API 20), X_DISK_PATH or X_DISK_URI.
    fn transfer(&mut self, prefix: &str, instance: Option<&Instance>) -> (Option<DiskAddress>, usize) {
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
        let index = self.number(&format!("{prefix}_INDEX")).unwrap_or(0);
        if let Some(count) = instance.map(|instance| instance.disks.len()).filter(|count| index >= *count) {
            self.faults
                .push(format!("{prefix}_INDEX is {index}; expected a number below DISK_COUNT, {count}"));
        }
        (disk, index)
    }

    pub fn task_of_flags(&mut self, verb: Verb, flags: &Api5Flags) -> Option<Task> {
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
                self.faults.push(format!("{flag} is {}; expected a host name", quoted(text)));
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
            nics_are_known: true,
            reinstall: false,
            swap: flags.swap.clone(),
            pygrub: false,
            serial_console: false,
            serial_speed: None,
            device_types: Vec::new(),
        };
        Some(match verb {
            Verb::Create => Task::Create(instance),
            Verb::Rename => Task::Rename(instance, old?),
            Verb::Export => Task::Export { instance, disk, index: 0, size_fd: None },
            Verb::Import => Task::Import { instance, disk, index: 0 },
            Verb::Verify => Task::Verify { faults: Vec::new() },
        })
    }
}
