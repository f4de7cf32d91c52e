//! Templates: a disk that was copied is the disk that would have been unpacked, it is its guest's alone, it costs what is in
//! use, and whatever happens to a template costs time and nothing else. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod bench;
#[path = "../common/mod.rs"]
mod common;
mod equal;
mod faults;
mod keeping;
mod superblock;
mod tree;
