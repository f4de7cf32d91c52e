//! A swap file in a guest, where its disk has no partition for one.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};

use super::Root;
use crate::disk;
use crate::report::WithHint;

/// Its path in the guest.
pub const FILE: &str = "swapfile";

/// Makes the file, without a hole in it (swapon refuses one), and its header. The tree is still ours alone: nothing of
/// the guest has run in it.
pub fn make_file(root: &Root, size_bytes: u64) -> Result<()> {
    root.dir()?.remove(FILE)?;
    let path = root.path().join(FILE);
    let fill = || -> std::io::Result<()> {
        let file = std::fs::File::create_new(&path)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        match fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
            // ext2 and ext3 cannot: they get their zeroes one by one.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size_bytes), &mut &file).map(drop)
            }
            result => Ok(result?),
        }
    };
    fill()
        .with_context(|| format!("making /{FILE}"))
        .hint("give the instance a larger disk, or less swap")?;
    disk::make_swap(&path).map(drop)
}
