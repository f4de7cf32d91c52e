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

/// What files are restored from, and into.
pub(super) struct Files<'a, 'r, 'd, 'n> {
    pub records: &'a mut Records<'r>,
    pub directories: &'a mut Directories<'d>,
    pub names: &'a mut Merge<'n>,
    pub stats: &'a mut Stats,
}

impl Files<'_, '_, '_, '_> {
    /// Restores the inode that `header` begins under all its names, and returns the header after it. An
    /// inode without a name was of no use to the guest, and is left out.
    pub(super) fn restore(&mut self, header: Header) -> Result<Header> {
        let inode_number = header.inode_number();
        let Some(first) = self.names.next_of(inode_number)? else {
            self.stats.inodes_without_name += 1;
            let next = self.records.content(header, 0, &mut |_, _| Ok(()))?;
            return Ok(self.records.attributes(inode_number, next)?.1);
        };
        let next = self.restore_under(&first, header).with_context(|| {
            format!("restoring {} (inode {inode_number})", self.directories.shown(first.parent, &first.name))
        })?;
        self.stats.files += 1;
        Ok(next)
    }

    fn restore_under(&mut self, first: &Entry, header: Header) -> Result<Header> {
        let inode_number = header.inode_number();
        let inode = Inode::parse(header.inode_bytes())?;
        let dir = self.directories.hold(first.parent)?;
        let (file, next) = self.make(&inode, header, dir.as_fd(), &first.name)?;
        let (blocks, next) = self.records.attributes(inode_number, next)?;
        match &file {
            Some(file) => finish::open_file(file.as_fd(), &inode, &blocks)?,
            None => finish::named(dir.as_fd(), &first.name, &inode, &blocks)?,
        }
        while let Some(other) = self.names.next_of(inode_number)? {
            let other_dir = self.directories.hold(other.parent)?;
            linkat(&*dir, first.name.as_slice(), &*other_dir, other.name.as_slice(), AtFlags::empty())
                .with_context(|| {
                    format!("linking it as {}", self.directories.shown(other.parent, &other.name))
                })?;
            self.stats.links += 1;
        }
        if let Some(file) = file {
            finish::times_and_flags(file.as_fd(), &inode, self.stats)?;
        }
        Ok(next)
    }

    /// Makes the file with its content; open, if it is a regular one.
    fn make(
        &mut self,
        inode: &Inode,
        header: Header,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(Option<OwnedFd>, Header)> {
        let private = Mode::RUSR | Mode::WUSR;
        match inode.kind {
            FileType::RegularFile => {
                let file = openat(dir, name, CREATE, private)?;
                let next = self.fill(file.as_fd(), header)?;
                Ok((Some(file), next))
            }
            FileType::Symlink => {
                let (target, next) =
                    self.records.whole(header, PATH_BYTES_MAX as u64, "the link's target")?;
                ensure!(
                    !target.is_empty() && !target.contains(&0),
                    "the link's target is empty, or has a NUL"
                );
                symlinkat(target.as_slice(), dir, name)?;
                Ok((None, next))
            }
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                let (major, minor) = inode.device;
                mknodat(dir, name, inode.kind, private, makedev(major, minor))?;
                Ok((None, self.records.content(header, 0, &mut |_, _| Ok(()))?))
            }
            FileType::Directory | FileType::Unknown => bail!("a directory comes after the files"),
        }
    }

    fn fill(&mut self, file: BorrowedFd<'_>, header: Header) -> Result<Header> {
        let size = header.size_bytes()?;
        let bytes = &mut self.stats.bytes;
        let next = self.records.content(header, size, &mut |offset, piece| {
            let (mut offset, mut piece) = (offset, piece);
            *bytes += piece.len() as u64;
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
}
