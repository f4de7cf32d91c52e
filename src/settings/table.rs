//! The one table of settings: names, types, help, which are OS parameters. parameters.list, `config show`, the
//! template of config.toml and the table in the README all come from it; their defaults from defaults.toml.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::guest::access::{PasswordHash, parse_keys};
use crate::guest::{Zone, network};

/// What a setting's value may be. Every value travels as text; this says which texts are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A suite's name, as debootstrap takes it.
    Suite,
    /// debootstrap's last arguments: a mirror, and optionally a script.
    Mirror,
    /// An http proxy, or empty.
    Proxy,
    /// A Debian architecture, or empty for the node's.
    Arch,
    /// Names separated by commas.
    Names,
    /// IP addresses separated by commas.
    Addresses,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A whole number in this range.
    Integer { min: u64, max: u64 },
    /// Days, or empty for never.
    Days,
    /// An absolute path; empty only where `optional`.
    Path { optional: bool },
    /// Where swap is: no, auto, a disk's index or a size.
    Swap,
    /// OpenSSH public keys separated by newlines or commas.
    SshKeys,
    /// A password as crypt(5) stores it, or empty; never shown.
    PasswordHash,
    /// The name of a timezone, or empty for the tree's.
    Timezone,
    /// true or false; in a shell file yes or anything else.
    Bool,
}

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

impl Kind {
    /// Whether the value may never be shown.
    pub fn is_secret(self) -> bool {
        self == Kind::PasswordHash
    }

    /// What a complaint may repeat of a wrong value, which may be a secret that went to the wrong place; None for
    /// nothing. Of a URL it is what stands behind the user and the password.
    pub fn repeatable(self, text: &str) -> Option<Cow<'_, str>> {
        match (self, text.rsplit_once('@')) {
            (Kind::PasswordHash | Kind::SshKeys, _) => None,
            (Kind::Mirror | Kind::Proxy, Some((before, after))) => {
                let scheme =
                    before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
                Some(Cow::Owned(format!("{scheme}...@{after}")))
            }
            _ => Some(Cow::Borrowed(text)),
        }
    }

    /// None where `text` is right, else what was expected.
    pub fn complaint(self, text: &str) -> Option<String> {
        let fails = |good: bool, expected: &str| (!good).then(|| expected.to_owned());
        match self {
            Kind::Suite => fails(is_suite(text), "a suite's name like \"trixie\""),
            Kind::Mirror => fails(is_mirror(text), "a URL like \"http://mirror.example.org/debian\""),
            Kind::Proxy => fails(is_proxy(text), "a URL like \"http://proxy.example.org:3128\", or nothing"),
            Kind::Arch => fails(
                text.len() <= 32
                    && !text.starts_with('-')
                    && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "an architecture like \"amd64\", or nothing for the node's",
            ),
            Kind::Names => fails(split(text).all(is_name), "names separated by commas"),
            Kind::Addresses => {
                let all = split(text).all(|word| word.parse::<IpAddr>().is_ok());
                fails(all, "IP addresses separated by commas")
            }
            Kind::Choice(words) => fails(words.contains(&text), &one_of(words)),
            Kind::Integer { min, max } => {
                let good = number(text).is_some_and(|n| (min..=max).contains(&n));
                fails(good, &format!("a number from {min} to {max}"))
            }
            Kind::Days => {
                let good = text.is_empty() || number(text).is_some_and(|days| days <= 36_500);
                fails(good, "a number of days, or nothing for never")
            }
            Kind::Path { optional } => {
                let good = text.starts_with('/') && !text.contains(char::is_control);
                let good = good || (optional && text.is_empty());
                fails(good, "an absolute path")
            }
            Kind::Swap => fails(
                SwapWish::parse(text).is_some(),
                "a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\"",
            ),
            Kind::SshKeys => parse_keys(text)
                .err()
                .map(|wrong| format!("OpenSSH public keys, separated by newlines or commas; {wrong}")),
            Kind::PasswordHash => fails(
                text.is_empty() || PasswordHash::parse(text).is_some(),
                "a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as \
                 `openssl passwd -6` prints it, and no plain password",
            ),
            Kind::Timezone => fails(
                text.is_empty() || Zone::parse(text).is_some(),
                "a timezone like \"Europe/Berlin\", or nothing for what the release brings",
            ),
            Kind::Bool => fails(matches!(text, "true" | "false"), "true or false"),
        }
    }
}

/// Where swap is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapWish {
    No,
    /// A disk that Ganeti calls swap, if there is one.
    Auto,
    /// A whole disk, by its index.
    Disk(usize),
    /// Bytes on the root disk.
    Size(u64),
}

impl SwapWish {
    /// None where the text says nothing of this kind.
    pub fn parse(text: &str) -> Option<SwapWish> {
        if let Some(index) = text.strip_prefix("disk") {
            let index = number(index).filter(|index| (1..64).contains(index))?;
            return usize::try_from(index).ok().map(SwapWish::Disk);
        }
        match text {
            "no" => return Some(SwapWish::No),
            "auto" => return Some(SwapWish::Auto),
            _ => {}
        }
        let (number, shift) = match text.as_bytes().last()? {
            b'M' => (&text[..text.len() - 1], 20),
            b'G' => (&text[..text.len() - 1], 30),
            _ => return None,
        };
        let number = self::number(number)?;
        // Less than 1 MiB is no swap; more than 1 TiB is a typing error.
        let bytes = number.checked_mul(1 << shift)?;
        ((1 << 20)..=(1 << 40)).contains(&bytes).then_some(SwapWish::Size(bytes))
    }
}

/// Digits alone: hooks get the text, and a shell would not read `+1` as a number everywhere.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// The members of a list: commas or blanks separate them.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

