//! The one table of settings: name, type, how it is written, who may set it, parser and help. `Settings`, parameters.list,
//! `config show`, the template of config.toml and the table in the README all come from it. Defaults are in defaults.toml.

use std::net::IpAddr;
use std::path::PathBuf;

use super::judge::Judge;
use super::origin::Layers;
use super::parse;
use super::values::{BootSetting, Identity, Source, SwapSetting};
use crate::bootstrap::{AptFile, Bootstrapper};
use crate::cache::Compression;
use crate::filesystem::{Filesystem, PartitionStyle};
use crate::guest::access::PasswordHash;
use crate::guest::{Zone, network};

pub use super::key::{Key, Kind, SetBy};

/// Makes [`KEYS`] and [`Settings`] of the rows below, so that no setting can be in one and not in the other.
macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty = {
        $name:literal, $legacy:expr, $kind:expr, $by:expr, $parse:expr, $help:expr
    })*) => {
        /// Every setting, in the order in which it is shown.
        pub const KEYS: &[Key] = &[
            $(Key { name: $name, legacy: $legacy, kind: $kind, by: $by, help: $help }),*
        ];

        /// Settings as the rest of the program uses them, each parsed from its text once.
        #[derive(Debug)]
        pub struct Settings {
            $($(#[$doc])* pub $field: $type,)*
            /// What apt_dir holds.
            pub apt_files: Vec<AptFile>,
            /// The keys that keyring names, as gpgv reads them.
            pub keys: Option<Vec<u8>>,
            /// debootstrap's own scripts of the site, each with its digest.
            pub scripts: Vec<String>,
            pub layers: Layers,
        }

        impl Settings {
            /// Parses all settings. Where a text is wrong, `judge` says which other one holds.
            pub(super) fn parse(layers: Layers, judge: &mut Judge<'_>) -> anyhow::Result<Settings> {
                $(let $field: $type = judge.parse(&layers.values, &Key { name: $name, legacy: $legacy, kind: $kind, by: $by, help: $help }, $parse)?;)*
                Ok(Settings { $($field,)* apt_files: Vec::new(), keys: None, scripts: Vec::new(), layers })
            }
        }
    };
}

settings! {
    suite: String = {
        "suite", Some("SUITE"), Kind::Text, SetBy::Parameter, parse::suite,
        "The release to install, as debootstrap names it"
    }
    /// debootstrap's last arguments; empty for its default mirror.
    mirror: Vec<String> = {
        "mirror", Some("MIRROR"), Kind::Url, SetBy::LimitedParameter(parse::only_remote_mirror), parse::mirror,
        "The mirror to install from; empty: debootstrap's own (files may add a debootstrap script)"
    }
    proxy: Option<String> = {
        "proxy", Some("PROXY"), Kind::Url, SetBy::Parameter, parse::proxy,
        "An http proxy for the bootstrap and the hooks"
    }
    /// The architecture to install; never empty.
    arch: String = {
        "arch", Some("ARCH"), Kind::Text, SetBy::Parameter, parse::arch,
        "The architecture to install; empty: the node's"
    }
    components: Vec<String> = {
        "components", Some("COMPONENTS"), Kind::List, SetBy::Parameter, parse::names,
        "Archive components, separated by commas; empty: debootstrap's own"
    }
    extra_pkgs: Vec<String> = {
        "extra_pkgs", Some("EXTRA_PKGS"), Kind::List, SetBy::Parameter, parse::names,
        "Packages to install besides, separated by commas"
    }
    bootstrapper: Bootstrapper = {
        "bootstrapper", None, Kind::Text, SetBy::Parameter, parse::bootstrapper,
        "What makes the tree: debootstrap, mmdebstrap (faster), or auto (mmdebstrap where it is installed and makes the same tree)"
    }
    apt_dir: Option<PathBuf> = {
        "apt_dir", None, Kind::Path, SetBy::Files, parse::optional_path,
        "A directory with more apt sources for the guest (.list, .sources) and their keys (.asc, .gpg)"
    }
    keyring: Option<PathBuf> = {
        "keyring", None, Kind::Path, SetBy::Files, parse::optional_path,
        "The keys that must sign the release: a keyring, or a directory of them (.gpg, .asc); empty: those of debootstrap's script"
    }
    allow_unsigned: bool = {
        "allow_unsigned", None, Kind::Bool, SetBy::Files, parse::boolean,
        "Install what nobody signed; holds only where suite, mirror and proxy are set by the node's own files"
    }
    filesystem: Filesystem = {
        "filesystem", Some("OSP_FILESYSTEM"), Kind::Text, SetBy::Parameter, parse::filesystem,
        "The root filesystem: ext2, ext3, ext4, xfs or btrfs"
    }
    partition_style: PartitionStyle = {
        "partition_style", Some("PARTITION_STYLE"), Kind::Text, SetBy::Parameter, parse::partition_style,
        "The disk's layout: gpt, msdos, or none (the filesystem on the bare disk)"
    }
    partition_alignment_sectors: u64 = {
        "partition_alignment", Some("PARTITION_ALIGNMENT"), Kind::Number, SetBy::Parameter, parse::alignment_sectors,
        "Where partitions may begin, in sectors of 512 bytes"
    }
    network: network::Mode = {
        "network", None, Kind::Text, SetBy::Parameter, parse::network,
        "The guest's network, from Ganeti's data of each NIC: auto (static where there is an address, else DHCP), \
         dhcp, static (every NIC), manual (loopback only)"
    }
    boot: BootSetting = {
        "boot", None, Kind::Text, SetBy::Parameter, parse::boot,
        "A kernel and GRUB, so that the guest boots by itself: auto, bios, uefi or no"
    }
    swap: SwapSetting = {
        "swap", None, Kind::Text, SetBy::Parameter, parse::swap,
        "Swap: a size on the root disk (like 512M), a whole disk (disk1), auto (a disk named swap) or no"
    }
    dns: Vec<IpAddr> = {
        "dns", None, Kind::List, SetBy::Parameter, parse::addresses,
        "Name servers for the guest's resolv.conf, separated by commas"
    }
    /// Lines of authorized_keys.
    ssh_keys: Vec<String> = {
        "ssh_keys", None, Kind::SshKeys, SetBy::Parameter, parse::ssh_keys,
        "OpenSSH public keys that root may log in with, separated by newlines or commas"
    }
    password_hash: Option<PasswordHash> = {
        "password_hash", None, Kind::Secret, SetBy::Parameter, parse::password_hash,
        "Root's password as crypt(3) makes it ($6$..., $y$...), never shown; empty: none, console only"
    }
    timezone: Option<Zone> = {
        "timezone", None, Kind::Text, SetBy::Parameter, parse::timezone,
        "The guest's timezone, as Europe/Berlin; empty: what the release brings"
    }
    source: Source = {
        "source", None, Kind::Text, SetBy::LimitedParameter(parse::no_file), parse::source,
        "What a new disk is made of: bootstrap, empty (a wiped disk), or (in files) a root tar or disk image with its digest"
    }
    import_identity: Identity = {
        "import_identity", None, Kind::Text, SetBy::Parameter, parse::identity,
        "Whether an imported guest is the one that was backed up (keep), or another with its own UUIDs and keys (new)"
    }
    customize_dir: Option<PathBuf> = {
        "customize_dir", Some("CUSTOMIZE_DIR"), Kind::Path, SetBy::Files, parse::optional_path,
        "The directory of the hooks; empty: none are run"
    }
    variants_dir: PathBuf = {
        "variants_dir", Some("VARIANTS_DIR"), Kind::Path, SetBy::Files, parse::path,
        "The directory of the variants' settings"
    }
    hooks_fail_fast: bool = {
        "hooks_fail_fast", None, Kind::Bool, SetBy::Files, parse::boolean,
        "Stop at the first hook that fails; otherwise all run, then create fails"
    }
    hooks_namespace: bool = {
        "hooks_namespace", None, Kind::Bool, SetBy::Files, parse::boolean,
        "End what a hook left running; false lets its processes live on"
    }
    generate_cache: bool = {
        "generate_cache", Some("GENERATE_CACHE"), Kind::Bool, SetBy::Files, parse::boolean,
        "Keep what was bootstrapped for the next create"
    }
    cache_compression: Compression = {
        "cache_compression", None, Kind::Text, SetBy::Files, parse::compression,
        "How a new cache file is stored: none (fast) or gzip (small)"
    }
    /// How many templates the cache keeps; 0: none is made or used.
    templates: usize = {
        "templates", None, Kind::Number, SetBy::Files, parse::templates,
        "How many finished root filesystems the cache keeps for creates to copy, the last used ones; 0: none"
    }
    /// `None`: cache files never expire.
    clean_cache_days: Option<u32> = {
        "clean_cache", Some("CLEAN_CACHE"), Kind::Days, SetBy::Files, parse::days,
        "Days after which a cache file is made anew; empty: never"
    }
    keep_failed: bool = {
        "keep_failed", None, Kind::Bool, SetBy::Files, parse::boolean,
        "Leave the disk of a failed create as it is, to look at; otherwise it is wiped"
    }
}

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The text of parameters.list: Ganeti takes neither comments nor blank lines, and wants every description.
pub fn parameters_list() -> String {
    KEYS.iter().filter(|key| key.is_parameter()).map(|key| format!("{} {}\n", key.name, key.help)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_list_is_what_ganeti_accepts() {
        for line in parameters_list().lines() {
            let (name, help) = line.split_once(' ').unwrap();
            assert!(!name.is_empty() && !help.trim().is_empty() && line.is_ascii(), "{line}");
        }
        assert_eq!(parameters_list(), include_str!("../../os-def/parameters.list"));
    }
}
