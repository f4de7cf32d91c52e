//! The parsers of settings: a text in, the typed value or what was expected out. Stricter than what reads a value later.

use std::net::IpAddr;
use std::path::PathBuf;

use super::kind::MAX_DAYS;
use super::syntax::{is_mirror, is_name, is_proxy, is_suite, is_url, number, split};
use super::values::{BootSetting, Identity, Source, SwapSetting};
use crate::bootstrap::Bootstrapper;
use crate::cache::Compression;
use crate::debian;
use crate::filesystem::{Filesystem, PartitionStyle};
use crate::guest::access::{PasswordHash, parse_keys};
use crate::guest::{Zone, network};

/// What a right text would be, to follow "expected".
pub type Expected = String;

type Parsed<T> = Result<T, Expected>;

pub fn suite(text: &str) -> Parsed<String> {
    if is_suite(text) { Ok(text.into()) } else { Err("a suite's name like \"trixie\"".into()) }
}

pub fn mirror(text: &str) -> Parsed<Vec<String>> {
    if !is_mirror(text) {
        return Err("a URL like \"http://mirror.example.org/debian\"".into());
    }
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Of a parameter: a script, or a path of the node, would be read by root.
pub fn only_remote_mirror(text: &str) -> Option<&'static str> {
    let remote = text.is_empty() || is_url(text, &["http", "https", "ftp"]);
    let expected =
        "one URL of http, https or ftp; a script or a path may be set in the node's own files only";
    (!remote).then_some(expected)
}

pub fn proxy(text: &str) -> Parsed<Option<String>> {
    if !is_proxy(text) {
        return Err("a URL like \"http://proxy.example.org:3128\", or nothing".into());
    }
    Ok(nonempty(text).map(str::to_owned))
}

pub fn arch(text: &str) -> Parsed<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() > 32 || text.starts_with('-') || !text.chars().all(plain) {
        return Err("an architecture like \"amd64\", or nothing for the node's".into());
    }
    Ok(nonempty(text).unwrap_or(debian::node_arch()).to_owned())
}

pub fn names(text: &str) -> Parsed<Vec<String>> {
    if !split(text).all(is_name) {
        return Err("names separated by commas".into());
    }
    Ok(split(text).map(str::to_owned).collect())
}

pub fn bootstrapper(text: &str) -> Parsed<Bootstrapper> {
    use Bootstrapper::{Auto, Debootstrap, Mmdebstrap};
    choice(text, &[("auto", Auto), ("debootstrap", Debootstrap), ("mmdebstrap", Mmdebstrap)])
}

pub fn path(text: &str) -> Parsed<PathBuf> {
    let good = text.starts_with('/') && !text.contains(char::is_control);
    if good { Ok(text.into()) } else { Err("an absolute path".into()) }
}

pub fn optional_path(text: &str) -> Parsed<Option<PathBuf>> {
    nonempty(text).map(path).transpose()
}

pub fn filesystem(text: &str) -> Parsed<Filesystem> {
    choice(text, &Filesystem::ALL.map(|filesystem| (filesystem.name(), filesystem)))
}

pub fn partition_style(text: &str) -> Parsed<PartitionStyle> {
    choice(text, &PartitionStyle::ALL.map(|style| (style.name(), style)))
}

pub fn alignment_sectors(text: &str) -> Parsed<u64> {
    number_between(text, 1, 1 << 20)
}

pub fn network(text: &str) -> Parsed<network::Mode> {
    use network::Mode::{Auto, Dhcp, Manual, Static};
    choice(text, &[("auto", Auto), ("dhcp", Dhcp), ("static", Static), ("manual", Manual)])
}

pub fn boot(text: &str) -> Parsed<BootSetting> {
    choice(text, &BootSetting::ALL.map(|boot| (boot.name(), boot)))
}

pub fn swap(text: &str) -> Parsed<SwapSetting> {
    SwapSetting::parse(text)
        .ok_or_else(|| "a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\"".into())
}

pub fn addresses(text: &str) -> Parsed<Vec<IpAddr>> {
    let all: Result<_, _> = split(text).map(str::parse).collect();
    all.map_err(|_| "IP addresses separated by commas".into())
}

pub fn ssh_keys(text: &str) -> Parsed<Vec<String>> {
    parse_keys(text).map_err(|wrong| format!("OpenSSH public keys, separated by newlines or commas; {wrong}"))
}

pub fn password_hash(text: &str) -> Parsed<Option<PasswordHash>> {
    let expected = "a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as \
                    `openssl passwd -6` prints it, and no plain password";
    nonempty(text).map(|text| PasswordHash::parse(text).ok_or_else(|| expected.into())).transpose()
}

pub fn timezone(text: &str) -> Parsed<Option<Zone>> {
    let expected = "a timezone like \"Europe/Berlin\", or nothing for what the release brings";
    nonempty(text).map(|text| Zone::parse(text).ok_or_else(|| expected.into())).transpose()
}

pub fn source(text: &str) -> Parsed<Source> {
    let expected = "\"bootstrap\", \"empty\", or a file and its digest like \"/srv/golden.qcow2 sha256:HEX\" (or \
                    sha512:HEX), where HEX is what `sha256sum` prints before the name";
    Source::parse(text).ok_or_else(|| expected.into())
}

/// Of a parameter: root would read any file of the node.
pub fn no_file(text: &str) -> Option<&'static str> {
    let expected = "\"bootstrap\" or \"empty\"; a file may be set in the node's own files only, in a variant for instance";
    text.starts_with('/').then_some(expected)
}

