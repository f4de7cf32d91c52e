//! Who else than root could have written a file: by its owner and mode, and by those of every directory and link on the way
//! to it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use walkdir::WalkDir;

/// The owner of files whose owner is not known: NFS and namespaces of users give it to strangers.
const NOBODY: u32 = 65534;
const STICKY: u32 = 0o1000;
const BY_GROUP: u32 = 0o020;
const BY_ALL: u32 = 0o002;
/// The kernel follows no more links in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What is wrong with one file or directory, and the command that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exposure {
    /// Every user of the node could have written it.
    to_all: bool,
    sentence: String,
}

/// Opens the files that the administrator vouches for, and refuses what others could have written.
#[derive(Debug)]
pub struct AdminFiles {
    strict: bool,
    tolerated: Vec<String>,
    ways: BTreeMap<PathBuf, Vec<Exposure>>,
}

impl AdminFiles {
    /// Strict: a file of another owner, or one that its group can write, is refused. Otherwise it is only noted. A file that every
    /// user can write, or that belongs to uid 65534, is refused in both cases.
    pub fn new(strict: bool) -> AdminFiles {
        AdminFiles { strict, tolerated: Vec::new(), ways: BTreeMap::new() }
    }

    /// Is strict from now on. Returns what was tolerated before.
    pub fn be_strict(&mut self) -> Vec<String> {
        self.strict = true;
        std::mem::take(&mut self.tolerated)
    }

    /// A sentence for each fault that was tolerated, with the command that mends it.
    pub fn tolerated(&self) -> &[String] {
        &self.tolerated
    }

    /// Opens a file or a directory to be read. The answer is of what was opened. An error is a sentence.
    pub fn open(&mut self, path: &Path) -> Result<File, String> {
        let shown = path.display();
        // A pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| format!("opening {shown}: {}", std::io::Error::from(error)))?;
        let meta = file.metadata().map_err(|error| format!("opening {shown}: {error}"))?;
        let mut found = exposures(&meta, path);
        for way in way_to(path)? {
            let known = self.ways.entry(way).or_insert_with_key(|way| of_way(way));
            found.extend(known.iter().cloned());
        }
        self.sort(found)?;
        Ok(file)
    }

    /// Opens a directory and all that is in it, for those who let others read it. Errors are sentences.
    pub fn look_at_tree(&mut self, dir: &Path) -> Vec<String> {
        let mut problems = Vec::new();
        for entry in WalkDir::new(dir) {
            let looked = match entry {
                // A link into nowhere is no file.
                Ok(entry) if entry.path().exists() => self.open(entry.path()).map(drop),
                Ok(_) => Ok(()),
                Err(error) => Err(format!("looking through {}: {error}", dir.display())),
            };
            problems.extend(looked.err().filter(|problem| !problems.contains(problem)));
        }
        problems
    }

    fn sort(&mut self, found: Vec<Exposure>) -> Result<(), String> {
        if found.iter().any(|exposure| exposure.to_all || self.strict) {
            let sentences: Vec<String> = found.into_iter().map(|exposure| exposure.sentence).collect();
            return Err(sentences.join("; "));
        }
        for Exposure { sentence, .. } in found {
            if !self.tolerated.contains(&sentence) {
                self.tolerated.push(sentence);
            }
        }
        Ok(())
    }
}

/// Of a file or directory.
fn exposures(meta: &Metadata, path: &Path) -> Vec<Exposure> {
    let mode = meta.mode() & 0o7777;
    let mut found = wrong_owner(meta, path, "chown");
    let path = path.display();
    // In a sticky directory a user can replace only files of his own (inode(7)).
    let sticky = meta.is_dir() && mode & STICKY != 0;
    let writers = match mode & (BY_GROUP | BY_ALL) {
        _ if sticky => None,
        0 => None,
        BY_GROUP => Some(("its group", "g-w")),
        BY_ALL => Some(("everybody", "o-w")),
        _ => Some(("everybody", "go-w")),
    };
    found.extend(writers.map(|(who, change)| Exposure {
        to_all: mode & BY_ALL != 0,
        sentence: format!("{path} can be written by {who} (mode {mode:04o}): chmod {change} {path}"),
    }));
    found
}

