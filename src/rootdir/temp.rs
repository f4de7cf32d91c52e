//! Owns names for what is not finished yet, so that it appears at its place all at once; must not
//! leave one behind.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{self, AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// A name in a directory that nobody can guess, removed when dropped unless it was renamed to its
/// final one.
pub(super) struct TempName<'a> {
    dir: &'a OwnedFd,
    pub(super) name: String,
}

impl TempName<'_> {
    pub(super) fn new(dir: &OwnedFd) -> Result<TempName<'_>> {
        refuse_append_only(dir)?;
        Ok(TempName { dir, name: unpredictable_name()? })
    }

    /// Gives it its final name, in place of anything but a directory.
    pub(super) fn rename_to(self, name: &OsStr) -> Result<()> {
        match fs::renameat(self.dir, &self.name, self.dir, name) {
            Err(Errno::ISDIR) => bail!("it is a directory"),
            answer => Ok(answer?),
        }
    }
}

impl Drop for TempName<'_> {
    fn drop(&mut self) {
        // After a rename there is nothing of that name; an error here would hide the one that led
        // here.
        let _ = fs::unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

/// What is made in such a directory can neither be renamed nor removed.
fn refuse_append_only(dir: &OwnedFd) -> Result<()> {
    let found = fs::statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    ensure!(!found.stx_attributes.contains(StatxAttributes::APPEND), "its directory is append-only");
    Ok(())
}

/// A name that no other process can have prepared.
pub(super) fn unpredictable_name() -> Result<String> {
    let mut random = [0_u8; 8];
    let filled = getrandom(&mut random[..], GetRandomFlags::empty()).context("asking for random bytes")?;
    ensure!(filled == random.len(), "asking for random bytes: got {filled} of {}", random.len());
    Ok(format!(".tmp-{:016x}", u64::from_ne_bytes(random)))
}
