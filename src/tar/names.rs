//! Owns the sorted names of a directory, however many there are, in bounded memory. Must not look
//! at the files.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use rustix::fs::{RawDir, SeekFrom, seek};

/// What is read from a directory at once.
const DIRENT_BYTES: usize = 32 * 1024;

/// Room for the names of all directories that are open, together.
const TOTAL_BYTES: usize = 8 * 1024 * 1024;

/// A directory gets this much, however much is in use: a few hundred names.
const LEAST_BYTES: usize = 8 * 1024;

/// The next names of a directory, in byte order: all that are left, or as many as there is room
/// for.
pub(super) struct Names {
    /// Each ended by a NUL.
    text: Vec<u8>,
    /// Where each begins; sorted by name.
    starts: Vec<u32>,
    next: usize,
    complete: bool,
}

impl Names {
    /// Reads the names that come after `after`, while other directories hold `used_bytes` of names.
    ///
    /// A directory with more names than there is room for is read once per batch, each time for the
    /// first ones after the last batch.
    pub(super) fn read(dir: BorrowedFd<'_>, after: Option<&CStr>, used_bytes: usize) -> Result<Names> {
        let room = (TOTAL_BYTES.saturating_sub(used_bytes) / 2).max(LEAST_BYTES);
        Names::read_within(dir, after, room)
    }

    fn read_within(dir: BorrowedFd<'_>, after: Option<&CStr>, room_bytes: usize) -> Result<Names> {
        let mut names = Names { text: Vec::new(), starts: Vec::new(), next: 0, complete: true };
        let mut buffer = Vec::with_capacity(DIRENT_BYTES);
        seek(dir, SeekFrom::Start(0)).context("going back to the directory's start")?;
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        // Names from this one on belong to a later batch.
        let mut bound: Option<Vec<u8>> = None;
        while let Some(entry) = entries.next() {
            let entry = entry.context("listing the directory")?;
            let name = entry.file_name();
            let early = after.is_some_and(|after| name <= after);
            let late = bound.as_ref().is_some_and(|bound| name.to_bytes() > bound.as_slice());
            if early || late || name == c"." || name == c".." {
                continue;
            }
            names.push(name);
            if names.bytes() > room_bytes {
                bound = Some(names.drop_later_half());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The next name; `None` when the batch is used up.
    pub(super) fn next(&mut self) -> Option<&CStr> {
        let start = *self.starts.get(self.next)?;
        self.next += 1;
        self.at(start)
    }

    /// Whether more names may come after this batch, and after which.
    pub(super) fn unread_after(&self) -> Option<&CStr> {
        match self.complete {
            true => None,
            false => self.at(*self.starts.last()?),
        }
    }

    /// Memory in use.
    pub(super) fn bytes(&self) -> usize {
        self.text.len() + self.starts.len() * size_of::<u32>()
    }

    fn at(&self, start: u32) -> Option<&CStr> {
        CStr::from_bytes_until_nul(self.text.get(start as usize..)?).ok()
    }

    fn push(&mut self, name: &CStr) {
        // The room is far below what a u32 counts.
        self.starts.push(self.text.len() as u32);
        self.text.extend_from_slice(name.to_bytes_with_nul());
    }

    fn sort(&mut self) {
        let text = &self.text;
        let name = |start: u32| text[start as usize..].split(|&byte| byte == 0).next();
        self.starts.sort_unstable_by(|&a, &b| name(a).cmp(&name(b)));
    }

    /// Keeps the first half of the names, and returns the last one that is kept.
    fn drop_later_half(&mut self) -> Vec<u8> {
        self.sort();
        let mut kept = Names { text: Vec::new(), starts: Vec::new(), next: 0, complete: false };
        for name in self.starts[..self.starts.len().div_ceil(2)].iter().filter_map(|&start| self.at(start)) {
            kept.push(name);
        }
        *self = kept;
        self.starts
            .last()
            .and_then(|&last| self.at(last))
            .map(|last| last.to_bytes().to_vec())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::Names;

    #[test]
    fn a_directory_beyond_the_room_comes_in_batches_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected: Vec<String> =
            (0..1000).map(|number| format!("n{}", number * 7919 % 1000)).collect();
        for name in &expected {
            File::create(dir.path().join(name)).unwrap();
        }
        expected.sort();
        let fd = File::open(dir.path()).unwrap();
        for room in [16, 100, 1000, 5000, 1_000_000] {
            let mut found = Vec::new();
            let mut batches = 0;
            let mut names = Names::read_within(fd.as_fd(), None, room).unwrap();
            loop {
                while let Some(name) = names.next() {
                    found.push(name.to_str().unwrap().to_owned());
                }
                batches += 1;
                let Some(after) = names.unread_after().map(|name| name.to_owned()) else {
                    break;
                };
                names = Names::read_within(fd.as_fd(), Some(&after), room).unwrap();
            }
            assert_eq!(found, expected, "{room}");
            assert_eq!(batches > 1, room < 10_000, "{room}");
        }
    }
}
