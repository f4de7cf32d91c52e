//! What a mounted tree holds, read by nothing of the program: every name is looked up through its directory, as a guest
//! would.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is each guest's own, by the beginning of its name: no two guests may have the same content there.
const SECRETS: [&str; 2] = ["etc/ssh/ssh_host_", "var/lib/systemd/random-seed"];

/// A filesystem of the ext family has one block for all that does not fit into an inode.
const ATTRIBUTE_BYTES_MAX: usize = 8192;

/// One name of a tree.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    /// None of a directory, whose blocks follow the seed of its hashes, and of a secret.
    size_bytes: Option<u64>,
    /// None where the create itself wrote it, just now.
    modified: Option<(i64, i64)>,
    links: u64,
    /// The first name of the same file.
    same_as: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Content,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    None,
    Link(PathBuf),
    /// A digest, and the blocks that hold it: holes are holes.
    File(blake3::Hash, u64),
    /// What two guests may not share.
    Own,
}

/// A mounted tree as it was read.
#[derive(Debug)]
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
    secrets: BTreeMap<PathBuf, Vec<u8>>,
}

impl Tree {
    /// Reads a tree; `uuid` is that of its filesystem, `began` when the first of those was made that it is compared with.
    pub fn read(root: &Path, uuid: &str, began: SystemTime) -> Tree {
        let mut reader = Reader {
            root,
            uuid,
            began: began.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64,
            first_names: BTreeMap::new(),
            tree: Tree { entries: BTreeMap::new(), secrets: BTreeMap::new() },
        };
        reader.directory(Path::new(""));
        reader.tree
    }

    /// Wants the same tree in another guest.
    pub fn assert_same(&self, other: &Tree, what: &str) {
        let mut differences = Vec::new();
        for name in self.entries.keys().chain(other.entries.keys()) {
            let (one, two) = (self.entries.get(name), other.entries.get(name));
            if one != two && differences.len() < 20 {
                let shown = |entry: Option<&Entry>| {
                    let text = format!("{entry:?}");
                    text.chars().take(600).collect::<String>()
                };
                differences.push(format!("{}\n  {}\n  {}", name.display(), shown(one), shown(two)));
            }
        }
        differences.dedup();
        assert!(differences.is_empty(), "{what}: the trees differ:\n{}", differences.join("\n"));
        for (name, secret) in &self.secrets {
            assert_ne!(Some(secret), other.secrets.get(name), "{what}: {} is no guest's own", name.display());
        }
    }

    /// How many names it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

struct Reader<'a> {
    root: &'a Path,
    uuid: &'a str,
    /// Seconds since the epoch.
    began: i64,
    first_names: BTreeMap<u64, PathBuf>,
    tree: Tree,
}

impl Reader<'_> {
    fn directory(&mut self, dir: &Path) {
        // As a directory lists them, so that what is found by name is looked up in its hashes.
        let listed = fs::read_dir(self.root.join(dir)).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let repeated = names.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(repeated, None, "{} lists a name twice", dir.display());
        for name in names {
            let path = dir.join(&name);
            let meta = fs::symlink_metadata(self.root.join(&path))
                .unwrap_or_else(|e| panic!("{} is listed, and not found: {e}", path.display()));
            let entry = self.entry(&path, &meta);
            self.tree.entries.insert(path.clone(), entry);
            if meta.is_dir() {
                self.directory(&path);
            }
        }
        let missing = self.root.join(dir).join("no such name");
        assert_eq!(fs::symlink_metadata(missing).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }

    fn entry(&mut self, path: &Path, meta: &Metadata) -> Entry {
        let kind = meta.file_type();
        let content = if kind.is_symlink() {
            Content::Link(fs::read_link(self.root.join(path)).unwrap())
        } else if kind.is_file() {
            self.content(path, meta)
        } else {
            Content::None
        };
        let same_as = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| self.first_names.entry(meta.ino()).or_insert_with(|| path.to_owned()).clone());
        let is_device = kind.is_char_device() || kind.is_block_device();
        Entry {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            device: if is_device { meta.rdev() } else { 0 },
            size_bytes: (!kind.is_dir() && content != Content::Own).then_some(meta.size()),
            modified: (meta.mtime() < self.began - 1).then_some((meta.mtime(), meta.mtime_nsec())),
            links: meta.nlink(),
            same_as,
            attributes: attributes(&self.root.join(path)),
            content,
        }
    }

    fn content(&mut self, path: &Path, meta: &Metadata) -> Content {
        let mut bytes = fs::read(self.root.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(bytes.len() as u64, meta.size(), "{}", path.display());
        let name = path.as_os_str().as_bytes();
        if SECRETS.iter().any(|secret| name.starts_with(secret.as_bytes())) {
            self.tree.secrets.insert(path.to_owned(), bytes);
            return Content::Own;
        }
        if ["etc/fstab", "boot/grub/grub.cfg"].map(Path::new).contains(&path) {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(self.uuid), "{} does not name {}: {text}", path.display(), self.uuid);
            bytes = without_uuids(&text).into_bytes();
        }
        Content::File(blake3::hash(&bytes), meta.blocks())
    }
}

/// Identifiers are each guest's own, wherever these files name them.
fn without_uuids(text: &str) -> String {
    let is_uuid = |word: &str| word.len() == 36 && word.matches('-').count() == 4;
    let is_volume = |word: &str| word.len() == 9 && word.as_bytes()[4] == b'-';
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    words
        .filter(|word| is_uuid(word) || is_volume(word))
        .fold(text.to_owned(), |text, word| text.replace(word, "OWN"))
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let read = |name: &[u8]| {
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        value.truncate(length);
        (name.to_owned(), value)
    };
    names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(read).collect()
}
