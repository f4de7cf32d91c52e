//! The keys that sign a release: where debootstrap looks for them, and those that the site names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};

use super::{Recipe, Scripts};
use crate::command::Tool;
use crate::presence;
use crate::report;
use crate::rootdir::RootDir;

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

/// The keyring that is missing for a recipe, as far as its script tells. Where there is no script, or it reads others
/// whose names only a shell knows, debootstrap itself says so.
pub fn missing(recipe: &Recipe) -> Result<Option<Missing>> {
    let scripts = Scripts::of(&recipe.suite, &recipe.mirror, &recipe.exports)?;
    for keyring in &scripts.keyrings {
        if presence::is_file(keyring)? {
            return Ok(None);
        }
    }
    let is_known = scripts.is_complete || !scripts.keyrings.is_empty();
    Ok(is_known.then(|| Missing { path: scripts.keyrings.into_iter().next() }))
}

impl Missing {
    /// The error for a create that wants that release.
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
