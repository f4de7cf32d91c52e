//! Owns what can only be set when the archive is through: times, modes and default ACLs of
//! directories (files made in them would disturb these), and ACLs with names (the tree's passwd may
//! come later than they do). Must not grow with the archive: directories that it has left behind
//! are applied early.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, OFlags, Stat, fstat, statat};
use rustix::io::Errno;

use super::acl::{ACCESS, Acl, DEFAULT, Names};
use super::attributes::{Target, set_owner_and_mode, set_times};
use super::entry::Owner;
use super::{Checkpoint, shown};
use crate::rootdir::RootDir;

/// When those that wait take more memory than this, the ones that the archive has left are applied.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A passwd or group file of the tree must not be larger.
const NAMES_BYTES_MAX: u64 = 1024 * 1024;

/// A file or directory that is not finished.
pub(super) struct Waiting {
    pub(super) path: Box<[u8]>,
    /// Device and inode: a later entry may have put something else in its place.
    pub(super) identity: (u64, u64),
    /// For a directory; a file has its already.
    pub(super) owner: Option<Owner>,
    pub(super) acl_access: Option<Acl>,
    pub(super) acl_default: Option<Acl>,
}

/// All that wait, in the order of the archive.
#[derive(Default)]
pub(super) struct Later {
    waiting: Vec<Waiting>,
    bytes: usize,
}

impl Later {
    /// Adds one. When there are many, first settles those that the archive, now at `one`, has left;
    /// or all, should so many be above `one` that it makes no difference.
    pub(super) fn add(&mut self, one: Waiting, root: &RootDir, checkpoint: Checkpoint<'_>) -> Result<()> {
        if self.bytes > WAITING_BYTES_MAX {
            let (mut above, mut left): (Vec<_>, Vec<_>) =
                self.waiting.drain(..).partition(|other| is_above(&other.path, &one.path));
            if above.iter().map(Waiting::bytes).sum::<usize>() > WAITING_BYTES_MAX / 2 {
                left.append(&mut above);
            }
            self.bytes = above.iter().map(Waiting::bytes).sum();
            self.waiting = above;
            apply(left, root, checkpoint)?;
        }
        self.bytes += one.bytes();
        self.waiting.push(one);
        Ok(())
    }

    /// Forgets what stood at `path`: it is being replaced.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.waiting.retain(|one| *one.path != *path);
    }

    /// Settles all.
    pub(super) fn apply(self, root: &RootDir, checkpoint: Checkpoint<'_>) -> Result<()> {
        apply(self.waiting, root, checkpoint)
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        let acls = [&self.acl_access, &self.acl_default].into_iter().flatten();
        size_of::<Waiting>() + self.path.len() + acls.map(Acl::bytes).sum::<usize>()
    }
}

fn is_above(directory: &[u8], path: &[u8]) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn apply(waiting: Vec<Waiting>, root: &RootDir, checkpoint: Checkpoint<'_>) -> Result<()> {
    let mut ids = Ids::new(root);
    for one in waiting {
        checkpoint()?;
        let applied = match one.owner {
            Some(owner) => apply_to_directory(&one, &owner, root, &mut ids),
            None => apply_to_file(&one, root, &mut ids),
        };
        applied.with_context(|| format!("unpacking {}", shown(&one.path)))?;
    }
    Ok(())
}

fn apply_to_directory(one: &Waiting, owner: &Owner, root: &RootDir, ids: &mut Ids<'_>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let dir = match root.open_at(OsStr::from_bytes(&one.path), flags) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        dir => dir.context("opening it again")?,
    };
    let stat = fstat(&dir)?;
    if !is_same(&stat, one.identity) {
        return Ok(());
    }
    set_owner_and_mode(dir.as_fd(), &stat, owner)?;
    let target = Target::Open(dir.as_fd());
    set_acl(&target, ACCESS, one.acl_access.as_ref(), ids)?;
    set_acl(&target, DEFAULT, one.acl_default.as_ref(), ids)?;
    set_times(dir.as_fd(), owner)
}

fn apply_to_file(one: &Waiting, root: &RootDir, ids: &mut Ids<'_>) -> Result<()> {
    let path = Path::new(OsStr::from_bytes(&one.path));
    let name = path.file_name().context("the path does not end in a name")?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let found = root.open_at(parent, OFlags::PATH | OFlags::DIRECTORY).and_then(|dir| {
        let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((dir, stat))
    });
    let (dir, stat) = match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        found => found.context("looking at it again")?,
    };
    match is_same(&stat, one.identity) {
        true => set_acl(&Target::named(dir.as_fd(), name.as_bytes()), ACCESS, one.acl_access.as_ref(), ids),
        false => Ok(()),
    }
}

fn set_acl(target: &Target<'_>, attribute: &str, acl: Option<&Acl>, ids: &mut Ids<'_>) -> Result<()> {
    match acl {
        Some(acl) => {
            target.set(attribute.as_bytes(), &acl.to_xattr(&mut |names, name| ids.find(names, name))?)
        }
        None => Ok(()),
    }
}

fn is_same(stat: &Stat, identity: (u64, u64)) -> bool {
    (stat.st_dev, stat.st_ino) == identity
}

/// The numbers behind names in ACLs: those of the tree, else those of this node, as GNU tar takes
/// them.
struct Ids<'a> {
    root: &'a RootDir,
    users: Option<[Vec<u8>; 2]>,
    groups: Option<[Vec<u8>; 2]>,
}

impl<'a> Ids<'a> {
    fn new(root: &'a RootDir) -> Ids<'a> {
        Ids { root, users: None, groups: None }
    }

    fn find(&mut self, names: Names, name: &str) -> Result<u32> {
        let (known, file) = match names {
            Names::Users => (&mut self.users, "/etc/passwd"),
            Names::Groups => (&mut self.groups, "/etc/group"),
        };
        let texts = match known {
            Some(texts) => texts,
            None => {
                let of_tree = self.root.read(file, NAMES_BYTES_MAX)?.unwrap_or_default();
                let of_node = std::fs::read(file).unwrap_or_default();
                known.insert([of_tree, of_node])
            }
        };
        let found = texts.iter().find_map(|text| id_in(text, name));
        found.with_context(|| format!("the ACL names {name:?}, which is not in {file}"))
    }
}

/// The third field of the line of `name`, in passwd and group alike.
fn id_in(text: &[u8], name: &str) -> Option<u32> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let (first, id) = (fields.next()?, fields.nth(1)?);
        if first != name.as_bytes() {
            return None;
        }
        std::str::from_utf8(id).ok()?.parse().ok()
    })
}
