//! Who else than root could have written a file: by its owner and mode, and by those of every directory and link on the way
//! to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
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
/// Files and directories beyond this are no hooks and nothing that they read.
const MAX_FILES: usize = 20_000;

/// What is wrong with one file or directory, and the command that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exposure {
    /// Every user of the node could have written it.
    to_all: bool,
    /// It belongs to another user than root.
    of_another: bool,
    sentence: String,
}

/// Opens the files that the administrator vouches for, and refuses what others could have written.
#[derive(Debug)]
pub struct AdminFiles {
    strict: bool,
    tolerated: Vec<String>,
    ways: BTreeMap<PathBuf, Vec<Exposure>>,
}

/// Whether the sticky bit of a directory keeps strangers off: from what is there already, and belongs to root, it does; it lets
/// everybody add to the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sticky {
    Protects,
    LetsAllAdd,
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

    /// Whether the file, or a directory or link on the way to it, belongs to another user than root: then he says what is in it.
    pub fn belongs_to_another(&mut self, path: &Path) -> bool {
        let own = path.metadata().map_or(Vec::new(), |meta| exposures(&meta, path, Sticky::Protects));
        let on_the_way = way_to(path).map_or(Vec::new(), |way| self.exposures_of(way.parts));
        own.iter().chain(&on_the_way).any(|exposure| exposure.of_another)
    }

    /// Looks at a directory in which files are looked for by their names: a user who can add to it can add such a file. An error is a
    /// sentence; one that is not there has no file.
    pub fn look_in(&mut self, dir: &Path) -> Result<(), String> {
        if dir.is_dir() { self.open(dir).map(drop) } else { Ok(()) }
    }

    /// Opens a file or a directory to be read. The answer is of what was opened. A directory is opened for what is in it: that
    /// everybody can add to it is a fault, sticky or not. An error is a sentence.
    pub fn open(&mut self, path: &Path) -> Result<File, String> {
        let shown = path.display();
        // A pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| format!("opening {shown}: {}", std::io::Error::from(error)))?;
        let meta = file.metadata().map_err(|error| format!("opening {shown}: {error}"))?;
        let mut found = exposures(&meta, path, Sticky::LetsAllAdd);
        found.extend(self.exposures_of(way_to(path)?.parts));
        self.sort(found)?;
        Ok(file)
    }

    fn exposures_of(&mut self, way: Vec<PathBuf>) -> Vec<Exposure> {
        let mut found = Vec::new();
        for part in way {
            let known = self.ways.entry(part).or_insert_with_key(|part| of_way(part));
            found.extend(known.iter().cloned());
        }
        found
    }

    /// Opens a directory and all that is in it, also behind links, for those who let others read it. Errors are sentences.
    pub fn look_at_tree(&mut self, dir: &Path) -> Vec<String> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        let mut walk = WalkDir::new(dir).follow_links(true).into_iter();
        let mut count = 0;
        while let Some(entry) = walk.next() {
            count += 1;
            let looked = match entry {
                _ if count > MAX_FILES => Err(format!(
                    "more than {MAX_FILES} files and directories are below {}: not all can be looked at",
                    dir.display()
                )),
                Ok(entry) => {
                    let inode = entry.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
                    let is_new = inode.is_none_or(|inode| seen.insert(inode));
                    // Two links to one directory: what is in it was looked at.
                    if entry.file_type().is_dir() && !is_new {
                        walk.skip_current_dir();
                    }
                    self.open(entry.path()).map(drop)
                }
                Err(error) => self.look_at_unreadable(dir, &error),
            };
            problems.extend(looked.err().filter(|problem| !problems.contains(problem)));
            if count > MAX_FILES {
                break;
            }
        }
        problems
    }

    /// What a walk below `dir` could not look at. A link that leads nowhere, or back to itself, is no file; but who can make the
    /// file that it names, or make it lead elsewhere, is asked.
    fn look_at_unreadable(&mut self, dir: &Path, error: &walkdir::Error) -> Result<(), String> {
        let unlooked = || Err(format!("looking through {}: {error}", dir.display()));
        let Some(path) = error.path() else { return unlooked() };
        let is_link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        // To a directory that it lies in.
        let is_circle = error.loop_ancestor().is_some();
        let kind = error.io_error().map(std::io::Error::kind);
        let leads_nowhere = matches!(kind, Some(ErrorKind::NotFound | ErrorKind::NotADirectory));
        let is_loop = error.io_error().and_then(std::io::Error::raw_os_error)
            == Some(rustix::io::Errno::LOOP.raw_os_error());
        if !is_link || !(is_circle || leads_nowhere || is_loop) {
            return unlooked();
        }
        let Way { parts, end } = way_of(path);
        let mut found = self.exposures_of(parts);
        // Where the next part of the path would be made.
        if let Some((place, meta)) = end.and_then(|end| Some((end.clone(), end.metadata().ok()?))) {
            found.extend(exposures(&meta, &place, Sticky::LetsAllAdd));
        }
        self.sort(found)
    }

    fn sort(&mut self, found: Vec<Exposure>) -> Result<(), String> {
        if found.iter().any(|exposure| exposure.to_all || self.strict) {
            let mut sentences: Vec<String> = Vec::new();
            for Exposure { sentence, .. } in found {
                if !sentences.contains(&sentence) {
                    sentences.push(sentence);
                }
            }
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
fn exposures(meta: &Metadata, path: &Path, sticky: Sticky) -> Vec<Exposure> {
    let mode = meta.mode() & 0o7777;
    let mut found = wrong_owner(meta, path, "chown");
    let path = path.display();
    // In a sticky directory a user can replace only files of his own (inode(7)).
    let is_protected = sticky == Sticky::Protects && meta.is_dir() && mode & STICKY != 0;
    let writers = match mode & (BY_GROUP | BY_ALL) {
        _ if is_protected => None,
        0 => None,
        BY_GROUP => Some(("its group", "g-w")),
        BY_ALL => Some(("everybody", "o-w")),
        _ => Some(("everybody", "go-w")),
    };
    found.extend(writers.map(|(who, change)| Exposure {
        to_all: mode & BY_ALL != 0,
        of_another: false,
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
        of_another: true,
        sentence: format!("{path} belongs to {who}, not to root: {chown} root {path}"),
    }]
}

/// Of a directory or link on the way to a file. What cannot be looked at is of no use to others either.
fn of_way(way: &Path) -> Vec<Exposure> {
    let Ok(meta) = way.symlink_metadata() else { return Vec::new() };
    match meta.is_symlink() {
        // The mode of a link means nothing.
        true => wrong_owner(&meta, way, "chown -h"),
        false => exposures(&meta, way, Sticky::Protects),
    }
}

/// What the kernel goes through to a file (path_resolution(7)).
struct Way {
    /// Every directory and link.
    parts: Vec<PathBuf>,
    /// Where nothing is: the directory that has no such name. None: there is a file at the end, or the links have none.
    end: Option<PathBuf>,
}

/// The way to a file; an error, which is a sentence, where links lead in a circle.
fn way_to(path: &Path) -> Result<Way, String> {
    let mut links = 0;
    follow(path, &mut links).filter(|_| links <= MAX_LINKS).ok_or_else(|| match links {
        0..=MAX_LINKS => format!("opening {}: there is no current directory", path.display()),
        _ => format!("opening {}: too many links", path.display()),
    })
}

/// The same, as far as the links can be followed.
fn way_of(path: &Path) -> Way {
    follow(path, &mut 0).unwrap_or(Way { parts: Vec::new(), end: None })
}

/// Counts the links; with more than [`MAX_LINKS`] it ends.
fn follow(path: &Path, links: &mut usize) -> Option<Way> {
    let absolute = std::path::absolute(path).ok()?;
    let parts = |path: &Path| -> VecDeque<OsString> {
        path.components().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut rest = parts(&absolute);
    let mut here = PathBuf::from("/");
    let mut way = Vec::new();
    let mut end = None;
    while let Some(part) = rest.pop_front() {
        way.push(here.clone());
        let before = here.clone();
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => drop(here.pop()),
            Some(Component::Normal(name)) => here.push(name),
            Some(Component::RootDir) => here = "/".into(),
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
        if here.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            end = Some(before);
            break;
        }
        if let Ok(target) = std::fs::read_link(&here) {
            *links += 1;
            way.push(here.clone());
            if *links > MAX_LINKS {
                break;
            }
            here.pop();
            let mut parts = parts(&target);
            parts.append(&mut rest);
            rest = parts;
        }
    }
    way.sort();
    way.dedup();
    Some(Way { parts: way, end })
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
        // A program that looks for files in a directory takes what everybody can add.
        let error = AdminFiles::new(false).look_in(&sub).unwrap_err();
        assert!(error.contains("can be written by everybody (mode 1777): chmod go-w"), "{error}");
        assert!(AdminFiles::new(true).look_in(&dir.path().join("absent")).is_ok());
    }

    #[test]
    fn what_links_lead_to_is_looked_at_and_circles_end() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        for name in ["hooks", "linked", "linked/deep", "mid"] {
            std::fs::create_dir(place.join(name)).unwrap();
        }
        symlink("../linked", place.join("hooks/one")).unwrap();
        symlink("../linked", place.join("hooks/two")).unwrap();
        symlink("../../hooks", place.join("linked/deep/back")).unwrap();
        std::fs::write(place.join("linked/deep/setting"), "x").unwrap();
        let look = |strict| AdminFiles::new(strict).look_at_tree(&place.join("hooks"));
        assert_eq!(look(true), [""; 0]);
        chmod(&place.join("linked/deep/setting"), 0o666);
        let problems = look(false);
        assert!(
            problems.len() == 1 && problems[0].contains("/deep/setting can be written by"),
            "{problems:?}"
        );
        chmod(&place.join("linked/deep/setting"), 0o644);

        // Who could make what a link names.
        symlink("../mid/sub/late", place.join("hooks/50-late")).unwrap();
        assert_eq!(look(true), [""; 0]);
        chmod(&place.join("mid"), 0o1777);
        let problems = look(false);
        assert!(
            problems.len() == 1 && problems[0].contains("/mid can be written by everybody"),
            "{problems:?}"
        );
        // A sticky directory protects what is in it.
        std::fs::create_dir(place.join("mid/sub")).unwrap();
        assert_eq!(look(true), [""; 0]);
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
