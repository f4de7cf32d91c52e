//! Owns the walk over a tree and what each kind of file becomes in an archive. Must not follow a
//! link, leave the filesystem that the tree's top is on, or keep more in memory the larger the tree
//! is.

use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fstat, major, minor, openat2, readlinkat,
    seek, statat,
};
use rustix::io::Errno;

use super::acl::{self, ACCESS, DEFAULT};
use super::attributes::{Reader, Target};
use super::links::{Known, Links};
use super::names::Names;
use super::output::{Member, Output};
use super::pax::{Time, kept, push_attribute};
use super::pax_record::push;
use super::sparse::{Sparse, announced};
use super::{BLOCK, Checkpoint, PATH_BYTES_MAX, shown};
use crate::rootdir::RootDir;

/// Reading leaves no trace in the tree: no access times. NONBLOCK for what is no regular file after
/// all.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOATIME)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// One step down, never by a link or across a mount point.
const ONE_STEP: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// What [`pack()`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackStats {
    /// Entries, the top included, extended headers not.
    pub entries: u64,
    /// Length of the archive.
    pub bytes: u64,
}

/// Writes the tree under `root` to `out` as a POSIX pax archive, names as `./etc/fstab`, each
/// directory before what is in it, and that sorted by name: the same tree gives the same bytes.
///
/// Kept: numeric owners, modes, nanosecond modification times, hard links, symbolic links, devices,
/// FIFOs, extended attributes (`user.`, `trusted.`, `security.`), POSIX ACLs, holes. `on_skip`
/// hears the path, relative to the root, and the reason of what is not kept: sockets, what is
/// mounted, attributes that belong to the source's filesystem.
pub fn pack(
    root: &RootDir,
    out: &mut impl Write,
    on_skip: &mut dyn FnMut(&Path, &str),
    checkpoint: Checkpoint<'_>,
) -> Result<PackStats> {
    let top = root.open_plain("", READ | OFlags::DIRECTORY).context("opening the tree")?;
    let mut packer = Packer {
        root,
        device: fstat(&top).context("looking at the tree")?.st_dev,
        output: Output::new(out, checkpoint),
        on_skip,
        links: Links::default(),
        reader: Reader::new(),
        records: Vec::new(),
        path: b".".to_vec(),
        dir: None,
        levels: Vec::new(),
        entries: 0,
    };
    packer.dir = packer.directory(top).context("packing /")?;
    while packer.advance()? {
        checkpoint()?;
        packer.visit().with_context(|| format!("packing {}", shown(&packer.path)))?;
    }
    Ok(PackStats { entries: packer.entries, bytes: packer.output.finish()? })
}

struct Packer<'a> {
    root: &'a RootDir,
    device: u64,
    output: Output<'a>,
    on_skip: &'a mut dyn FnMut(&Path, &str),
    links: Links,
    reader: Reader,
    /// Pax records of the entry at hand.
    records: Vec<u8>,
    /// From `.` to the entry at hand.
    path: Vec<u8>,
    /// The directory of the innermost level; opened again when the walk returns to it, so that one
    /// descriptor is enough for any depth.
    dir: Option<OwnedFd>,
    levels: Vec<Level>,
    entries: u64,
}

/// A directory that the walk is in.
struct Level {
    names: Names,
    /// How much of the path is the directory's.
    path_bytes: usize,
}

