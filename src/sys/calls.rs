//! System calls that rustix has no safe form of, by way of nix, which is used in no other room.

use std::fs::File;
use std::io::IoSlice;

use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, vmsplice};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::io::{Errno, Result};

/// What the kernel said, as the type that the rest of the program has for it.
pub(super) fn answer<T>(said: nix::Result<T>) -> Result<T> {
    said.map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

/// Whether anybody has a record lock (fcntl) on a file.
pub fn has_record_lock(file: &File) -> Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    answer(fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Gives the pages of `bytes` to a pipe (vmsplice); returns how many bytes went. Whoever reads the pipe sees what is written
/// to them afterwards.
pub fn give_pages(pipe: &File, bytes: &[u8]) -> Result<usize> {
    answer(vmsplice(pipe, &[IoSlice::new(bytes)], SpliceFFlags::empty()))
}

/// Moves the calling thread, the only one, to a mount namespace of its own.
pub fn new_mount_namespace() -> Result<()> {
    answer(unshare(CloneFlags::CLONE_NEWNS))
}

/// Moves the calling thread, the only one, to UTS and IPC namespaces of its own: the host's name, semaphores, shared memory and
/// message queues.
pub fn new_names() -> Result<()> {
    answer(unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC))
}

/// Lets every signal come through.
pub fn clear_signal_mask() -> Result<()> {
    answer(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None))
}
