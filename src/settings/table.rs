//! The one table of settings: names, types, help, which are OS parameters. parameters.list, `config show`, the
//! template of config.toml and the table in the README all come from it; their defaults from defaults.toml.

pub use super::kind::Kind;
use crate::guest::network;

/// One setting.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    /// Its variable in the shell files of the predecessor.
    pub legacy: Option<&'static str>,
    pub kind: Kind,
    /// Whether Ganeti may pass it as an OS parameter, which then wins.
    pub parameter: bool,
    /// One sentence, ASCII, no line break.
    pub help: &'static str,
}

const fn key(name: &'static str, legacy: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, legacy: Some(legacy), kind, parameter: false, help }
}

const fn parameter(name: &'static str, legacy: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, legacy: Some(legacy), kind, parameter: true, help }
}

/// An OS parameter that the predecessor's files do not know.
const fn own_parameter(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, legacy: None, kind, parameter: true, help }
}

/// Filesystems that the root may have.
pub const FILESYSTEMS: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs"];
/// Which firmware is to start the guest.
pub const BOOT: &[&str] = &["auto", "bios", "uefi", "no"];
/// Layouts that the disk may have.
pub const PARTITION_STYLES: &[&str] = &["gpt", "msdos", "none"];

/// Programs that make a root tree.
pub const BOOTSTRAPPERS: &[&str] = &["auto", "debootstrap", "mmdebstrap"];
/// Who a guest is that comes back from a backup.
pub const IDENTITIES: &[&str] = &["keep", "new"];

/// Every setting, in the order in which it is shown.
pub const KEYS: &[Key] = &[
    parameter("suite", "SUITE", Kind::Suite, "The release to install, as debootstrap names it"),
    parameter(
        "mirror",
        "MIRROR",
        Kind::Mirror,
        "The mirror to install from; empty: debootstrap's own (files may add a debootstrap script)",
    ),
    parameter("proxy", "PROXY", Kind::Proxy, "An http proxy for the bootstrap and the hooks"),
    parameter("arch", "ARCH", Kind::Arch, "The architecture to install; empty: the node's"),
    parameter(
        "components",
        "COMPONENTS",
        Kind::Names,
        "Archive components, separated by commas; empty: debootstrap's own",
    ),
    parameter("extra_pkgs", "EXTRA_PKGS", Kind::Names, "Packages to install besides, separated by commas"),
    own_parameter(
        "bootstrapper",
        Kind::Choice(BOOTSTRAPPERS),
        "What makes the tree: debootstrap, mmdebstrap (faster), or auto (mmdebstrap where it is installed and makes the same tree)",
    ),
    Key {
        name: "apt_dir",
        legacy: None,
        kind: Kind::Path { optional: true },
        parameter: false,
        help: "A directory with more apt sources for the guest (.list, .sources) and their keys (.asc, .gpg)",
    },
    parameter(
        "filesystem",
        "OSP_FILESYSTEM",
        Kind::Choice(FILESYSTEMS),
        "The root filesystem: ext2, ext3, ext4, xfs or btrfs",
    ),
    parameter(
        "partition_style",
        "PARTITION_STYLE",
        Kind::Choice(PARTITION_STYLES),
        "The disk's layout: gpt, msdos, or none (the filesystem on the bare disk)",
    ),
    parameter(
        "partition_alignment",
        "PARTITION_ALIGNMENT",
        Kind::Integer { min: 1, max: 1 << 20 },
        "Where partitions may begin, in sectors of 512 bytes",
    ),
    own_parameter(
        "network",
        Kind::Choice(network::MODES),
        "The guest's network, from Ganeti's data of each NIC: auto (static where there is an address, else DHCP), \
         dhcp, static (every NIC), manual (loopback only)",
    ),
    Key {
        name: "boot",
        legacy: None,
        kind: Kind::Choice(BOOT),
        parameter: true,
        help: "A kernel and GRUB, so that the guest boots by itself: auto, bios, uefi or no",
    },
    Key {
        name: "swap",
        legacy: None,
        kind: Kind::Swap,
        parameter: true,
        help: "Swap: a size on the root disk (like 512M), a whole disk (disk1), auto (a disk named swap) or no",
    },
    Key {
        name: "dns",
        legacy: None,
        kind: Kind::Addresses,
        parameter: true,
        help: "Name servers for the guest's resolv.conf, separated by commas",
    },
    own_parameter(
        "ssh_keys",
        Kind::SshKeys,
        "OpenSSH public keys that root may log in with, separated by newlines or commas",
    ),
    own_parameter(
        "password_hash",
        Kind::PasswordHash,
        "Root's password as crypt(3) makes it ($6$..., $y$...), never shown; empty: none, console only",
    ),
    own_parameter(
        "timezone",
        Kind::Timezone,
        "The guest's timezone, as Europe/Berlin; empty: what the release brings",
    ),
    own_parameter(
        "source",
        Kind::Source,
        "What a new disk is made of: bootstrap, empty (a wiped disk), or (in files) a root tar or disk image with its digest",
    ),
    own_parameter(
        "import_identity",
        Kind::Choice(IDENTITIES),
        "Whether an imported guest is the one that was backed up (keep), or another with its own UUIDs and keys (new)",
    ),
    key(
        "customize_dir",
        "CUSTOMIZE_DIR",
        Kind::Path { optional: true },
        "The directory of the hooks; empty: none are run",
    ),
    key(
        "variants_dir",
        "VARIANTS_DIR",
        Kind::Path { optional: false },
        "The directory of the variants' settings",
    ),
    Key {
        name: "hooks_fail_fast",
        legacy: None,
        kind: Kind::Bool,
        parameter: false,
        help: "Stop at the first hook that fails; otherwise all run, then create fails",
    },
    Key {
        name: "hooks_namespace",
        legacy: None,
        kind: Kind::Bool,
        parameter: false,
        help: "End what a hook left running; false lets its processes live on",
    },
    key("generate_cache", "GENERATE_CACHE", Kind::Bool, "Keep what was bootstrapped for the next create"),
    Key {
        name: "cache_compression",
        legacy: None,
        kind: Kind::Choice(&["none", "gzip"]),
        parameter: false,
        help: "How a new cache file is stored: none (fast) or gzip (small)",
    },
    Key {
        name: "templates",
        legacy: None,
        kind: Kind::Integer { min: 0, max: 64 },
        parameter: false,
        help: "How many finished root filesystems the cache keeps for creates to copy, the last used ones; 0: none",
    },
    key("clean_cache", "CLEAN_CACHE", Kind::Days, "Days after which a cache file is made anew; empty: never"),
    Key {
        name: "keep_failed",
        legacy: None,
        kind: Kind::Bool,
        parameter: false,
        help: "Leave the disk of a failed create as it is, to look at; otherwise it is wiped",
    },
];

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The text of parameters.list: Ganeti takes neither comments nor blank lines, and wants every description.
pub fn parameters_list() -> String {
    KEYS.iter().filter(|key| key.parameter).map(|key| format!("{} {}\n", key.name, key.help)).collect()
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
