//! Owns which files with several names were packed already, and under which; must not grow without bound.

use std::collections::HashMap;

use rustix::fs::Stat;

/// Memory for the first names of files with several; each counts its path and this much for the
/// map.
const LINKS_BYTES_MAX: usize = 12 * 1024 * 1024;
const LINK_BYTES: usize = 64;

/// The first names of files that have several.
#[derive(Default)]
pub(super) struct Links {
    /// By device and inode.
    first: HashMap<(u64, u64), First>,
    bytes: usize,
    full: bool,
}

struct First {
    path: Box<[u8]>,
    names_to_come: u32,
}

/// What is known of a file.
pub(super) enum Known {
    /// It is met for the first time.
    No,
    /// It was packed under this path.
    As(Box<[u8]>),
    /// It is met for the first time, and from now on none is remembered. Said once.
    TooMany,
}

impl Links {
    /// Whether the file at `path` was met under another name; if not, remembers it.
    pub(super) fn look_up(&mut self, stat: &Stat, path: &[u8]) -> Known {
        if stat.st_nlink <= 1 {
            return Known::No;
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.first.get_mut(&key) {
            first.names_to_come -= 1;
            let path = first.path.clone();
            if first.names_to_come == 0 {
                self.first.remove(&key);
                self.bytes -= path.len() + LINK_BYTES;
            }
            return Known::As(path);
        }
        let bytes = path.len() + LINK_BYTES;
        if self.full || self.bytes + bytes > LINKS_BYTES_MAX {
            let first_time = !std::mem::replace(&mut self.full, true);
            return if first_time { Known::TooMany } else { Known::No };
        }
        self.bytes += bytes;
        self.first.insert(key, First { path: path.into(), names_to_come: stat.st_nlink as u32 - 1 });
        Known::No
    }
}
