//! Owns "a root tree as a tar, faithfully": [`pack()`] writes POSIX pax archives with everything that
//! a Linux tree holds (hard links, devices, FIFOs, extended attributes, ACLs, holes, nanoseconds),
//! [`unpack()`] reads those and what GNU tar, bsdtar and busybox write, and trusts none of it.
//!
//! Must not spawn anything, compress, sync, or decide what belongs into an image. What unpack
//! touches it reaches through [`RootDir`](crate::rootdir::RootDir) alone.
//!
//! Sources: POSIX.1-2017 pax(1) (ustar and pax interchange formats); GNU tar's manual, "Tar
//! Internals" (sparse formats, base-256, `L`/`K`); star's and libarchive's manuals for the
//! `SCHILY.` and `RHT.` keywords.

mod acl;
pub(crate) mod archive;
mod attributes;
mod entry;
mod header;
mod input;
mod later;
mod links;
mod names;
mod output;
mod pack;
mod pax;
mod pax_record;
mod reach;
mod sparse;
mod unpack;

use anyhow::Result;

use crate::report::Foreign;

pub(crate) use acl::{ACCESS as ACL_ACCESS, DEFAULT as ACL_DEFAULT};
pub(crate) use attributes::{Target, set_owner_and_mode};
pub(crate) use entry::Owner;
pub use pack::{PackStats, pack};
pub(crate) use pax::Time;
pub use unpack::{UnpackStats, unpack, unpack_only};

/// What a packer calls once per entry and about every [`CHECKPOINT_BYTES`] of data; its error ends the
/// work and is returned.
pub type Checkpoint<'a> = &'a dyn Fn() -> Result<()>;

/// The unit of a tar: headers are one block, data is padded to whole blocks.
const BLOCK: usize = 512;

/// One buffer of this size carries all data: large enough for few system calls, small enough for
/// the second-level cache.
const BUFFER_BYTES: usize = 256 * 1024;

/// How much data passes between two calls of the checkpoint.
pub const CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;

/// A pax extended header, or a GNU long name, above this is refused. The kernel's own bounds on
/// attributes are 64 KiB per value and per list of names (linux/limits.h).
const PAX_BYTES_MAX: u64 = 1024 * 1024;

/// The longest path that the kernel takes, without the NUL (linux/limits.h PATH_MAX).
pub(crate) const PATH_BYTES_MAX: usize = 4095;

/// The path as the guest sees it, for errors: `./etc/fstab` and `etc/fstab` are `/etc/fstab`.
fn shown(path: &[u8]) -> String {
    let path =
        path.strip_prefix(b".").filter(|rest| rest.is_empty() || rest.starts_with(b"/")).unwrap_or(path);
    let path = path.strip_prefix(b"/").unwrap_or(path);
    format!("/{}", Foreign(path))
}

/// How many bytes pad `size_bytes` of data to whole blocks.
pub(crate) fn padding(size_bytes: u64) -> u64 {
    size_bytes.wrapping_neg() % BLOCK as u64
}
