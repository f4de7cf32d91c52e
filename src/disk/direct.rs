//! Writes to a disk past the page cache, from several threads: what a disk takes at once is then what it is given. Where
//! direct I/O cannot be had, the same writes go through the page cache.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Disk;
use crate::sys;

/// What direct I/O is aligned to: no device has larger sectors.
pub const ALIGNMENT_BYTES: usize = 4096;

/// statfs type of FUSE, linux/magic.h. Direct I/O over it corrupts silently.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// Whether direct I/O on a file or device gives what was written.
pub(super) fn direct_io_is_safe(backing: &File) -> bool {
    rustix::fs::fstatfs(backing.as_fd()).is_ok_and(|fs| u64::try_from(fs.f_type) != Ok(FUSE_MAGIC))
}

/// A disk that is written directly.
pub struct DirectDisk<'a> {
    disk: &'a Disk,
    /// None: the backing takes no direct I/O.
    direct: Option<File>,
    /// Turned off by the first refusal: a backing whose sectors are larger than where its partitions begin.
    refused: AtomicBool,
    /// Whether ranges of another file may become ranges of this one without being copied.
    shares: AtomicBool,
}

impl<'a> DirectDisk<'a> {
    /// The same disk once more, by the descriptor that is locked: its path may lead elsewhere by now.
    pub fn open(disk: &'a Disk) -> Result<DirectDisk<'a>> {
        let again = format!("/proc/self/fd/{}", disk.file.as_raw_fd());
        let direct = match direct_io_is_safe(&disk.file) {
            // A filesystem without direct I/O refuses to open it so.
            true => File::options().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(again).ok(),
            false => None,
        };
        Ok(DirectDisk { disk, direct, refused: AtomicBool::new(false), shares: AtomicBool::new(true) })
    }

    /// Writes `bytes`, aligned in memory and in length to [`ALIGNMENT_BYTES`], at byte `at`.
    pub fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let written = match &self.direct {
            Some(direct) if !self.refused.load(Ordering::Relaxed) => match direct.write_all_at(bytes, at) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                    self.refused.store(true, Ordering::Relaxed);
                    self.disk.file.write_all_at(bytes, at)
                }
                written => written,
            },
            _ => self.disk.file.write_all_at(bytes, at),
        };
        written.with_context(|| format!("writing to {} at byte {at}", self.disk.path.display()))
    }

    /// Writes out and forgets what went through the page cache of the disk's path, if anything did.
    pub fn flush(&self) -> Result<()> {
        let direct = self.direct.is_some() && !self.refused.load(Ordering::Relaxed);
        if direct { Ok(()) } else { self.disk.flush_path_cache() }
    }

    /// Lets `length` bytes of `source` at `from` be those of the disk at `at`, where one filesystem holds both and can do so; false
    /// where they have to be written.
    pub fn share(&self, source: &File, from: u64, length: u64, at: u64) -> bool {
        if !self.shares.load(Ordering::Relaxed) {
            return false;
        }
        match sys::clone_range(source, from, length, &self.disk.file, at) {
            Ok(()) => true,
            Err(_) => {
                self.shares.store(false, Ordering::Relaxed);
                false
            }
        }
    }
}

/// A buffer that direct I/O takes.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    skipped: usize,
    length: usize,
}

impl AlignedBuffer {
    pub fn new(length: usize) -> AlignedBuffer {
        let bytes = vec![0; length + ALIGNMENT_BYTES];
        let skipped = bytes.as_ptr().align_offset(ALIGNMENT_BYTES);
        AlignedBuffer { bytes, skipped, length }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skipped..self.skipped + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_directly_is_there() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = Disk::of_new_file(file, std::path::Path::new("disk")).unwrap();
        let direct = DirectDisk::open(&disk).unwrap();
        let mut buffer = AlignedBuffer::new(8192);
        assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGNMENT_BYTES), 0);
        buffer.bytes().fill(7);
        direct.write(buffer.bytes(), 4096).unwrap();
        // No direct I/O can do this; a disk whose partition begins there gets it all the same.
        direct.write(buffer.bytes(), 65 * 512 + 1).unwrap();
        let mut back = vec![0; 1 << 20];
        disk.file.read_exact_at(&mut back, 0).unwrap();
        let is_seven = |at: &usize| (4096..12288).contains(at) || (33281..41473).contains(at);
        assert!(back.iter().enumerate().all(|(at, byte)| (*byte == 7) == is_seven(&at)));
    }
}
