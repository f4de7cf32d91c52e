//! Owns the one way to a path inside a guest: a directory tree reached through openat2(2) with
//! `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, so that no link in the tree leads out of it, however
//! it is made.
//!
//! Must not know what the files mean, mount anything, or hand out a path of the node.
//!
//! Paths are those the guest sees: `/etc/hostname` and `etc/hostname` are the same file, and `..`
//! at the top stays at the top. Links in the middle of a path are followed inside the root; whether
//! the last component is followed is said at each method. Errors name the path as the guest sees
//! it.

mod clear;
mod temp;
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make their trees with real tools")]
mod tests_as_root;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use temp::TempName;

use crate::report::Foreign;

/// Every path is resolved with these.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// To read a file without hanging on a FIFO or taking a terminal.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// To list a directory.
const READ_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// To hold a directory, for the calls that take one and a name.
const HOLD_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// openat2 answers EAGAIN when something was renamed while it resolved `..` (openat2(2)); it is
/// asked this often.
const RESOLVE_ATTEMPTS: u32 = 64;

/// A directory tree that no path leads out of.
#[derive(Debug)]
pub struct RootDir {
    top: OwnedFd,
}

/// What stands at a path, as far as callers decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket.
    Other,
}

impl Kind {
    fn of(kind: FileType) -> Kind {
        match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Other,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Kind::File => "a regular file",
            Kind::Dir => "a directory",
            Kind::Symlink => "a symbolic link",
            Kind::Other => "a device, FIFO or socket",
        })
    }
}

/// Owner, group and permission bits of a file about to be written.
struct Access {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl RootDir {
    /// Opens `path`, a path of the node, as the top of a tree. Links in `path` itself are followed:
    /// it is ours.
    pub fn open(path: &Path) -> Result<RootDir> {
        let top = fs::openat(CWD, path, HOLD_DIR | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("opening {} as a root directory", path.display()))?;
        Ok(RootDir { top })
    }

    /// The same tree, held once more.
    pub fn again(&self) -> Result<RootDir> {
        Ok(RootDir { top: self.top.try_clone().context("holding a root directory")? })
    }

    /// The tree below the directory at `path`, which may not be a link; `None` if there is none.
    pub fn below(&self, path: impl AsRef<Path>) -> Result<Option<RootDir>> {
        let path = path.as_ref();
        match self.open_at(path, HOLD_DIR | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            top => Ok(Some(RootDir { top: top.with_context(|| format!("opening {}", shown(path)))? })),
        }
    }

    /// The top itself, held by `O_PATH`.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// The content of the regular file at `path`, links followed inside the root; `None` if there
    /// is nothing. An error if it is anything else than a regular file, or larger than `max_bytes`.
    pub fn read(&self, path: impl AsRef<Path>, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        self.read_regular(path, max_bytes).with_context(|| format!("reading {}", shown(path)))
    }

