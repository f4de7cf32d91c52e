//! Packages that were fetched once: a second tree of a release, or a refresh, fetches only what is new. It holds what
//! Debian's own keys vouch for and nothing else, each file under its digest, and trusts none that does not match it.
//!
//! A bootstrap gets copies, so that whatever happens to it or to its tree never reaches what others use.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::report;
use crate::rootdir::RootDir;
use crate::sys::signals;
use crate::sys::tmpfile;

/// Where apt looks first: at a name and a size, so that what is there must be right.
pub const ARCHIVES: &str = "var/cache/apt/archives";
/// Where debootstrap looks first, and checks what it finds.
pub const PARTIAL: &str = "var/cache/apt/archives/partial";

/// More are not looked at.
const FILES_MAX: usize = 20_000;

/// The packages of one release and architecture.
#[derive(Debug, Clone)]
pub struct Downloads {
    dir: PathBuf,
}

/// One of them.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    digest: String,
    /// As apt calls it: `NAME_VERSION_ARCH.deb`.
    name: String,
}

impl Kept {
    /// `DIGEST-NAME_VERSION_ARCH.deb`
    fn of(path: PathBuf) -> Option<Kept> {
        let (digest, name) = path.file_name()?.to_str()?.split_once('-')?;
        let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) && is_package(name);
        let (digest, name) = (digest.to_owned(), name.to_owned());
        good.then_some(Kept { path, digest, name })
    }
}

impl Downloads {
    /// Those in a directory, which need not exist.
    pub fn new(dir: PathBuf) -> Downloads {
        Downloads { dir }
    }

    fn kept(&self) -> Vec<Kept> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.take(FILES_MAX).filter_map(|entry| Kept::of(entry.path())).collect()
    }

    /// Copies them to `dir` of a tree, where a tool looks first. What is there stays.
    pub fn lend(&self, root: &RootDir, dir: &str) -> Result<()> {
        root.create_dir_all(dir, 0o755)?;
        let dir = root.open_plain(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for kept in self.kept() {
            signals::check()?;
            let context = || format!("copying {}", kept.path.display());
            let mut to = match openat(&dir, &kept.name, new, Mode::from_raw_mode(0o644)) {
                Err(Errno::EXIST) => continue,
                to => File::from(to.with_context(context)?),
            };
            let copied = File::open(&kept.path).and_then(|file| copy(file, &mut to));
            if copied.with_context(context)? != kept.digest {
                report::warning(&format!("{} is damaged; it is fetched anew", kept.path.display()));
                unlinkat(&dir, &kept.name, AtFlags::empty()).with_context(context)?;
                fs::remove_file(&kept.path).with_context(|| format!("removing {}", kept.path.display()))?;
            }
        }
        Ok(())
    }

    /// Keeps what was fetched of the packages that the tree has, and notes which were of use.
    pub fn keep(&self, root: &RootDir, packages: &BTreeMap<String, String>) -> Result<()> {
        let context = || format!("keeping packages in {}", self.dir.display());
        fs::create_dir_all(&self.dir).with_context(context)?;
        let known = self.kept();
        for name in root.list(ARCHIVES, FILES_MAX)? {
            signals::check()?;
            let Some(name) = name.to_str().filter(|name| is_of_one(name, packages)) else { continue };
            match known.iter().find(|kept| kept.name == name) {
                Some(kept) => {
                    let file = File::options().write(true).open(&kept.path);
                    file.and_then(|file| file.set_modified(SystemTime::now())).with_context(context)?;
                }
                None => self.add(root, name).with_context(context)?,
            }
        }
        Ok(())
    }

    fn add(&self, root: &RootDir, name: &str) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = File::from(root.open_plain(Path::new(ARCHIVES).join(name), flags)?);
        if !file.metadata()?.is_file() {
            return Ok(());
        }
        let mut kept = tmpfile::create(&self.dir)?;
        let digest = copy(file, &mut kept)?;
        // Not flushed: what a crash damages is noticed by its digest.
        tmpfile::link(&kept, &self.dir.join(format!("{digest}-{name}")))
    }
}

/// Packages of all releases below `dir` that no bootstrap has used for longer than `days`.
pub fn unused(dir: &Path, days: u32) -> Vec<PathBuf> {
    let limit = Duration::from_secs(u64::from(days) * 24 * 3600);
    let age = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok()?.elapsed().ok();
    files(dir).into_iter().filter(|path| age(path).is_some_and(|age| age > limit)).collect()
}

