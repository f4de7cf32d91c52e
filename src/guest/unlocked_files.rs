//! Files that a guest's owner locked against change (chattr +i and +a): unlocked while a restored tree is fitted to its
//! disk, and locked again.

use anyhow::{Context, Result};
use rustix::fs::{IFlags, OFlags, ioctl_getflags, ioctl_setflags};

use crate::rootdir::{Kind, RootDir};

const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// What has to be locked again.
#[must_use]
pub struct UnlockedFiles(Vec<(String, IFlags)>);

impl UnlockedFiles {
    /// Unlocks what is there of `paths`, in this order: a directory before what is in it.
    pub fn unlock(
        root: &RootDir,
        paths: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<UnlockedFiles> {
        let mut locked = Vec::new();
        for path in paths {
            let path = path.into();
            let locks = change(root, &path, |flags| flags - LOCKS)?;
            if !locks.is_empty() {
                locked.push((path, locks));
            }
        }
        Ok(UnlockedFiles(locked))
    }

    /// Locks it all as it was.
    pub fn relock(self, root: &RootDir) -> Result<()> {
        for (path, locks) in self.0.into_iter().rev() {
            change(root, &path, |flags| flags | locks)?;
        }
        Ok(())
    }
}

/// Gives a file or directory other flags; returns the locks that it had. Where a filesystem knows no flags there are none.
fn change(root: &RootDir, path: &str, new: impl FnOnce(IFlags) -> IFlags) -> Result<IFlags> {
    if !matches!(root.kind(path)?, Some(Kind::File | Kind::Dir)) {
        return Ok(IFlags::empty());
    }
    let context = || format!("looking at the flags of /{path}");
    let file =
        root.open_at(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK).with_context(context)?;
    let Ok(flags) = ioctl_getflags(&file) else { return Ok(IFlags::empty()) };
    let wanted = new(flags);
    if wanted != flags {
        ioctl_setflags(&file, wanted).with_context(context)?;
    }
    Ok(flags & LOCKS)
}