fn wrong_owner(meta: &Metadata, path: &Path, chown: &str) -> Vec<Exposure> {
    let (owner, path) = (meta.uid(), path.display());
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Vec::new();
    }
    let who = if owner == NOBODY { format!("nobody (uid {NOBODY})") } else { format!("uid {owner}") };
    vec![Exposure {
        to_all: owner == NOBODY,
        sentence: format!("{path} belongs to {who}, not to root: {chown} root {path}"),
    }]
}

/// Of a directory or link on the way to a file. What cannot be looked at is of no use to others either.
fn of_way(way: &Path) -> Vec<Exposure> {
    let Ok(meta) = way.symlink_metadata() else { return Vec::new() };
    match meta.is_symlink() {
        // The mode of a link means nothing.
        true => wrong_owner(&meta, way, "chown -h"),
        false => exposures(&meta, way),
    }
}

/// Every directory and link that the kernel goes through, in its order (path_resolution(7)). The path is absolute.
fn way_to(path: &Path) -> Result<Vec<PathBuf>, String> {
    let absolute =
        std::path::absolute(path).map_err(|error| format!("opening {}: {error}", path.display()))?;
    let parts = |path: &Path| -> VecDeque<OsString> {
        path.components().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut rest = parts(&absolute);
    let mut here = PathBuf::from("/");
    let mut way = Vec::new();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        way.push(here.clone());
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => drop(here.pop()),
            Some(Component::Normal(name)) => here.push(name),
            Some(Component::RootDir) => here = "/".into(),
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
        if let Ok(target) = std::fs::read_link(&here) {
            links += 1;
            if links > MAX_LINKS {
                return Err(format!("opening {}: too many links", path.display()));
            }
            way.push(here.clone());
            here.pop();
            let mut parts = parts(&target);
            parts.append(&mut rest);
            rest = parts;
        }
    }
    way.sort();
    way.dedup();
    Ok(way)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_write_is_refused_or_noted_by_mode_and_place() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("sub"), dir.path().join("sub/file"));
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(&file, "x").unwrap();
        // Modes of the directory and of the file; refused by a strict one, by the other, and what mends it.
        let cases = [
            (0o755, 0o644, false, false, ""),
            (0o755, 0o664, true, false, "chmod g-w"),
            (0o755, 0o646, true, true, "chmod o-w"),
            (0o755, 0o666, true, true, "chmod go-w"),
            (0o775, 0o644, true, false, "chmod g-w"),
            (0o777, 0o644, true, true, "chmod go-w"),
            (0o1777, 0o644, false, false, ""),
        ];
        for (of_dir, of_file, strict, lenient, command) in cases {
            chmod(&sub, of_dir);
            chmod(&file, of_file);
            let case = format!("{of_dir:o} {of_file:o}");
            let answer = AdminFiles::new(true).open(&file);
            assert_eq!(answer.is_err(), strict, "{case}");
            if let Err(sentence) = answer {
                assert!(sentence.contains(command), "{case}: {sentence}");
            }
            let mut files = AdminFiles::new(false);
            assert_eq!(files.open(&file).is_err(), lenient, "{case}");
            assert_eq!(files.tolerated().len(), usize::from(strict && !lenient), "{case}");
        }
    }

    #[test]
    fn every_directory_and_link_on_the_way_counts_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        for name in ["open", "safe", "start"] {
            std::fs::create_dir(place.join(name)).unwrap();
        }
        std::fs::write(place.join("safe/file"), "x").unwrap();
        std::fs::write(place.join("safe/other"), "x").unwrap();
        symlink("../safe", place.join("open/link")).unwrap();
        symlink("../open/link/file", place.join("start/link")).unwrap();
        let through = place.join("start/link");
        let mut files = AdminFiles::new(true);
        assert!(files.open(&through).is_ok());
        chmod(&place.join("open"), 0o777);
        let mut files = AdminFiles::new(false);
        for path in [&through, &through, &place.join("open/../safe/other")] {
            assert!(
                files.open(path).unwrap_err().contains("/open can be written by everybody"),
                "{}",
                path.display()
            );
        }
        assert!(files.open(&place.join("safe/other")).is_ok());
        assert_eq!(files.look_at_tree(&place).len(), 1, "one directory is one fault");

        symlink("loop", place.join("safe/loop")).unwrap();
        assert!(files.open(&place.join("safe/loop")).is_err());
        assert!(files.look_at_tree(&place.join("safe")).is_empty());
    }
}
