//! What identifies the header of an allocation group's free space (AGF) and the blocks of its trees.

pub const HEADER_MAGIC: &[u8; 4] = b"XAGF";
/// The checksum's place in it, behind the log position (8 bytes); the UUID's.
pub const HEADER_CHECKSUM_AT: usize = 216;
pub const HEADER_UUID_AT: usize = 64;
pub const HEADER_LSN_AT: usize = 208;

/// Of a block of the tree, without and with checksums.
pub const BLOCK_MAGICS: [&[u8; 4]; 2] = [b"ABTB", b"AB3B"];
pub const BLOCK_CHECKSUM_AT: usize = 52;
pub const BLOCK_UUID_AT: usize = 32;
pub const BLOCK_LSN_AT: usize = 24;
