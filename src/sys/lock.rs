//! Advisory locks that die with their holder (flock), and who holds one. Nothing is ever unlocked by hand: the
//! lock goes with the file.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock, major, minor};

use crate::sys::{self, signals};

/// How often a waiting lock is tried: a caught signal is seen as fast.
const POLL: Duration = Duration::from_millis(100);

/// Takes the exclusive lock of an open file if nobody else has any.
pub fn try_exclusive(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error).context("locking"),
    }
}

/// Takes the shared lock of an open file, in the place of an exclusive one of its own, if nobody else has the
/// exclusive one.
pub fn try_shared(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error).context("locking"),
    }
}

/// Takes the exclusive lock, waiting up to `limit` (None: for ever); false when that is over. `waiting` is told
/// once who has it.
pub fn exclusive(file: &File, limit: Option<Duration>, mut waiting: impl FnMut(&str)) -> Result<bool> {
    let start = Instant::now();
    let mut told = false;
    loop {
        signals::check()?;
        if try_exclusive(file)? {
            return Ok(true);
        }
        if limit.is_some_and(|limit| start.elapsed() >= limit) {
            return Ok(false);
        }
        if !told && start.elapsed() >= POLL {
            waiting(&holder(file).unwrap_or_else(|| "another process".into()));
            told = true;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether anybody has a record lock (fcntl) on this file, as QEMU has on the disks of a guest that runs.
pub fn record_locked(file: &File) -> bool {
    // Where a filesystem has no such locks, nobody holds one.
    sys::has_record_lock(file).unwrap_or(false)
}

/// The process that holds a lock on this file: `process 4711 (name)`, as far as /proc/locks tells.
pub fn holder(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    let id = format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let own = std::process::id().to_string();
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[_, "FLOCK", _, _, pid, file_id, ..] = fields.as_slice() else { return None };
        (file_id == id && pid != own).then(|| pid.to_owned())
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({})", name.escape_default()),
    })
}
