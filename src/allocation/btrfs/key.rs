//! What trees of btrfs are named and ordered by.

use crate::reader::integers::le64;

pub const KEY_BYTES: usize = 17;

/// A tree's root block, by its logical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    pub at: u64,
    pub generation: u64,
    pub level: u8,
}

/// An item's key; ordered as here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub fn read(bytes: &[u8]) -> Key {
        Key { object: le64(bytes, 0), kind: bytes[8], offset: le64(bytes, 9) }
    }
}
