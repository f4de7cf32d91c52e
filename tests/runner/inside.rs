//! The first process in a test's namespaces: starts the test, waits for it, and looks at what it left behind.
//!
//! The runner starts it by `unshare --pid --mount --fork --kill-child`. Nothing of the test outlives it: the kernel ends
//! its processes and its mounts. What was still there at the end is reported all the same.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeVal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::loops::{self, Attached, KERNEL_TIMEOUT, Owner};
use crate::mounts::{self, Mount, Outside};
use crate::{ending, processes};

/// How the line of the log begins that says how much processor time the test took.
pub const PROCESSOR: &str = "processor time: ";
/// The runner sets it for this process.
pub const MARK: &str = "TESTS_INSIDE";

/// Runs `argv` as the only command of these namespaces. Returns the exit status of the test, or 1 if it left something behind.
///
/// `dir` is the test's own directory. TMPDIR and TEST_DIR name it. TEST_RUNNER is this program.
pub fn run(dir: &Path, argv: &[String]) -> Result<i32> {
    let is_first = nix::unistd::getpid() == Pid::from_raw(1) && std::env::var_os(MARK).is_some();
    ensure!(is_first, "only the runner starts this, in namespaces of their own");
    let outside = Outside::of_stdin()?;
    mounts::enter(dir)?;
    let (mounts, loops) = (mounts::here()?, loops::attached());
    let status = run_test(dir, argv)?;
    let mut end = End { dir, outside, mounts, loops, left: Vec::new() };
    let looked = end.look();
    say_processor_time();
    for thing in &end.left {
        say(&format!("left behind: {thing}"));
    }
    looked?;
    Ok(match status.code() {
        Some(0) => i32::from(!end.left.is_empty()),
        Some(code) => code,
        None => {
            say(&format!("the test: {status}"));
            1
        }
    })
}

fn run_test(dir: &Path, argv: &[String]) -> Result<ExitStatus> {
    let [program, args @ ..] = argv else { bail!("no command") };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env_remove(MARK).env_remove(ending::PARENT);
    command.env("TMPDIR", dir).env("TEST_DIR", dir).env("TEST_RUNNER", std::env::current_exe()?);
    let child = command.spawn().with_context(|| program.clone())?;
    reap_until(Pid::from_raw(child.id() as i32))
}

/// Waits for all that becomes a child of the first process, until the test itself has ended.
fn reap_until(test: Pid) -> Result<ExitStatus> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == test => return Ok(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == test => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the test"),
        }
    }
}

/// Waits for those that have ended already.
fn reap() {
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
}

/// Looks until there is nothing any more: what is on its way out gets a moment.
fn after_a_moment<T>(look: impl Fn() -> Vec<T>) -> Vec<T> {
    let start = Instant::now();
    loop {
        let left = look();
        if left.is_empty() || start.elapsed() > KERNEL_TIMEOUT {
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of a test.
struct End<'a> {
    dir: &'a Path,
    outside: Outside,
    /// What was there before the test.
    mounts: Vec<Mount>,
    loops: Vec<Attached>,
    /// What the test left behind.
    left: Vec<String>,
}

impl End<'_> {
    /// Looks for one kind of thing after the other, and ends it: a process holds mounts, and a mount loop devices.
    fn look(&mut self) -> Result<()> {
        self.look_for_proc()?;
        self.look_for_processes();
        let gone = mounts::gone(&self.mounts)?;
        if gone.is_empty() {
            self.left.extend(mounts::networks());
        }
        self.left.extend(gone);
        let mounts = mounts::made_since(&self.mounts, &mut self.outside)?;
        self.left.extend(mounts.iter().map(|mount| format!("mount {}", mount.line())));
        mounts::let_go(&mounts);
        mounts::move_places(self.dir)?;
        self.look_for_loop_devices(&mounts);
        self.left.extend(mounts::files(self.dir));
        Ok(())
    }

    /// Without its own /proc the processes of the machine would be seen, or none.
    fn look_for_proc(&mut self) -> Result<()> {
        if fs::read_link("/proc/self").is_ok_and(|to| to == Path::new("1")) {
            return Ok(());
        }
        self.left.push("no /proc of its own: the test unmounted it".into());
        mounts::mount_fs("proc", "/proc")?;
        // It is ours.
        self.mounts.extend(mounts::here()?.into_iter().filter(|mount| mount.point() == "/proc"));
        Ok(())
    }

    fn look_for_processes(&mut self) {
        let others = || {
            reap();
            processes::all().into_iter().filter(|process| process.pid != 1).collect()
        };
        let left = after_a_moment(others);
        if left.is_empty() {
            return;
        }
        self.left.extend(left.iter().map(ToString::to_string));
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        after_a_moment(others);
    }

    fn look_for_loop_devices(&mut self, mounts: &[Mount]) {
        let known: Vec<u64> = self.mounts.iter().filter_map(Mount::filesystem).collect();
        let mut filesystems: Vec<u64> = mounts.iter().filter_map(Mount::filesystem).collect();
        filesystems.retain(|number| !known.contains(number));
        let owner = Owner { dir: self.dir, before: &self.loops, filesystems: &filesystems };
        let devices = after_a_moment(|| owner.devices());
        self.left.extend(devices.iter().map(ToString::to_string));
        self.left.extend(loops::detach(&devices));
    }
}

fn say_processor_time() {
    let Ok(used) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return };
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    say(&format!("{PROCESSOR}{:.2} s", seconds(used.user_time()) + seconds(used.system_time())));
}

/// The log of the test is ours as well.
fn say(what: &str) {
    eprintln!("{what}");
}
