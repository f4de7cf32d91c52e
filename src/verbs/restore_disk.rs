//! A disk from a stream of its blocks. Nothing identifies it as anything until all of it is there and right; on a larger
//! disk its last filesystem grows.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};

use crate::disk::foreign::{self, Content, Part, WithSector, partitions};
use crate::disk::{Disk, Filesystem, Growth, HeldBack, LoopDevice, grow_table};
use crate::guest::Workspace;
use crate::report::{self, WithHint, size};
use crate::signals;
use crate::stream::image::Image;
use crate::tool::{Tool, ToolError};

/// One piece of a raw disk, and the unit in which zeros are not written.
const PIECE_BYTES: usize = 256 << 10;

/// Restores an archive of ours.
pub fn from_archive(disk: &Disk, workspace: &Workspace, source: &mut dyn Read) -> Result<()> {
    let mut image = Image::open(source, &signals::check)?;
    let facts = &image.manifest.disk;
    refuse_smaller(disk, facts.size_bytes)?;
    let parts = image.manifest.partitions.iter().map(|part| (part.start_bytes, part.size_bytes)).collect();
    report::line(&format!(
        "{:>10}  a disk of {}, {} in use, layout {}, written by {}",
        "backup",
        size(facts.size_bytes),
        size(facts.used_bytes),
        report::ascii(facts.layout.as_bytes()),
        report::ascii(image.manifest.program.as_bytes())
    ));
    let (size_bytes, zero) = (facts.size_bytes, facts.zero.clone());
    let mut held = HeldBack::begin(disk, size_bytes, parts)?;
    let restored = report::long_step("restoring the disk", || {
        for (start, length) in zero {
            signals::check()?;
            held.zero(start, length)?;
        }
        image.data(|offset, bytes| held.write(offset, bytes))?;
        image.finish()
    });
    complete(disk, workspace, held, size_bytes, restored)
}

/// Restores a raw image of a disk: as long as the stream is, which no digest vouches for.
pub fn from_raw(disk: &Disk, workspace: &Workspace, source: &mut dyn Read, first: &[u8]) -> Result<()> {
    // Its length is not known yet; what its table says is enough to know what to hold back.
    let table = partitions::read(first, disk.size_bytes.max(first.len() as u64)).ok().flatten();
    let parts = table.iter().flat_map(|table| &table.partitions);
    let parts: Vec<(u64, u64)> = parts.map(|part| (part.start_bytes, part.size_bytes)).collect();
    let mut held = HeldBack::begin(disk, disk.size_bytes, parts.clone())?;
    let mut length = 0;
    let restored = report::long_step("restoring the disk", || {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            signals::check()?;
            let count = fill(source, &mut piece)?;
            if count == 0 {
                break;
            }
            if length + count as u64 > disk.size_bytes {
                return Err(anyhow!(
                    "the image is larger than the disk, which has {}",
                    size(disk.size_bytes)
                ))
                .hint("give the instance a disk of at least the image's size");
            }
            match piece[..count].iter().all(|byte| *byte == 0) {
                true => held.zero(length, count as u64)?,
                false => held.write(length, &piece[..count])?,
            }
            length += count as u64;
        }
        let end = parts.iter().map(|(start, length)| start + length).max().unwrap_or(0);
        match length < end {
            true => Err(anyhow!("the image ends at byte {length}, its last partition at {end}"))
                .hint("the image was cut short; export it again"),
            false => Ok(()),
        }
    });
    complete(disk, workspace, held, length, restored)
}

/// Reads until the buffer is full or the stream ends.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]).context("reading the image")? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn refuse_smaller(disk: &Disk, needed_bytes: u64) -> Result<()> {
    if disk.size_bytes >= needed_bytes {
        return Ok(());
    }
    Err(anyhow!(
        "the disk has {} ({} bytes), the backup is of one of {} ({needed_bytes} bytes)",
        size(disk.size_bytes),
        disk.size_bytes,
        size(needed_bytes)
    ))
    .hint("give the instance a disk of at least that size")
}

