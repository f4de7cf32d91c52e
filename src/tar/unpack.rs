//! Owns what each entry of an archive becomes in a tree. Must not believe the archive: every name
//! is resolved inside the root, nothing is written through a link, and what stands in the way of an
//! entry is replaced.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid, chmodat, chownat, fstat, ftruncate, linkat,
    makedev, mkdirat, mknodat, openat, seek, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, retry_on_intr, write};

use super::acl::ACCESS;
use super::attributes::{Target, remove_default_acl, set_owner_and_mode, set_times, times};
use super::entry::{self, Entry, Kind};
use super::input::Input;
use super::later::{Later, Place, Waiting};
use super::reach::{reach, split};
use super::sparse::Sparse;
use super::{PATH_BYTES_MAX, shown};
use crate::reader::{Budget, Parsed};
use crate::rootdir::RootDir;

const CREATE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories above an entry that the archive does not have.
const MISSING_PARENT_MODE: u32 = 0o755;

/// What [`unpack()`] made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnpackStats {
    /// Entries, extended headers not counted.
    pub entries: u64,
    /// Data written into files, holes not counted.
    pub bytes: u64,
}

/// Makes the files of the tar archive `input` under `root`, with their numeric owners, modes,
/// times, attributes and ACLs.
///
/// Reads to the two zero blocks that end an archive and not a byte further. A name with `..` is an
/// error, a leading `/` is dropped; a later entry replaces an earlier one of its name, except that
/// a directory stays with what is in it. Directories get their times, modes and default ACLs at the
/// end. An archive that is cut short or damaged, or asks for more work than `budget` has, is an
/// error; what was unpacked until then stays.
pub fn unpack(input: &mut impl Read, root: &RootDir, budget: &Budget<'_>) -> Result<UnpackStats> {
    unpack_only(input, root, |_| true, budget)
}

/// Like [`unpack()`], but makes only those files whose path, as `etc/fstab`, is `wanted`; directories above them that
/// are not wanted are made all the same, as root's.
pub fn unpack_only(
    input: &mut impl Read,
    root: &RootDir,
    wanted: impl Fn(&[u8]) -> bool,
    budget: &Budget<'_>,
) -> Result<UnpackStats> {
    let mut input = Input::new(input, budget);
    let mut unpacker = Unpacker {
        place: Place { root, budget },
        path: Vec::new(),
        parent: root.open_at("", OFlags::PATH | OFlags::DIRECTORY).context("opening the root")?,
        parent_path: Some(Vec::new()),
        later: Later::default(),
        stats: UnpackStats::default(),
    };
    while let Some(entry) = entry::next(&mut input)? {
        let context = || format!("unpacking {}", shown(&entry.path));
        unpacker.path.clear();
        append_clean(&mut unpacker.path, &entry.path).with_context(context)?;
        if wanted(&unpacker.path) {
            unpacker.entry(&entry, &mut input).with_context(context)?;
        }
    }
    unpacker.later.apply(unpacker.place)?;
    Ok(unpacker.stats)
}

