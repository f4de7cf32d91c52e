//! The keys that sign a release: where debootstrap looks for them, and those that the site names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};

use super::Recipe;
use crate::command::Tool;
use crate::presence;
use crate::report;
use crate::rootdir::RootDir;

const SCRIPTS: &str = "/usr/share/debootstrap";
/// A script of debootstrap has a few kilobytes.
const SCRIPT_MAX_BYTES: u64 = 1 << 20;
/// A script reads one or two others.
const SCRIPTS_AT_MOST: usize = 16;
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
    let scripts = Scripts::of(recipe)?;
    for keyring in &scripts.keyrings {
        if presence::is_file(keyring)? {
            return Ok(None);
        }
    }
    let is_known = scripts.is_complete || !scripts.keyrings.is_empty();
    Ok(is_known.then(|| Missing { path: scripts.keyrings.into_iter().next() }))
}

/// A script of debootstrap, and those that it reads.
pub struct Scripts {
    pub files: Vec<PathBuf>,
    /// What they name as keyrings.
    keyrings: Vec<PathBuf>,
    /// Whether all of them could be read.
    is_complete: bool,
}

impl Scripts {
    pub fn of(recipe: &Recipe) -> Result<Scripts> {
        let own = scripts_dir(recipe);
        let first = match recipe.mirror.get(1) {
            Some(script) => PathBuf::from(script),
            None => own.join("scripts").join(&recipe.suite),
        };
        Scripts::read(first, &own)
    }

    fn read(first: PathBuf, own: &Path) -> Result<Scripts> {
        let mut scripts = Scripts { files: vec![first], keyrings: Vec::new(), is_complete: true };
        let mut index = 0;
        while index < scripts.files.len() && index < SCRIPTS_AT_MOST {
            let bytes = presence::bytes(&scripts.files[index], SCRIPT_MAX_BYTES)?;
            scripts.is_complete &= bytes.is_some();
            let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or_default());
            scripts.keyrings.extend(keyrings(&text).map(PathBuf::from));
            for script in sourced(&text, own) {
                match script {
                    Some(script) if scripts.files.contains(&script) => {}
                    Some(script) => scripts.files.push(script),
                    None => scripts.is_complete = false,
                }
            }
            index += 1;
        }
        scripts.is_complete &= index == scripts.files.len();
        Ok(scripts)
    }
}

fn scripts_dir(recipe: &Recipe) -> PathBuf {
    recipe.exports.get(OsStr::new("DEBOOTSTRAP_DIR")).map_or(SCRIPTS.into(), PathBuf::from)
}

/// The words after `keyring` at the begin of a line.
fn keyrings(script: &str) -> impl Iterator<Item = &str> {
    let words = script.lines().filter_map(|line| line.trim().strip_prefix("keyring "));
    words.map(str::trim).filter(|path| path.starts_with('/'))
}

/// The files that a script reads by `. FILE`. `None` is one whose name only a shell knows.
fn sourced(script: &str, own: &Path) -> impl Iterator<Item = Option<PathBuf>> {
    let words = script.lines().filter_map(|line| line.trim().strip_prefix(". "));
    words.map(move |word| {
        let path = word.trim().trim_matches('"').replace("$DEBOOTSTRAP_DIR", &own.to_string_lossy());
        (path.starts_with('/') && !path.contains(['$', '`', ' ', ';'])).then(|| PathBuf::from(path))
    })
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

    #[test]
    fn a_script_names_what_the_scripts_name_that_it_reads() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path();
        std::fs::create_dir(own.join("scripts")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(own.join(name), text).unwrap();
        write("scripts/sid", "keyring /k.gpg\n. \"$DEBOOTSTRAP_DIR/scripts/sid\"\n");
        let named = |text: &str| {
            write("script", text);
            let scripts = Scripts::read(own.join("script"), own).unwrap();
            (scripts.keyrings, scripts.is_complete)
        };
        let sid = (vec![PathBuf::from("/k.gpg")], true);
        assert_eq!(named(&format!(". {}/scripts/sid\nmirror_style release\n", own.display())), sid);
        assert_eq!(named("if true; then\n . \"$DEBOOTSTRAP_DIR/scripts/sid\"\nfi\n"), sid);
        assert_eq!(named("mirror_style release\n"), (vec![], true));
        assert_eq!(named(". \"$SOMEWHERE/script\"\n"), (vec![], false));
        assert_eq!(named(". /is/not/there\n"), (vec![], false));
    }
}
