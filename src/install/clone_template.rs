//! A template's filesystem onto a disk: by several threads and past the page cache, as fast as the disk takes it; or, where the
//! cache and the disk are files of one filesystem that can share, without copying. Its superblock comes last.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use uuid::Uuid;

use crate::allocation::ext4::identity::{SUPERBLOCK_BYTES, renew_journal, renew_superblock};
use crate::cache::{Chunk, PIECE_BYTES, Template};
use crate::disk::{AlignedBuffer, DirectDisk, Disk, Medium, zero_range};
use crate::report;
use crate::sys::signals;

/// What comes last: it holds the superblock.
const FIRST_BYTES: usize = 4096;
/// So that a disk has something to do while the next pieces are read and checked.
const THREADS: usize = 4;

/// Copies a template's filesystem to byte `start` of a disk, with a UUID of its own where that stands in superblocks alone.
/// Returns the files that the template has beside it. None: it was damaged, and is removed; nothing that counts is on the disk.
pub fn clone_template(
    template: &Template,
    disk: &Disk,
    start: u64,
    uuid: Uuid,
) -> Result<Option<BTreeMap<String, Vec<u8>>>> {
    let target = Target { template, disk: &DirectDisk::open(disk)?, start };
    prepare(&target, disk)?;
    let copied = target.copy().and_then(|()| Ok(template.files().map_err(Damage)?));
    match copied {
        Ok(files) => {
            target.renew(uuid)?;
            Ok(Some(files))
        }
        Err(error) => {
            signals::check()?;
            let Some(damage) = report::cause::<Damage>(&error) else { return Err(error) };
            let damage = report::sentence(&damage.0);
            report::warning(&format!("{damage}; it is done without, and the tree unpacked"));
            if let Err(error) = template.remove() {
                report::warning(&report::sentence(&error));
            }
            Ok(None)
        }
    }
}

/// What no data goes to, and has to read as zeros, does. What else is free stays what it is: to give it back takes longer
/// than the copy, wherever a file lies below.
fn prepare(target: &Target<'_>, disk: &Disk) -> Result<()> {
    let (runs, start) = (target.template.runs(), target.start);
    let context = || format!("preparing {}", disk.path.display());
    if !is_blank(disk, start, target.template.spec().size_bytes)? {
        for run in &runs.zero {
            zero_range(&disk.file, disk.medium, start + run.start, run.end - run.start)
                .with_context(context)?;
        }
        // Zeros that had to be written lie in the page cache of the disk's path, which nothing after this looks at.
        disk.flush_path_cache()?;
    }
    if disk.medium == Medium::File && !target.can_share() {
        allocate(&disk.file, start, &runs.data).with_context(context)?;
    }
    Ok(())
}

/// Once for a run is less work for a filesystem than for each piece; one that has no such call gets them.
fn allocate(file: &File, start: u64, runs: &[Range<u64>]) -> Result<()> {
    for run in runs {
        let flags = FallocateFlags::KEEP_SIZE;
        match fallocate(file.as_fd(), flags, start + run.start, run.end - run.start) {
            Err(Errno::OPNOTSUPP) => break,
            done => done?,
        }
    }
    Ok(())
}

/// Whether a file has nothing there yet. Nobody can tell of a device.
fn is_blank(disk: &Disk, start: u64, size: u64) -> Result<bool> {
    if disk.medium == Medium::Block {
        return Ok(false);
    }
    match seek(&disk.file, SeekFrom::Data(start)) {
        Ok(data) => Ok(data >= start + size),
        Err(Errno::NXIO) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
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
    /// Whether the disk takes the template's blocks without a copy: tried with those behind the first.
    fn can_share(&self) -> bool {
        let first = self.template.parts(0).into_iter().find(|part| part.length > FIRST_BYTES);
        first.is_some_and(|part| {
            let skip = FIRST_BYTES as u64;
            let length = part.length as u64 - skip;
            self.disk.share(
                &self.template.file,
                part.in_file + skip,
                length,
                self.start + part.in_filesystem + skip,
            )
        })
    }

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
        for Chunk { mut at, mut length, mut in_file, mut in_filesystem } in self.template.parts(piece) {
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
        self.disk.flush()?;
        let runs = self.template.runs();
        let renew = |at: u64, renew: fn(&mut [u8; SUPERBLOCK_BYTES], &[u8; 16])| -> Result<()> {
            let (block, within) = (at / FIRST_BYTES as u64 * FIRST_BYTES as u64, at as usize % FIRST_BYTES);
            let mut buffer = AlignedBuffer::new(FIRST_BYTES);
            buffer.bytes().copy_from_slice(&self.template.block(block)?);
            if runs.uuid_stands_alone {
                let superblock = &mut buffer.bytes()[within..][..SUPERBLOCK_BYTES];
                renew(superblock.try_into().context("a superblock within its block")?, uuid.as_bytes());
            }
            self.disk.write(buffer.bytes(), self.start + block)
        };
        runs.journal.iter().try_for_each(|at| renew(*at, renew_journal))?;
        runs.superblocks.iter().rev().try_for_each(|at| renew(*at, renew_superblock))
    }
}