struct Unpacker<'a> {
    place: Place<'a>,
    /// Of the entry at hand, relative to the root, without `.` and empty components.
    path: Vec<u8>,
    /// The directory that the latest entry went into, held because the next one mostly goes there
    /// too, and its path; `None` when that may lead elsewhere by now.
    parent: OwnedFd,
    parent_path: Option<Vec<u8>>,
    later: Later,
    stats: UnpackStats,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, input: &mut Input<'_>) -> Result<()> {
        self.stats.entries += 1;
        if self.path.is_empty() {
            ensure!(entry.kind == Kind::Dir, "the root can only be a directory");
            return self.top(entry);
        }
        self.hold_parent()?;
        match entry.kind {
            Kind::File => self.file(entry, input),
            Kind::Dir => self.directory(entry),
            Kind::HardLink => self.hard_link(entry),
            Kind::Symlink => self.symlink(entry),
            Kind::Fifo => self.node(entry, FileType::Fifo),
            Kind::CharDevice => self.node(entry, FileType::CharacterDevice),
            Kind::BlockDevice => self.node(entry, FileType::BlockDevice),
        }
    }

    fn file(&mut self, entry: &Entry, input: &mut Input<'_>) -> Result<()> {
        // Most files have no other bits and belong to root: then what create gives is right at
        // once.
        let mode = Mode::from_bits_truncate(entry.owner.mode & 0o777);
        let file = self.make(|parent, name| openat(parent, name, CREATE, mode))?;
        match &entry.sparse {
            None => self.stats.bytes += copy(file.as_fd(), input, u64::MAX)?,
            Some(sparse) => self.stats.bytes += copy_sparse(file.as_fd(), input, sparse)?,
        }
        let stat = fstat(&file)?;
        set_owner_and_mode(file.as_fd(), &stat, &entry.owner)?;
        self.set_attributes(&Target::Open(file.as_fd()), entry, &stat)?;
        set_times(file.as_fd(), &entry.owner)
    }

    fn directory(&mut self, entry: &Entry) -> Result<()> {
        let dir = self.make_or_keep_directory()?;
        self.begin_directory(&dir, entry)?;
        // What comes next is mostly in it.
        let path = self.parent_path.get_or_insert_default();
        path.clear();
        path.extend_from_slice(&self.path);
        self.parent = dir;
        Ok(())
    }

    fn make_or_keep_directory(&mut self) -> Result<OwnedFd> {
        let open = |unpacker: &Self| openat(&unpacker.parent, unpacker.name(), OPEN_DIR, Mode::empty());
        match mkdirat(&self.parent, self.name(), Mode::RWXU) {
            Err(Errno::EXIST) => {}
            made => {
                made?;
                return Ok(open(self)?);
            }
        }
        match open(self) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                self.remove_existing()?;
                mkdirat(&self.parent, self.name(), Mode::RWXU)?;
                Ok(open(self)?)
            }
            dir => {
                let dir = dir?;
                // Else it would go on to the files that are made in it now.
                remove_default_acl(dir.as_fd())?;
                Ok(dir)
            }
        }
    }

    fn top(&mut self, entry: &Entry) -> Result<()> {
        let dir = self.place.root.open_at("", OPEN_DIR)?;
        remove_default_acl(dir.as_fd())?;
        self.begin_directory(&dir, entry)
    }

    fn begin_directory(&mut self, dir: &OwnedFd, entry: &Entry) -> Result<()> {
        self.place.budget.look_at(entry.attributes.len() as u64)?;
        for (name, value) in &entry.attributes {
            Target::Open(dir.as_fd()).set(name, value)?;
        }
        let stat = fstat(dir)?;
        let waiting = Waiting {
            identity: (stat.st_dev, stat.st_ino),
            owner: Some(entry.owner),
            acl_access: entry.acl_access.clone(),
            acl_default: entry.acl_default.clone(),
        };
        self.later.add(&self.path, waiting, self.place)
    }

    fn hard_link(&mut self, entry: &Entry) -> Result<()> {
        let mut target = Vec::new();
        append_clean(&mut target, &entry.link).context("reading the hard link's target")?;
        let context = || format!("linking to {}", shown(&target));
        let (dir, name) = split(&target);
        let dir = self.reach(dir)?.with_context(context)?;
        let linked = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).with_context(context)?;
        if let Ok(present) = statat(&self.parent, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
            // The same file already, maybe under its only name: to replace it would be to lose it.
            if (present.st_dev, present.st_ino) == (linked.st_dev, linked.st_ino) {
                return Ok(());
            }
        }
        self.make(|parent, own| linkat(&dir, name, parent, own, AtFlags::empty())).with_context(context)
    }

    fn symlink(&mut self, entry: &Entry) -> Result<()> {
        ensure!(!entry.link.is_empty(), "the symbolic link has no target");
        self.make(|parent, name| symlinkat(entry.link.as_slice(), parent, name))?;
        let stat = statat(&self.parent, self.name(), AtFlags::SYMLINK_NOFOLLOW)?;
        self.finish_named(entry, &stat)
    }

    fn node(&mut self, entry: &Entry, kind: FileType) -> Result<()> {
        let device = makedev(entry.device.0, entry.device.1);
        self.make(|parent, name| mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device))?;
        let stat = statat(&self.parent, self.name(), AtFlags::SYMLINK_NOFOLLOW)?;
        ensure!(FileType::from_raw_mode(stat.st_mode) == kind, "it was replaced while it was made");
        self.finish_named(entry, &stat)
    }

    /// Owner, mode, attributes and times of what is not opened.
    fn finish_named(&mut self, entry: &Entry, stat: &Stat) -> Result<()> {
        let (parent, name, owner) = (&self.parent, self.name(), &entry.owner);
        if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .context("setting its owner")?;
        }
        if entry.kind != Kind::Symlink {
            chmodat(parent, name, Mode::from_bits_truncate(owner.mode), AtFlags::empty())
                .context("setting its mode")?;
        }
        let target = Target::named(self.parent.as_fd(), self.name());
        self.set_attributes(&target, entry, stat)?;
        utimensat(&self.parent, self.name(), &times(owner), AtFlags::SYMLINK_NOFOLLOW)
            .context("setting its time")
    }

    /// Extended attributes and the ACL, after owner and mode: chown drops capabilities.
    fn set_attributes(&mut self, target: &Target<'_>, entry: &Entry, stat: &Stat) -> Result<()> {
        self.place.budget.look_at(entry.attributes.len() as u64)?;
        for (name, value) in &entry.attributes {
            target.set(name, value)?;
        }
        let Some(acl) = &entry.acl_access else {
            return Ok(());
        };
        if !acl.has_names() {
            return target
                .set(ACCESS.as_bytes(), &acl.to_xattr(&mut |_, name| bail!("{name:?} has no number"))?);
        }
        let waiting = Waiting {
            identity: (stat.st_dev, stat.st_ino),
            owner: None,
            acl_access: Some(acl.clone()),
            acl_default: None,
        };
        self.later.add(&self.path, waiting, self.place)
    }

    /// Calls `create` with the parent and the name; if something is there already, removes that and
    /// calls it again.
    fn make<T>(&mut self, create: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>) -> Result<T> {
        match create(self.parent.as_fd(), self.name()) {
            Err(Errno::EXIST) => {
                self.remove_existing()?;
                Ok(create(self.parent.as_fd(), self.name())?)
            }
            made => Ok(made?),
        }
    }

    fn remove_existing(&mut self) -> Result<()> {
        self.later.forget(&self.path);
        match unlinkat(&self.parent, self.name(), AtFlags::empty()) {
            Err(Errno::ISDIR) => unlinkat(&self.parent, self.name(), AtFlags::REMOVEDIR),
            removed => removed,
        }
        .context("removing what is in its place")?;
        // It may have been a link on the way to the held directory.
        self.parent_path = None;
        Ok(())
    }

    /// Holds the directory that the entry at hand goes into, making it where the archive has none.
    fn hold_parent(&mut self) -> Result<()> {
        let (parent, _) = split(&self.path);
        if self.parent_path.as_deref() == Some(parent) {
            return Ok(());
        }
        self.parent = match self.reach(parent)? {
            Err(Errno::NOENT) => {
                self.place.root.create_dir_all(OsStr::from_bytes(parent), MISSING_PARENT_MODE)?;
                self.reach(parent)?
            }
            dir => dir,
        }
        .with_context(|| format!("opening the directory {}", shown(parent)))?;
        let held = self.parent_path.get_or_insert_default();
        held.clear();
        held.extend_from_slice(parent);
        Ok(())
    }

    fn reach(&self, dir: &[u8]) -> Parsed<rustix::io::Result<OwnedFd>> {
        reach(self.place.root, dir, OFlags::PATH, self.place.budget)
    }

    fn name(&self) -> &[u8] {
        split(&self.path).1
    }
}

