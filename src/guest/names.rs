//! hostname, mailname and hosts: written for a guest of ours, and changed in one that lives already.

use anyhow::{Context, Result, anyhow, ensure};

use crate::report::WithHint;
use crate::request::InstanceName;
use crate::rootdir::{Kind, RootDir};

/// Bytes of an /etc/hosts that is edited and not replaced.
const HOSTS_MAX_BYTES: u64 = 1 << 20;
/// And after it, with longer names.
const HOSTS_RENAMED_MAX_BYTES: usize = 2 << 20;
/// A host name has 253 at most; the rest may be comments.
const NAME_MAX_BYTES: u64 = 4096;

/// The full name in /etc/hostname, as the predecessor wrote it (its rename compares with that); never a
/// hosts file of the node.
pub fn write(root: &RootDir, name: &InstanceName) -> Result<()> {
    root.write("etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
    root.write("etc/mailname", format!("{name}\n").as_bytes(), 0o644)?;
    let old = match root.read("etc/hosts", HOSTS_MAX_BYTES) {
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(None) | Err(_) => String::new(),
    };
    root.write("etc/hosts", edit_hosts(&old, name).as_bytes(), 0o644)
}

/// What a guest calls itself by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// Its whole name.
    Full,
    /// The first label of it.
    Short,
}

/// Finds out how a guest is called that should be called `old`, or `new` already (a rename that was interrupted, or a
/// backup of a guest of that name). None where it has no name in /etc/hostname: that is its own business. Any other
/// name is an error: this is another guest, or its owner's wish.
pub fn called(root: &RootDir, old: &InstanceName, new: &InstanceName) -> Result<Option<Called>> {
    let Some(bytes) = root.read("etc/hostname", NAME_MAX_BYTES)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let mut names = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let Some(found) = names.next() else { return Ok(None) };
    let is = |name: &InstanceName| match found {
        found if found.eq_ignore_ascii_case(name.full()) => Some(Called::Full),
        found if found.eq_ignore_ascii_case(name.short()) => Some(Called::Short),
        _ => None,
    };
    if let Some(called) = is(old).or(is(new)) {
        return Ok(Some(called));
    }
    Err(anyhow!(
        "Cannot rename from {old} to {new}: instance has a different hostname: /etc/hostname says \"{}\"",
        found.escape_default()
    ))
    .hint(format!("expected \"{old}\" or \"{}\"; change the names inside the guest, by hand", old.short()))
}

/// Gives a guest its new name wherever the old one stands; the hostname last, so that an interrupted run can be
/// repeated. Files that it does not have stay absent.
pub fn rename(root: &RootDir, old: &InstanceName, new: &InstanceName, called: Called) -> Result<()> {
    // A link to what is only there while the guest runs stays a link.
    if let Some(hosts) = root.read("etc/hosts", HOSTS_MAX_BYTES)? {
        let renamed = rename_in_hosts(&hosts, old, new).context("renaming in /etc/hosts")?;
        if renamed != hosts {
            replace(root, "etc/hosts", &renamed)?;
        }
    }
    if let Some(mailname) = root.read("etc/mailname", NAME_MAX_BYTES)? {
        let mailname = mailname.trim_ascii().to_ascii_lowercase();
        if [old.full(), old.short()].iter().any(|name| name.to_ascii_lowercase().as_bytes() == mailname) {
            replace(root, "etc/mailname", format!("{new}\n").as_bytes())?;
        }
    }
    let name = match called {
        Called::Full => new.full(),
        Called::Short => new.short(),
    };
    replace(root, "etc/hostname", format!("{name}\n").as_bytes())
}

/// A file keeps its owner and mode; a link is replaced by a file.
fn replace(root: &RootDir, path: &str, bytes: &[u8]) -> Result<()> {
    match root.kind(path)? {
        Some(Kind::File) => root.rewrite(path, bytes),
        _ => root.write(path, bytes, 0o644),
    }
}

