//! xfs: what its free-space trees, one in each allocation group, do not call free is in use. All offsets are those of
//! the published on-disk format ("XFS Algorithms & Data Structures").
//!
//! A disk that was taken while the filesystem was mounted has newer trees in its log than in their places: they are
//! read as the log's replay would leave them. What a replay frees beyond that only makes the map too large.

mod agf;
mod free_space;
mod geometry;
mod log;
mod replay;

use super::AllocationMap;
use crate::reader::{Parsed, Region};
use geometry::Geometry;
use log::Log;
use replay::Replayed;

/// What is in use of the region, in which an xfs is.
pub fn map(region: &Region<'_>) -> Parsed<AllocationMap> {
    let geometry = Geometry::read(region)?;
    let replayed = match log::find(region, &geometry)? {
        Log::Clean => Replayed::default(),
        Log::Dirty(records) => replay::replay(region, &geometry, records)?,
    };
    // What lies behind the filesystem's end is nobody's to call free.
    let mut map = AllocationMap::full(region.size_bytes());
    for group in 0..geometry.groups {
        free_space::clear(region, &geometry, &replayed, group, &mut map)?;
    }
    Ok(map)
}
