//! Owns what can only be set when the archive is through: times, modes and default ACLs of
//! directories (files made in them would disturb these), and ACLs with names (the tree's passwd may
//! come later than they do). Must not grow with the archive: directories that it has left behind
//! are applied early.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, OFlags, Stat, fstat, statat};
use rustix::io::Errno;

use super::acl::{ACCESS, Acl, DEFAULT, Names};
use super::attributes::{Target, set_owner_and_mode, set_times};
use super::entry::Owner;
use super::reach::{reach, split};
use super::shown;
use crate::reader::Budget;
use crate::rootdir::RootDir;

/// When those that wait take more memory than this, the ones that the archive has left are applied.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A passwd or group file of the tree must not be larger.
const NAMES_BYTES_MAX: u64 = 1024 * 1024;

/// A file or directory that is not finished.
pub(super) struct Waiting {
    /// Device and inode: a later entry may have put something else in its place.
    pub(super) identity: (u64, u64),
    /// For a directory; a file has its already.
    pub(super) owner: Option<Owner>,
    pub(super) acl_access: Option<Acl>,
    pub(super) acl_default: Option<Acl>,
}

/// Path, then the place in the archive.
type Key = (Box<[u8]>, u64);

/// All that wait, by their paths: what is replaced is found again, however many there are.
#[derive(Default)]
pub(super) struct Later {
    waiting: BTreeMap<Key, Waiting>,
    bytes: usize,
    added: u64,
}

impl Later {
    /// Adds one that stands at `path`. When there are many, first settles those that the archive, now there, has left; or
    /// all, should so many be above it that it makes no difference.
    pub(super) fn add(&mut self, path: &[u8], one: Waiting, place: Place<'_>) -> Result<()> {
        if self.bytes > WAITING_BYTES_MAX {
            let (mut above, mut left): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.waiting)
                .into_iter()
                .partition(|((other, _), _)| is_above(other, path));
            if bytes_of(&above) > WAITING_BYTES_MAX / 2 {
                left.append(&mut above);
            }
            self.bytes = bytes_of(&above);
            self.waiting = above;
            apply(left, place)?;
        }
        self.bytes += one.bytes(path);
        self.added += 1;
        self.waiting.insert((path.into(), self.added), one);
        Ok(())
    }

    /// Forgets what stood at `path`: it is being replaced.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let all: Range<Key> = (path.into(), 0)..(path.into(), u64::MAX);
        let keys: Vec<Key> = self.waiting.range(all).map(|(key, _)| key.clone()).collect();
        for one in keys.iter().filter_map(|key| self.waiting.remove(key)) {
            self.bytes -= one.bytes(path);
        }
    }

    /// Settles all.
    pub(super) fn apply(self, place: Place<'_>) -> Result<()> {
        apply(self.waiting, place)
    }
}

impl Waiting {
    /// Memory in use, roughly.
    fn bytes(&self, path: &[u8]) -> usize {
        let acls = [&self.acl_access, &self.acl_default].into_iter().flatten();
        size_of::<(Key, Waiting)>() + path.len() + acls.map(Acl::bytes).sum::<usize>()
    }
}

fn bytes_of(waiting: &BTreeMap<Key, Waiting>) -> usize {
    waiting.iter().map(|((path, _), one)| one.bytes(path)).sum()
}

/// Where those that waited are, and the work that may be done for them.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) root: &'a RootDir,
    pub(super) budget: &'a Budget<'a>,
}

fn is_above(directory: &[u8], path: &[u8]) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn apply(waiting: BTreeMap<Key, Waiting>, place: Place<'_>) -> Result<()> {
    let mut ids = Ids { place, users: None, groups: None };
    for ((path, _), one) in &waiting {
        let applied = match one.owner {
            Some(owner) => apply_to_directory(path, one, &owner, place, &mut ids),
            None => apply_to_file(path, one, place, &mut ids),
        };
        applied.with_context(|| format!("unpacking {}", shown(path)))?;
    }
    Ok(())
}

fn apply_to_directory(
    path: &[u8],
    one: &Waiting,
    owner: &Owner,
    place: Place<'_>,
    ids: &mut Ids<'_>,
) -> Result<()> {
    let dir = match reach(place.root, path, OFlags::RDONLY | OFlags::NOFOLLOW, place.budget)? {
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

fn apply_to_file(path: &[u8], one: &Waiting, place: Place<'_>, ids: &mut Ids<'_>) -> Result<()> {
    let (parent, name) = split(path);
    let found = reach(place.root, parent, OFlags::PATH, place.budget)?.and_then(|dir| {
        let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((dir, stat))
    });
    let (dir, stat) = match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        found => found.context("looking at it again")?,
    };
    match is_same(&stat, one.identity) {
        true => set_acl(&Target::named(dir.as_fd(), name), ACCESS, one.acl_access.as_ref(), ids),
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
/// them. Each file is read once, and not for each name.
struct Ids<'a> {
    place: Place<'a>,
    users: Option<HashMap<Vec<u8>, u32>>,
    groups: Option<HashMap<Vec<u8>, u32>>,
}

impl Ids<'_> {
    fn find(&mut self, names: Names, name: &str) -> Result<u32> {
        let (known, file) = match names {
            Names::Users => (&mut self.users, "/etc/passwd"),
            Names::Groups => (&mut self.groups, "/etc/group"),
        };
        let ids = match known {
            Some(ids) => ids,
            None => known.insert(ids_in(self.place, file)?),
        };
        let found = ids.get(name.as_bytes()).copied();
        found.with_context(|| format!("the ACL names {name:?}, which is not in {file}"))
    }
}

/// All numbers in a file of the tree and in this node's; the first line of a name counts.
fn ids_in(place: Place<'_>, file: &str) -> Result<HashMap<Vec<u8>, u32>> {
    let of_tree = place.root.read(file, NAMES_BYTES_MAX)?.unwrap_or_default();
    let of_node = std::fs::read(file).unwrap_or_default();
    let mut ids = HashMap::new();
    for line in [of_tree, of_node].iter().flat_map(|text| text.split(|&byte| byte == b'\n')) {
        place.budget.look_at(1)?;
        if let Some((name, id)) = id_in(line) {
            ids.entry(name.to_vec()).or_insert(id);
        }
    }
    Ok(ids)
}

/// The first field of a line, and the third as a number, in passwd and group alike.
fn id_in(line: &[u8]) -> Option<(&[u8], u32)> {
    let mut fields = line.split(|&byte| byte == b':');
    let (name, id) = (fields.next()?, fields.nth(1)?);
    Some((name, std::str::from_utf8(id).ok()?.parse().ok()?))
}
