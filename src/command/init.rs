//! The init of a PID namespace: the bootstrap, commands in a chroot and each run of the hooks get one.
//!
//! The program starts itself again under [`ARGV0`]. That process is pid 1 of a new PID namespace and alone in a
//! new mount namespace: it leaves the terminal, moves to the job's root, which has its own /proc, gives up what the job has no use
//! for (limits.rs), runs the commands one after the other, reaps what is orphaned and ends; with it the kernel kills whatever a
//! command left behind. A command cannot kill it (pid 1 gets no signal from inside), and it dies with the program that
//! started it.

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, WaitOptions, setsid, wait};
use serde::{Deserialize, Serialize};

use super::limits;
use super::root::JobRoot;
use crate::{report, sys};

/// What `main` knows this role by.
pub const ARGV0: &str = "ganeti-instance-debootstrap: init";

/// The status that says init itself failed, not a command.
pub const INIT_FAILED: u8 = 125;

/// Added to the number of a signal that ended a command; no exit status is as large.
pub const SIGNALLED: i32 = 256;

/// What init is asked to do; travels as its one argument.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Job {
    /// Where the commands run.
    pub root: JobRoot,
    /// Stop at the first command that fails.
    pub fail_fast: bool,
    /// A descriptor that gets one line per command as it ends: `INDEX STATUS`.
    pub status_fd: Option<i32>,
    /// Each a program with its arguments.
    pub commands: Vec<Vec<OsString>>,
}

impl Job {
    /// One command.
    pub fn single(argv: Vec<OsString>) -> Job {
        Job { commands: vec![argv], ..Job::default() }
    }

    /// The argument that [`Job::from_arg`] reads.
    pub fn to_arg(&self) -> Result<String> {
        serde_json::to_string(self).context("describing a job")
    }

    fn from_arg(mut argv: impl Iterator<Item = OsString>) -> Option<Job> {
        serde_json::from_str(argv.next()?.to_str()?).ok()
    }
}

/// The life of init; `argv` without its name. Exit status: that of the last command that failed, else 0.
pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(job) = Job::from_arg(argv) else {
        report::line("init: called by hand; it is a part of this program and needs no call");
        return ExitCode::from(2);
    };
    match run(&job) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report::line(&format!("{error:#}"));
            ExitCode::from(INIT_FAILED)
        }
    }
}

fn run(job: &Job) -> Result<u8> {
    // Nothing that is mounted from here on is seen outside; what the node mounts is still seen here.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("making the mount namespace private")?;
    // No command has our terminal: what it typed there, a shell would run after us (TIOCSTI).
    setsid().context("leaving the terminal")?;
    job.root.enter()?;
    limits::apply(&job.root)?;
    let mut status_file = job.status_fd.map(sys::adopt_fd);
    let mut worst = 0i32;
    for (index, command) in job.commands.iter().enumerate() {
        if job.commands.len() > 1 || job.status_fd.is_some() {
            announce(index);
        }
        let status = run_one(command)?;
        if let Some(file) = &mut status_file {
            writeln!(file, "{index} {status}").context("reporting a command's status")?;
        }
        if status != 0 {
            worst = status;
            if job.fail_fast {
                break;
            }
        }
    }
    Ok(match worst {
        // Who asked for each status has them.
        _ if job.status_fd.is_some() => 0,
        SIGNALLED.. => (128 + worst - SIGNALLED) as u8,
        status => status as u8,
    })
}

/// Before each command of several a line that is not of their making: which one speaks now.
fn announce(index: usize) {
    let _ = std::io::stderr().lock().write_all(format!("\x01{index}\n").as_bytes());
}

/// The index that such a line announces.
pub fn announced(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line.strip_prefix(b"\x01")?).ok()?.parse().ok()
}

/// Runs one command and reaps everything that ends meanwhile. [`SIGNALLED`] + N for signal N, 127 where it cannot start.
fn run_one(argv: &[OsString]) -> Result<i32> {
    let Some((program, arguments)) = argv.split_first() else { bail!("an empty command") };
    #[allow(clippy::disallowed_methods, reason = "init is the other end of command/")]
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    sys::clear_signal_mask().context("clearing the signal mask")?;
    let child = match command.spawn() {
        Ok(child) => Pid::from_child(&child),
        Err(error) => {
            report::line(&format!("running {}: {error}", program.to_string_lossy()));
            return Ok(127);
        }
    };
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                let signalled = status.terminating_signal().map(|signal| SIGNALLED + signal);
                if let Some(status) = status.exit_status().or(signalled) {
                    return Ok(status);
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for a command"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::command::root::Device;

    #[test]
    fn a_job_survives_its_argv() {
        let device = Device { node: "/dev/loop0".into(), uuid: "u".into() };
        let job = Job {
            root: JobRoot::Tree { path: OsString::from_vec(b"/target\xff".to_vec()), device: Some(device) },
            fail_fast: true,
            status_fd: Some(7),
            commands: vec![vec!["a".into(), "".into(), "b c".into()], vec!["d".into()]],
        };
        assert_eq!(Job::from_arg([job.to_arg().unwrap().into()].into_iter()), Some(job));
        assert_eq!(Job::from_arg(["/x".into()].into_iter()), None);
    }
}
