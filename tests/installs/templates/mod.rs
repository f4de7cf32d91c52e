//! Templates: a disk that was copied is the disk that would have been unpacked, it is its guest's alone, it costs what is in
//! use, and whatever happens to a template costs time and nothing else. Needs root.

mod bench;
mod equal;
mod faults;
mod keeping;
mod superblock;
mod tree;