/// hosts(5) with the new name in the place of the old one: the full name anywhere, the short one beside it or at a
/// loopback address. Where that names the guest nowhere, it gets a line. All else stays, byte by byte. An error where
/// it would become much larger: a file can repeat a name without end.
pub fn rename_in_hosts(text: &[u8], old: &InstanceName, new: &InstanceName) -> Result<Vec<u8>> {
    let mut renamed = Vec::with_capacity(text.len() + 256);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        rename_in_line(line, old, new, &mut renamed)?;
    }
    let names_new =
        |line: &[u8]| words(line).skip(1).any(|word| word.eq_ignore_ascii_case(new.full().as_bytes()));
    if renamed.split(|byte| *byte == b'\n').any(names_new) {
        return Ok(renamed);
    }
    if !renamed.is_empty() && !renamed.ends_with(b"\n") {
        renamed.push(b'\n');
    }
    renamed.extend_from_slice(format!("{}\n", own_line(new)).as_bytes());
    Ok(renamed)
}

fn rename_in_line(line: &[u8], old: &InstanceName, new: &InstanceName, renamed: &mut Vec<u8>) -> Result<()> {
    let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    let loopback =
        words(line).next().is_some_and(|address| address.starts_with(b"127.") || address == b"::1");
    let is_own = loopback || words(line).skip(1).any(|word| is(word, old.full()));
    if !is_own {
        renamed.extend_from_slice(line);
        return Ok(());
    }
    // web became web.example.com already: the web beside that is its short name.
    let is_done = words(line).skip(1).any(|word| is(word, new.full()));
    let comment = line.iter().position(|byte| *byte == b'#').unwrap_or(line.len());
    let mut rest = &line[..comment];
    let mut first = true;
    while !rest.is_empty() {
        let blank = rest[0].is_ascii_whitespace();
        let length = rest.iter().position(|byte| byte.is_ascii_whitespace() != blank).unwrap_or(rest.len());
        let (word, after) = rest.split_at(length);
        let name = match word {
            _ if blank || std::mem::take(&mut first) => word,
            _ if is(word, old.full()) && !(is_done && is(word, new.short())) => new.full().as_bytes(),
            _ if is(word, old.short()) => new.short().as_bytes(),
            _ => word,
        };
        renamed.extend_from_slice(name);
        ensure!(renamed.len() <= HOSTS_RENAMED_MAX_BYTES, "it names the guest too often");
        rest = after;
    }
    renamed.extend_from_slice(&line[comment..]);
    Ok(())
}

/// The words of a line before its comment.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let comment = line.iter().position(|byte| *byte == b'#').unwrap_or(line.len());
    line[..comment].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// `127.0.1.1  web.example.com web`
fn own_line(name: &InstanceName) -> String {
    let own = format!("127.0.1.1\t{name}");
    if name.short() == name.full() { own } else { format!("{own} {}", name.short()) }
}

