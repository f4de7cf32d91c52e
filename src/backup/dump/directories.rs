//! Owns the directories of a dump: they all come before the files, children before their parents too,
//! so they are only made when all are known to be one tree below the root. What they have besides
//! names is set when the files are there. Must not trust a link between two directories that is not
//! told by both.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::entries::{self, Name};
use super::header::{Header, INODE_BYTES};
use super::inode::Inode;
use super::map::Map;
use super::names::{Collector, Merge, Sorted};
use super::records::Records;
use super::{LOST_AND_FOUND, ROOT, Stats, attributes, finish};
use crate::reader::Budget;
use crate::report::Foreign;
use crate::rootdir::RootDir;
use crate::tar::PATH_BYTES_MAX;

/// Each takes sixteen bytes.
const DIRECTORIES_MAX: usize = 1 << 21;

/// No path has more components.
const DEPTH_MAX: usize = PATH_BYTES_MAX / 2 + 1;

/// Directories that are held open: most files go to where one went before.
const HELD_MAX: usize = 256;

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

const HOLD_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

/// A directory; its index is its place in the dump.
struct Directory {
    inode_number: u32,
    /// The inode number that its `..` has, then the index of its parent.
    parent: u32,
    /// Where its name is in the file of names.
    name_at: Option<std::num::NonZeroU32>,
    /// Of the path from the root, once it is made.
    path_bytes: u16,
}

/// The directories while they come.
pub(super) struct Collected<'a> {
    root: &'a RootDir,
    budget: &'a Budget<'a>,
    directories: Vec<Directory>,
    /// Inode and attributes of each, in their order.
    inodes: BufWriter<File>,
    names: Collector<'a>,
}

