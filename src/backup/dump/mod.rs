//! Owns the way back from what Debian's dump(8) wrote, the backups of this program's predecessor, to a
//! tree: [`restore()`]. Trusts no number and no name in it, and keeps little of it in memory.
//!
//! A dump is a sequence of records: the volume's header, the map of the inodes in use, the map of those
//! in the dump, the directories, all other inodes, each in ascending order, and an end header. An inode
//! has a header, its data, and its extended attributes as if they were one more inode.
//!
//! Not everything is in it: times have 32 bits and no fractions, names of 255 bytes are lost, blocks
//! that were allocated but never written come as they lay on the disk, and no record but headers has a
//! checksum.
//!
//! Source: protocols/dumprestore.h and bsdcompat.h of dump 0.4b47.

mod attributes;
mod directories;
mod entries;
mod files;
mod finish;
mod header;
mod inode;
mod map;
mod names;
mod records;
mod volume;

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FileType;

use crate::reader::Budget;
use crate::rootdir::RootDir;
use directories::{Collected, Directories};
use files::Files;
use header::{Header, Kind};
use inode::Inode;
use map::Map;
use records::Records;

pub(super) use header::probe;

/// TP_BSIZE.
const RECORD_BYTES: usize = 1024;

/// The root directory's inode.
const ROOT: u32 = 2;

/// What mkfs makes in the root.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A fresh filesystem has far fewer entries.
const FRESH_ENTRIES_MAX: usize = 16;

/// What [`restore()`] made, and what it left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub directories: u64,
    /// Inodes that are no directory.
    pub files: u64,
    /// Names of files besides their first one.
    pub links: u64,
    /// Data written into files, holes not counted.
    pub bytes: u64,
    /// Entries whose inode is not in the dump: it was excluded, or was made or removed while a
    /// mounted filesystem was dumped.
    pub names_without_inode: u64,
    /// Names of 255 bytes, which dump(8) lost: their inodes are named `#` and their number instead.
    pub names_lost: u64,
    /// Inodes in the dump that no directory names.
    pub inodes_without_name: u64,
    /// Files whose flags (chattr(1)) this filesystem does not take.
    pub flags_not_set: u64,
}

/// Restores the level 0 dump `input`, the plain bytes of one volume, to the filesystem at `root`, which
/// must be fresh: empty but for lost+found.
///
/// Reads to the end of `input`. Anything but a whole, sound dump is an error, and so is one that asks for
/// more work than `budget` has; what was restored until then stays. Flags such as `immutable` are set as
/// in the original.
pub fn restore(input: &mut impl Read, root: &RootDir, budget: &Budget<'_>) -> Result<Stats> {
    expect_fresh(root)?;
    let mut records = Records::open(input, budget)?;
    let volume = records.header()?;
    expect_level_0(&volume)?;
    let (map, mut header) = maps(&mut records)?;
    let mut stats = Stats::default();

    let mut collected = Collected::new(root, budget)?;
    let mut last = 0;
    while kind_of(&header)? == Some(FileType::Directory) {
        let inode_number = header.inode_number();
        expect_ascending(inode_number, last, &map)?;
        header = collected
            .take(header, &mut records, &map, &mut stats)
            .with_context(|| format!("reading directory {inode_number}"))?;
        last = inode_number;
    }
    let (mut directories, names) = collected.make()?;

    let mut names = names.read(budget)?;
    last = 0;
    while kind_of(&header)?.is_some() {
        let inode_number = header.inode_number();
        expect_ascending(inode_number, last, &map)?;
        ensure!(!directories.contains(inode_number), "inode {inode_number} comes twice, once as a directory");
        expect_none_missing(last, u64::from(inode_number), &map, &directories)?;
        while names.next_inode().is_some_and(|next| next < inode_number) {
            // A directory's, which has its name.
            names.next()?;
        }
        let mut files = Files {
            records: &mut records,
            directories: &mut directories,
            names: &mut names,
            stats: &mut stats,
        };
        header = files.restore(header)?;
        last = inode_number;
    }
    expect_none_missing(last, map.last() + 1, &map, &directories)?;
    records.end(volume.blocking())?;
    directories.finish(&mut stats)?;
    Ok(stats)
}