impl Packer<'_> {
    /// Puts the next name at the end of the path; `false` when the tree is done.
    fn advance(&mut self) -> Result<bool> {
        while let Some(level) = self.levels.last_mut() {
            self.path.truncate(level.path_bytes);
            if let Some(name) = level.names.next() {
                self.path.push(b'/');
                self.path.extend_from_slice(name.to_bytes());
                return Ok(true);
            }
            let after = level.names.unread_after().map(CStr::to_owned);
            self.levels.pop();
            match after {
                Some(after) => {
                    let dir = self.take_dir(self.path.len())?;
                    self.enter(&dir, Some(&after))?;
                    self.dir = Some(dir);
                }
                None => self.dir = None,
            }
        }
        Ok(false)
    }

    fn visit(&mut self) -> Result<()> {
        ensure!(self.path.len() <= PATH_BYTES_MAX, "its path is longer than {PATH_BYTES_MAX} bytes");
        let dir = self.take_dir(self.levels.last().map_or(0, |level| level.path_bytes))?;
        let stat = statat(&dir, self.name(), AtFlags::SYMLINK_NOFOLLOW).context("looking at it")?;
        self.dir = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.subdirectory(&dir)?,
            FileType::Socket => self.skip("it is a socket"),
            kind => self.leaf(&dir, kind, &stat)?,
        }
        .or(Some(dir));
        Ok(())
    }

    /// Writes the directory at the path and goes in; the answer is its descriptor, if it was
    /// entered.
    fn subdirectory(&mut self, dir: &OwnedFd) -> Result<Option<OwnedFd>> {
        match openat2(dir, self.name(), READ | OFlags::DIRECTORY, Mode::empty(), ONE_STEP) {
            Err(Errno::XDEV) => Ok(self.skip("it is a mount point")),
            below => self.directory(below.context("opening it")?),
        }
    }

    fn directory(&mut self, dir: OwnedFd) -> Result<Option<OwnedFd>> {
        let stat = fstat(&dir)?;
        if stat.st_dev != self.device {
            return Ok(self.skip("it is another filesystem"));
        }
        self.read_attributes(&Target::Open(dir.as_fd()))?;
        self.path.push(b'/');
        let written = self.member(b'5', &stat, b"", 0);
        self.path.pop();
        written?;
        self.enter(&dir, None)?;
        Ok(Some(dir))
    }

    fn enter(&mut self, dir: &OwnedFd, after: Option<&CStr>) -> Result<()> {
        let used = self.levels.iter().map(|level| level.names.bytes()).sum();
        let names = Names::read(dir.as_fd(), after, used)?;
        self.levels.push(Level { names, path_bytes: self.path.len() });
        Ok(())
    }

    /// Writes what is no directory.
    fn leaf(&mut self, dir: &OwnedFd, kind: FileType, stat: &Stat) -> Result<Option<OwnedFd>> {
        match self.links.look_up(stat, &self.path) {
            Known::No => {}
            Known::As(first) => {
                self.records.clear();
                self.member(b'1', stat, &first, 0)?;
                return Ok(None);
            }
            Known::TooMany => {
                self.skip("there are more hard links than are remembered: it becomes a file of its own");
            }
        }
        if kind == FileType::RegularFile {
            return self.file(dir, stat);
        }
        self.read_attributes(&Target::named(dir.as_fd(), self.name()))?;
        match kind {
            FileType::Symlink => {
                let target = readlinkat(dir, self.name(), Vec::new()).context("reading the link")?;
                self.member(b'2', stat, target.to_bytes(), 0)?;
            }
            FileType::CharacterDevice => self.member(b'3', stat, b"", 0)?,
            FileType::BlockDevice => self.member(b'4', stat, b"", 0)?,
            FileType::Fifo => self.member(b'6', stat, b"", 0)?,
            _ => return Ok(self.skip("its type is not known")),
        }
        Ok(None)
    }

    fn file(&mut self, dir: &OwnedFd, seen: &Stat) -> Result<Option<OwnedFd>> {
        let file = match openat2(dir, self.name(), READ, Mode::empty(), ONE_STEP) {
            Err(Errno::XDEV) => return Ok(self.skip("it is a mount point")),
            file => file.context("opening it")?,
        };
        let stat = fstat(&file)?;
        ensure!(
            (stat.st_dev, stat.st_ino) == (seen.st_dev, seen.st_ino),
            "it was replaced while it was opened"
        );
        self.read_attributes(&Target::Open(file.as_fd()))?;
        let size = stat.st_size as u64;
        let allocated = stat.st_blocks as u64 * BLOCK as u64;
        let sparse = if allocated < size { Sparse::of_file(file.as_fd(), size)? } else { None };
        match sparse {
            Some(sparse) => self.sparse_file(&file, &stat, &sparse)?,
            None => {
                self.member(b'0', &stat, b"", size)?;
                self.output.file(file.as_fd(), size)?;
                self.output.pad(size)?;
            }
        }
        Ok(None)
    }

    /// Writes a file with holes in GNU tar's PAX format 1.0.
    fn sparse_file(&mut self, file: &OwnedFd, stat: &Stat, sparse: &Sparse) -> Result<()> {
        let (name, records) = announced(&self.path, sparse.real_size);
        self.records.extend_from_slice(&records);
        let map = sparse.encode();
        let stored = map.len() as u64 + sparse.data_bytes();
        let path = std::mem::replace(&mut self.path, name);
        let written = self.member(b'0', stat, b"", stored);
        self.path = path;
        written?;
        self.output.bytes(&map)?;
        for extent in sparse.extents.iter().filter(|extent| extent.length > 0) {
            seek(file, SeekFrom::Start(extent.offset)).context("going to the next data in the file")?;
            self.output.file(file.as_fd(), extent.length)?;
        }
        self.output.pad(stored)
    }

    /// Writes the headers of the entry at the path.
    fn member(&mut self, kind: u8, stat: &Stat, link: &[u8], size_bytes: u64) -> Result<()> {
        self.entries += 1;
        let device = match kind {
            b'3' | b'4' => (major(stat.st_rdev), minor(stat.st_rdev)),
            _ => (0, 0),
        };
        let member = Member {
            kind,
            path: &self.path,
            link,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            size_bytes,
            device,
        };
        self.output.member(&member, &self.records)
    }

    /// Makes the pax records of the attributes of `target`.
    fn read_attributes(&mut self, target: &Target<'_>) -> Result<()> {
        let Packer { reader, records, on_skip, path, .. } = self;
        records.clear();
        reader.each(target, &mut |name, value| {
            match name {
                _ if name == ACCESS.as_bytes() => {
                    push(records, b"SCHILY.acl.access", acl::to_text(value)?.as_bytes())
                }
                _ if name == DEFAULT.as_bytes() => {
                    push(records, b"SCHILY.acl.default", acl::to_text(value)?.as_bytes())
                }
                _ if kept(name) => push_attribute(records, name, value),
                _ => on_skip(
                    relative(path),
                    &format!("its attribute {} belongs to its filesystem", name.escape_ascii()),
                ),
            }
            Ok(())
        })
    }

    /// Says why the entry at the path, or a part of it, is not kept.
    fn skip(&mut self, reason: &str) -> Option<OwnedFd> {
        (self.on_skip)(relative(&self.path), reason);
        None
    }

    /// The held directory, or the one at the first `path_bytes` of the path.
    fn take_dir(&mut self, path_bytes: usize) -> Result<OwnedFd> {
        match self.dir.take() {
            Some(dir) => Ok(dir),
            None => {
                let path = &self.path[..path_bytes];
                let dir = self.root.open_plain(OsStr::from_bytes(path), READ | OFlags::DIRECTORY);
                dir.with_context(|| format!("going back to {}", shown(path)))
            }
        }
    }

    /// The last component of the path.
    fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }
}

fn relative(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path.strip_prefix(b"./").unwrap_or(path)))
}