pub fn identity(text: &str) -> Parsed<Identity> {
    choice(text, &[("keep", Identity::Keep), ("new", Identity::New)])
}

pub fn compression(text: &str) -> Parsed<Compression> {
    choice(text, &[("none", Compression::None), ("gzip", Compression::Gzip)])
}

pub fn templates(text: &str) -> Parsed<usize> {
    number_between(text, 0, 64)
}

pub fn days(text: &str) -> Parsed<Option<u32>> {
    let expected = || format!("a number of days from 0 to {MAX_DAYS}, or nothing for never");
    nonempty(text).map(|text| number_between(text, 0, MAX_DAYS.into()).map_err(|_| expected())).transpose()
}

pub fn boolean(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "true or false".into())
}

fn nonempty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn number_between<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Parsed<T> {
    let found = number(text).filter(|number| (min..=max).contains(number));
    found.and_then(|number| T::try_from(number).ok()).ok_or_else(|| format!("a number from {min} to {max}"))
}

/// One of a few words.
fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| one_of(words.iter().map(|(word, _)| *word)))
}

/// `"gpt", "msdos" or "none"`
fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a parser takes each of the first texts and none of the others.
    fn judges<T: std::fmt::Debug>(parse: fn(&str) -> Parsed<T>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(parse(text).is_ok(), "{text:?}: {:?}", parse(text));
        }
        for text in bad {
            assert!(parse(text).is_err(), "{text:?}: {:?}", parse(text));
        }
    }

    #[test]
    fn names_and_urls_are_judged() {
        judges(suite, &["trixie", "bookworm-backports", "unstable"], &["", "-x", "a b", "../x", "a;b"]);
        judges(
            mirror,
            &[
                "",
                "http://mirror.example.org/debian",
                "file:///srv/m sid",
                "https://m.example.org/x /opt/script",
                "http://deploy:s3%2fcret@m.example.org:8080/x%40y",
                "http://[2001:db8::1]:80/debian",
            ],
            &[
                "mirror.example.org",
                "http://",
                "http://m.example.org/x a b",
                "http://m.example.org --foo",
                // The / would end the host, and show the rest of the password.
                "http://deploy:s3/cret@m.example.org/",
                "http://deploy:8080/s3cret@m.example.org/",
                "http://deploy:two%20words@m.example.org/",
                "http://deploy:x%0amachine%20other@m.example.org/",
                "http://m.example.org:99999/",
                "http://m.example.org:x/",
                "http://[/",
                "http://[::::/",
                "http://@/",
            ],
        );
        judges(
            proxy,
            &["", "http://proxy.example.org:3128/", "proxy:3128"],
            &[
                "proxy",
                "http://user:word@127.0.0.1:99999/",
                "ftp://x",
                "http:// x",
                "http:///x",
                "http://:3128",
                "ftp://x:21",
                "x:+1",
                "http://x:1;id",
                "http://$(id)",
            ],
        );
        judges(arch, &["", "amd64", "kfreebsd-i386"], &["AMD64", "a b", "-a"]);
        judges(
            names,
            &["", "main,contrib", "main non-free-firmware", "linux-image-amd64"],
            &["main;x", "-x", "$(x)", "--foo"],
        );
        judges(addresses, &["", "192.0.2.53,2001:db8::53"], &["resolver", "192.0.2"]);
        judges(optional_path, &["", "/x"], &["x", "/x\n"]);
        judges(path, &["/x"], &["", "x"]);
    }

    #[test]
    fn words_and_numbers_are_judged() {
        judges(filesystem, &["ext2", "ext3", "ext4", "xfs", "btrfs"], &["", "ntfs", "EXT4"]);
        judges(partition_style, &["gpt", "msdos", "none"], &["gtp", ""]);
        judges(alignment_sectors, &["1", "63", "2048", "1048576"], &["0", "-1", "+1", "1048577", "x", ""]);
        judges(boot, &["auto", "bios", "uefi", "no"], &["yes", "", "BIOS"]);
        judges(
            swap,
            &["no", "auto", "disk1", "1M", "2G"],
            &["", "disk0", "disk", "disk+1", "disk64", "0M", "+1M", "M", "512", "2T", "2000G", "1.5G"],
        );
        judges(network, &["auto", "dhcp", "static", "manual"], &["", "none", "Auto"]);
        judges(identity, &["keep", "new"], &["", "other"]);
        judges(templates, &["0", "4", "64"], &["", "65", "-1", "+1", "x", "1.5"]);
        judges(days, &["", "0", "14"], &["x", "-1", "1.5"]);
        judges(boolean, &["true", "false"], &["yes", ""]);
    }

    #[test]
    fn what_is_longer_is_judged_as_a_whole() {
        judges(ssh_keys, &["", "\n"], &["x", "ssh-ed25519"]);
        judges(password_hash, &["", "$1$saltsalt$NuzA7WTAelpl95xgBGWN60"], &["secret", "$6$x"]);
        judges(timezone, &["", "UTC", "Europe/Berlin"], &["/etc/localtime", "../UTC"]);
        judges(
            source,
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
        );
    }

    #[test]
    fn a_choice_reads_like_a_sentence() {
        assert_eq!(partition_style("x").unwrap_err(), "\"gpt\", \"msdos\" or \"none\"");
    }
}
