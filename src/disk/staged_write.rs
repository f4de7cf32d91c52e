//! A disk that is written from a stream nobody has vouched for yet: what a kernel or firmware would take it for something by
//! is held back in memory until the rest is known to be right, and sector 0 is the last write of all.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::background_writer::BackgroundWriter;
use super::wipe::{BTRFS_MIRRORS, BTRFS_SUPERBLOCK_BYTES, zero_range};
use super::{Disk, wipe_ends, wipe_root};
use crate::filesystem::SECTOR_BYTES;
use crate::sys::signals;

/// Of the disk, and of each partition: tables, boot code, every filesystem's first superblock.
const HEAD_BYTES: u64 = 1 << 20;
/// What the heads may take in memory together; with many partitions less of each is held back, but never where ext, xfs,
/// swap and LUKS stand.
const BUDGET_BYTES: u64 = 16 << 20;
const LEAST_BYTES: u64 = 8 << 10;
/// A btrfs has its first superblock further in.
const BTRFS_AT: u64 = 64 << 10;

/// A slow disk writes so much in half a second.
const ZEROED_AT_ONCE_BYTES: u64 = 64 << 20;

/// ext, swap and LVM have theirs before this.
const FIRST_SUPERBLOCKS_END: u64 = 4096;

/// A disk being written.
pub struct StagedWrite<'a> {
    disk: &'a Disk,
    /// The size of what is written, which may be smaller than the disk.
    size_bytes: u64,
    partitions: Vec<(u64, u64)>,
    /// Ascending and apart.
    held: Vec<(Range<u64>, Vec<u8>)>,
    /// Has what is not held back.
    behind: BackgroundWriter,
}

impl<'a> StagedWrite<'a> {
    /// Wipes what the disk was, for `size_bytes` that are to come and `partitions` (start and length in bytes) in them.
    pub fn begin(disk: &'a Disk, size_bytes: u64, partitions: Vec<(u64, u64)>) -> Result<StagedWrite<'a>> {
        let each = (BUDGET_BYTES / (partitions.len() as u64 + 2)).clamp(LEAST_BYTES, HEAD_BYTES);
        let mut ranges = vec![0..HEAD_BYTES, size_bytes.saturating_sub(each)..size_bytes];
        for (start, length) in std::iter::once(&(0, size_bytes)).chain(&partitions) {
            let part = |at: u64, bytes: u64| start + at..start + (at + bytes).min(*length);
            ranges.push(part(0, each));
            ranges.push(part(BTRFS_AT, BTRFS_SUPERBLOCK_BYTES));
            ranges.extend(BTRFS_MIRRORS.map(|at| part(at, BTRFS_SUPERBLOCK_BYTES)));
        }
        ranges.iter_mut().for_each(|range| range.end = range.end.min(size_bytes));
        let held = merged(ranges).into_iter().map(|range| {
            let bytes = vec![0; (range.end - range.start) as usize];
            (range, bytes)
        });
        let held = held.collect();
        wipe(disk, size_bytes, &partitions)?;
        Ok(StagedWrite { disk, size_bytes, held, partitions, behind: BackgroundWriter::of(disk)? })
    }

    /// Takes bytes for `offset`; what identifies the disk is kept, all else is written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        self.fill(offset, bytes.len() as u64, |room| {
            let (now, later) = rest.split_at(room.len().min(rest.len()));
            room[..now.len()].copy_from_slice(now);
            rest = later;
            Ok(now.len())
        })
    }

    /// The same for `length` bytes of which `source` puts some, at least one, into each room that it is shown.
    pub fn fill(
        &mut self,
        offset: u64,
        length: u64,
        mut source: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let next = self.held.partition_point(|(range, _)| range.end <= at);
            let count = match self.held.get_mut(next) {
                Some((range, kept)) if range.start <= at => source(
                    &mut kept[(at - range.start) as usize..(end.min(range.end) - range.start) as usize],
                )?,
                next => {
                    let stop = next.map_or(end, |(range, _)| range.start.min(end));
                    self.behind.fill(at, stop - at, &mut source)?
                }
            };
            at += count as u64;
        }
        Ok(())
    }

    /// Makes `length` bytes at `offset` read as zeros; what is held back does already.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.behind.flush()?;
        let end = offset + length;
        let mut at = offset;
        let held = self.held.iter().map(|(range, _)| (range.start, range.end)).chain([(end, end)]);
        for (held_start, held_end) in held {
            let stop = held_start.min(end);
            if at < stop {
                self.zero_now(at..stop)
                    .with_context(|| format!("zeroing {} at byte {at}", self.disk.path.display()))?;
            }
            at = at.max(held_end);
        }
        Ok(())
    }

    /// Piece by piece: a device that cannot do it by itself is written to, and no signal ends that call.
    fn zero_now(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            signals::check()?;
            let length = ZEROED_AT_ONCE_BYTES.min(range.end - at);
            zero_range(&self.disk.file, self.disk.medium, at, length)?;
            at += length;
        }
        Ok(())
    }

    /// All was right: writes what was held back, the disk's own superblocks last, but for sector 0, which is returned. What
    /// stood at the end of a smaller disk is a table's copy, which belongs to the end of this one.
    pub fn release(&mut self) -> Result<[u8; SECTOR_BYTES as usize]> {
        self.behind.flush()?;
        self.behind.end();
        let mut sector = [0; SECTOR_BYTES as usize];
        for (range, bytes) in self.held.iter().rev() {
            if range.start > 0 {
                self.write_now(bytes, range.start)?;
                continue;
            }
            let mut bytes = bytes.clone();
            bytes.resize(bytes.len().max(sector.len()), 0);
            sector.copy_from_slice(&bytes[..SECTOR_BYTES as usize]);
            // Where there is no table, a kernel knows a filesystem by these: interrupted, the rest is there or they are not.
            for start in [BTRFS_AT + BTRFS_SUPERBLOCK_BYTES, BTRFS_AT, FIRST_SUPERBLOCKS_END, SECTOR_BYTES] {
                self.disk.file.sync_all().context("flushing the disk")?;
                self.write_now(bytes.get(start as usize..).unwrap_or_default(), start)?;
                bytes.truncate(start as usize);
            }
        }
        self.disk.file.sync_all().context("flushing the disk")?;
        Ok(sector)
    }

    fn write_now(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.disk.file.write_all_at(bytes, at).context("writing what identifies the disk")
    }

    /// Writes sector 0: from here on the disk is what it was.
    pub fn finish(&self, sector: &[u8; SECTOR_BYTES as usize]) -> Result<()> {
        self.disk.file.write_all_at(sector, 0).context("writing the first sector")?;
        self.disk.flush_path_cache()
    }

    /// Leaves nothing that could be taken for anything.
    pub fn wipe(&mut self) -> Result<()> {
        self.behind.end();
        wipe(self.disk, self.size_bytes, &self.partitions)
    }
}

