//! Disks that travel: export, import, the formats in between, and the maps of what is in use. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod before;
#[path = "../common/mod.rs"]
mod common;
mod dump;
mod import;
mod predecessor_cycle;
mod rounds;
mod stopped_dead;
mod stream;
mod stream_faults;
mod tree;
mod used_ext;
mod used_xfs_btrfs;