/// Lets the disk be what it was, or wipes it.
fn complete(
    disk: &Disk,
    workspace: &Workspace,
    held: HeldBack<'_>,
    size_bytes: u64,
    restored: Result<()>,
) -> Result<()> {
    let finished = restored.and_then(|()| {
        let mut sector = held.release()?;
        if disk.size_bytes > size_bytes {
            grow(disk, workspace, &mut sector)?;
        }
        Ok(sector)
    });
    match finished {
        Ok(sector) => report::step("flushing", || held.finish(&sector)),
        Err(error) => {
            match held.wipe() {
                Ok(()) => report::line(&format!("{:>10}  the disk is wiped: nothing is on it", "")),
                Err(error) => report::warning(&format!("the disk could not be wiped: {error:#}")),
            }
            Err(signals::check().err().unwrap_or(error))
        }
    }
}

/// The disk is larger than the one that was exported: its table covers it, and what lies last grows.
fn grow(disk: &Disk, workspace: &Workspace, sector: &mut [u8; 512]) -> Result<()> {
    let seen = WithSector { disk: &disk.file, sector: &*sector };
    let (kind, parts) = match foreign::survey_bytes(&seen, disk.size_bytes) {
        Ok(survey) => survey,
        Err(error) => {
            report::warning(&format!("nothing grows: {}", report::sentence(&error)));
            return Ok(());
        }
    };
    let last = parts.iter().max_by_key(|part| part.start_bytes);
    let growing = last.filter(|part| matches!(part.content, Content::Filesystem(_)));
    match grow_table(&disk.file, disk.size_bytes, kind, growing, sector)? {
        Some(growth) => {
            let part = growing.context("a part that grows")?;
            if kind.is_none() {
                // The filesystem's own first sector, without which nothing can grow it.
                disk.file.write_all_at(sector, 0).context("writing the first sector")?;
            }
            report::step(&format!("growing {part} to {}", size(growth.size_bytes)), || {
                grow_filesystem(disk, workspace, part, growth)
            })?;
            if kind.is_none() {
                disk.flush_path_cache()?;
                disk.file.read_exact_at(sector, 0).context("reading the first sector")?;
            }
            Ok(())
        }
        None => {
            let last = last.map_or("nothing".to_owned(), Part::to_string);
            report::line(&format!("{:>10}  the room at the end stays free: last on the disk is {last}", ""));
            Ok(())
        }
    }
}

/// By the filesystem's own tools, on a loop device that shows nothing else. One that cannot be grown (damaged, or a btrfs
/// whose copy this node has mounted) is what was backed up all the same: it keeps its size, with a word.
fn grow_filesystem(disk: &Disk, workspace: &Workspace, part: &Part, growth: Growth) -> Result<()> {
    let Content::Filesystem(volume) = part.content else { return Ok(()) };
    disk.flush_path_cache()?;
    let device = LoopDevice::attach_part(disk, growth.start_bytes, growth.size_bytes)?;
    let path = device.path();
    let ready = match volume.filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => checked(&path).map(|()| None),
        Filesystem::Xfs | Filesystem::Btrfs => workspace.mount_foreign(&path, volume, "grown").map(Some),
    };
    match ready {
        Err(error) => {
            signals::check()?;
            report::warning(&format!("the filesystem keeps its size: {}", report::sentence(&error)));
        }
        Ok(None) => Tool::new("resize2fs").arg(&path).quiet().run()?,
        Ok(Some(mut root)) => {
            let tool = match volume.filesystem {
                Filesystem::Xfs => Tool::new("xfs_growfs").arg("-d"),
                _ => Tool::new("btrfs").args(["filesystem", "resize", "max"]),
            };
            tool.arg(root.path()).quiet().run()?;
            root.finish()?;
        }
    }
    device.finish()
}

/// resize2fs wants a filesystem that was checked, and its journal replayed.
fn checked(device: &Path) -> Result<()> {
    match Tool::new("e2fsck").args(["-f", "-p"]).arg(device).quiet().run() {
        // Something was mended.
        Err(error) if matches!(error.downcast_ref(), Some(ToolError::Status(_, 1, _))) => Ok(()),
        checked => checked,
    }
}
