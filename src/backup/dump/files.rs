//! Owns how what is no directory comes into the tree: content, then everything else, then its other
//! names. Must not make anything but in directories that are held.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ftruncate, linkat, makedev, mknodat, openat, symlinkat};
use rustix::io::{pwrite, retry_on_intr};

use super::directories::Directories;
use super::header::Header;
use super::inode::Inode;
use super::names::{Entry, Merge};
use super::records::Records;
use super::{Stats, finish};
use crate::tar::PATH_BYTES_MAX;

const CREATE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Restores the inode that `header` begins under all its names, and returns the header after it. An
/// inode without a name was of no use to the guest, and is left out.
pub(super) fn restore(
    header: Header,
    records: &mut Records<'_>,
    directories: &mut Directories<'_>,
    names: &mut Merge<'_>,
    stats: &mut Stats,
) -> Result<Header> {
    let inode_number = header.inode_number();
    let Some(first) = names.next_of(inode_number)? else {
        stats.inodes_without_name += 1;
        let next = records.content(header, 0, &mut |_, _| Ok(()))?;
        return Ok(records.attributes(inode_number, next)?.1);
    };
    let next = under(&first, header, records, directories, names, stats).with_context(|| {
        format!("restoring {} (inode {inode_number})", directories.shown(first.parent, &first.name))
    })?;
    stats.files += 1;
    Ok(next)
}

fn under(
    first: &Entry,
    header: Header,
    records: &mut Records<'_>,
    directories: &mut Directories<'_>,
    names: &mut Merge<'_>,
    stats: &mut Stats,
) -> Result<Header> {
    let inode_number = header.inode_number();
    let inode = Inode::parse(header.inode_bytes())?;
    let dir = directories.hold(first.parent)?;
    let (file, next) = make(&inode, header, records, dir.as_fd(), &first.name, stats)?;
    let (blocks, next) = records.attributes(inode_number, next)?;
    match &file {
        Some(file) => finish::open_file(file.as_fd(), &inode, &blocks)?,
        None => finish::named(dir.as_fd(), &first.name, &inode, &blocks)?,
    }
    while let Some(other) = names.next_of(inode_number)? {
        let other_dir = directories.hold(other.parent)?;
        linkat(&*dir, first.name.as_slice(), &*other_dir, other.name.as_slice(), AtFlags::empty())
            .with_context(|| format!("linking it as {}", directories.shown(other.parent, &other.name)))?;
        stats.links += 1;
    }
    if let Some(file) = file {
        finish::times_and_flags(file.as_fd(), &inode, stats)?;
    }
    Ok(next)
}

/// Makes the file with its content; open, if it is a regular one.
fn make(
    inode: &Inode,
    header: Header,
    records: &mut Records<'_>,
    dir: BorrowedFd<'_>,
    name: &[u8],
    stats: &mut Stats,
) -> Result<(Option<OwnedFd>, Header)> {
    let private = Mode::RUSR | Mode::WUSR;
    match inode.kind {
        FileType::RegularFile => {
            let file = openat(dir, name, CREATE, private)?;
            let next = fill(file.as_fd(), header, records, stats)?;
            Ok((Some(file), next))
        }
        FileType::Symlink => {
            let (target, next) = records.whole(header, PATH_BYTES_MAX as u64, "the link's target")?;
            ensure!(!target.is_empty() && !target.contains(&0), "the link's target is empty, or has a NUL");
            symlinkat(target.as_slice(), dir, name)?;
            Ok((None, next))
        }
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            let (major, minor) = inode.device;
            mknodat(dir, name, inode.kind, private, makedev(major, minor))?;
            Ok((None, records.content(header, 0, &mut |_, _| Ok(()))?))
        }
        FileType::Directory | FileType::Unknown => bail!("a directory comes after the files"),
    }
}

fn fill(
    file: BorrowedFd<'_>,
    header: Header,
    records: &mut Records<'_>,
    stats: &mut Stats,
) -> Result<Header> {
    let size = header.size_bytes()?;
    let next = records.content(header, size, &mut |offset, piece| {
        let (mut offset, mut piece) = (offset, piece);
        stats.bytes += piece.len() as u64;
        while !piece.is_empty() {
            let length = retry_on_intr(|| pwrite(file, piece, offset)).context("writing its data")?;
            piece = &piece[length..];
            offset += length as u64;
        }
        Ok(())
    })?;
    ftruncate(file, size).context("setting its size")?;
    Ok(next)
}
