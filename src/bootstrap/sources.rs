//! The guest's apt sources: what debootstrap installed from, with its updates and security beside it, so that a
//! tree is not stale on its first day.

use std::path::Path;

use anyhow::{Context, Result};

use super::debootstrap::default_mirror;
use super::{Recipe, keyring};
use crate::command::Tool;
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;

pub const SOURCES: &str = "etc/apt/sources.list";
const CANDIDATE: &str = "etc/apt/candidate.list";
pub const MAX_BYTES: u64 = 1 << 20;

/// One line of sources.list(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    mirror: String,
    suite: String,
    components: String,
    /// The site's own keys sign it.
    by_own_keys: bool,
}

impl Source {
    fn line(&self) -> String {
        let signed_by =
            if self.by_own_keys { format!("[signed-by=/{}] ", keyring::IN_GUEST) } else { String::new() };
        format!("deb {signed_by}{} {} {}\n", self.mirror, self.suite, self.components)
    }

    /// `deb MIRROR SUITE COMPONENTS`, as debootstrap writes it.
    fn parse(line: &str) -> Option<Source> {
        let rest = line.strip_prefix("deb ")?.trim();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1.trim() } else { rest };
        let mut words = rest.split_ascii_whitespace();
        let (mirror, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
        let components = words.collect::<Vec<_>>().join(" ");
        Some(Source { mirror, suite, components, by_own_keys: false })
    }
}

/// Adds the suites that the mirror has, and brings the tree up to date from them.
pub fn complete(recipe: &Recipe, root: &RootDir, target: &Path, codename: &str) -> Result<()> {
    let text = root.read(SOURCES, MAX_BYTES)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let Some(base) = text.lines().find_map(Source::parse) else {
        report::warning("debootstrap left no sources.list in the form that is known; it stays as it is");
        return Ok(());
    };
    // stable, testing and the like move on: a guest stays with the release that it was given.
    let alias = ["stable", "oldstable", "oldoldstable", "testing"].contains(&base.suite.as_str());
    let suite = if alias { codename.to_owned() } else { base.suite };
    let base = Source { suite, by_own_keys: recipe.keys.is_some(), ..base };
    if base.mirror.starts_with("file:") || base.mirror.starts_with("copy:") {
        report::detail("a mirror in a directory of the node has no updates to add");
        return root.write(SOURCES, base.line().as_bytes(), 0o644);
    }
    let mut sources = vec![base.clone()];
    if has_updates(&base.suite) {
        for (what, candidates) in [("updates", updates(&base)), ("security", security(root, &base)?)] {
            match first_served(recipe, root, target, by_either_keys(candidates))? {
                Some(source) => sources.push(source),
                None => report::warning(&format!(
                    "no {what} for {} were found beside {}; the guest's sources.list does not have them",
                    base.suite, base.mirror
                )),
            }
        }
    }
    let text: String = sources.iter().map(Source::line).collect();
    root.write(SOURCES, text.as_bytes(), 0o644)?;
    apt(recipe, target, &["-y", "dist-upgrade"]).context("bringing the tree up to date")
}

/// Adds the site's own sources and keys, and installs from them what is wanted besides.
pub fn add_own(recipe: &Recipe, root: &RootDir, target: &Path) -> Result<()> {
    for file in &recipe.apt_files {
        let dir = file.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        root.create_dir_all(dir, 0o755)?;
        root.write(&file.path, &file.content, 0o644)?;
    }
    let hint = "check the sources and keys in apt_dir";
    apt(recipe, target, &["-o", "APT::Update::Error-Mode=any", "update"]).hint(hint)?;
    if recipe.extra_pkgs.is_empty() {
        return Ok(());
    }
    let mut install = vec!["-y", "--no-install-recommends", "install"];
    install.extend(recipe.extra_pkgs.iter().map(String::as_str));
    apt(recipe, target, &install).hint("check extra_pkgs, and the sources in apt_dir")
}

/// What may be signed by the site's own keys may also be signed by the release's.
fn by_either_keys(candidates: Vec<Source>) -> Vec<Source> {
    let both = |source: Source| {
        let other = source.by_own_keys.then(|| Source { by_own_keys: false, ..source.clone() });
        std::iter::once(source).chain(other)
    };
    candidates.into_iter().flat_map(both).collect()
}

/// A suite that is always current, or a part of another, has none.
fn has_updates(suite: &str) -> bool {
    !["sid", "unstable", "experimental"].contains(&suite) && !suite.contains('-')
}

fn updates(base: &Source) -> Vec<Source> {
    vec![Source { suite: format!("{}-updates", base.suite), ..base.clone() }]
}

