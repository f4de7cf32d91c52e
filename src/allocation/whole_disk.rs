//! What of a whole disk has to travel: tables, boot code and what lies between partitions, and of each partition what is in
//! use; without the holes of the file that the disk may be.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{AllocationMap, Usage, usage};
use crate::disk::{Disk, Medium};
use crate::probe::Part;
use crate::reader::{Budget, Work};

/// What is in use on a disk.
#[derive(Debug)]
pub struct DiskUse {
    /// Bytes that have to travel.
    pub data: AllocationMap,
    /// Bytes that have to read as zeros, and are in no file's data.
    pub zero: AllocationMap,
    /// Of each part: why all of it is in use.
    pub whole: Vec<Option<String>>,
    /// What it took to find out.
    pub work: Work,
}

/// Looks at a disk that holds `parts`; no map has more than `runs_max` runs.
pub fn of_disk(disk: &Disk, parts: &[Part], runs_max: usize) -> Result<DiskUse> {
    // What no partition covers is not known, and travels.
    let mut used = AllocationMap::full(disk.size_bytes);
    let mut whole = Vec::new();
    // Of their own: whatever its partitions ask for, a disk that was never written is not carried as zeros.
    let (budget, holes) = (Budget::of_disk(disk.size_bytes), Budget::of_disk(disk.size_bytes));
    for part in parts {
        let share = budget.part(part.size_bytes);
        let region = disk.region(&share).part(part.start_bytes, part.size_bytes);
        let of_part =
            usage(&region, &part.content).with_context(|| format!("finding out what is in use in {part}"))?;
        whole.push(match of_part {
            Usage::Whole(reason) => Some(reason),
            Usage::Part(map) => {
                used.clear(part.start_bytes, part.size_bytes);
                for run in map.extents() {
                    used.mark(part.start_bytes + run.start, run.end - run.start);
                }
                None
            }
        });
    }
    let mut data = used.clone();
    if disk.medium == Medium::File {
        clear_holes(&disk.file, &holes, &mut data)?;
    }
    let data = data.with_at_most(runs_max);
    let mut zero = used;
    for run in data.extents() {
        zero.clear(run.start, run.end - run.start);
    }
    Ok(DiskUse { data, zero: zero.with_at_most(runs_max), whole, work: budget.spent() + holes.spent() })
}

/// What was never written to a file reads as zeros. It is looked for once in each granule at most.
fn clear_holes(file: &File, budget: &Budget<'_>, map: &mut AllocationMap) -> Result<()> {
    let size = map.size_bytes();
    let mut at = 0;
    while at < size {
        budget.look_at(1)?;
        let context = "looking for holes in the disk's file";
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error).context(context),
        };
        map.clear(at, data - at);
        if data == size {
            break;
        }
        // No hole that begins before the end of the granule clears anything there: a file of small holes has many.
        let hole = seek(file, SeekFrom::Hole(data)).context(context)?;
        at = hole.max(map.granule_end(data));
    }
    Ok(())
}