impl<'a> Collected<'a> {
    pub(super) fn new(root: &'a RootDir, budget: &'a Budget<'a>) -> Result<Collected<'a>> {
        Ok(Collected {
            root,
            budget,
            directories: Vec::new(),
            inodes: BufWriter::new(tmpfile_in(root)?),
            names: Collector::new(tmpfile_in(root)?, budget),
        })
    }

    /// Takes the directory that `header` begins, and returns the header after it.
    pub(super) fn take(
        &mut self,
        header: Header,
        records: &mut Records<'_>,
        map: &Map,
        stats: &mut Stats,
    ) -> Result<Header> {
        let inode_number = header.inode_number();
        let index = u32::try_from(self.directories.len())?;
        ensure!(
            self.directories.len() < DIRECTORIES_MAX,
            "the dump has more than {DIRECTORIES_MAX} directories"
        );
        let inode = header.inode_bytes().to_vec();
        let size = header.size_bytes()?;
        ensure!(
            size % entries::BLOCK_BYTES as u64 == 0,
            "its size is {size}, which is not whole blocks of entries"
        );
        let (mut own, mut parent, mut read_bytes) = (None, None, 0);
        let next = records.content(header, size, &mut |offset, piece| {
            ensure!(offset == read_bytes, "its data have a hole at byte {read_bytes}");
            read_bytes += piece.len() as u64;
            for block in piece.chunks(entries::BLOCK_BYTES) {
                entries::each(block, &mut |number, name| {
                    ensure!(
                        u64::from(number) <= map.last(),
                        "inode {number} is beyond the {} of the map",
                        map.last()
                    );
                    let dot = match name {
                        Name::Whole(b".") => &mut own,
                        Name::Whole(b"..") => &mut parent,
                        _ if !map.contains(number) => {
                            stats.names_without_inode += 1;
                            return Ok(());
                        }
                        Name::Whole(name) => return self.names.add(number, index, name),
                        Name::Lost => {
                            stats.names_lost += 1;
                            return self.names.add(number, index, format!("#{number}").as_bytes());
                        }
                    };
                    ensure!(dot.replace(number).is_none(), "there are two of them");
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        ensure!(read_bytes == size, "its data have a hole at byte {read_bytes}");
        ensure!(own == Some(inode_number), "its entry \".\" says inode {own:?}, expected {inode_number}");
        let parent = parent.context("it has no entry \"..\"")?;
        let (blocks, next) = records.attributes(inode_number, next)?;
        self.keep(&inode, &blocks)?;
        self.directories.push(Directory { inode_number, parent, name_at: None, path_bytes: 0 });
        Ok(next)
    }

    /// Writes down what is set at the end, once it is known to be right.
    fn keep(&mut self, inode: &[u8], blocks: &[Vec<u8>]) -> Result<()> {
        Inode::parse(inode)?;
        let context = "writing down a directory";
        self.inodes.write_all(inode).context(context)?;
        self.inodes.write_all(&[u8::try_from(blocks.len())?]).context(context)?;
        for block in blocks {
            attributes::parse(block)?;
            self.inodes.write_all(&u32::try_from(block.len())?.to_le_bytes()).context(context)?;
            self.inodes.write_all(block).context(context)?;
        }
        Ok(())
    }

    /// Makes all of them, empty.
    pub(super) fn make(self) -> Result<(Directories<'a>, Sorted)> {
        let sorted = self.names.sort()?;
        let inodes = self.inodes.into_inner().context("writing down directories")?;
        let (directories, names) = name_all(self.root, self.directories, &mut sorted.read(self.budget)?)?;
        let mut made = Directories {
            root: self.root,
            budget: self.budget,
            directories,
            inodes,
            names,
            held: std::iter::repeat_with(|| None).take(HELD_MAX).collect(),
        };
        made.make_all()?;
        Ok((made, sorted))
    }
}

/// Finds the one name of each directory, in its parent; both are in the order of inodes. Returns them
/// with the file of their names.
fn name_all(
    root: &RootDir,
    mut directories: Vec<Directory>,
    entries: &mut Merge<'_>,
) -> Result<(Vec<Directory>, File)> {
    let mut names = BufWriter::new(tmpfile_in(root)?);
    // No name begins at 0, which would not be told from none.
    names.write_all(&[0]).context("writing down names")?;
    let mut names_end = 1_u32;
    let mut index = 0;
    while let Some(entry) = entries.next()? {
        while directories.get(index).is_some_and(|directory| directory.inode_number < entry.inode_number) {
            index += 1;
        }
        let parent = directories[entry.parent as usize].inode_number;
        let Some(directory) = directories.get_mut(index).filter(|d| d.inode_number == entry.inode_number)
        else {
            continue;
        };
        let number = directory.inode_number;
        let shown = entry.name.escape_ascii().to_string();
        ensure!(number != ROOT, "directory {parent} has an entry {shown:?} that is the root");
        ensure!(
            directory.name_at.is_none(),
            "directory {number} has more than one name, one is {shown:?} in directory {parent}"
        );
        ensure!(
            directory.parent == parent,
            "directory {number} is {shown:?} in directory {parent}, but its \"..\" is inode {}",
            directory.parent
        );
        directory.parent = entry.parent;
        directory.name_at = std::num::NonZeroU32::new(names_end);
        names.write_all(&[u8::try_from(entry.name.len())?]).context("writing down names")?;
        names.write_all(&entry.name).context("writing down names")?;
        let bytes = u32::try_from(entry.name.len())? + 1;
        names_end = names_end.checked_add(bytes).context("the names of directories are too many")?;
    }
    let lost = directories.iter().find(|d| d.name_at.is_none() && d.inode_number != ROOT);
    if let Some(lost) = lost {
        bail!("directory {} has no name in any other", lost.inode_number);
    }
    Ok((directories, names.into_inner().context("writing down names")?))
}

/// The directories when they are made.
pub(super) struct Directories<'a> {
    root: &'a RootDir,
    budget: &'a Budget<'a>,
    directories: Vec<Directory>,
    inodes: File,
    /// Of each its length and itself.
    names: File,
    /// By index, modulo the number of places.
    held: Vec<Option<(u32, Rc<OwnedFd>)>>,
}

impl Directories<'_> {
    /// Whether `inode_number` is one of them.
    pub(super) fn contains(&self, inode_number: u32) -> bool {
        self.directories.binary_search_by_key(&inode_number, |d| d.inode_number).is_ok()
    }

    /// The path of an entry, as the guest sees it, for errors.
    pub(super) fn shown(&self, index: u32, name: &[u8]) -> String {
        match self.path(index) {
            Ok(path) if path.is_empty() => format!("/{}", Foreign(name)),
            Ok(path) => format!("/{}/{}", Foreign(&path), Foreign(name)),
            Err(_) => Foreign(name).to_string(),
        }
    }

    /// The directory, held for the calls that take one and a name. Goes down from the nearest one that
    /// is held already, component by component.
    pub(super) fn hold(&mut self, index: u32) -> Result<Rc<OwnedFd>> {
        let mut missing = Vec::new();
        let mut at = index;
        let mut dir = loop {
            match &self.held[at as usize % HELD_MAX] {
                Some((held, dir)) if *held == at => break dir.clone(),
                _ => {}
            }
            let directory = &self.directories[at as usize];
            if directory.name_at.is_none() {
                break Rc::new(self.root.open_plain("", HOLD_DIR).context("opening the root")?);
            }
            missing.push(at);
            at = directory.parent;
        };
        while let Some(at) = missing.pop() {
            dir = Rc::new(self.open_in(&dir, at, HOLD_DIR)?);
            self.held[at as usize % HELD_MAX] = Some((at, dir.clone()));
        }
        Ok(dir)
    }

    /// A directory in its parent: nothing but what was made here lies on the way.
    fn open_in(&self, parent: &OwnedFd, index: u32, flags: OFlags) -> Result<OwnedFd> {
        self.budget.look_at(1)?;
        let name = self.name(index)?.context("the root has no parent")?;
        let number = self.directories[index as usize].inode_number;
        openat(parent, name.as_slice(), flags | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("opening directory {number} as \"{}\"", name.escape_ascii()))
    }

    /// Relative to the root, for errors.
    fn path(&self, index: u32) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = index;
        while let Some(name) = self.name(at)? {
            names.push(name);
            at = self.directories[at as usize].parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// `None` for the root.
    fn name(&self, index: u32) -> Result<Option<Vec<u8>>> {
        let Some(at) = self.directories[index as usize].name_at else {
            return Ok(None);
        };
        let mut length = [0];
        self.names.read_exact_at(&mut length, u64::from(at.get())).context("reading names")?;
        let mut name = vec![0; usize::from(length[0])];
        self.names.read_exact_at(&mut name, u64::from(at.get()) + 1).context("reading names")?;
        Ok(Some(name))
    }

    /// Parents first.
    fn make_all(&mut self) -> Result<()> {
        let mut made = vec![false; self.directories.len()];
        let root = self.directories.binary_search_by_key(&ROOT, |d| d.inode_number);
        let Ok(root) = root else {
            bail!("the root directory (inode {ROOT}) is not in the dump");
        };
        made[root] = true;
        let mut missing = Vec::new();
        for index in 0..self.directories.len() {
            let mut at = index;
            while !made[at] {
                missing.push(at);
                ensure!(
                    missing.len() <= DEPTH_MAX,
                    "directory {} does not lead to the root: it lies deeper than any path, or in a circle",
                    self.directories[index].inode_number
                );
                at = self.directories[at].parent as usize;
            }
            while let Some(at) = missing.pop() {
                self.make_one(u32::try_from(at)?)
                    .with_context(|| format!("making directory {}", self.directories[at].inode_number))?;
                made[at] = true;
            }
        }
        Ok(())
    }

    fn make_one(&mut self, index: u32) -> Result<()> {
        self.budget.look_at(1)?;
        let name = self.name(index)?.context("the root is there already")?;
        let parent = self.directories[index as usize].parent;
        let path_bytes = usize::from(self.directories[parent as usize].path_bytes) + name.len() + 1;
        ensure!(path_bytes <= PATH_BYTES_MAX, "its path is longer than {PATH_BYTES_MAX} bytes");
        self.directories[index as usize].path_bytes = u16::try_from(path_bytes)?;
        let dir = self.hold(parent)?;
        match mkdirat(&*dir, name.as_slice(), Mode::RWXU) {
            Err(Errno::EXIST)
                if name == LOST_AND_FOUND && self.directories[parent as usize].inode_number == ROOT =>
            {
                self.open_in(&dir, index, HOLD_DIR).map(drop)
            }
            made => made.with_context(|| format!("making {}", self.shown(parent, &name))),
        }
    }

    /// Sets owners, modes, attributes, times and flags: the last thing to be done.
    pub(super) fn finish(mut self, stats: &mut Stats) -> Result<()> {
        let mut inodes = self.inodes.try_clone().context("reading the directories' inodes")?;
        inodes.seek(SeekFrom::Start(0)).context("reading the directories' inodes")?;
        let mut inodes = BufReader::new(inodes);
        for index in 0..u32::try_from(self.directories.len())? {
            self.budget.look_at(1)?;
            let (inode, blocks) = read_back(&mut inodes).context("reading the directories' inodes")?;
            self.finish_one(index, &inode, &blocks, stats).with_context(|| {
                format!("restoring directory {}", self.directories[index as usize].inode_number)
            })?;
            stats.directories += 1;
        }
        Ok(())
    }

    fn finish_one(&mut self, index: u32, inode: &[u8], blocks: &[Vec<u8>], stats: &mut Stats) -> Result<()> {
        let inode = Inode::parse(inode)?;
        let dir = match self.directories[index as usize] {
            Directory { name_at: None, .. } => {
                self.root.open_plain("", OPEN_DIR).context("opening the root")?
            }
            Directory { parent, .. } => {
                let parent = self.hold(parent)?;
                self.open_in(&parent, index, OPEN_DIR)?
            }
        };
        finish::open_file(dir.as_fd(), &inode, blocks)?;
        finish::times_and_flags(dir.as_fd(), &inode, stats)
    }
}

fn read_back(inodes: &mut impl Read) -> Result<(Vec<u8>, Vec<Vec<u8>>)> {
    let mut inode = vec![0; INODE_BYTES];
    inodes.read_exact(&mut inode)?;
    let mut count = [0];
    inodes.read_exact(&mut count)?;
    let mut blocks = Vec::new();
    for _ in 0..count[0] {
        let mut length = [0; 4];
        inodes.read_exact(&mut length)?;
        // Written by us, below BLOCK_BYTES_MAX.
        let mut block = vec![0; u32::from_le_bytes(length) as usize];
        inodes.read_exact(&mut block)?;
        blocks.push(block);
    }
    Ok((inode, blocks))
}

/// A file for us alone, on the filesystem that is being filled: gone when it is closed.
fn tmpfile_in(root: &RootDir) -> Result<File> {
    let fd = root
        .open_at("", OFlags::TMPFILE | OFlags::RDWR)
        .context("making a file without a name in the root")?;
    Ok(fd.into())
}
