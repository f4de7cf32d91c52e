//! Owns the inode as a dump has it: type, owner, times, device and flags. Must not touch any file.

use anyhow::{Result, bail, ensure};
use rustix::fs::{FileType, IFlags, Timespec, Timestamps};

use super::header::INODE_BYTES;
use crate::reader::integers::{le16, le32};
use crate::tar::{Owner, Time};

/// Offsets in struct new_bsd_inode.
const ATIME: usize = 16;
const MTIME: usize = 24;
const BLOCKS: usize = 40;
const FLAGS: usize = 100;
const UID: usize = 112;
const GID: usize = 116;

/// The flags that chattr(1) sets and that mean something on another filesystem.
const KEPT_FLAGS: IFlags = IFlags::IMMUTABLE
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::TOPDIR);

/// One inode, without its size, which is the header's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub(super) kind: FileType,
    /// With the time of the last change.
    pub(super) owner: Owner,
    accessed: Time,
    /// Major and minor number, of a device.
    pub(super) device: (u32, u32),
    /// Those of the flags that are kept.
    pub(super) flags: IFlags,
}

impl Inode {
    /// Reads the [`INODE_BYTES`] of an inode.
    pub(super) fn parse(bytes: &[u8]) -> Result<Inode> {
        ensure!(bytes.len() == INODE_BYTES, "the inode has {} bytes, expected {INODE_BYTES}", bytes.len());
        let mode = u32::from(le16(bytes, 0));
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown => bail!("its mode is {mode:o}, which is no type of file"),
            kind => kind,
        };
        let (uid, gid) = (le32(bytes, UID), le32(bytes, GID));
        // To chown(2) it means "as it is".
        ensure!(uid != u32::MAX && gid != u32::MAX, "its owner or group is {}, which is none", u32::MAX);
        let owner = Owner { uid, gid, mode: mode & 0o7777, mtime: time(bytes, MTIME)? };
        let blocks = (le32(bytes, BLOCKS), le32(bytes, BLOCKS + 4));
        Ok(Inode {
            kind,
            owner,
            accessed: time(bytes, ATIME)?,
            device: device(blocks),
            flags: IFlags::from_bits_truncate(le32(bytes, FLAGS)) & KEPT_FLAGS,
        })
    }

    /// As utimensat(2) takes it.
    pub(super) fn times(&self) -> Timestamps {
        let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
        Timestamps { last_access: spec(self.accessed), last_modification: spec(self.owner.mtime) }
    }
}

/// Seconds, signed as ext2 has them: a time after 2038 comes back as one before 1970, for the dump
/// has no more than 32 bits of it; then microseconds.
fn time(bytes: &[u8], offset: usize) -> Result<Time> {
    let microseconds = le32(bytes, offset + 4);
    ensure!(microseconds < 1_000_000, "a time has {microseconds} microseconds");
    Ok(Time { seconds: i64::from(le32(bytes, offset) as i32), nanoseconds: microseconds * 1000 })
}

/// The first block's number if it is a device of 8 and 8 bits, else the second (linux/fs/ext4/inode.c,
/// linux/kdev_t.h).
fn device(blocks: (u32, u32)) -> (u32, u32) {
    match blocks {
        (0, new) => ((new & 0xf_ff00) >> 8, (new & 0xff) | (new >> 12 & 0xf_ff00)),
        (old, _) => (old >> 8 & 0xff, old & 0xff),
    }
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn both_forms_of_device_numbers_are_read() {
        assert_eq!(device((0x0103, 0)), (1, 3));
        assert_eq!(device((0, 4_293_983_743)), (253, 1_048_575));
        assert_eq!(device((0, 0)), (0, 0));
    }
}