fn wipe(disk: &Disk, size_bytes: u64, partitions: &[(u64, u64)]) -> Result<()> {
    wipe_ends(disk)?;
    // The end of what was to come: its copy of a table.
    let tail = size_bytes.saturating_sub(HEAD_BYTES);
    zero_range(&disk.file, disk.medium, tail, size_bytes - tail)?;
    for (start, length) in partitions {
        wipe_root(disk, *start, *length)?;
    }
    disk.flush_path_cache()
}

/// Ranges in order, those that touch as one.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(bytes: u64) -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Disk::of_new_file(file, std::path::Path::new("disk")).unwrap()
    }

    fn at(disk: &Disk, offset: u64) -> u8 {
        let mut byte = [0];
        disk.file.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }

    #[test]
    fn what_identifies_a_disk_comes_last_and_sector_0_last_of_all() {
        let disk = disk(64 * MIB);
        let mut held = StagedWrite::begin(&disk, 64 * MIB, vec![(8 * MIB, 40 * MIB)]).unwrap();
        for offset in (0..64 * MIB).step_by(MIB as usize) {
            held.write(offset, &vec![7; MIB as usize]).unwrap();
        }
        held.zero(20 * MIB, MIB).unwrap();
        let identifying = [0, 511, 512, MIB - 1, 8 * MIB, 8 * MIB + (64 << 10), 64 * MIB - 1];
        for offset in identifying {
            assert_eq!(at(&disk, offset), 0, "{offset} came too early");
        }
        assert_eq!([MIB, 8 * MIB - 1, 9 * MIB, 20 * MIB].map(|offset| at(&disk, offset)), [7, 7, 7, 0]);
        let sector = held.release().unwrap();
        assert_eq!((at(&disk, 0), at(&disk, 512), at(&disk, 8 * MIB), sector[0]), (0, 7, 7, 7));
        held.finish(&sector).unwrap();
        assert!(identifying.iter().all(|offset| at(&disk, *offset) == 7));
    }

    #[test]
    fn what_is_wiped_is_nothing_any_more() {
        let disk = disk(64 * MIB);
        let mut held = StagedWrite::begin(&disk, 32 * MIB, vec![(8 * MIB, 20 * MIB)]).unwrap();
        held.write(0, &vec![7; 32 << 20]).unwrap();
        held.release().unwrap();
        held.wipe().unwrap();
        for offset in [0, 512, 8 * MIB, 8 * MIB + (64 << 10), 32 * MIB - 512] {
            assert_eq!(at(&disk, offset), 0, "{offset}");
        }
    }

    #[test]
    fn a_thousand_partitions_take_little_memory() {
        let disk = disk(3 << 30);
        let partitions = (0..1024).map(|n| (n * 2 * MIB + MIB, 2 * MIB)).collect();
        let held = StagedWrite::begin(&disk, 3 << 30, partitions).unwrap();
        let bytes: usize = held.held.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes < 32 << 20, "{bytes}");
    }
}
