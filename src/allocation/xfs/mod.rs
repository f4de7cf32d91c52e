//! xfs: what its free-space trees, one in each allocation group, do not call free is in use. All offsets are those of
//! the published on-disk format ("XFS Algorithms & Data Structures").
//!
//! A disk that was taken while the filesystem was mounted has newer trees in its log than in their places: they are
//! read as the log's replay would leave them. What a replay frees beyond that only makes the map too large.

mod bytes;
mod free_space;
mod geometry;
mod log;
mod replay;

use anyhow::Result;

use super::reader::{Source, Step, settle};
use super::{Usage, UsedMap};
use crate::reader::ReadAt;
use geometry::Geometry;
use log::Log;
use replay::Replayed;

/// What of the `size_bytes` at `start_bytes`, where an xfs lies, is in use. An error only where the disk cannot be
/// read.
pub fn usage(disk: &(impl ReadAt + ?Sized), start_bytes: u64, size_bytes: u64) -> Result<Usage> {
    settle(map(&Source::new(disk, start_bytes, size_bytes)))
}

fn map<D: ReadAt + ?Sized>(source: &Source<D>) -> Step<UsedMap> {
    let geometry = Geometry::read(source)?;
    let replayed = match log::find(source, &geometry)? {
        Log::Clean => Replayed::default(),
        Log::Dirty(records) => replay::replay(source, &geometry, records)?,
    };
    // What lies behind the filesystem's end is nobody's to call free.
    let mut map = UsedMap::full(source.size_bytes());
    for group in 0..geometry.groups {
        free_space::clear(source, &geometry, &replayed, group, &mut map)?;
    }
    Ok(map)
}
