//! What of a partition is in use, by the filesystem's own maps, read from the device and never through a mount: parsers of
//! our own, bounded, that believe nothing. What they cannot be sure of is in use.

mod map;

pub use map::UsedMap;

/// What of a partition has to travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// What the map says; all else may be anything.
    Part(UsedMap),
    /// All of it, with the reason: a filesystem, or a state of one, whose maps are not read.
    Whole(String),
}
