//! The init of a PID namespace: the bootstrap, commands in a chroot and each run of the hooks get one.
//!
//! The program starts itself again under [`ARGV0`]. That process is pid 1 of a new PID namespace and alone in a
//! new mount namespace: it gives it its own /proc, runs the commands one after the other, reaps what is
//! orphaned and ends; with it the kernel kills whatever a command left behind. A command cannot kill it
//! (pid 1 gets no signal from inside), and it dies with the program that started it.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, WaitOptions, umask, wait};

use crate::{report, sys};

/// What `main` knows this role by.
pub const ARGV0: &str = "ganeti-instance-debootstrap: init";

/// The status that says init itself failed, not a command.
pub const INIT_FAILED: u8 = 125;

/// Added to the number of a signal that ended a command; no exit status is as large.
pub const SIGNALLED: i32 = 256;

/// What init is asked to do; travels as its argv.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// chroot(2) there before each command; its /proc is mounted too.
    pub chroot: Option<PathBuf>,
    /// The chroot gets a /dev of its own, with this one disk.
    pub device: Option<Device>,
    /// Stop at the first command that fails.
    pub fail_fast: bool,
    /// A descriptor that gets one line per command as it ends: `INDEX STATUS`.
    pub status_fd: Option<i32>,
    /// Each a program with its arguments.
    pub commands: Vec<Vec<OsString>>,
}

/// The block device of a chroot's root, and how programs find it: /dev/disk/by-uuid/UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub node: PathBuf,
    pub uuid: String,
}

impl Job {
    /// One command.
    pub fn single(argv: Vec<OsString>) -> Job {
        Job { commands: vec![argv], ..Job::default() }
    }

    /// The arguments that [`Job::from_argv`] reads.
    pub fn to_argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![
            self.chroot.clone().unwrap_or_default().into(),
            self.device.as_ref().map(|device| device.node.clone()).unwrap_or_default().into(),
            self.device.as_ref().map(|device| device.uuid.clone()).unwrap_or_default().into(),
            (if self.fail_fast { "fail-fast" } else { "all" }).into(),
            self.status_fd.unwrap_or(-1).to_string().into(),
        ];
        for command in &self.commands {
            argv.push(command.len().to_string().into());
            argv.extend(command.iter().cloned());
        }
        argv
    }

    fn from_argv(mut argv: impl Iterator<Item = OsString>) -> Option<Job> {
        let chroot = argv.next()?;
        let (node, uuid) = (PathBuf::from(argv.next()?), argv.next()?.into_string().ok()?);
        let fail_fast = argv.next()? == "fail-fast";
        let status_fd: i32 = argv.next()?.to_str()?.parse().ok()?;
        let mut commands = Vec::new();
        while let Some(count) = argv.next() {
            let count: usize = count.to_str()?.parse().ok()?;
            commands.push((0..count).map(|_| argv.next()).collect::<Option<Vec<_>>>()?);
        }
        Some(Job {
            chroot: (!chroot.is_empty()).then(|| chroot.into()),
            device: (!uuid.is_empty()).then_some(Device { node, uuid }),
            fail_fast,
            status_fd: (status_fd >= 0).then_some(status_fd),
            commands,
        })
    }
}

/// The life of init; `argv` without its name. Exit status: that of the last command that failed, else 0.
pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(job) = Job::from_argv(argv) else {
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
    mount_proc(Path::new("/proc"))?;
    if let Some(root) = &job.chroot {
        mount_proc(&root.join("proc"))?;
        if let Some(device) = &job.device {
            mount_dev(&root.join("dev"), device).with_context(|| format!("making {}/dev", root.display()))?;
        }
    }
    let mut status_file = job.status_fd.map(sys::adopt_fd);
    let mut worst = 0i32;
    for (index, command) in job.commands.iter().enumerate() {
        if job.commands.len() > 1 || job.status_fd.is_some() {
            announce(index);
        }
        let status = run_one(job, command)?;
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

fn mount_proc(at: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", at, "proc", flags, None).with_context(|| format!("mounting proc on {}", at.display()))
}

/// Devices that programs take for granted, as the kernel numbers them (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// A /dev in memory with the node of one disk: what looks for disks (grub-probe) finds no other of the node's.
fn mount_dev(at: &Path, device: &Device) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("dev", at, "tmpfs", flags, c"mode=0755,size=1m")?;
    let everyone = Mode::from_raw_mode(0o666);
    umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        mknodat(CWD, at.join(name), FileType::CharacterDevice, everyone, makedev(major, minor))?;
    }
    umask(Mode::from_raw_mode(0o022));
    let number = std::fs::metadata(&device.node)?.rdev();
    let name = device.node.file_name().context("naming the device")?;
    mknodat(CWD, at.join(name), FileType::BlockDevice, Mode::from_raw_mode(0o600), number)?;
    std::fs::create_dir_all(at.join("disk/by-uuid"))?;
    symlink(Path::new("../..").join(name), at.join("disk/by-uuid").join(&device.uuid))?;
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(to, at.join(name))?;
    }
    std::fs::create_dir(at.join("shm"))?;
    Ok(())
}

/// Runs one command and reaps everything that ends meanwhile. [`SIGNALLED`] + N for signal N, 127 where it cannot start.
fn run_one(job: &Job, argv: &[OsString]) -> Result<i32> {
    let Some((program, arguments)) = argv.split_first() else { bail!("an empty command") };
    #[allow(clippy::disallowed_methods, reason = "init is the other end of command/")]
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    sys::clear_signal_mask().context("clearing the signal mask")?;
    if let Some(root) = &job.chroot {
        sys::chroot_before_exec(&mut command, root.clone());
    }
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
    use super::*;

    #[test]
    fn a_job_survives_its_argv() {
        let job = Job {
            chroot: Some("/target".into()),
            device: Some(Device { node: "/dev/loop0".into(), uuid: "u".into() }),
            fail_fast: true,
            status_fd: Some(7),
            commands: vec![vec!["a".into(), "".into(), "b c".into()], vec!["d".into()]],
        };
        assert_eq!(Job::from_argv(job.to_argv().into_iter()), Some(job));
        assert_eq!(Job::from_argv(["/x".into()].into_iter()), None);
    }
}