/// Where security updates may be, best first: Ubuntu has them on the mirror itself, Debian beside it.
fn security(root: &RootDir, base: &Source) -> Result<Vec<Source>> {
    let release = root.read("usr/lib/os-release", MAX_BYTES)?.unwrap_or_default();
    let ubuntu = String::from_utf8_lossy(&release).lines().any(|line| line == "ID=ubuntu");
    let mirrors = if ubuntu { vec![base.mirror.clone()] } else { security_mirrors(base) };
    // Up to Debian 10 the suite was called SUITE/updates.
    let old = ["buster", "stretch", "jessie", "wheezy"].contains(&base.suite.as_str());
    let suite = if old { format!("{}/updates", base.suite) } else { format!("{}-security", base.suite) };
    Ok(mirrors.into_iter().map(|mirror| Source { mirror, suite: suite.clone(), ..base.clone() }).collect())
}

/// Beside the mirror, then where the node itself has them from, then beside debootstrap's default mirror.
fn security_mirrors(base: &Source) -> Vec<String> {
    let mut mirrors = Vec::new();
    mirrors.extend(sibling(&base.mirror));
    mirrors.extend(node_security_mirror());
    mirrors.extend(default_mirror().as_deref().and_then(sibling));
    let mut seen = Vec::new();
    mirrors.retain(|mirror| {
        !seen.contains(mirror) && {
            seen.push(mirror.clone());
            true
        }
    });
    mirrors
}

/// `http://mirror.example.org/debian` has its security beside it as debian-security.
fn sibling(mirror: &str) -> Option<String> {
    let stem = mirror.trim_end_matches('/').strip_suffix("/debian")?;
    Some(format!("{stem}/debian-security"))
}

/// The URI of a -security suite in the node's own apt sources, in either format.
fn node_security_mirror() -> Option<String> {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    let entries = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(entries.map(|entry| entry.path()));
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).find_map(|text| security_uri(&text))
}

fn security_uri(text: &str) -> Option<String> {
    let one_line = text.lines().filter_map(Source::parse).find(|s| s.suite.ends_with("-security"));
    one_line.map(|source| source.mirror).or_else(|| {
        text.split("\n\n").find_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let secure = field("Suites:")?.split_ascii_whitespace().any(|s| s.ends_with("-security"));
            secure.then(|| field("URIs:")?.split_ascii_whitespace().next().map(str::to_owned)).flatten()
        })
    })
}

/// The first candidate that serves its suite, signed; its lists stay for the upgrade.
fn first_served(
    recipe: &Recipe,
    root: &RootDir,
    target: &Path,
    candidates: Vec<Source>,
) -> Result<Option<Source>> {
    for source in candidates {
        root.write(CANDIDATE, source.line().as_bytes(), 0o644)?;
        let options = [
            "Dir::Etc::SourceList=/etc/apt/candidate.list",
            "Dir::Etc::SourceParts=-",
            "APT::Get::List-Cleanup=0",
            "APT::Update::Error-Mode=any",
            "Acquire::Retries=1",
        ];
        let mut args: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
        args.push("update");
        let served = apt(recipe, target, &args);
        root.remove(CANDIDATE)?;
        match served {
            Ok(()) => return Ok(Some(source)),
            Err(error) if report::cause::<crate::command::ToolError>(&error).is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn apt(recipe: &Recipe, target: &Path, args: &[&str]) -> Result<()> {
    let env = recipe.env();
    Tool::new("apt-get")
        .args(["-q", "-o", "Dpkg::Use-Pty=0"])
        .args(recipe.apt_options())
        .args(args)
        .envs(env.iter().map(|(n, v)| (n, v)))
        .chroot(target)
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_in_both_formats() {
        let line = "deb [signed-by=/k] http://mirror.example.org/debian trixie main contrib";
        let source = Source::parse(line).unwrap();
        assert_eq!(source.line(), "deb http://mirror.example.org/debian trixie main contrib\n");
        let stanza = "Types: deb\nURIs: http://mirror.example.org/debian\nSuites: trixie trixie-updates\n\n\
                      Types: deb\nURIs: http://mirror.example.org/sec\nSuites: trixie-security\n";
        assert_eq!(security_uri(stanza).as_deref(), Some("http://mirror.example.org/sec"));
        assert_eq!(
            security_uri("deb http://mirror.example.org/d x-security main").as_deref(),
            Some("http://mirror.example.org/d")
        );
        assert_eq!(security_uri(line), None);
    }

    #[test]
    fn security_stands_beside_a_debian_mirror() {
        let sec = Some("http://mirror.example.org/debian-security".to_owned());
        assert_eq!(sibling("http://mirror.example.org/debian/"), sec);
        assert_eq!(sibling("http://mirror.example.org/ubuntu"), None);
    }
}
