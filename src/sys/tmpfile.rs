//! Files without a name: whatever happens to the program, nothing of them is left. They get a name when they are
//! whole.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

/// A file without a name in `dir`: gone when it is closed.
pub fn create(dir: &Path) -> Result<File> {
    let fd = open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
        .with_context(|| format!("making a file in {}", dir.display()))?;
    Ok(fd.into())
}

/// Gives such a file a name that does not exist yet.
pub fn link(file: &File, path: &Path) -> Result<()> {
    let fd = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, fd, CWD, path, AtFlags::SYMLINK_FOLLOW)
        .with_context(|| format!("publishing {}", path.display()))
}
