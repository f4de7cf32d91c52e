//! A base tar into a mounted root, with the reason where that fails.

use anyhow::{Context as _, Result, ensure};

use super::base_tree::LARGER_DISK;
use crate::cache::BaseTar;
use crate::guest::Root;
use crate::reader::Budget;
use crate::sys::signals::Interrupted;
use crate::{report, tar};

/// Unpacks the tree; what it unpacked must be a system.
pub fn unpack(base: &BaseTar, root: &Root) -> Result<()> {
    let mut reader = Progress { inner: base.reader()?, done: 0, total: base.size_bytes() };
    let unpacked = tar::unpack(&mut reader, root.dir()?, &Budget::unlimited()).map(drop);
    let is_system = || {
        let dir = root.dir()?;
        let is_system = dir.is_dir("etc")? && (dir.is_file("bin/sh")? || dir.is_file("usr/bin/sh")?);
        ensure!(is_system, "it holds no system: /etc or /bin/sh is missing");
        Ok(())
    };
    let unpacked = unpacked.and_then(|()| is_system());
    unpacked.with_context(|| format!("unpacking {}", base.name)).map_err(|error| explained(error, base, root))
}

/// Why a tree could not be unpacked, and what to do about it.
fn explained(error: anyhow::Error, base: &BaseTar, root: &Root) -> anyhow::Error {
    let damaged = format!("{} may be damaged; replace or remove it", base.name);
    full_or(error, root, LARGER_DISK, &damaged)
}

/// An error of writing into a root: that it is full, and what helps then, or the other hint.
pub fn full_or(error: anyhow::Error, root: &Root, larger: &str, otherwise: &str) -> anyhow::Error {
    let no_space = |cause: &(dyn std::error::Error + 'static)| {
        let errno = cause.downcast_ref::<rustix::io::Errno>().copied();
        let errno = errno.or_else(|| rustix::io::Errno::from_io_error(cause.downcast_ref()?));
        errno == Some(rustix::io::Errno::NOSPC)
    };
    if report::cause::<Interrupted>(&error).is_some() {
        return error;
    }
    if error.chain().any(no_space) {
        let what = if root.has_inodes() { "is full" } else { "has no inode left" };
        return report::with_hint(error, larger).context(format!("the root filesystem {what}"));
    }
    report::with_hint(error, otherwise)
}

/// Tells a terminal how far a reader is.
struct Progress<R> {
    inner: R,
    done: u64,
    total: u64,
}

impl<R: std::io::Read> std::io::Read for Progress<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let before = self.done >> 23;
        self.done += count as u64;
        if self.done >> 23 != before {
            report::progress(self.done, self.total);
        }
        Ok(count)
    }
}
