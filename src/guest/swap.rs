//! A swap file in a guest, where its disk has no partition for one.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};
use uuid::Uuid;

use crate::report::WithHint;
use crate::rootdir::RootDir;

/// Its path in the guest.
pub const FILE: &str = "swapfile";
/// mkswap(8): the first kilobyte is for a boot loader; the header follows, the magic ends the first page.
const HEADER_AT: usize = 1024;
const UUID_AT: usize = HEADER_AT + 12;
const MAGIC: &[u8] = b"SWAPSPACE2";

/// Makes the file, without a hole in it (swapon refuses one), and its header.
pub fn make_file(root: &RootDir, size_bytes: u64) -> Result<()> {
    root.remove(FILE)?;
    let page_bytes = rustix::param::page_size();
    let fill = || -> Result<()> {
        let file = root.create_new(FILE, 0o600)?;
        match fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
            // ext2 and ext3 cannot: they get their zeroes one by one.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size_bytes), &mut &file)?;
            }
            result => result?,
        }
        Ok(file.write_all_at(&header(page_bytes, size_bytes, Uuid::new_v4()), 0)?)
    };
    fill().with_context(|| format!("making /{FILE}")).hint("give the instance a larger disk, or less swap")
}

/// The first page of a swap area of version 1.
fn header(page_bytes: usize, size_bytes: u64, uuid: Uuid) -> Vec<u8> {
    let pages = size_bytes / page_bytes as u64;
    let last_page = u32::try_from(pages.saturating_sub(1)).unwrap_or(u32::MAX);
    let mut page = vec![0; page_bytes];
    page[HEADER_AT..HEADER_AT + 4].copy_from_slice(&1u32.to_le_bytes());
    page[HEADER_AT + 4..HEADER_AT + 8].copy_from_slice(&last_page.to_le_bytes());
    page[UUID_AT..UUID_AT + 16].copy_from_slice(uuid.as_bytes());
    page[page_bytes - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Tool;
    use crate::probe::{self, Content};
    use crate::reader::{Budget, Region};

    #[test]
    fn the_header_is_what_mkswap_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let file = std::fs::File::create_new(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        let uuid = Uuid::new_v4();
        Tool::new("mkswap").args(["-U", &uuid.to_string()]).arg(&path).quiet().run().unwrap();
        let page = rustix::param::page_size();
        assert_eq!(std::fs::read(&path).unwrap()[..page], header(page, 8 << 20, uuid));
        let bytes = header(4096, 8 << 20, uuid);
        assert_eq!(
            probe::probe(&Region::new(&bytes.as_slice(), &Budget::unlimited(), 0, 4096)).unwrap(),
            Content::Swap(uuid)
        );
    }
}
