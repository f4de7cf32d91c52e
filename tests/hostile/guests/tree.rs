//! A guest's tree before and after: what is in it, and what became of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::common::small_guest::{HEADER, NEW_NAME, OLD_NAME};

/// More of a file is not compared byte by byte.
const CONTENT_MAX: u64 = 4 << 20;

/// The names that renaming changes.
const NAMES: [&str; 3] = ["hostname", "hosts", "mailname"];

/// One entry.
#[derive(PartialEq, Eq)]
struct Entry {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    /// A file's or a device's; a directory's own change with what is in it.
    numbers: Option<(u64, u64, i64, i64)>,
    content: Vec<u8>,
}

/// All of a tree.
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
    /// What the guest itself finds at its names, links followed.
    seen: BTreeMap<&'static str, Option<Vec<u8>>>,
}

impl Tree {
    pub fn of(root: &Path) -> Tree {
        let entries = walkdir::WalkDir::new(root).into_iter().map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            (path, entry_of(entry.path()))
        });
        let seen = NAMES.map(|name| (name, read_inside(root, &format!("etc/{name}"))));
        Tree { entries: entries.collect(), seen: seen.into() }
    }

    /// Wants that only names and files of the program's own have changed, and in place: no other file, no other
    /// mode, nothing that is not finished.
    pub fn assert_rest_unchanged(&self, before: &Tree, log: &str) {
        for (path, entry) in &before.entries {
            let now = self.entries.get(path);
            let same_access = now.is_some_and(|now| (now.mode, now.owner) == (entry.mode, entry.owner));
            let same = if entry.is_ours() {
                // It is made anew.
                now.is_none_or(Entry::is_ours)
            } else if is_name(path) {
                // A link is replaced by a file; what was a file stays as accessible as it was.
                now == Some(entry) || !entry.is_file() || same_access
            } else {
                now == Some(entry)
            };
            assert!(same, "{} became {now:?}\n{log}", path.display());
        }
        for (path, entry) in &self.entries {
            let known = before.entries.contains_key(path);
            let holds_ours = || {
                let below = self.entries.iter().filter(|(other, _)| other.starts_with(path));
                below.filter(|(_, entry)| !entry.is_dir()).all(|(_, entry)| entry.is_ours())
            };
            assert!(
                known || entry.is_ours() || (entry.is_dir() && holds_ours()),
                "{} is new: {entry:?}\n{log}",
                path.display()
            );
        }
    }

    /// Wants that a tree was restored from what another was: the same names, and in each the same, but for the content
    /// of those with a name in `repaired`, and for what a link among them stood for.
    pub fn assert_restored(&self, before: &Tree, repaired: &[&str], log: &str) {
        let is_repaired =
            |path: &Path| path.file_name().is_some_and(|name| repaired.iter().any(|r| name == *r));
        for (path, entry) in &before.entries {
            let Some(now) = self.entries.get(path) else { panic!("{} is gone\n{log}", path.display()) };
            let restored = now.mode == entry.mode
                && now.owner == entry.owner
                // Small filesystems keep whole seconds.
                && now.numbers.map(|n| (n.0, n.1, n.2)) == entry.numbers.map(|n| (n.0, n.1, n.2))
                && now.content == entry.content;
            let moved = path == Path::new(super::traps::DISPLACED);
            assert!(restored || is_repaired(path) || moved, "{} became {now:?}\n{log}", path.display());
        }
        let is_new = |path: &&PathBuf| !before.entries.contains_key(*path) && !is_repaired(path);
        assert_eq!(self.entries.keys().find(is_new), None, "{log}");
    }

    /// Wants that nothing is new in it but files of the program's own and what stands below `moved` or the twin of
    /// that: where somebody else moves files about, no more can be said of them.
    pub fn assert_nothing_unfinished(&self, before: &Tree, moved: &str, log: &str) {
        for (path, entry) in &self.entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            assert!(!name.starts_with(".tmp-"), "{} is left\n{log}", path.display());
            let theirs = path.starts_with("var") || path.starts_with(moved);
            let known = theirs || before.entries.contains_key(path);
            assert!(known || entry.is_ours(), "{} is new: {entry:?}\n{log}", path.display());
        }
    }

    /// Wants that the guest bears its new name, where it bore the old one before.
    pub fn assert_renamed(&self, before: &Tree, log: &str) {
        let warned = |name: &str| {
            log.lines().any(|line| line.starts_with("warning: ") && line.contains(&format!("/etc/{name}")))
        };
        match &self.seen["hostname"] {
            Some(name) => assert_eq!(String::from_utf8_lossy(name), format!("{NEW_NAME}\n"), "{log}"),
            None => assert!(before.seen["hostname"].is_none() && warned("hostname"), "{log}"),
        }
        for file in ["hosts", "mailname"] {
            let Some(old) = &before.seen[file] else {
                assert!(self.seen[file].is_none(), "/etc/{file} is new\n{log}");
                continue;
            };
            let Some(now) = &self.seen[file] else { panic!("/etc/{file} is gone\n{log}") };
            let bore = before.seen["hostname"].is_some() && bears(file, old, OLD_NAME);
            let renamed = bears(file, now, NEW_NAME) && !bears(file, now, OLD_NAME);
            assert!(!bore || renamed, "/etc/{file} is {}\n{log}", String::from_utf8_lossy(now));
        }
    }
}

/// Whether a file gives the guest a name: mailname by all that is in it, hosts by its own address.
fn bears(file: &str, bytes: &[u8], name: &str) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match file {
        "mailname" => text.trim() == name,
        _ => text.lines().any(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next() == Some("127.0.1.1") && words.any(|word| word == name)
        }),
    }
}

impl Entry {
    fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    fn is_ours(&self) -> bool {
        self.is_file() && self.content.starts_with(HEADER.as_bytes())
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { inode, mode, owner, numbers, content } = self;
        let content = content[..content.len().min(300)].escape_ascii();
        write!(f, "inode {inode}, mode {mode:o}, owner {owner:?}, {numbers:?}, \"{content}\"")
    }
}

/// Whether it is what renaming changes, perhaps at the end of a link.
fn is_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let other_names = path.starts_with("var/names");
    !other_names && (NAMES.contains(&&*name) || path == Path::new(super::traps::DISPLACED))
}

fn entry_of(path: &Path) -> Entry {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    let mut content = Vec::new();
    if kind.is_file() {
        File::open(path).unwrap().take(CONTENT_MAX).read_to_end(&mut content).unwrap();
    } else if kind.is_symlink() {
        content = fs::read_link(path).unwrap().into_os_string().into_encoded_bytes();
    }
    let has_number = kind.is_block_device() || kind.is_char_device();
    let numbers = (meta.rdev() * u64::from(has_number), meta.len(), meta.mtime(), meta.mtime_nsec());
    Entry {
        inode: meta.ino(),
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        numbers: (!kind.is_dir()).then_some(numbers),
        content,
    }
}

/// What a process of the guest would read there; None where there is no regular file.
pub fn read_inside(root: &Path, path: &str) -> Option<Vec<u8>> {
    let top = File::open(root).unwrap();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(&top, path, flags, Mode::empty(), resolve).ok()?;
    // By the node's own /proc: it leads to just that file.
    let found = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    fs::metadata(&found).unwrap().is_file().then(|| {
        let mut bytes = Vec::new();
        File::open(found).unwrap().take(CONTENT_MAX).read_to_end(&mut bytes).unwrap();
        bytes
    })
}
