//! A run that is stopped before and after each of its system calls, and the guest that it has mounted then, in a mount
//! namespace of its own.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Where the program mounts guests.
const WORKSPACE: &str = "/run/ganeti-instance-debootstrap/";

/// A run that is stopped thousands of times.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest that a running program has mounted.
pub struct GuestMount {
    /// Its tree, as we reach it. Who holds something open in it keeps the program from unmounting.
    pub tree: PathBuf,
    /// Its line in proc_pid_mountinfo(5).
    pub line: String,
}

impl GuestMount {
    pub fn of(pid: Pid) -> Option<GuestMount> {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
        let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
        let line = mounts.lines().rfind(|line| point(line).is_some_and(|p| p.starts_with(WORKSPACE)))?;
        let tree = PathBuf::from(format!("/proc/{pid}/root{}", point(line)?));
        Some(GuestMount { tree, line: line.to_owned() })
    }
}

/// How a run ended that was stopped on its way.
pub struct Stepped {
    pub status: Option<i32>,
    pub log: String,
    /// Stops while a guest was mounted.
    pub stops: usize,
}

/// Runs a command and stops it before and after each of its system calls; `between` gets the guest as it is mounted
/// then, and the number of the stop.
pub fn step(mut command: Command, mut between: impl FnMut(&GuestMount, usize)) -> Stepped {
    let log = tempfile::tempfile().unwrap();
    command.stdout(Stdio::null()).stderr(log.try_clone().unwrap());
    // SAFETY: ptrace is async-signal-safe.
    #[allow(unsafe_code, reason = "the test traces the program")]
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    #[allow(clippy::zombie_processes, reason = "it is waited for by its number")]
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    let start = Instant::now();
    let mut stops = 0;
    let status = loop {
        let signal = match waitpid(pid, None).unwrap() {
            WaitStatus::Exited(_, code) => break Some(code),
            WaitStatus::Signaled(..) => break None,
            WaitStatus::PtraceSyscall(_) => {
                if let Some(mount) = GuestMount::of(pid) {
                    between(&mount, stops);
                    stops += 1;
                }
                None
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
                ptrace::setoptions(pid, options).unwrap();
                None
            }
            WaitStatus::Stopped(_, other) => Some(other),
            other => panic!("{other:?}"),
        };
        if start.elapsed() > PATIENCE {
            kill(pid, Signal::SIGKILL).unwrap();
            panic!("it does not end within {PATIENCE:?}:\n{}", read_from_start(log));
        }
        ptrace::syscall(pid, signal).unwrap();
    };
    Stepped { status, log: read_from_start(log), stops }
}

fn read_from_start(mut file: File) -> String {
    let mut text = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut text).unwrap();
    super::text(&text)
}
