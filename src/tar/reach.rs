//! Owns the way to a directory of the tree by the path that an archive gives, and what that costs: the path can be as long
//! as the kernel takes, and can lead through links that the archive has made.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::OFlags;
use rustix::io::{self, Errno};

use crate::reader::{Budget, Parsed};
use crate::rootdir::RootDir;

/// Records that a path through links counts as. It takes up to 40 links of 2048 components each (path_resolution(7)), and
/// an honest tree has few of them.
const THROUGH_LINKS: u64 = 4096;

/// Directory and last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Opens the directory at `path`, links followed inside the root. The outer error is that of the budget.
pub(super) fn reach(
    root: &RootDir,
    path: &[u8],
    flags: OFlags,
    budget: &Budget<'_>,
) -> Parsed<io::Result<OwnedFd>> {
    let components = path.split(|byte| *byte == b'/').count();
    budget.look_at(components as u64)?;
    let (path, flags) = (OsStr::from_bytes(path), flags | OFlags::DIRECTORY);
    match root.open_plain(path, flags) {
        Err(Errno::LOOP | Errno::XDEV) => {
            budget.look_at(THROUGH_LINKS)?;
            Ok(root.open_at(path, flags))
        }
        answer => Ok(answer),
    }
}