/// hosts(5) with the guest's own name on 127.0.1.1, as Debian does it; other lines of a hand-made cache stay.
pub fn edit_hosts(old: &str, name: &InstanceName) -> String {
    // A file from elsewhere may end its lines otherwise; a second edit must find what the first left.
    let lines = old.lines().map(|line| line.trim_end_matches('\r'));
    let kept: Vec<&str> =
        lines.filter(|line| line.split_ascii_whitespace().next() != Some("127.0.1.1")).collect();
    let place = |address: &str| kept.iter().position(|l| l.split_ascii_whitespace().next() == Some(address));
    let localhost = place("127.0.0.1");
    let mut lines: Vec<String> = Vec::new();
    if localhost.is_none() {
        lines.push("127.0.0.1\tlocalhost".into());
    }
    let mut kept_lines: Vec<String> = kept.iter().map(|line| (*line).to_owned()).collect();
    kept_lines.insert(localhost.map_or(0, |at| at + 1), own_line(name));
    lines.extend(kept_lines);
    if place("::1").is_none() {
        lines.push(String::new());
        lines.push("::1\tlocalhost ip6-localhost ip6-loopback".into());
        lines.push("ff02::1\tip6-allnodes".into());
        lines.push("ff02::2\tip6-allrouters".into());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_gets_the_guests_name_and_keeps_other_lines() {
        let name = InstanceName::parse("web.example.com").unwrap();
        let fresh = edit_hosts("", &name);
        assert!(fresh.starts_with("127.0.0.1\tlocalhost\n127.0.1.1\tweb.example.com web\n"), "{fresh}");
        assert!(fresh.contains("::1\tlocalhost"));
        let old = "127.0.0.1 localhost\n127.0.1.1 golden.example.org golden\n192.0.2.9 db\n::1 localhost\n";
        assert_eq!(
            edit_hosts(old, &name),
            "127.0.0.1 localhost\n127.0.1.1\tweb.example.com web\n192.0.2.9 db\n::1 localhost\n"
        );
        assert_eq!(edit_hosts(&fresh, &name), fresh);
    }

    #[test]
    fn a_rename_changes_the_old_names_and_nothing_else() {
        let name = |text| InstanceName::parse(text).unwrap();
        let (old, new) = (name("web.example.com"), name("www.example.org"));
        for (before, after) in [
            ("127.0.1.1\tweb.example.com web\n", "127.0.1.1\twww.example.org www\n"),
            (
                "127.0.1.1 web\n192.0.2.7  WEB.example.com  web # web\n",
                "127.0.1.1 www\n192.0.2.7  www.example.org  www # web\n",
            ),
            // Another host of that short name, names that only contain it, and a line without its end.
            (
                "192.0.2.9 web.other.net web\n192.0.2.7 web.example.com\n::1 myweb webby",
                "192.0.2.9 web.other.net web\n192.0.2.7 www.example.org\n::1 myweb webby",
            ),
            ("", "127.0.1.1\twww.example.org www\n"),
            ("127.0.0.1 localhost", "127.0.0.1 localhost\n127.0.1.1\twww.example.org www\n"),
            (
                "# 127.0.1.1 web.example.com\n",
                "# 127.0.1.1 web.example.com\n127.0.1.1\twww.example.org www\n",
            ),
            ("192.0.2.7 www.example.org\n", "192.0.2.7 www.example.org\n"),
        ] {
            let renamed = rename_in_hosts(before.as_bytes(), &old, &new).unwrap();
            assert_eq!(String::from_utf8(renamed.clone()).unwrap(), after);
            assert_eq!(rename_in_hosts(&renamed, &old, &new).unwrap(), renamed, "again");
        }
        let bytes = b"\xff\xfe \x00 web.example.com\r\n127.0.1.1 web.example.com\r\n";
        let renamed = rename_in_hosts(bytes, &old, &new).unwrap();
        assert_eq!(renamed, b"\xff\xfe \x00 www.example.org\r\n127.0.1.1 www.example.org\r\n");
    }

    #[test]
    fn a_name_that_gets_a_domain_is_renamed_once() {
        let name = |text| InstanceName::parse(text).unwrap();
        let (old, new) = (name("web"), name("web.example.com"));
        let renamed = rename_in_hosts(b"127.0.1.1 web\n", &old, &new).unwrap();
        assert_eq!(renamed, b"127.0.1.1 web.example.com\n");
        let written = b"127.0.1.1\tweb.example.com web\n";
        assert_eq!(rename_in_hosts(written, &old, &new).unwrap(), written);
    }

    #[test]
    fn lines_that_end_otherwise_are_edited_once() {
        let name = InstanceName::parse("web").unwrap();
        for old in ["127.0.0.1 localhost\r\n::1 localhost\r\r\n", "127.0.0.1 localhost\r\n::1 localhost\r"] {
            let edited = edit_hosts(old, &name);
            assert_eq!(edited, "127.0.0.1 localhost\n127.0.1.1\tweb\n::1 localhost\n");
        }
    }

    #[test]
    fn an_address_that_begins_like_localhost_is_another_one() {
        let name = InstanceName::parse("web").unwrap();
        let edited = edit_hosts("127.0.0.10 db\n::1 localhost\n", &name);
        assert_eq!(edited, "127.0.0.1\tlocalhost\n127.0.1.1\tweb\n127.0.0.10 db\n::1 localhost\n");
        assert_eq!(edit_hosts(&edited, &name), edited);
    }
}
