//! Runs jobs, several at a time, and keeps what they print.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::inside::{PROCESSOR, loop_devices};

/// Something to run, and what must have succeeded before.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: String,
    pub argv: Vec<String>,
    /// A test gets namespaces and a directory of its own.
    pub is_test: bool,
    /// Names of other jobs.
    pub after: Vec<String>,
    /// The longest job starts first: whole seconds, of an earlier run.
    pub seconds: u64,
}

impl Job {
    /// A test beside which no other one may run.
    pub fn is_alone(&self) -> bool {
        self.name.contains("::alone::")
    }
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub name: String,
    pub took: Duration,
    /// Seconds of processor time that its processes took.
    pub processor: f64,
    pub passed: bool,
    /// What it printed.
    pub log: PathBuf,
}

/// A job that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(40 * 60);

pub struct Pool {
    /// A new directory for each test is made here.
    pub scratch: PathBuf,
    pub logs: PathBuf,
    pub workers: usize,
}

struct State {
    waiting: Vec<Job>,
    /// Those that wait and those that run.
    not_over: BTreeSet<String>,
    outcomes: Vec<Outcome>,
}

impl Pool {
    /// Runs all jobs to their ends, those that others wait for first, and tells of each when it is over.
    pub fn run(&self, mut jobs: Vec<Job>, tell: impl Fn(&Outcome) + Sync) -> Vec<Outcome> {
        let wanted: BTreeSet<String> = jobs.iter().flat_map(|job| job.after.clone()).collect();
        jobs.sort_by_key(|job| (!wanted.contains(&job.name), Reverse(job.seconds), job.name.clone()));
        let not_over = jobs.iter().map(|job| job.name.clone()).collect();
        let state = Mutex::new(State { waiting: jobs, not_over, outcomes: Vec::new() });
        let changed = Condvar::new();
        // The threads live as long as the jobs that they start: a parent-death signal is bound to the thread.
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(|| {
                    while let Some(job) = next(&state, &changed) {
                        let outcome = self.run_one(&job);
                        tell(&outcome);
                        let mut state = state.lock().unwrap();
                        state.not_over.remove(&outcome.name);
                        state.outcomes.push(outcome);
                        changed.notify_all();
                    }
                });
            }
        });
        state.into_inner().unwrap().outcomes
    }

    fn run_one(&self, job: &Job) -> Outcome {
        let start = Instant::now();
        let log = self.logs.join(format!("{}.log", job.name.replace([':', ' ', '/'], "-")));
        let passed = match self.start(job, &log) {
            Ok((child, dir)) => {
                let passed = wait(child, &log).success();
                dir.is_none_or(|dir| self.clear(&dir, &log)) && passed
            }
            Err(error) => {
                append(&log, &format!("{}: {error}\n", job.argv[0]));
                false
            }
        };
        let processor = processor_seconds(&log).unwrap_or_default();
        Outcome { name: job.name.clone(), took: start.elapsed(), processor, passed, log }
    }

    fn start(&self, job: &Job, log: &Path) -> std::io::Result<(Child, Option<PathBuf>)> {
        let output = File::create(log)?;
        let (mut command, dir) = if job.is_test {
            let dir = tempfile::Builder::new().prefix("t").tempdir_in(&self.scratch)?.keep();
            let mut command = Command::new("unshare");
            command.args(["--pid", "--mount", "--fork", "--kill-child"]).arg(std::env::current_exe()?);
            command.arg("inside").arg(&dir).args(&job.argv);
            (command, Some(dir))
        } else {
            let mut command = Command::new(&job.argv[0]);
            command.args(&job.argv[1..]);
            (command, None)
        };
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // SAFETY: prctl is async-signal-safe.
        #[allow(unsafe_code, reason = "no job outlives the runner")]
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        Ok((command.spawn()?, dir))
    }

    /// Removes a test's directory, and what of it the kernel still holds; whether nothing of it was held.
    fn clear(&self, dir: &Path, log: &Path) -> bool {
        let mut clean = true;
        for (name, file) in loop_devices(dir) {
            append(log, &format!("left behind: loop device {name} over {file}\n"));
            let _ = Command::new("losetup").args(["--detach", &format!("/dev/{name}")]).status();
            clean = false;
        }
        // chattr's flags keep even root from removing a file.
        if fs::remove_dir_all(dir).is_err() {
            let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(dir).status();
            if let Err(error) = fs::remove_dir_all(dir) {
                append(log, &format!("removing {}: {error}\n", dir.display()));
                clean = false;
            }
        }
        clean
    }
}

/// The next job that can start; none when all have started.
fn next(state: &Mutex<State>, changed: &Condvar) -> Option<Job> {
    let mut state = state.lock().unwrap();
    loop {
        if state.waiting.is_empty() {
            return None;
        }
        let ready = |job: &Job| !job.after.iter().any(|name| state.not_over.contains(name));
        if let Some(at) = state.waiting.iter().position(ready) {
            return Some(state.waiting.remove(at));
        }
        state = changed.wait(state).unwrap();
    }
}

fn wait(mut child: Child, log: &Path) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a job") {
            return status;
        }
        if start.elapsed() > LIMIT {
            append(log, &format!("it does not end within {LIMIT:?}\n"));
            let _ = child.kill();
            return child.wait().expect("waiting for a job");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the first process of the test's namespaces wrote into the log.
fn processor_seconds(log: &Path) -> Option<f64> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find_map(|line| line.strip_prefix(PROCESSOR)?.strip_suffix(" s")?.parse().ok())
}

fn append(log: &Path, text: &str) {
    use std::io::Write;
    let file = File::options().create(true).append(true).open(log);
    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
}