fn expect_fresh(root: &RootDir) -> Result<()> {
    let names = root.list("", FRESH_ENTRIES_MAX)?;
    let other = names.iter().find(|name| name.as_encoded_bytes() != LOST_AND_FOUND);
    ensure!(other.is_none(), "the root to restore to is not empty: it has {other:?}");
    Ok(())
}

/// Refuses what [`restore()`] would refuse by the first header, which is all in `first`.
pub(super) fn expect_acceptable(first: &[u8]) -> Result<()> {
    let (length, block) = (first.len(), first.first_chunk::<RECORD_BYTES>());
    let block = block
        .with_context(|| format!("the dump was cut: it ends in its first header, after {length} bytes"))?;
    expect_level_0(&Header::parse(Box::new(*block)).context("reading the first header of the dump")?)
}

fn expect_level_0(volume: &Header) -> Result<()> {
    ensure!(
        volume.kind == Kind::Volume,
        "the dump begins with a record {:?}, expected a volume's header",
        volume.kind
    );
    ensure!(
        volume.volume() == 1,
        "this is volume {} of a dump; dumps of several volumes are not supported",
        volume.volume()
    );
    ensure!(
        volume.level() == 0 && volume.previous_date() == 0,
        "the dump is incremental (level {}), which is not supported; a level 0 dump is",
        volume.level()
    );
    Ok(())
}

/// The map of the inodes in the dump, and the header after it.
fn maps(records: &mut Records<'_>) -> Result<(Map, Header)> {
    let used = records.header()?;
    ensure!(used.kind == Kind::Used, "found a record {:?}, expected the map of inodes in use", used.kind);
    let dumped = records.map(used, &mut |_| Ok(()))?;
    ensure!(
        dumped.kind == Kind::Dumped,
        "found a record {:?}, expected the map of inodes in the dump",
        dumped.kind
    );
    let mut map = Map::default();
    let next = records.map(dumped, &mut |bytes| map.push(bytes))?;
    Ok((map, next))
}

/// What the inode that `header` begins is; `None` at the end of the dump.
fn kind_of(header: &Header) -> Result<Option<FileType>> {
    match header.kind {
        Kind::End => Ok(None),
        Kind::Inode => {
            let number = header.inode_number();
            ensure!(!header.is_attributes()?, "extended attributes of inode {number} follow another inode");
            ensure!(
                !header.is_content_missing(),
                "the content of inode {number} is not in the dump: it is incremental"
            );
            let inode =
                Inode::parse(header.inode_bytes()).with_context(|| format!("reading inode {number}"))?;
            Ok(Some(inode.kind))
        }
        Kind::Volume => bail!("another volume begins; dumps of several volumes are not supported"),
        kind => bail!("found a record {kind:?} about inode {}, expected an inode", header.inode_number()),
    }
}

fn expect_ascending(inode_number: u32, last: u32, map: &Map) -> Result<()> {
    ensure!(inode_number > last, "inode {inode_number} comes after inode {last}: twice, or out of order");
    ensure!(map.contains(inode_number), "inode {inode_number} comes, but is not in the dump's map");
    Ok(())
}

/// All inodes between two files, or before the dump's end, must have come as directories.
fn expect_none_missing(last: u32, before: u64, map: &Map, directories: &Directories<'_>) -> Result<()> {
    let mut at = last;
    while let Some(next) = map.next_after(at).filter(|next| u64::from(*next) < before) {
        ensure!(directories.contains(next), "inode {next} is in the dump's map, but does not come");
        at = next;
    }
    Ok(())
}
