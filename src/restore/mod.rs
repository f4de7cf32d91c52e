//! A disk from a stream of its blocks. Nothing identifies it as anything until all of it is there and right; on a larger
//! disk its last filesystem grows.

pub mod disk_image;
pub mod reidentify;
pub mod source_file;
pub mod tree;

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Error, Result, anyhow};

use crate::backup::disk_archive::Image;
use crate::backup::qcow2::{Piece, Qcow2};
use crate::command::{Tool, ToolError};
use crate::disk::{Disk, LoopDevice, StagedWrite};
use crate::filesystem::{Filesystem, SECTOR_BYTES};
use crate::guest::{Trust, Workspace, one_device};
use crate::install::teardown;
use crate::partition_table::{self, Growth, grow_table};
use crate::plan::OnFailure;
use crate::probe::{self, Content, Part, Survey, Volume};
use crate::reader::{Budget, ReadAt, Region, WithSector};
use crate::report::{self, WithHint, size};
use crate::sys::signals;

/// The first sector of a disk.
pub type Sector = [u8; SECTOR_BYTES as usize];

/// One piece of a raw disk, and the unit in which zeros are not written.
const PIECE_BYTES: usize = 256 << 10;

/// A disk that is about to be restored.
pub struct DiskRestore<'a> {
    pub disk: &'a Disk,
    pub workspace: &'a Workspace,
    pub on_failure: OnFailure,
    /// What is done to the restored disk before its first sector, which this is given, is written.
    pub setup: &'a mut dyn FnMut(Seen<'_>) -> Result<()>,
}

