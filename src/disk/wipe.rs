//! What an earlier owner left: signatures that a kernel, a boot loader or a volume manager would take for real.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::FallocateFlags;

use super::{Disk, Medium};
use crate::partition_table::layout::Layout;

/// Both ends: tables and their backups, LVM labels, md superblocks (1.0 and 0.90 lie at the end), ZFS labels
/// (two of 256 KiB at each end), every filesystem's first superblock.
const END_BYTES: u64 = 2 << 20;

/// Mirrors of a btrfs superblock, and one sector is enough to break each.
pub(super) const BTRFS_MIRRORS: [u64; 2] = [64 << 20, 256 << 30];
pub(super) const BTRFS_SUPERBLOCK_BYTES: u64 = 4096;

/// Wipes the old signatures of a whole disk.
pub fn wipe_ends(disk: &Disk) -> Result<()> {
    let size = disk.size_bytes;
    let mut ranges = vec![(0, END_BYTES.min(size)), (size.saturating_sub(END_BYTES), END_BYTES.min(size))];
    ranges.extend(superblocks(0, size).skip(1));
    zero(disk, &ranges)
}

/// Wipes the superblocks of a filesystem that lies at `start` and has `size` bytes: it can be mounted no more.
pub fn wipe_root(disk: &Disk, start: u64, size: u64) -> Result<()> {
    let ranges: Vec<(u64, u64)> = superblocks(start, size).collect();
    zero(disk, &ranges)
}

/// Wipes what identifies the content of each partition of a layout, whoever was there before.
pub fn wipe_partitions(disk: &Disk, layout: &Layout) -> Result<()> {
    let ranges: Vec<(u64, u64)> =
        layout.partitions.iter().flat_map(|p| superblocks(p.start_bytes(), p.size_bytes())).collect();
    zero(disk, &ranges)
}

/// Wipes the start of a device whose filesystem is still held by somebody, through the device's own page cache: there
/// lies the superblock that the kernel will write once more when the last holder goes.
pub fn wipe_held(device: &Path) -> Result<()> {
    let context = || format!("wiping {}", device.display());
    let file = File::options().write(true).open(device).with_context(context)?;
    zero_range(&file, Medium::Block, 0, END_BYTES).and_then(|()| Ok(file.sync_all()?)).with_context(context)
}

/// Offset and length of what identifies a filesystem: its first 2 MiB, and mirrors that a kernel would accept.
fn superblocks(start: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let mirrors = BTRFS_MIRRORS.into_iter().filter(move |at| at + BTRFS_SUPERBLOCK_BYTES <= size);
    std::iter::once((start, END_BYTES.min(size)))
        .chain(mirrors.map(move |at| (start + at, BTRFS_SUPERBLOCK_BYTES)))
}

fn zero(disk: &Disk, ranges: &[(u64, u64)]) -> Result<()> {
    for (start, length) in ranges {
        zero_range(&disk.file, disk.medium, *start, *length)
            .with_context(|| format!("wiping old signatures on {}", disk.path.display()))?;
    }
    disk.flush_path_cache()
}

/// A file gets a hole, which reads as zeroes and costs nothing; a device is asked to zero it itself, else it is written.
pub fn zero_range(file: &File, medium: Medium, start: u64, length: u64) -> Result<()> {
    let flags = match medium {
        Medium::File => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Medium::Block => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    };
    if rustix::fs::fallocate(file.as_fd(), flags, start, length).is_ok() {
        return Ok(());
    }
    let zeroes = vec![0u8; 1 << 20];
    let mut at = start;
    while at < start + length {
        let count = (start + length - at).min(zeroes.len() as u64);
        file.write_all_at(&zeroes[..count as usize], at)?;
        at += count;
    }
    Ok(())
}
