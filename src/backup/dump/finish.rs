//! Owns what an inode has besides its content and its names: owner, mode, attributes, times, flags, in
//! the order in which one does not undo the other. Must not follow a link.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, fstat, futimens, ioctl_getflags, ioctl_setflags,
    utimensat,
};

use super::inode::Inode;
use super::{Stats, attributes};
use crate::tar::{Target, set_owner_and_mode};

/// Owner, mode and attributes of an open file or directory.
pub(super) fn open_file(file: BorrowedFd<'_>, inode: &Inode, blocks: &[Vec<u8>]) -> Result<()> {
    set_owner_and_mode(file, &fstat(file)?, &inode.owner)?;
    set_attributes(&Target::Open(file), blocks)
}

/// What comes last: the times, and the flags that may forbid any further change. These are set as far
/// as the filesystem knows them.
pub(super) fn times_and_flags(file: BorrowedFd<'_>, inode: &Inode, stats: &mut Stats) -> Result<()> {
    futimens(file, &inode.times()).context("setting its times")?;
    if !inode.flags.is_empty() {
        let set = ioctl_getflags(file).and_then(|present| ioctl_setflags(file, present | inode.flags));
        stats.flags_not_set += u64::from(set.is_err());
    }
    Ok(())
}

/// All of a file that is not opened: a link, device, FIFO or socket.
pub(super) fn named(dir: BorrowedFd<'_>, name: &[u8], inode: &Inode, blocks: &[Vec<u8>]) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(inode.owner.uid), Gid::from_raw(inode.owner.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("setting its owner")?;
    if inode.kind != FileType::Symlink {
        let mode = Mode::from_bits_truncate(inode.owner.mode);
        chmodat(dir, name, mode, AtFlags::empty()).context("setting its mode")?;
    }
    set_attributes(&Target::named(dir.as_fd(), name), blocks)?;
    utimensat(dir, name, &inode.times(), AtFlags::SYMLINK_NOFOLLOW).context("setting its times")
}

fn set_attributes(target: &Target<'_>, blocks: &[Vec<u8>]) -> Result<()> {
    for block in blocks {
        for (name, value) in attributes::parse(block)? {
            target.set(&name, &value)?;
        }
    }
    Ok(())
}
