//! A template's filesystem onto a disk: by several threads and past the page cache, as fast as the disk takes it; or, where the
//! cache and the disk are files of one filesystem that can share, without copying. Its superblock comes last.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use uuid::Uuid;

use crate::cache::{PIECE_BYTES, Part, Template};
use crate::disk::used::ext::identity::{SUPERBLOCK_BYTES, renew_journal, renew_superblock};
use crate::disk::{AlignedBuffer, DirectDisk, Disk, Medium, discard, zero_range};
use crate::{report, signals};

/// What comes last: it holds the superblock.
const FIRST_BYTES: usize = 4096;
/// A disk has some of its own; more threads than this were not faster on any.
const THREADS: usize = 4;
/// Smaller gaps are not worth a command to a device.
const DISCARD_BYTES_MIN: u64 = 1 << 20;

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pasted {
    Whole,
    /// The template is not what was written: it is gone, and nothing that counts is on the disk.
    Damaged,
}

/// Copies a template's filesystem to byte `start` of a disk, with a UUID of its own where that stands in superblocks alone.
pub fn paste(template: &Template, disk: &Disk, start: u64, uuid: Uuid) -> Result<Pasted> {
    prepare(template, disk, start)?;
    let target = Target { template, disk: &DirectDisk::open(disk)?, start };
    if let Err(error) = target.copy() {
        signals::check()?;
        let Some(damage) = error.downcast_ref::<Damage>() else { return Err(error) };
        report::warning(&format!("{}; it is removed, and the tree unpacked", report::sentence(&damage.0)));
        template.remove()?;
        return Ok(Pasted::Damaged);
    }
    target.renew(uuid)?;
    Ok(Pasted::Whole)
}

/// What no data goes to reads as zeros where it must, and is given back where that can be.
fn prepare(template: &Template, disk: &Disk, start: u64) -> Result<()> {
    let (content, size) = (template.content(), template.shape().size_bytes);
    let context = || format!("preparing {}", disk.path.display());
    match disk.medium {
        Medium::File => {
            if !is_blank(disk, start, size)? {
                for gap in content.gaps(size) {
                    zero_range(&disk.file, disk.medium, start + gap.start, gap.end - gap.start)
                        .with_context(context)?;
                }
            }
            for run in &content.data {
                // Once for all of it is less work for a filesystem than for each piece; one that has no such call gets them.
                let flags = FallocateFlags::KEEP_SIZE;
                match fallocate(disk.file.as_fd(), flags, start + run.start, run.end - run.start) {
                    Err(rustix::io::Errno::OPNOTSUPP) => break,
                    done => done.with_context(context)?,
                }
            }
        }
        Medium::Block => {
            let large = |gap: &Range<u64>| gap.end - gap.start >= DISCARD_BYTES_MIN;
            for gap in content.gaps(size).into_iter().filter(large) {
                discard(&disk.file, start + gap.start, gap.end - gap.start);
            }
            for run in &content.zero {
                zero_range(&disk.file, disk.medium, start + run.start, run.end - run.start)
                    .with_context(context)?;
            }
        }
    }
    Ok(())
}

/// Whether a file has nothing there yet.
fn is_blank(disk: &Disk, start: u64, size: u64) -> Result<bool> {
    match seek(&disk.file, SeekFrom::Data(start)) {
        Ok(data) => Ok(data >= start + size),
        Err(rustix::io::Errno::NXIO) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error).context("looking for holes in the disk's file"),
    }
}

/// Not the disk's fault.
#[derive(Debug)]
struct Damage(anyhow::Error);

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Damage {}

/// A copy that is going on.
struct Target<'a> {
    template: &'a Template,
    disk: &'a DirectDisk<'a>,
    start: u64,
}

impl Target<'_> {
    /// All data but the first block.
    fn copy(&self) -> Result<()> {
        let next = AtomicUsize::new(0);
        let pieces = self.template.pieces();
        std::thread::scope(|scope| {
            let work = || {
                let mut buffer = AlignedBuffer::new(PIECE_BYTES);
                loop {
                    signals::check()?;
                    let piece = next.fetch_add(1, Ordering::Relaxed);
                    if piece >= pieces {
                        return Ok(());
                    }
                    let copied = self.copy_piece(piece, buffer.bytes());
                    if copied.is_err() {
                        // Nobody else needs to go on.
                        next.store(pieces, Ordering::Relaxed);
                    }
                    copied?;
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            let ended = threads.into_iter().map(|thread| match thread.join() {
                Ok(ended) => ended,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ended.collect::<Vec<Result<()>>>().into_iter().collect()
        })
    }

    fn copy_piece(&self, piece: usize, buffer: &mut [u8]) -> Result<()> {
        // What is shared is looked at all the same: the disk that has it has nothing else.
        let bytes = self.template.read(piece, buffer).map_err(Damage)?;
        for Part { mut at, mut length, mut in_file, mut in_filesystem } in self.template.parts(piece) {
            if in_filesystem == 0 {
                (at, length) = (at + FIRST_BYTES, length - FIRST_BYTES);
                (in_file, in_filesystem) = (in_file + FIRST_BYTES as u64, FIRST_BYTES as u64);
            }
            let to = self.start + in_filesystem;
            if !self.disk.share(&self.template.file, in_file, length as u64, to) {
                self.disk.write(&bytes[at..at + length], to)?;
            }
        }
        Ok(())
    }

    /// Gives the copy a UUID, and last of all its superblock.
    fn renew(&self, uuid: Uuid) -> Result<()> {
        let content = self.template.content();
        let renew = |at: u64, renew: fn(&mut [u8; SUPERBLOCK_BYTES], &[u8; 16])| -> Result<()> {
            let (block, within) = (at / FIRST_BYTES as u64 * FIRST_BYTES as u64, at as usize % FIRST_BYTES);
            let mut buffer = AlignedBuffer::new(FIRST_BYTES);
            buffer.bytes().copy_from_slice(&self.template.block(block)?);
            if content.uuid_stands_alone {
                let superblock = &mut buffer.bytes()[within..][..SUPERBLOCK_BYTES];
                renew(superblock.try_into().context("a superblock within its block")?, uuid.as_bytes());
            }
            self.disk.write(buffer.bytes(), self.start + block)
        };
        content.journal.iter().try_for_each(|at| renew(*at, renew_journal))?;
        content.superblocks.iter().rev().try_for_each(|at| renew(*at, renew_superblock))
    }
}
