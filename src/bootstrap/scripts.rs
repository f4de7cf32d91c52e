//! The scripts that debootstrap reads: its own, or those of the site.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::presence;

const SCRIPTS: &str = "/usr/share/debootstrap";
/// debootstrap's name for another directory of them.
pub const DIR_VARIABLE: &str = "DEBOOTSTRAP_DIR";
/// A script of debootstrap has a few kilobytes.
pub const SCRIPT_MAX_BYTES: u64 = 1 << 20;
/// A script reads one or two others.
const SCRIPTS_AT_MOST: usize = 16;

/// What a shell file exports.
type Exports = BTreeMap<OsString, OsString>;

/// A script of debootstrap, and those that it reads.
pub struct Scripts {
    pub files: Vec<PathBuf>,
    /// What they name as keyrings.
    pub keyrings: Vec<PathBuf>,
    /// Whether all of them could be read.
    pub is_complete: bool,
}

impl Scripts {
    /// What debootstrap runs for a suite, with these last arguments and this environment.
    pub fn of(suite: &str, mirror: &[String], exports: &Exports) -> Result<Scripts> {
        let own = scripts_dir(exports);
        let first = match mirror.get(1) {
            Some(script) => PathBuf::from(script),
            None => own.join("scripts").join(suite),
        };
        Scripts::read(first, &own)
    }

    /// Whether the site names scripts of its own.
    pub fn are_own(mirror: &[String], exports: &Exports) -> bool {
        mirror.len() > 1 || exports.contains_key(OsStr::new(DIR_VARIABLE))
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

fn scripts_dir(exports: &Exports) -> PathBuf {
    exports.get(OsStr::new(DIR_VARIABLE)).map_or(SCRIPTS.into(), PathBuf::from)
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
