//! The first process in a test's namespaces: starts the test, waits for it, and looks at what it left behind.
//!
//! The runner starts it by `unshare --pid --mount --fork --kill-child`. Nothing of the test outlives it: the kernel ends
//! its processes and its mounts. What was still there at the end is reported all the same.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How the line of the log begins that says how much processor time the test took.
pub const PROCESSOR: &str = "processor time: ";

/// How long the kernel may take to end what was killed, and to detach a loop device that was let go.
const KERNEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `argv` as the only command of these namespaces; the exit status of the test, 1 if it left something behind.
///
/// `dir` is the test's own directory: TMPDIR and TEST_DIR name it, and a loop device over a file in it is the test's.
/// TEST_RUNNER is this program.
pub fn run(dir: &Path, argv: &[String]) -> i32 {
    // As on a node where systemd made the root shared, but nothing is seen by the machine.
    set_propagation(MsFlags::MS_PRIVATE);
    set_propagation(MsFlags::MS_SHARED);
    let before = mounts();
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).expect("mounting /proc");
    let proc_mount: BTreeSet<String> = mounts().difference(&before).cloned().collect();

    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env("TMPDIR", dir).env("TEST_DIR", dir);
    command.env("TEST_RUNNER", std::env::current_exe().expect("this program"));
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            say(&format!("{}: {error}", argv[0]));
            return 1;
        }
    };
    let status = reap_until(Pid::from_raw(child.id() as i32));
    let left = left_behind(dir, &before, &proc_mount, status.success());
    if let Ok(used) = getrusage(UsageWho::RUSAGE_CHILDREN) {
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        say(&format!("{PROCESSOR}{:.2} s", seconds(used.user_time()) + seconds(used.system_time())));
    }
    for thing in &left {
        say(&format!("left behind: {thing}"));
    }
    match status.code() {
        Some(0) => i32::from(!left.is_empty()),
        Some(code) => code,
        None => {
            say(&format!("the test: {status}"));
            1
        }
    }
}

fn set_propagation(kind: MsFlags) {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | kind, None::<&str>).expect("propagation of /");
}

/// Waits for all that becomes a child of the first process, until the test itself has ended.
fn reap_until(test: Pid) -> ExitStatus {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == test => return ExitStatus::from_raw(code << 8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == test => {
                return ExitStatus::from_raw(signal as i32);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("waiting for the test: {error}"),
        }
    }
}

/// What is there when the test has ended. What is on its way out gets a moment.
fn left_behind(
    dir: &Path,
    before: &BTreeSet<String>,
    own: &BTreeSet<String>,
    files_count: bool,
) -> Vec<String> {
    let start = Instant::now();
    loop {
        while matches!(waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        let mut left = processes();
        left.extend(
            mounts().difference(before).filter(|line| !own.contains(*line)).map(|m| format!("mount {m}")),
        );
        left.extend(
            loop_devices(dir).into_iter().map(|(name, file)| format!("loop device {name} over {file}")),
        );
        if files_count {
            left.extend(files(dir));
        }
        if left.is_empty() || start.elapsed() > KERNEL_TIMEOUT {
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All but the first process.
fn processes() -> Vec<String> {
    let numbers = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok().filter(|pid| *pid != 1));
    numbers
        .filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words = String::from_utf8_lossy(&command).replace('\0', " ");
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some(format!("process {pid} ({}) {words}", name.trim()))
        })
        .collect()
}

/// Lines of proc_pid_mountinfo(5) from the parent's number on: the mount's own number differs in each namespace.
fn mounts() -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines().map(str::to_owned).collect()
}

/// Loop devices over files below a directory, and those files.
pub fn loop_devices(dir: &Path) -> Vec<(String, String)> {
    let prefix = format!("{}/", dir.display());
    let blocks = fs::read_dir("/sys/block").expect("/sys/block").flatten();
    blocks
        .filter_map(|block| {
            let file = fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
            let name = block.file_name().into_string().ok()?;
            file.starts_with(&prefix).then(|| (name, file.trim().to_owned()))
        })
        .collect()
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the test's directory").flatten();
    entries.map(|entry| format!("file {}", PathBuf::from(entry.file_name()).display())).collect()
}

/// The log of the test is ours as well.
#[allow(clippy::print_stderr, reason = "this is a program of its own")]
fn say(what: &str) {
    eprintln!("{what}");
}
