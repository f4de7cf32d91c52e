//! Runs jobs, several at a time, and keeps what they print.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::inside::{MARK, PROCESSOR};
use crate::job::{Job, Outcome};
use crate::loops::KERNEL_TIMEOUT;
use crate::queue::Queue;
use crate::room::Room;
use crate::{ending, processes, report};

/// Namespaces of each job. What was mounted outside can be unmounted there meanwhile.
const NAMESPACES: [&str; 6] = ["--pid", "--mount", "--propagation", "slave", "--fork", "--kill-child"];

pub struct Pool {
    pub queue: Arc<Queue>,
    /// A new directory for each test is made here.
    pub scratch: PathBuf,
    pub logs: PathBuf,
    pub workers: usize,
    /// A limit for every job, in the place of its own.
    pub limit: Option<Duration>,
    /// When no job ends for so long, one line says what is running.
    pub quiet: Duration,
    /// The directory of a test that failed stays until the next run.
    pub keeps_failed: bool,
}

impl Pool {
    /// Runs jobs to their ends, those that others wait for first, and tells of each when it is over.
    pub fn run(&self, jobs: Vec<Job>) {
        self.queue.add(jobs);
        // The threads live as long as the jobs that they start: a parent-death signal is bound to the thread.
        std::thread::scope(|scope| {
            scope.spawn(|| self.queue.watch(self.quiet, report::running));
            let workers: Vec<_> = (0..self.workers).map(|_| scope.spawn(|| self.work())).collect();
            // The queue knows which ones panicked.
            workers.into_iter().for_each(|worker| drop(worker.join()));
        });
    }

    fn work(&self) {
        while let Some(turn) = self.queue.next() {
            let outcome = self.run_one(&turn.job);
            turn.end(outcome.clone());
            report::outcome(&outcome);
        }
    }

    fn run_one(&self, job: &Job) -> Outcome {
        let start = Instant::now();
        let log = Log(self.logs.join(format!("{}.log", job.name.replace([':', ' ', '/'], "-"))));
        let passed = self.attempt(job, &log).unwrap_or_else(|error| {
            log.add(format_args!("{}: {error}", job.argv[0]));
            false
        });
        let processor = log.processor_seconds().unwrap_or_default();
        Outcome { name: job.name.clone(), took: start.elapsed(), processor, passed, log: Some(log.0) }
    }

    /// Whether the job passed and its directory could be removed.
    fn attempt(&self, job: &Job, log: &Log) -> io::Result<bool> {
        let output = log.begin()?;
        if !job.is_test {
            let child = ending::with_us(&mut command(job, output)?).spawn()?;
            return Ok(wait(child, self.limit_of(job), log)?.success());
        }
        let room = Room::new(&self.scratch)?;
        let child = ending::with_us(&mut test(job, &room, output)?).spawn()?;
        let mut passed = wait(child, self.limit_of(job), log)?.success();
        if passed && !log.says_passed() {
            log.add("it ended with status 0, but libtest did not say that a test passed");
            passed = false;
        }
        Ok(self.clear(&room, passed, log)? && passed)
    }

    fn limit_of(&self, job: &Job) -> Duration {
        self.limit.unwrap_or_else(|| job.limit())
    }

    /// Removes a test's directory, and what of it the kernel still holds. Says whether nothing was held.
    fn clear(&self, room: &Room, passed: bool, log: &Log) -> io::Result<bool> {
        let held = room.let_go();
        held.iter().for_each(|line| log.add(line));
        if self.keeps_failed && !(passed && held.is_empty()) {
            log.add(format_args!("kept until the next run: {}", room.dir.display()));
            return Ok(held.is_empty());
        }
        room.remove()?;
        Ok(held.is_empty())
    }
}

/// A job that is no test, with nothing of its own but its processes.
fn command(job: &Job, output: File) -> io::Result<Command> {
    let mut command = in_namespaces(output)?;
    command.arg("--mount-proc").args(&job.argv).stdin(Stdio::null());
    Ok(command)
}

fn test(job: &Job, room: &Room, output: File) -> io::Result<Command> {
    let mut command = in_namespaces(output)?;
    command.arg(std::env::current_exe()?).arg("inside").arg(&room.dir).args(&job.argv);
    command.env(MARK, "1").stdin(File::open("/proc/self/mountinfo")?);
    Ok(command)
}

/// A terminal's signals reach the runner alone, which ends the rest.
fn in_namespaces(output: File) -> io::Result<Command> {
    let mut command = Command::new("unshare");
    command.args(NAMESPACES).process_group(0).stdout(output.try_clone()?).stderr(output);
    Ok(command)
}

/// Waits for a job. Ends it at the limit, and says which processes were there.
fn wait(mut child: Child, limit: Duration, log: &Log) -> io::Result<ExitStatus> {
    if let Some(status) = wait_for(&mut child, limit)? {
        return Ok(status);
    }
    log.add(format_args!("it does not end within {} s; these processes were there:", limit.as_secs()));
    let processes = processes::below(child.id() as i32);
    processes.iter().for_each(|process| log.add(process));
    // unshare ends after the first process of its namespaces, and that one after all others in them.
    for first in processes.iter().filter(|process| process.parent == child.id() as i32) {
        let _ = kill(Pid::from_raw(first.pid), Signal::SIGKILL);
    }
    if let Some(status) = wait_for(&mut child, KERNEL_TIMEOUT)? {
        return Ok(status);
    }
    child.kill()?;
    child.wait()
}

fn wait_for(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

/// What a job prints.
struct Log(PathBuf);

impl Log {
    /// An empty one. Each writer adds to its end.
    fn begin(&self) -> io::Result<File> {
        let file = File::options().create(true).append(true).open(&self.0)?;
        file.set_len(0)?;
        Ok(file)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0).unwrap_or_default()).into_owned()
    }

    fn add(&self, line: impl Display) {
        let file = File::options().create(true).append(true).open(&self.0);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }

    /// What the first process of the test's namespaces wrote.
    fn processor_seconds(&self) -> Option<f64> {
        let text = self.text();
        text.lines().rev().find_map(|line| line.strip_prefix(PROCESSOR)?.strip_suffix(" s")?.parse().ok())
    }

    /// A process can end with status 0 without having run its test to the end.
    fn says_passed(&self) -> bool {
        let text = self.text();
        let result = text.lines().rev().find_map(|line| line.strip_prefix("test result: "));
        let passed = result.and_then(|result| result.strip_prefix("ok. ")?.split(' ').next()?.parse().ok());
        passed.is_some_and(|count: usize| count > 0)
    }
}
