//! SIGTERM, SIGINT and SIGHUP as an error that unwinds: what is held is released by its owners, the disk is
//! wiped, and `main` re-raises the signal at the end.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

struct Watch {
    caught: Arc<AtomicUsize>,
    wake: UnixStream,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

/// The error that a caught signal becomes; holds the signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted(pub i32);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}", signal_hook::low_level::signal_name(self.0).unwrap_or("a signal"))
    }
}

impl std::error::Error for Interrupted {}

/// Starts to catch the signals that ask us to stop. Call once, before anything is held.
pub fn catch() -> Result<()> {
    let (wake, write) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    let caught = Arc::new(AtomicUsize::new(0));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register_usize(signal, Arc::clone(&caught), signal as usize)?;
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    let _ = WATCH.set(Watch { caught, wake });
    Ok(())
}

/// An error where a signal has been caught; cheap enough to ask in every loop.
pub fn check() -> Result<()> {
    caught().map_or(Ok(()), |interrupted| Err(interrupted.into()))
}

/// The signal that has been caught.
pub fn caught() -> Option<Interrupted> {
    match WATCH.get().map(|w| w.caught.load(Ordering::Relaxed)) {
        None | Some(0) => None,
        Some(signal) => Some(Interrupted(signal as i32)),
    }
}

/// Becomes readable when a signal is caught: for poll(2).
pub fn wake_fd() -> Option<BorrowedFd<'static>> {
    WATCH.get().map(|w| w.wake.as_fd())
}

/// Waits until something can be written to; false where it still cannot when a signal is caught.
pub fn await_writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = vec![PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    fds.extend(wake_fd().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
    loop {
        // Who writes finds out what is wrong.
        if !matches!(poll(&mut fds, None), Ok(_) | Err(Errno::INTR)) || !fds[0].revents().is_empty() {
            return true;
        }
        if check().is_err() {
            return false;
        }
    }
}

/// Reads from what may stall (a pipe) so that a caught signal ends it: then it is an error, and [`check`] says which.
pub struct Interruptible<R>(pub R);

impl<R: Read + AsFd> Read for Interruptible<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        fds.extend(wake_fd().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
        loop {
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // No kind of its own: whoever reads on after ErrorKind::Interrupted would never end.
            check().map_err(io::Error::other)?;
            if !fds[0].revents().is_empty() {
                return self.0.read(buffer);
            }
        }
    }
}