/// `"gpt", "msdos" or "none"`
fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn is_suite(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
    text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+:~/".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
}

fn is_url(text: &str, schemes: &[&str]) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    // Nothing that a shell would read otherwise: debootstrap and hooks are shell scripts.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?@!*+,=%[]".contains(&b);
    let names_host = rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    let has_place = names_host || (!rest.is_empty() && !["http", "https", "ftp"].contains(&scheme));
    schemes.contains(&scheme) && has_place && rest.bytes().all(plain)
}

fn is_mirror(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    let Some(mirror) = words.next() else { return true };
    let script = words.next();
    is_url(mirror, &["http", "https", "ftp", "file", "ssh", "copy", "mirror"])
        && script.is_none_or(|s| !s.starts_with('-'))
        && words.next().is_none()
}

fn is_proxy(text: &str) -> bool {
    text.is_empty() || is_url(text, &["http", "https"]) || is_host_port(text)
}

/// What an OS parameter may not say although a file of the node may: whoever may set parameters need not be root of
/// the node, and a script, or a path of the node, would be read by root.
pub fn refusal_as_parameter(name: &str, text: &str) -> Option<&'static str> {
    let remote = |word: &str| word.is_empty() || is_url(word, &["http", "https", "ftp"]);
    (name == "mirror" && !remote(text)).then_some(
        "one URL of http, https or ftp; a script or a path may be set in the node's own files only",
    )
}

/// `proxy:3128`, which the predecessor handed through.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_fits = number(port.trim_end_matches('/')).is_some_and(|port| port <= 65_535);
    is_name(host) && !host.contains([':', '/']) && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_judged_by_their_kind() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("suite", &["trixie", "bookworm-backports", "unstable"], &["", "-x", "a b", "../x", "a;b"]),
            (
                "mirror",
                &[
                    "",
                    "http://mirror.example.org/debian",
                    "file:///srv/m sid",
                    "https://m.example.org/x /opt/script",
                ],
                &[
                    "mirror.example.org",
                    "http://",
                    "http://m.example.org/x a b",
                    "http://m.example.org --foo",
                ],
            ),
            (
                "proxy",
                &["", "http://proxy.example.org:3128/", "proxy:3128"],
                &[
                    "proxy",
                    "ftp://x",
                    "http:// x",
                    "http:///x",
                    "http://:3128",
                    "ftp://x:21",
                    "x:+1",
                    "http://x:1;id",
                    "http://$(id)",
                ],
            ),
            ("arch", &["", "amd64", "kfreebsd-i386"], &["AMD64", "a b", "-a"]),
            ("components", &["", "main,contrib", "main non-free-firmware"], &["main;x", "-x"]),
            ("extra_pkgs", &["", "vim,less", "linux-image-amd64"], &["$(x)", "--foo"]),
            ("filesystem", FILESYSTEMS, &["", "ntfs", "EXT4"]),
            ("partition_style", PARTITION_STYLES, &["gtp", ""]),
            ("partition_alignment", &["1", "63", "2048", "1048576"], &["0", "-1", "+1", "1048577", "x", ""]),
            ("boot", BOOT, &["yes", "", "BIOS"]),
            (
                "swap",
                &["no", "auto", "disk1", "1M", "2G"],
                &["", "disk0", "disk", "disk+1", "disk64", "0M", "+1M", "M", "512", "2T", "2000G", "1.5G"],
            ),
            ("dns", &["", "192.0.2.53,2001:db8::53"], &["resolver", "192.0.2"]),
            ("network", network::MODES, &["", "none", "Auto"]),
            ("ssh_keys", &["", "\n"], &["x", "ssh-ed25519"]),
            ("password_hash", &["", "$1$saltsalt$NuzA7WTAelpl95xgBGWN60"], &["secret", "$6$x"]),
            ("timezone", &["", "UTC", "Europe/Berlin"], &["/etc/localtime", "../UTC"]),
            ("customize_dir", &["", "/x"], &["x", "/x\n"]),
            ("variants_dir", &["/x"], &["", "x"]),
            ("clean_cache", &["", "0", "14"], &["x", "-1", "1.5"]),
            ("keep_failed", &["true", "false"], &["yes", ""]),
        ];
        for (name, good, bad) in table {
            let kind = find(name).unwrap().kind;
            for text in *good {
                assert_eq!(kind.complaint(text), None, "{name} = {text:?}");
            }
            for text in *bad {
                assert!(kind.complaint(text).is_some(), "{name} = {text:?}");
            }
        }
    }

    #[test]
    fn a_complaint_repeats_no_secret() {
        let repeated =
            |name: &str, text: &str| find(name).unwrap().kind.repeatable(text).map(Cow::into_owned);
        assert_eq!(repeated("password_hash", "hunter2"), None);
        assert_eq!(repeated("ssh_keys", "hunter2"), None);
        let table = [
            ("http://user:hunter2@p.example.org:x", "http://...@p.example.org:x"),
            ("user:hunt@er2@p", "...@p"),
            ("http://p.example.org", "http://p.example.org"),
        ];
        for (text, shown) in table {
            assert_eq!(repeated("proxy", text).as_deref(), Some(shown));
        }
    }

    #[test]
    fn parameters_list_is_what_ganeti_accepts() {
        for line in parameters_list().lines() {
            let (name, help) = line.split_once(' ').unwrap();
            assert!(!name.is_empty() && !help.trim().is_empty() && line.is_ascii(), "{line}");
        }
        assert_eq!(parameters_list(), include_str!("../../os-def/parameters.list"));
    }

    #[test]
    fn a_choice_reads_like_a_sentence() {
        assert_eq!(one_of(&["gpt", "msdos", "none"]), "\"gpt\", \"msdos\" or \"none\"");
    }
}