/// How many there are of all releases below `dir`, and their bytes.
pub fn total(dir: &Path) -> (usize, u64) {
    let files = files(dir);
    let bytes = files.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len()).sum();
    (files.len(), bytes)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let releases = fs::read_dir(dir).into_iter().flatten().flatten();
    releases.flat_map(|release| Downloads::new(release.path()).kept()).map(|kept| kept.path).collect()
}

/// Copies a file; its SHA-256.
fn copy(mut from: File, to: &mut File) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(format!("{:x}", hash.finalize()));
        }
        hash.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
}

/// A plain name of a package's file; apt writes `:` as `%3a`.
fn is_package(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-._~%".contains(c);
    name.len() <= 180
        && !name.starts_with('.')
        && name.chars().all(plain)
        && Path::new(name).extension() == Some(OsStr::new("deb"))
}

/// Whether it is one of these packages, in the version that is installed.
fn is_of_one(name: &str, packages: &BTreeMap<String, String>) -> bool {
    let mut parts = name.split('_');
    let (Some(package), Some(version)) = (parts.next(), parts.next()) else { return false };
    is_package(name)
        && packages.get(package).is_some_and(|installed| installed.replace(':', "%3a") == version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Sha256;

    fn tree(file: &str, content: &[u8]) -> (tempfile::TempDir, RootDir) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(ARCHIVES)).unwrap();
        fs::write(dir.path().join(ARCHIVES).join(file), content).unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        (dir, root)
    }

    fn installed() -> BTreeMap<String, String> {
        [("hello".to_owned(), "1:2.10-3".to_owned()), ("evil".to_owned(), "1".to_owned())].into()
    }

    const NAME: &str = "hello_1%3a2.10-3_amd64.deb";

    #[test]
    fn what_was_fetched_once_is_lent_and_what_is_damaged_is_not() {
        let store = tempfile::tempdir().unwrap();
        let downloads = Downloads::new(store.path().join("trixie-amd64"));
        let (_first, root) = tree(NAME, b"a package");
        downloads.keep(&root, &installed()).unwrap();
        let kept = store.path().join(format!("trixie-amd64/{:x}-{NAME}", Sha256::digest(b"a package")));
        assert_eq!(fs::read(&kept).unwrap(), b"a package");
        assert_eq!(total(store.path()), (1, 9));

        let (second, root) = tree("other", b"");
        downloads.lend(&root, ARCHIVES).unwrap();
        assert_eq!(fs::read(second.path().join(ARCHIVES).join(NAME)).unwrap(), b"a package");
        fs::write(&kept, b"a Package").unwrap();
        let (third, root) = tree("other", b"");
        downloads.lend(&root, ARCHIVES).unwrap();
        assert!(!third.path().join(ARCHIVES).join(NAME).exists() && !kept.exists());
    }

    #[test]
    fn nothing_is_kept_that_is_not_a_file_of_an_installed_package() {
        let store = tempfile::tempdir().unwrap();
        let downloads = Downloads::new(store.path().join("trixie-amd64"));
        let (dir, root) = tree("hello_9_amd64.deb", b"another version");
        let archives = dir.path().join(ARCHIVES);
        fs::write(archives.join("stranger_1_all.deb"), b"x").unwrap();
        fs::write(archives.join(".evil_1_all.deb"), b"x").unwrap();
        fs::write(archives.join("hello_1%3a2.10-3_a\nb.deb"), b"x").unwrap();
        downloads.keep(&root, &installed()).unwrap();
        assert_eq!(total(store.path()), (0, 0));
        // A package's script could put a link there.
        std::os::unix::fs::symlink("/etc/passwd", archives.join("evil_1_all.deb")).unwrap();
        downloads.keep(&root, &installed()).unwrap_err();
        assert_eq!(total(store.path()), (0, 0));
    }

    #[test]
    fn what_no_bootstrap_has_used_for_long_is_told() {
        let store = tempfile::tempdir().unwrap();
        let downloads = Downloads::new(store.path().join("sid-amd64"));
        let (_dir, root) = tree(NAME, b"a package");
        downloads.keep(&root, &installed()).unwrap();
        let path = files(store.path()).remove(0);
        assert_eq!(unused(store.path(), 1), Vec::<PathBuf>::new());
        let long_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
        File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(unused(store.path(), 1), [path]);
        downloads.keep(&root, &installed()).unwrap();
        assert_eq!(unused(store.path(), 1), Vec::<PathBuf>::new(), "it was of use again");
    }
}
