//! A user's name and password for a mirror. They go where the programs that fetch look for them, and nowhere else: not into a
//! command line, a log or a manifest.

use std::fmt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::sources;
use crate::rootdir::RootDir;

/// Where apt in the tree, and mmdebstrap's apt, look (apt_auth.conf(5)).
const IN_TREE: &str = "etc/apt/auth.conf.d/mirror.conf";

/// Of one mirror.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    scheme: String,
    /// The mirror without its scheme: `mirror.example.org/debian`
    place: String,
    login: String,
    password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(for {})", self.place)
    }
}

/// A URL without the credentials in it, and these.
pub fn split(url: &str) -> (String, Option<Credentials>) {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find('/').unwrap_or(rest.len());
        let (before, host) = rest[..end].rsplit_once('@')?;
        Some((scheme, before, format!("{host}{}", &rest[end..])))
    });
    let Some((scheme, before, place)) = parts else { return (url.to_owned(), None) };
    let (login, password) = before.split_once(':').unwrap_or((before, ""));
    let plain = format!("{scheme}://{place}");
    let (login, password) = (decoded(login), decoded(password));
    (plain, Some(Credentials { scheme: scheme.to_owned(), place, login, password }))
}

/// Without the escapes of a URL (RFC 3986, 2.1).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether netrc(5) can say a URL's `USER[:PASSWORD]`: its words have no blanks and no end of a line.
pub fn can_be_written(user: &str) -> bool {
    decoded(user).chars().all(|c| !c.is_whitespace() && !c.is_control())
}

impl Credentials {
    /// A line of netrc(5), as wget and apt read it.
    fn line(&self, machine: &str) -> String {
        format!("machine {machine} login {} password {}\n", self.login, self.password)
    }

    /// Writes them for apt in a guest, if its sources name the mirror.
    pub fn write_for_guest(&self, root: &RootDir) -> Result<()> {
        let sources = root.read(sources::SOURCES, sources::MAX_BYTES)?.unwrap_or_default();
        // debootstrap leaves out the / at the end.
        let mirror = format!("{}://{}", self.scheme, self.place.trim_end_matches('/'));
        let names_mirror = String::from_utf8_lossy(&sources).contains(&mirror);
        if names_mirror { self.write(root) } else { Ok(()) }
    }

    /// Writes them for apt in a tree, where only root reads them.
    pub fn write(&self, root: &RootDir) -> Result<()> {
        root.create_dir_all("etc/apt/auth.conf.d", 0o755)?;
        // Without its scheme apt would send them over https alone.
        let machine = format!("{}://{}", self.scheme, self.place);
        root.write(IN_TREE, self.line(&machine).as_bytes(), 0o600)
    }

    /// Writes them for debootstrap's wget, into a home directory that only root can enter.
    pub fn write_home(&self, home: &Path) -> Result<()> {
        let context = || format!("writing {}", home.display());
        let host = self.place.split(['/', ':']).next().unwrap_or_default();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home).with_context(context)?;
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(home.join(".netrc"));
        let mut file = file.with_context(context)?;
        std::io::Write::write_all(&mut file, self.line(host).as_bytes()).with_context(context)
    }
}

/// Takes them out of a tree that others get as well.
pub fn scrub(root: &RootDir) -> Result<()> {
    root.remove(IN_TREE).map(drop)
}

/// That home directory, while `target` is bootstrapped.
pub fn home(target: &Path) -> PathBuf {
    target.with_file_name("home")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_urls_credentials_are_taken_out_of_it() {
        let table = [
            ("http://m.example.org/debian", "http://m.example.org/debian", None),
            ("http://u:p@m.example.org:8080/debian", "http://m.example.org:8080/debian", Some(("u", "p"))),
            ("https://u%40x:p%3a@m/", "https://m/", Some(("u@x", "p:"))),
            ("http://u@m", "http://m", Some(("u", ""))),
            ("file:///srv/a@b", "file:///srv/a@b", None),
        ];
        for (url, plain, credentials) in table {
            let (found, had) = split(url);
            assert_eq!(found, plain);
            assert_eq!(had.as_ref().map(|c| (c.login.as_str(), c.password.as_str())), credentials, "{url}");
            assert!(!format!("{had:?}").contains("p:"), "{url}");
        }
    }
}
