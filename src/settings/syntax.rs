//! What a setting's text may look like: pure, and stricter than what reads it later.

use crate::bootstrap::credentials;

/// Digits alone: hooks get the text, and a shell would not read `+1` as a number everywhere.
pub fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// The members of a list: commas or blanks separate them.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

pub fn is_suite(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
    text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
}

pub fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+:~/".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
}

pub fn is_url(text: &str, schemes: &[&str]) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    // Nothing that a shell would read otherwise: debootstrap and hooks are shell scripts.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?@!*+,=%[]".contains(&b);
    let names_host = rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    let has_place = names_host || (!rest.is_empty() && !["http", "https", "ftp"].contains(&scheme));
    schemes.contains(&scheme) && has_place && rest.bytes().all(plain) && (!names_host || is_authority(rest))
}

/// Whether what stands before the first `/` is `[USER[:PASSWORD]@]HOST[:PORT]` (RFC 3986, 3.2). A `/` in a password would end it
/// too early, and the rest of the password be taken for a path: so no path has an `@`.
fn is_authority(rest: &str) -> bool {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (user, place),
        None => ("", authority),
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(address) => {
            let Some((address, port)) = address.split_once(']') else { return false };
            let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
            (if is_address { "6" } else { "" }, port)
        }
        None => place.split_once(':').map_or((place, ""), |(host, _)| (host, &place[host.len()..])),
    };
    let port_fits = match port.strip_prefix(':') {
        Some(port) => number(port).is_some_and(|port| port <= 65_535),
        None => port.is_empty(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    !host.is_empty()
        && host.chars().all(plain)
        && port_fits
        && !path.contains('@')
        && credentials::can_be_written(user)
}

pub fn is_mirror(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    let Some(mirror) = words.next() else { return true };
    let script = words.next();
    is_url(mirror, &["http", "https", "ftp", "file", "ssh", "copy", "mirror"])
        && script.is_none_or(|s| !s.starts_with('-'))
        && words.next().is_none()
}

pub fn is_proxy(text: &str) -> bool {
    text.is_empty() || is_url(text, &["http", "https"]) || is_host_port(text)
}

/// `proxy:3128`, which the predecessor handed through.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_fits = number(port.trim_end_matches('/')).is_some_and(|port| port <= 65_535);
    is_name(host) && !host.contains([':', '/']) && port_fits
}