/// Writes at most `length_bytes` of the entry's data to the file, and says how many there were.
fn copy(file: BorrowedFd<'_>, input: &mut Input<'_>, length_bytes: u64) -> Result<u64> {
    let mut copied = 0;
    while copied < length_bytes {
        let Some(mut piece) = input.data(length_bytes - copied)? else {
            break;
        };
        copied += piece.len() as u64;
        while !piece.is_empty() {
            let length = retry_on_intr(|| write(file, piece)).context("writing its data")?;
            piece = &piece[length..];
        }
    }
    Ok(copied)
}

fn copy_sparse(file: BorrowedFd<'_>, input: &mut Input<'_>, sparse: &Sparse) -> Result<u64> {
    let mut copied = 0;
    input.look_at(sparse.extents.len())?;
    for extent in sparse.extents.iter().filter(|extent| extent.length > 0) {
        seek(file, SeekFrom::Start(extent.offset)).context("going to the next data in the file")?;
        copied += copy(file, input, extent.length)?;
    }
    ftruncate(file, sparse.real_size).context("setting its size")?;
    Ok(copied)
}

/// Appends the components of `name`, joined by `/`; refuses those that lead upwards.
fn append_clean(path: &mut Vec<u8>, name: &[u8]) -> Result<()> {
    ensure!(!name.contains(&0), "the name contains a NUL");
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => bail!("the name {:?} contains \"..\"", name.escape_ascii().to_string()),
            _ if !path.is_empty() => path.push(b'/'),
            _ => {}
        }
        path.extend_from_slice(component);
    }
    ensure!(path.len() <= PATH_BYTES_MAX, "the name is longer than {PATH_BYTES_MAX} bytes");
    Ok(())
}
