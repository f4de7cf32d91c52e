//! The kinds of settings: which texts are right, what a complaint says, and what it may repeat. Every value travels as text.

use std::borrow::Cow;
use std::net::IpAddr;

use super::syntax::{is_mirror, is_name, is_proxy, is_suite, is_url, number, split};
use super::values::{Source, SwapWish};
use crate::guest::Zone;
use crate::guest::access::{PasswordHash, parse_keys};

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
    /// bootstrap, empty, or a file with its digest.
    Source,
    /// OpenSSH public keys separated by newlines or commas.
    SshKeys,
    /// A password as crypt(5) stores it, or empty; never shown.
    PasswordHash,
    /// The name of a timezone, or empty for the tree's.
    Timezone,
    /// true or false; in a shell file yes or anything else.
    Bool,
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
            Kind::Source => fails(
                Source::parse(text).is_some(),
                "\"bootstrap\", \"empty\", or a file and its digest like \"/srv/golden.qcow2 sha256:HEX\" (or \
                 sha512:HEX), where HEX is what `sha256sum` prints before the name",
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

/// `"gpt", "msdos" or "none"`
fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// What an OS parameter may not say although a file of the node may: whoever may set parameters need not be root of
/// the node, and a script, or a path of the node, would be read by root.
pub fn refusal_as_parameter(name: &str, text: &str) -> Option<&'static str> {
    let remote = |word: &str| word.is_empty() || is_url(word, &["http", "https", "ftp"]);
    match name {
        "mirror" if !remote(text) => {
            Some("one URL of http, https or ftp; a script or a path may be set in the node's own files only")
        }
        "source" if text.starts_with('/') => Some(
            "\"bootstrap\" or \"empty\"; a file may be set in the node's own files only, in a variant for instance",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::network;
    use crate::settings::table::*;

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
            (
                "source",
                &["bootstrap", "empty", &format!("/srv/a b.img sha256:{}", "aF".repeat(32))],
                &[
                    "",
                    "/srv/golden.img",
                    "/srv/golden.img sha256:00",
                    "golden.img sha256:",
                    &format!("/x md5:{}", "0".repeat(64)),
                    &format!("/x sha512:{}", "0".repeat(64)),
                    &format!("/x sha256:{}", "g".repeat(64)),
                ],
            ),
            ("import_identity", IDENTITIES, &["", "other"]),
            ("customize_dir", &["", "/x"], &["x", "/x\n"]),
            ("variants_dir", &["/x"], &["", "x"]),
            ("templates", &["0", "4", "64"], &["", "65", "-1", "+1", "x", "1.5"]),
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
    fn a_choice_reads_like_a_sentence() {
        assert_eq!(one_of(&["gpt", "msdos", "none"]), "\"gpt\", \"msdos\" or \"none\"");
    }
}
