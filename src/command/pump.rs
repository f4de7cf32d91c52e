//! What a child prints, moved until it ends: line by line, bounded, with an ear for signals.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use crate::report;
use crate::sys::signals;

/// Lines of output that an error shows.
const TAIL_LINES: usize = 8;
/// Bytes of one line that are kept.
pub const LINE_BYTES: usize = 400;
/// Reads of 16 KiB before signals are looked at again; a pipe holds 64 KiB.
const DRAIN_READS: usize = 8;
/// Bytes of output that [`super::Tool::output`] takes.
pub const OUTPUT_MAX_BYTES: usize = 4 << 20;

/// The last lines of a tool's output.
#[derive(Default, Clone)]
pub struct Tail(VecDeque<String>);

impl Tail {
    pub fn push(&mut self, line: &[u8]) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(report::ascii(&line[..line.len().min(LINE_BYTES)]));
    }

    pub fn text(&self) -> String {
        self.0.iter().map(|line| format!("\n    | {line}")).collect()
    }
}

/// Moves what a child prints, until it ends. A pipe that everybody closed is dropped.
pub struct Pump {
    log: Option<File>,
    out: Option<File>,
    partial: Vec<u8>,
    pub taken: Vec<u8>,
    /// There was more of it.
    pub is_cut: bool,
}

impl Pump {
    pub fn new(log: File, out: Option<File>) -> Pump {
        Pump { log: Some(log), out, partial: Vec::new(), taken: Vec::new(), is_cut: false }
    }

    pub fn until_exit(&mut self, child: &mut Child, each_line: &mut dyn FnMut(&[u8])) -> Result<ExitStatus> {
        for pipe in self.log.iter().chain(&self.out) {
            fcntl_setfl(pipe, OFlags::NONBLOCK).context("preparing a pipe")?;
        }
        let pid = rustix::process::Pid::from_child(child);
        let exit = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .context("watching a child")?;
        loop {
            let ended = self.sleep(&exit)?;
            if let Err(interrupted) = signals::check() {
                let _ = child.kill();
                let _ = child.wait();
                return Err(interrupted);
            }
            // What the child wrote before its end is in the pipes; who else holds them does not matter.
            self.drain(each_line)?;
            if ended {
                if !self.partial.is_empty() {
                    each_line(&self.partial);
                }
                return child.wait().context("waiting for a child");
            }
        }
    }

    /// Waits until there is something to do; true when the child has ended.
    fn sleep(&self, exit: &OwnedFd) -> Result<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(exit.as_fd(), PollFlags::IN)];
        let pipes = self.log.iter().chain(&self.out).map(|pipe| pipe.as_fd());
        fds.extend(pipes.chain(signals::wake_fd()).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for a child's output"),
        }
        Ok(!fds[0].revents().is_empty())
    }

    fn drain(&mut self, each_line: &mut dyn FnMut(&[u8])) -> Result<()> {
        let partial = &mut self.partial;
        drain(&mut self.log, |bytes| {
            for byte in bytes {
                if matches!(byte, b'\n' | b'\r') {
                    if !partial.is_empty() {
                        each_line(partial);
                    }
                    partial.clear();
                } else if partial.len() < LINE_BYTES {
                    partial.push(*byte);
                }
            }
        })?;
        let (taken, is_cut) = (&mut self.taken, &mut self.is_cut);
        drain(&mut self.out, |bytes| {
            let room = OUTPUT_MAX_BYTES - taken.len();
            taken.extend_from_slice(&bytes[..bytes.len().min(room)]);
            *is_cut |= bytes.len() > room;
        })
    }
}

/// Takes what is in a pipe now; a pipe at its end becomes None.
fn drain(pipe: &mut Option<File>, mut take: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = [0u8; 16384];
    // Not without end: who prints faster than we read must not keep us from hearing a signal.
    for _ in 0..DRAIN_READS {
        let Some(file) = pipe else { return Ok(()) };
        match file.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) => take(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading a child's output"),
        }
    }
    Ok(())
}
