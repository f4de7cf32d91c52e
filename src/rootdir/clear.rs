//! Owns the recursive removal below a directory; must not follow a link, enter a mount, or hold
//! more than a few descriptors however deep the tree is.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::temp::unpredictable_name;
use super::{READ_DIR, is_dot, shown};

/// A directory deeper than this below the top is moved up to the top first: descriptors and stack
/// stay bounded.
const DEPTH_MAX: usize = 32;

/// So many names are read before they are removed; then the directory is read again from its start.
const NAMES_AT_ONCE: usize = 1024;

/// Removes all that is below `top`, whose path in the guest is `path`; asks before each removal.
pub(super) fn below(top: &OwnedFd, path: &Path, may_go_on: fn() -> Result<()>) -> Result<()> {
    let clearing = Clearing { top: top.as_fd(), device: fs::fstat(top)?.st_dev, may_go_on };
    clearing.clear(top.as_fd(), path, 0)
}

struct Clearing<'a> {
    top: BorrowedFd<'a>,
    device: u64,
    may_go_on: fn() -> Result<()>,
}

impl Clearing<'_> {
    fn clear(&self, dir: BorrowedFd<'_>, path: &Path, depth: usize) -> Result<()> {
        loop {
            let names = some_names(dir).with_context(|| format!("listing {}", shown(path)))?;
            if names.is_empty() {
                return Ok(());
            }
            for name in &names {
                self.remove(dir, name, path, depth)?;
            }
        }
    }

    fn remove(&self, dir: BorrowedFd<'_>, name: &CStr, path: &Path, depth: usize) -> Result<()> {
        (self.may_go_on)()?;
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            answer => return answer.with_context(|| format!("removing {}", within(path, name))),
        }
        let context = || format!("removing the directory {}", within(path, name));
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = READ_DIR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = match fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Err(Errno::XDEV) => bail!("{}: it is a mount point", context()),
            answer => answer.with_context(context)?,
        };
        if fs::fstat(&below).with_context(context)?.st_dev != self.device {
            bail!("{}: it is another filesystem", context());
        }
        if depth >= DEPTH_MAX {
            return fs::renameat(dir, name, self.top, unpredictable_name()?).with_context(context);
        }
        self.clear(below.as_fd(), &path.join(OsStr::from_bytes(name.to_bytes())), depth + 1)?;
        fs::unlinkat(dir, name, AtFlags::REMOVEDIR).with_context(context)
    }
}

fn some_names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    Dir::read_from(dir)?
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .filter(|name| !matches!(name, Ok(name) if is_dot(name.to_bytes())))
        .take(NAMES_AT_ONCE)
        .collect()
}

fn within(path: &Path, name: &CStr) -> String {
    shown(&path.join(OsStr::from_bytes(name.to_bytes())))
}
