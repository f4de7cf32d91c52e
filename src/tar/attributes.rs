//! Owns what a file of the tree has besides its content: owner, mode and times of what is open, and
//! extended attributes, listed, read and set by descriptor or, for what cannot be opened, by a name in
//! a held directory. Must not follow a link.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{
    Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod, fchown, fgetxattr,
    flistxattr, fremovexattr, fsetxattr, futimens, lgetxattr, llistxattr, lsetxattr,
};
use rustix::io::Errno;

use super::acl::DEFAULT;
use super::entry::Owner;

/// The kernel's bound on one value, and on one list of names (linux/limits.h XATTR_SIZE_MAX,
/// XATTR_LIST_MAX).
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;

/// A file whose attributes are meant.
pub(crate) enum Target<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// Anything else: `/proc/self/fd/DIRECTORY/NAME`, whose last component the calls do not follow.
    Named(PathBuf),
}

impl<'a> Target<'a> {
    /// `name` in the held directory `dir`; the kernel before 6.13 has no calls that take both.
    pub(crate) fn named(dir: BorrowedFd<'_>, name: &[u8]) -> Target<'a> {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        path.push(OsStr::from_bytes(name));
        Target::Named(path)
    }

    /// Sets the attribute `name`.
    pub(crate) fn set(&self, name: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Target::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Target::Named(path) => lsetxattr(path, name, value, XattrFlags::empty()),
        }
        .with_context(|| format!("setting the attribute {}", name.escape_ascii()))
    }
}

/// Owner, then mode: a change of owner drops setuid and setgid. `stat` is how the file is now.
pub(crate) fn set_owner_and_mode(file: BorrowedFd<'_>, stat: &Stat, owner: &Owner) -> Result<()> {
    let chown = (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid);
    if chown {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(file, Some(uid), Some(gid)).context("setting its owner")?;
    }
    if chown || stat.st_mode & 0o7777 != owner.mode {
        fchmod(file, Mode::from_bits_truncate(owner.mode)).context("setting its mode")?;
    }
    Ok(())
}

/// The modification time; the time of the last access stays.
pub(super) fn set_times(file: BorrowedFd<'_>, owner: &Owner) -> Result<()> {
    futimens(file, &times(owner)).context("setting its time")
}

/// As utimensat(2) takes it.
pub(super) fn times(owner: &Owner) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: owner.mtime.seconds, tv_nsec: owner.mtime.nanoseconds.into() },
    }
}

/// Takes the ACL that new files inherit off a directory.
pub(super) fn remove_default_acl(dir: BorrowedFd<'_>) -> Result<()> {
    match fremovexattr(dir, DEFAULT) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error).context("removing the default ACL"),
    }
}

/// Takes the name and the value of one attribute.
pub(super) type Take<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// Buffers to read attributes with, for one file after the other.
pub(super) struct Reader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Reader {
    pub(super) fn new() -> Reader {
        Reader { names: vec![0; ATTRIBUTE_BYTES_MAX], value: vec![0; ATTRIBUTE_BYTES_MAX] }
    }

    /// Calls `take` with name and value of each attribute of `target`, in the order of their names.
    pub(super) fn each(&mut self, target: &Target<'_>, take: &mut Take<'_>) -> Result<()> {
        let listed = match target {
            Target::Open(fd) => flistxattr(fd, &mut self.names[..]),
            Target::Named(path) => llistxattr(path, &mut self.names[..]),
        };
        let length = match listed {
            Err(Errno::OPNOTSUPP) => 0,
            answer => answer.context("listing its attributes")?,
        };
        let mut names: Vec<&[u8]> =
            self.names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        for name in names {
            let value = match target {
                Target::Open(fd) => fgetxattr(fd, name, &mut self.value[..]),
                Target::Named(path) => lgetxattr(path, name, &mut self.value[..]),
            };
            let length = value.with_context(|| format!("reading the attribute {}", name.escape_ascii()))?;
            take(name, &self.value[..length])?;
        }
        Ok(())
    }
}
