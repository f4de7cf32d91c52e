//! The keys that sign a release: where debootstrap looks for them, and those that the site names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};

use super::Recipe;
use crate::command::Tool;
use crate::report;
use crate::rootdir::RootDir;

const SCRIPTS: &str = "/usr/share/debootstrap";
/// A script of debootstrap has a few kilobytes.
const SCRIPT_MAX_BYTES: u64 = 1 << 20;
/// Where a guest has the keys that the site names.
pub const IN_GUEST: &str = "etc/apt/keyrings/mirror.gpg";

/// The packages of Debian that have keyrings, by the files' names.
const PACKAGES: [(&str, &str); 7] = [
    ("debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("debian-archive-removed-keys.gpg", "debian-archive-keyring"),
    ("debian-ports-archive-keyring.gpg", "debian-ports-archive-keyring"),
    ("devuan-archive-keyring.gpg", "devuan-keyring"),
    ("kali-archive-keyring.gpg", "kali-archive-keyring"),
    ("ubuntu-archive-keyring.gpg", "ubuntu-keyring"),
    ("ubuntu-archive-removed-keys.gpg", "ubuntu-keyring"),
];

/// A keyring that debootstrap's script names, and that is not on this node.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    /// `None`: the script names none.
    path: Option<PathBuf>,
}

/// The keyring that is missing for a recipe, as far as its script tells. Where there is no script, debootstrap says so.
pub fn missing(recipe: &Recipe) -> Option<Missing> {
    let script = match recipe.mirror.get(1) {
        Some(script) => PathBuf::from(script),
        None => scripts_dir(recipe).join("scripts").join(&recipe.suite),
    };
    let meta = std::fs::metadata(&script).ok().filter(|meta| meta.is_file())?;
    if meta.len() > SCRIPT_MAX_BYTES {
        return None;
    }
    let text = std::fs::read_to_string(&script).ok()?;
    let named: Vec<&Path> = keyrings(&text).map(Path::new).collect();
    let is_there = named.iter().any(|path| path.is_file());
    (!is_there).then(|| Missing { path: named.first().map(|path| path.to_path_buf()) })
}

fn scripts_dir(recipe: &Recipe) -> PathBuf {
    recipe.exports.get(OsStr::new("DEBOOTSTRAP_DIR")).map_or(SCRIPTS.into(), PathBuf::from)
}

/// The words after `keyring` at the begin of a line.
fn keyrings(script: &str) -> impl Iterator<Item = &str> {
    let words = script.lines().filter_map(|line| line.trim().strip_prefix("keyring "));
    words.map(str::trim).filter(|path| path.starts_with('/'))
}

impl Missing {
    /// What to tell whoever wants that release.
    pub fn refusal(&self, suite: &str) -> Error {
        let fact = match &self.path {
            Some(path) => format!("{} is not there, which has the keys that sign {suite}", path.display()),
            None => format!("debootstrap's script for {suite} names no keys that sign it"),
        };
        let package = self.path.as_deref().and_then(package_of).filter(|package| apt_knows(package));
        let or = package.map_or(String::new(), |package| format!(", or apt-get install {package}"));
        report::with_hint(
            anyhow!("{fact}; what nobody signed is not installed"),
            format!("set keyring = \"FILE\" in a file of the node{or}; allow_unsigned = true checks nothing"),
        )
    }
}

fn package_of(keyring: &Path) -> Option<&'static str> {
    let name = keyring.file_name()?.to_str()?;
    PACKAGES.iter().find(|(file, _)| *file == name).map(|(_, package)| *package)
}

/// Whether this node's apt could install a package.
fn apt_knows(package: &str) -> bool {
    let answer = Tool::new("apt-cache").args(["policy", package]).quiet().output();
    answer.is_ok_and(|text| {
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
    })
}

/// Where the keys are while `target` is bootstrapped.
pub fn place(target: &Path) -> PathBuf {
    target.with_file_name("keyring.gpg")
}

/// Writes the keys for the bootstrapper, and for the guest's own apt.
pub fn write(keys: &[u8], target: &Path, root: &RootDir) -> Result<()> {
    let place = place(target);
    std::fs::write(&place, keys).with_context(|| format!("writing {}", place.display()))?;
    root.create_dir_all("etc/apt/keyrings", 0o755)?;
    root.write(IN_GUEST, keys, 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyrings_are_read_from_a_script() {
        let script = "mirror_style release\nkeyring /usr/share/keyrings/a.gpg\n\tkeyring /b.gpg\n# keyring /c\nkeyring $x\n";
        assert_eq!(keyrings(script).collect::<Vec<_>>(), ["/usr/share/keyrings/a.gpg", "/b.gpg"]);
    }
}