    /// Whether the regular file at `path` begins with `bytes`, links followed inside the root; no more of it
    /// is read. `false` if there is nothing; an error if it is anything else than a regular file.
    pub fn begins_with(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<bool> {
        let path = path.as_ref();
        let start = self.read_start(path, bytes.len()).with_context(|| format!("reading {}", shown(path)))?;
        Ok(start == bytes)
    }

    /// What stands at `path`; a link as the last component is not followed. `None` if there is
    /// nothing.
    pub fn kind(&self, path: impl AsRef<Path>) -> Result<Option<Kind>> {
        self.look_at(path.as_ref(), OFlags::NOFOLLOW)
    }

    /// Whether `path` is a directory, links followed inside the root.
    pub fn is_dir(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(self.look_at(path.as_ref(), OFlags::empty())? == Some(Kind::Dir))
    }

    /// Whether `path` is a regular file, links followed inside the root.
    pub fn is_file(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(self.look_at(path.as_ref(), OFlags::empty())? == Some(Kind::File))
    }

    /// Puts a regular file with `bytes` at `path`, owned by root, with exactly `mode` whatever the
    /// umask, all at once. What stood there is replaced, and so is a link: it is not followed. A
    /// directory there is an error, as is a missing parent.
    pub fn write(&self, path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<()> {
        let path = path.as_ref();
        self.replace(path, bytes, &Access { uid: 0, gid: 0, mode })
            .with_context(|| format!("writing {}", shown(path)))
    }

    /// Like [`RootDir::write`], with the owner, group and mode of the regular file that must stand
    /// at `path`.
    pub fn rewrite(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.access_of(path)
            .and_then(|access| self.replace(path, bytes, &access))
            .with_context(|| format!("rewriting {}", shown(path)))
    }

    /// Creates a file that is not there yet, open for writing. Its directory must be there.
    pub fn create_new(&self, path: impl AsRef<Path>, mode: u32) -> Result<File> {
        let path = path.as_ref();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = fs::openat2(&self.top, path, flags, mode, INSIDE);
        Ok(file.with_context(|| format!("creating {}", shown(path)))?.into())
    }

    /// Makes `path` and what is missing above it, each directory owned by root with exactly `mode`;
    /// those that are there stay as they are.
    pub fn create_dir_all(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = path.as_ref();
        self.create_missing(path, mode).with_context(|| format!("creating the directory {}", shown(path)))
    }

    /// Puts a symbolic link with the text `target` at `path`, all at once, in place of anything but
    /// a directory.
    pub fn symlink(&self, target: &str, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.replace_by_link(target, path).with_context(|| format!("linking {} to {target}", shown(path)))
    }

    /// Removes what is at `path`, unless it is a directory; a link is removed, not followed.
    /// `false` if there was nothing.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        let context = || format!("removing {}", shown(path));
        let name = last_component(path).with_context(context)?;
        let Some(parent) = self.held_parent(path).with_context(context)? else {
            return Ok(false);
        };
        Ok(present(fs::unlinkat(&parent, name, AtFlags::empty())).with_context(context)?.is_some())
    }

    /// The sorted names in the directory at `dir`, links followed inside the root; none if there is
    /// nothing. An error above `max_entries`.
    pub fn list(&self, dir: impl AsRef<Path>, max_entries: usize) -> Result<Vec<OsString>> {
        let dir = dir.as_ref();
        let context = || format!("listing {}", shown(dir));
        let mut names = Vec::new();
        let Some(fd) = present_dir(self.open_at(dir, READ_DIR)).with_context(context)? else {
            return Ok(names);
        };
        for entry in Dir::new(fd).with_context(context)? {
            let entry = entry.with_context(context)?;
            if is_dot(entry.file_name().to_bytes()) {
                continue;
            }
            ensure!(names.len() < max_entries, "{}: it has more than {max_entries} entries", context());
            names.push(OsString::from_vec(entry.file_name().to_bytes().to_vec()));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the regular files directly in `dir` whose name `matches`, which is asked once for each
    /// name and may end it by an error; says how many. None if there is no `dir`. An error above
    /// `max_entries`: what was removed by then is gone.
    pub fn remove_files(
        &self,
        dir: impl AsRef<Path>,
        max_entries: usize,
        matches: impl Fn(&OsStr) -> Result<bool>,
    ) -> Result<usize> {
        let dir = dir.as_ref();
        let context = || format!("removing files from {}", shown(dir));
        let Some(fd) = present_dir(self.open_at(dir, READ_DIR)).with_context(context)? else {
            return Ok(0);
        };
        let (mut seen, mut removed) = (0, 0);
        for entry in Dir::read_from(&fd).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name();
            if is_dot(name.to_bytes()) {
                continue;
            }
            ensure!(seen < max_entries, "{}: it has more than {max_entries} entries", context());
            seen += 1;
            if !matches(OsStr::from_bytes(name.to_bytes())).with_context(context)? {
                continue;
            }
            let stat = fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).with_context(context)?;
            if file_type(&stat) == FileType::RegularFile {
                fs::unlinkat(&fd, name, AtFlags::empty()).with_context(context)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes everything below `dir`, but not `dir` itself; nothing to do if it is absent. Links
    /// are removed, not followed; a mount point or another filesystem below is an error, and what
    /// is in it stays. `may_go_on` is asked before each removal, and may end it.
    pub fn clear_dir(&self, dir: impl AsRef<Path>, may_go_on: fn() -> Result<()>) -> Result<()> {
        let dir = dir.as_ref();
        let context = || format!("clearing {}", shown(dir));
        let Some(fd) = present_dir(self.open_at(dir, READ_DIR)).with_context(context)? else {
            return Ok(());
        };
        clear::below(&fd, dir, may_go_on).with_context(context)
    }

    /// Opens `path` inside the root, `""` being its top. The raw answer of the kernel, for callers
    /// that decide by it.
    pub(crate) fn open_at(&self, path: impl AsRef<Path>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.open_with(path.as_ref(), flags, INSIDE)
    }

    /// Like [`RootDir::open_at`], but no component may be a link, nor lie across a mount point.
    pub(crate) fn open_plain(&self, path: impl AsRef<Path>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.open_with(path.as_ref(), flags, INSIDE | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
    }

    fn open_with(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut attempts = 1;
        loop {
            match fs::openat2(&self.top, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
                answer => return answer,
            }
        }
    }

    fn look_at(&self, path: &Path, follow: OFlags) -> Result<Option<Kind>> {
        let look = || -> rustix::io::Result<Option<Kind>> {
            let Some(fd) = present(self.open_at(path, OFlags::PATH | follow))? else {
                return Ok(None);
            };
            Ok(Some(Kind::of(file_type(&fs::fstat(&fd)?))))
        };
        look().with_context(|| format!("looking at {}", shown(path)))
    }

    fn read_regular(&self, path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let opened = self.open_regular(path)?;
        opened.map(|(file, stat)| read_bounded(file, &stat, max_bytes)).transpose()
    }

    fn read_start(&self, path: &Path, length: usize) -> Result<Vec<u8>> {
        let mut start = Vec::new();
        if let Some((file, _)) = self.open_regular(path)? {
            file.take(length as u64).read_to_end(&mut start)?;
        }
        Ok(start)
    }

    /// Looks before it opens: to open a device may already do something (rewind a tape, start a
    /// watchdog).
    fn open_regular(&self, path: &Path) -> Result<Option<(File, Stat)>> {
        for flags in [OFlags::PATH, READ] {
            let Some(fd) = present(self.open_at(path, flags))? else {
                return Ok(None);
            };
            let stat = fs::fstat(&fd)?;
            expect_regular(&stat)?;
            if flags == READ {
                return Ok(Some((File::from(fd), stat)));
            }
        }
        Ok(None)
    }

    fn access_of(&self, path: &Path) -> Result<Access> {
        let stat = fs::fstat(self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW)?)?;
        expect_regular(&stat)?;
        Ok(Access { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 })
    }

    fn replace(&self, path: &Path, bytes: &[u8], access: &Access) -> Result<()> {
        let name = last_component(path)?;
        let parent = self.open_parent(path)?;
        let temp = TempName::new(&parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&parent, &temp.name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        fs::fchown(&file, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))?;
        fs::fchmod(&file, Mode::from_bits_truncate(access.mode))?;
        temp.rename_to(name)
    }

    fn replace_by_link(&self, target: &str, path: &Path) -> Result<()> {
        let name = last_component(path)?;
        let parent = self.open_parent(path)?;
        let temp = TempName::new(&parent)?;
        fs::symlinkat(target, &parent, &temp.name)?;
        temp.rename_to(name)
    }

    fn create_missing(&self, path: &Path, mode: u32) -> Result<()> {
        let components: Vec<Component<'_>> = path.components().collect();
        let there = self.count_there(&components);
        let mut so_far: PathBuf = components[..there].iter().collect();
        let mut parent = self.open_at(&so_far, HOLD_DIR)?;
        let mut made = false;
        for component in &components[there..] {
            so_far.push(component);
            // Below what was just made there is nothing to look for.
            let known_missing = made && matches!(component, Component::Normal(_));
            let found = if known_missing { Err(Errno::NOENT) } else { self.open_at(&so_far, HOLD_DIR) };
            parent = match found {
                Err(Errno::NOENT) => make_dir(&parent, component.as_os_str(), mode),
                answer => answer,
            }
            .with_context(|| format!("making {} a directory", shown(&so_far)))?;
            made = true;
        }
        Ok(())
    }

    /// How many components of a path lead to a directory. By halves: each look takes as long as the path, and one that a
    /// stranger made has thousands of components.
    fn count_there(&self, components: &[Component<'_>]) -> usize {
        let (mut there, mut missing) = (0, components.len() + 1);
        while there + 1 < missing {
            let middle = there.midpoint(missing);
            match self.open_at(components[..middle].iter().collect::<PathBuf>(), HOLD_DIR) {
                Ok(_) => there = middle,
                Err(_) => missing = middle,
            }
        }
        there
    }

    fn open_parent(&self, path: &Path) -> Result<OwnedFd> {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.open_at(parent, HOLD_DIR).with_context(|| format!("opening the directory {}", shown(parent)))
    }

    fn held_parent(&self, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
        present(self.open_at(path.parent().unwrap_or(Path::new("")), HOLD_DIR))
    }
}

/// ENOENT and ENOTDIR both say that there is nothing at the path.
fn present<T>(answer: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Like [`present`] where a directory is asked for: a file in its place is an error.
fn present_dir(answer: rustix::io::Result<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    match answer {
        Err(Errno::NOTDIR) => Err(Errno::NOTDIR),
        answer => present(answer),
    }
}

fn make_dir(parent: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<OwnedFd> {
    fs::mkdirat(parent, name, Mode::RWXU)?;
    let dir = fs::openat(parent, name, READ_DIR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    fs::fchown(&dir, Some(Uid::ROOT), Some(Gid::ROOT))?;
    fs::fchmod(&dir, Mode::from_bits_truncate(mode))?;
    Ok(dir)
}

fn read_bounded(file: File, stat: &Stat, max_bytes: u64) -> Result<Vec<u8>> {
    let expected = u64::try_from(stat.st_size).unwrap_or(0).min(max_bytes);
    let mut bytes = Vec::with_capacity(usize::try_from(expected)?);
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= max_bytes, "it is larger than {max_bytes} bytes");
    Ok(bytes)
}

fn expect_regular(stat: &Stat) -> Result<()> {
    let found = match file_type(stat) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown type",
    };
    bail!("it is {found}, expected a regular file")
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn last_component(path: &Path) -> Result<&OsStr> {
    path.file_name().context("the path does not end in a name")
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// The path as the guest sees it.
fn shown(path: &Path) -> String {
    format!("/{}", Foreign(path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes()))
}
