//! Settings that are right alone and cannot work together, whatever the instance and its hypervisor are. Pure.

use super::table::Kind;
use super::{BootSetting, Settings, SwapSetting};
use crate::bootstrap::{AptFile, Bootstrapper, credentials, mmdebstrap};
use crate::filesystem::{Filesystem, PartitionStyle};

/// A fault between settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Where one of these is not certain, neither is the conflict.
    pub between: &'static [&'static str],
    /// What does not work, and what to set.
    pub sentence: String,
}

/// Everything that cannot work. `boot = "auto"` follows the hypervisor and is never wrong by itself.
pub fn conflicts(settings: &Settings) -> Vec<Conflict> {
    let mut found = match settings.boot {
        BootSetting::Bios | BootSetting::Uefi => against_boot(settings),
        BootSetting::Auto | BootSetting::No => Vec::new(),
    };
    found.extend(against_swap_file(settings));
    found.extend(against_mmdebstrap(settings));
    found.extend(against_bootstrap(settings));
    found
}

/// Why no loader can be had, where one is wanted.
pub fn against_boot(settings: &Settings) -> Vec<Conflict> {
    let boot = format!("boot is \"{}\"{}", settings.boot.name(), settings.set_in("boot"));
    let sentence = |other: &str, why: &str, remedy: &str| {
        format!("{boot}, but {why}{}; set {remedy}", settings.set_in(other))
    };
    let mut found = Vec::new();
    if settings.arch != "amd64" {
        let why = format!("a loader is known for amd64 only, not for {}", settings.arch);
        let remedy = "boot to \"no\", and let the hypervisor start its own kernel or a hook install a loader";
        found.push(Conflict { between: &["boot", "arch"], sentence: sentence("arch", &why, remedy) });
    }
    let mirror = settings.mirror.first().map_or("", String::as_str);
    if ["file:", "copy:", "ssh:"].iter().any(|scheme| mirror.starts_with(scheme)) {
        let shown = Kind::Url.repeatable(mirror).unwrap_or_default();
        let why = format!("kernel and GRUB come by the guest's own apt, which cannot reach {shown}");
        let remedy = "boot to \"no\", or another mirror";
        found.push(Conflict { between: &["boot", "mirror"], sentence: sentence("mirror", &why, remedy) });
    }
    let style = match (settings.boot, settings.partition_style) {
        (_, PartitionStyle::None) => Some((
            "partition_style none has no room for a loader",
            "boot to \"no\", or partition_style to \"gpt\"",
        )),
        (BootSetting::Uefi, PartitionStyle::Msdos) => Some((
            "UEFI wants partition_style gpt, not msdos",
            "boot to \"bios\", or partition_style to \"gpt\"",
        )),
        _ => None,
    };
    found.extend(style.map(|(why, remedy)| Conflict {
        between: &["boot", "partition_style"],
        sentence: sentence("partition_style", why, remedy),
    }));
    found
}

/// A swap file wants a filesystem that does not copy on write; with a table swap is a partition.
pub fn against_swap_file(settings: &Settings) -> Option<Conflict> {
    let is_file = matches!(settings.swap, SwapSetting::Size(_));
    let cannot = settings.partition_style == PartitionStyle::None && settings.filesystem == Filesystem::Btrfs;
    (is_file && cannot).then(|| Conflict {
        between: &["swap", "partition_style", "filesystem"],
        sentence: format!(
            "a swap file cannot lie on btrfs{}; set partition_style to \"gpt\", or swap to a disk of its own (disk1)",
            settings.set_in("swap")
        ),
    })
}

/// Why a tree may not be made as the settings say, in any verb.
pub fn against_bootstrap(settings: &Settings) -> Vec<Conflict> {
    against_unsigned_sources(settings).into_iter().chain(against_foreign_proxy(settings)).collect()
}

/// What the node's files know of a mirror is not shown to a proxy that an instance names.
fn against_foreign_proxy(settings: &Settings) -> Option<Conflict> {
    let of_mirror = settings.mirror.first().is_some_and(|mirror| credentials::split(mirror).1.is_some());
    let of_sources = settings.apt_files.iter().any(AptFile::may_have_credentials);
    let (what, name) = match () {
        () if of_mirror && !settings.is_parameter("mirror") => ("the mirror", "mirror"),
        () if of_sources => ("a source in apt_dir", "apt_dir"),
        () => return None,
    };
    (settings.proxy.is_some() && settings.is_parameter("proxy")).then(|| Conflict {
        between: &["mirror", "proxy", "apt_dir"],
        sentence: format!(
            "{what}{} has a user and a password, which the proxy{} would see; set the proxy in a file of the node",
            settings.set_in(name),
            settings.set_in("proxy")
        ),
    })
}

/// A source that tells apt to check nothing.
fn against_unsigned_sources(settings: &Settings) -> Option<Conflict> {
    let file = settings.apt_files.iter().find(|file| file.is_unsigned())?;
    (!settings.unsigned_is_allowed()).then(|| Conflict {
        between: &["apt_dir", "allow_unsigned", "suite", "mirror", "proxy"],
        sentence: format!(
            "{} in apt_dir{} has apt install what nobody signed; take its option trusted or allow-... out, or set allow_unsigned = true \
             in a file of the node, with suite, mirror and proxy",
            file.path,
            settings.set_in("apt_dir")
        ),
    })
}

/// mmdebstrap does not make every tree that debootstrap makes.
fn against_mmdebstrap(settings: &Settings) -> Option<Conflict> {
    let wanted = settings.bootstrapper == Bootstrapper::Mmdebstrap;
    let why = mmdebstrap::obstacle(&settings.suite, &settings.arch, &settings.mirror).filter(|_| wanted)?;
    Some(Conflict {
        between: &["bootstrapper", "suite", "arch", "mirror"],
        sentence: format!(
            "bootstrapper is \"mmdebstrap\"{}, but {why}; set it to \"auto\"",
            settings.set_in("bootstrapper")
        ),
    })
}