impl DiskRestore<'_> {
    /// Restores an archive of ours.
    pub fn archive(self, source: &mut dyn Read) -> Result<()> {
        let budget = Budget::of_stream(self.disk.size_bytes);
        let mut image = Image::open(source, &budget)?;
        let facts = &image.manifest.disk;
        self.refuse_smaller(facts.size_bytes)?;
        let parts =
            image.manifest.partitions.iter().map(|part| (part.start_bytes, part.size_bytes)).collect();
        report::line(&format!(
            "{:>10}  a disk of {}, {} in use, layout {}, written by {}",
            "backup",
            size(facts.size_bytes),
            size(facts.used_bytes),
            report::ascii(facts.layout.as_bytes()),
            report::ascii(image.manifest.program.as_bytes())
        ));
        let (size_bytes, zero) = (facts.size_bytes, facts.zero.clone());
        let mut held = StagedWrite::begin(self.disk, size_bytes, parts)?;
        let restored = report::long_step("restoring the disk", || {
            for (start, length) in zero {
                signals::check()?;
                held.zero(start, length)?;
            }
            let runs: Vec<(u64, u64)> = image.runs().collect();
            for (offset, length) in runs {
                held.fill(offset, length, |room| image.read(room))?;
            }
            image.finish()
        });
        self.complete(held, size_bytes, restored)
    }

    /// Restores a raw image of a disk: as long as the stream is, which no digest vouches for.
    pub fn raw(self, source: &mut dyn Read, first: &[u8]) -> Result<()> {
        // Its length is not known yet; what its table says is enough to know what to hold back.
        let disk_bytes = self.disk.size_bytes;
        let parts = partitions_of(&first, disk_bytes.max(first.len() as u64));
        let mut held = StagedWrite::begin(self.disk, disk_bytes, parts.clone())?;
        let mut length = 0;
        let restored = report::long_step("restoring the disk", || {
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                signals::check()?;
                let count = fill(source, &mut piece)?;
                if count == 0 {
                    break;
                }
                if length + count as u64 > disk_bytes {
                    return Err(anyhow!("the image is larger than the disk, which has {}", size(disk_bytes)))
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
        self.complete(held, length, restored)
    }

    /// Restores a disk from a qcow2 image.
    pub fn qcow2(self, image: &Qcow2) -> Result<()> {
        let size_bytes = image.size_bytes();
        self.refuse_smaller(size_bytes)?;
        let mut held = StagedWrite::begin(self.disk, size_bytes, partitions_of(image, size_bytes))?;
        let restored = report::long_step("writing the image", || {
            image.pieces(|offset, piece| {
                signals::check()?;
                match piece {
                    Piece::Data(bytes) => held.write(offset, bytes),
                    Piece::Zeros(length) => held.zero(offset, length),
                }
            })
        });
        self.complete(held, size_bytes, restored)
    }

    fn refuse_smaller(&self, needed_bytes: u64) -> Result<()> {
        let have = self.disk.size_bytes;
        if have >= needed_bytes {
            return Ok(());
        }
        Err(anyhow!(
            "the disk has {} ({have} bytes), what is to come on it is a disk of {} ({needed_bytes} bytes)",
            size(have),
            size(needed_bytes)
        ))
        .hint("give the instance a disk of at least that size")
    }

    /// Lets the disk be what it was, or wipes it.
    fn complete(self, mut held: StagedWrite<'_>, size_bytes: u64, restored: Result<()>) -> Result<()> {
        let disk = self.disk;
        let finished = restored.and_then(|()| {
            let mut sector = held.release()?;
            let mut bytes = disk.size_bytes;
            if disk.size_bytes > size_bytes {
                grow(disk, size_bytes, self.workspace, &mut sector)?;
                if is_part_of_another(disk, size_bytes, &sector)? {
                    bytes = size_bytes;
                }
            }
            (self.setup)(Seen { sector: &mut sector, bytes })?;
            report::step("flushing", || held.finish(&sector))
        });
        finished.map_err(|error| teardown::give_up(disk, self.on_failure, error, || held.wipe()))
    }
}

/// Start and length of what a disk's table names, where it can be read.
fn partitions_of(disk: &dyn ReadAt, size_bytes: u64) -> Vec<(u64, u64)> {
    let budget = Budget::of_disk(size_bytes);
    let table = partition_table::read(&Region::new(disk, &budget, 0, size_bytes)).ok().flatten();
    let parts = table.iter().flat_map(|table| &table.partitions);
    parts.map(|part| (part.start_bytes, part.size_bytes)).collect()
}

/// A restored disk, as what comes after the restore looks at it.
pub struct Seen<'a> {
    /// Its first one, which may not stand on it yet.
    pub sector: &'a mut Sector,
    /// All of it, or what there was of a member of an array: some marks are known by their distance from the end.
    pub bytes: u64,
}

/// Whether a disk without a table holds what is no filesystem: a member of an array, for one.
fn is_part_of_another(disk: &Disk, size_bytes: u64, sector: &Sector) -> Result<bool> {
    match survey(disk, size_bytes, sector) {
        Ok(survey) => {
            let other = |part: &Part| matches!(part.content, Content::Other(_));
            Ok(survey.table.is_none() && survey.parts.iter().any(other))
        }
        // A damaged table: the code that needs it says so.
        Err(_) => signals::check().map(|()| false),
    }
}

/// What is on the first `size_bytes` of a restored disk of which the first sector is yet to come. Without a table that sector is
/// its filesystem's own, and is on the disk while `work` runs.
pub fn with_first_sector<T>(
    disk: &Disk,
    size_bytes: u64,
    sector: &mut Sector,
    work: impl FnOnce(Survey, &mut Sector) -> Result<T>,
) -> Result<T> {
    let survey = survey(disk, size_bytes, sector)?;
    let bare = survey.table.is_none();
    if bare {
        disk.file.write_all_at(sector, 0).context("writing the first sector")?;
    }
    disk.flush_path_cache()?;
    let done = work(survey, sector)?;
    if bare {
        disk.flush_path_cache()?;
        disk.file.read_exact_at(sector, 0).context("reading the first sector")?;
    }
    Ok(done)
}

/// What is on a disk of this size, with this first sector.
fn survey(disk: &Disk, size_bytes: u64, sector: &Sector) -> Result<Survey> {
    let (seen, budget) = (WithSector { disk: &disk.file, sector }, Budget::of_disk(size_bytes));
    probe::survey(&Region::new(&seen, &budget, 0, size_bytes))
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

/// The disk is larger than the one that was exported, which had `size_bytes`: its table covers it, and what lies last grows. It
/// is looked at as the smaller disk that it was: some marks (of an array's member) are known by their distance from the end.
fn grow(disk: &Disk, size_bytes: u64, workspace: &Workspace, sector: &mut Sector) -> Result<()> {
    if let Err(error) = survey(disk, size_bytes, sector) {
        signals::check()?;
        report::warning(&format!("nothing grows: {}", report::sentence(&error)));
        return Ok(());
    }
    with_first_sector(disk, size_bytes, sector, |survey, sector| grow_last(disk, workspace, &survey, sector))
}

fn grow_last(disk: &Disk, workspace: &Workspace, survey: &Survey, sector: &mut Sector) -> Result<()> {
    let last = survey.parts.iter().max_by_key(|part| part.start_bytes);
    let growing = last.filter(|part| matches!(part.content, Content::Filesystem(_)));
    let growth = match survey.table {
        Some(kind) => {
            grow_table(&disk.file, disk.size_bytes, kind, growing.and_then(Part::partition), sector)?
        }
        None => growing.map(|part| Growth { start_bytes: part.start_bytes, size_bytes: disk.size_bytes }),
    };
    match growth {
        Some(growth) => {
            let part = growing.context("a part that grows")?;
            report::step(&format!("growing {part} to {}", size(growth.size_bytes)), || {
                grow_filesystem(disk, workspace, part, growth)
            })
        }
        None => {
            let last = last.map_or("nothing".to_owned(), Part::to_string);
            report::line(&format!("{:>10}  the room at the end stays free: last on the disk is {last}", ""));
            Ok(())
        }
    }
}

/// By the filesystem's own tools, on a loop device that shows nothing else. One that cannot be grown (damaged, of a kind or
/// size that its tool refuses, or a btrfs whose copy this node has mounted) is what was backed up all the same: it keeps
/// its size, with a word.
fn grow_filesystem(disk: &Disk, workspace: &Workspace, part: &Part, growth: Growth) -> Result<()> {
    let Content::Filesystem(volume) = part.content else { return Ok(()) };
    disk.flush_path_cache()?;
    let device = LoopDevice::attach_part(disk, growth.start_bytes, growth.size_bytes)?;
    let path = device.path();
    let refusal = match volume.filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => grow_ext(&path, volume)?,
        Filesystem::Xfs => grow_mounted(&path, workspace, volume, Tool::new("xfs_growfs").arg("-d"))?,
        Filesystem::Btrfs => {
            let tool = Tool::new("btrfs").args(["filesystem", "resize", "max"]);
            grow_mounted(&path, workspace, volume, tool)?
        }
    };
    if let Some(error) = refusal {
        signals::check()?;
        report::warning(&format!("the filesystem keeps its size: {}", report::sentence(&error)));
    }
    device.finish()
}

/// Why it keeps its size, if it does.
fn grow_ext(device: &Path, volume: Volume) -> Result<Option<Error>> {
    if let Err(error) = check_ext(device, volume) {
        return Ok(Some(error));
    }
    let Err(error) = Tool::new("resize2fs").arg(device).sees_only(device).quiet().run() else {
        return Ok(None);
    };
    // Some kinds it refuses before it has changed anything; whatever it left half done is no backup's filesystem.
    match e2fsck(device, "-n") {
        Ok(()) => Ok(Some(error)),
        Err(_) => Err(error),
    }
}

/// The same, by the kernel, which grows it or leaves it.
fn grow_mounted(device: &Path, workspace: &Workspace, volume: Volume, tool: Tool) -> Result<Option<Error>> {
    let mut root = match workspace.mount_found(device, volume, "grown", Trust::Untrusted) {
        Ok(root) => root,
        Err(error) => return Ok(Some(error)),
    };
    let refusal = tool.arg(root.path()).sees_only(device).quiet().run().err();
    root.finish()?;
    Ok(refusal)
}

/// resize2fs and tune2fs want a filesystem that was checked, and its journal replayed. What the journal made of it is looked
/// at again.
pub fn check_ext(device: &Path, volume: Volume) -> Result<()> {
    one_device::refuse_other(device, volume)?;
    match e2fsck(device, "-p") {
        // Something was mended.
        Err(error) if matches!(report::cause(&error), Some(ToolError::Status(_, 1, _))) => {}
        checked => checked?,
    }
    one_device::refuse_other(device, volume)
}

/// A journal on another device is none that it could find: a filesystem has its own, or is refused.
fn e2fsck(device: &Path, mode: &str) -> Result<()> {
    Tool::new("e2fsck").args(["-f", mode, "-j", "/dev/null"]).arg(device).sees_only(device).quiet().run()
}
