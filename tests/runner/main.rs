//! Runs the tests that make disks: several at a time, each in mount and PID namespaces of its own, and fails a test that
//! leaves a process, a mount, a loop device or a file behind. `cargo test --test runner -- WORD`:
//!
//!   test                 all that `make test` runs: checks, the package, trees, tests
//!   full [PART...]       all that takes long, part by part, or some parts
//!   parts                those parts that end within the hour that began at TESTS_BEGAN (seconds since 1970)
//!   --named WORD...      the tests whose names contain one of these, also those that take long
//!
//! A test whose path has `alone::` in it runs when no other one does, on the whole machine.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a program of its own: it starts processes and prints"
)]

mod checkout;
mod ending;
mod inside;
mod job;
mod jobs;
mod locks;
mod loops;
mod mounts;
mod parts;
mod pool;
mod processes;
mod queue;
mod report;
mod room;
mod times;

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use job::Job;
use jobs::Catalogue;
use locks::Want;
use parts::{HOUR, Part};
use pool::Pool;
use queue::Queue;
use report::say;
use times::Times;

/// When no test ends for so long, one line says what is running.
const QUIET: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let status = match &args[..] {
        [first, dir, argv @ ..] if first == "inside" => inside::run(Path::new(dir), argv),
        _ => run(&args).map(|passed| i32::from(!passed)),
    };
    let status = status.unwrap_or_else(|error| {
        say(format_args!("{error:#}"));
        1
    });
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

/// Whether all passed. What a user types besides the command is never one.
fn run(args: &[String]) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the tests attach loop devices and mount: run as root");
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["test"] => Runner::new()?.test(),
        ["full", ..] => Runner::new()?.full(&args[1..]),
        ["parts"] => Runner::new()?.parts_of_the_hour(),
        ["--named", _, ..] => Runner::new()?.named(&args[1..]),
        _ => bail!("usage: cargo test --test runner -- test | full [PART...] | parts | --named WORD..."),
    }
}

struct Runner {
    catalogue: Catalogue,
    times: Times,
    pool: Pool,
    began: Instant,
    _checkout: File,
}

impl Runner {
    fn new() -> Result<Runner> {
        let (began, queue) = (Instant::now(), Arc::new(Queue::default()));
        ending::on_signals(queue.clone())?;
        ending::with_parent()?;
        let checkout = locks::checkout()?;
        let scratch = checkout::scratch();
        room::sweep(&scratch)?;
        let catalogue = Catalogue::build()?;
        say(format_args!("{:7.1} s  the tests are built", began.elapsed().as_secs_f64()));
        let logs = scratch.join("logs");
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs)?;
        let cores = std::thread::available_parallelism()?.get();
        let pool = Pool {
            queue,
            scratch,
            logs,
            workers: cores + cores.div_ceil(2),
            limit: seconds("TESTS_LIMIT")?,
            quiet: seconds("TESTS_QUIET")?.unwrap_or(QUIET),
            keeps_failed: std::env::var_os("KEEP").is_some(),
        };
        Ok(Runner { catalogue, times: Times::read(), pool, began, _checkout: checkout })
    }

    /// What `make test` runs.
    fn test(self) -> Result<bool> {
        wants_all_rows()?;
        let mut jobs = self.catalogue.checks();
        jobs.extend(self.catalogue.short_tests());
        self.run(jobs)?;
        self.finish()
    }

    /// Everything that takes long, or the parts of it that are named.
    fn full(mut self, names: &[String]) -> Result<bool> {
        wants_all_rows()?;
        let named = names.iter().map(|name| {
            let known = parts::all().iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
            Part::named(name).with_context(|| format!("there is no part {name:?}; the parts are {known}"))
        });
        let named = named.collect::<Result<Vec<_>>>()?;
        let wanted = if names.is_empty() { parts::all().iter().collect() } else { named };
        wanted.into_iter().try_for_each(|part| self.part(part))?;
        self.finish()
    }

    /// As many parts as end in time, in an order that changes from run to run. The one whose turn it is comes first.
    fn parts_of_the_hour(mut self) -> Result<bool> {
        wants_all_rows()?;
        let began: u64 =
            std::env::var("TESTS_BEGAN").ok().and_then(|text| text.parse().ok()).context("TESTS_BEGAN")?;
        let seed = times::next_seed()?;
        say(format_args!("the parts of make test-full, in the order of seed {seed}"));
        let turn = parts::whose_turn(seed, rest_of_the_hour(began), |part| self.takes(part));
        let others = parts::in_order_of(seed).filter(|part| Some(*part) != turn);
        let mut not_run = 0;
        for part in turn.into_iter().chain(others) {
            let (takes, rest) = (self.takes(part), rest_of_the_hour(began));
            if Some(part) == turn || takes <= rest {
                self.part(part)?;
                continue;
            }
            let (takes, rest) = (takes.div_ceil(60), rest / 60);
            say(format_args!("NOT RUN: {} (takes {takes} min, {rest} min of the hour are left)", part.name));
            not_run += 1;
        }
        if not_run == parts::all().len() {
            say("NO PART of make test-full was run: none ends within the hour; `make test-full` runs them");
            return Ok(true);
        }
        self.finish()
    }

    fn takes(&self, part: &Part) -> u64 {
        self.times.seconds(&part.key()).unwrap_or(HOUR)
    }

    fn part(&mut self, part: &Part) -> Result<()> {
        say(format_args!("part {}", part.name));
        let began = Instant::now();
        let mut jobs = self.catalogue.tests(|test| test.is_long && part.has(&test.name));
        jobs.extend(part.command.map(|argv| Job::command(part.name, argv)));
        ensure!(!jobs.is_empty(), "no test is in the part {}", part.name);
        let before = self.pool.queue.outcomes().len();
        self.run(jobs)?;
        // One that failed may have ended early.
        if self.pool.queue.outcomes()[before..].iter().all(|outcome| outcome.passed) {
            self.times.set(&part.key(), began.elapsed());
        }
        Ok(())
    }

    fn named(self, words: &[String]) -> Result<bool> {
        self.run(self.catalogue.named(words)?)?;
        self.finish()
    }

    /// Runs jobs side by side, then those that want the machine for themselves.
    fn run(&self, mut jobs: Vec<Job>) -> Result<()> {
        for job in &mut jobs {
            job.seconds = self.times.seconds(&job.name);
        }
        let (alone, beside): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(Job::is_alone);
        {
            let _shared = locks::machine(Want::Shared)?;
            self.pool.run(beside);
        }
        for job in alone {
            let _alone = locks::machine(Want::Alone)?;
            self.pool.run(vec![job]);
        }
        Ok(())
    }

    /// Keeps the times of what passed, and reports. Says whether all passed.
    fn finish(mut self) -> Result<bool> {
        for outcome in self.pool.queue.outcomes().iter().filter(|outcome| outcome.passed) {
            self.times.set(&outcome.name, outcome.took);
        }
        let passed = report::end(&self.pool.queue, self.began.elapsed());
        self.times.write()?;
        Ok(passed)
    }
}

/// Whoever wants a few rows of one table does not want all tests.
fn wants_all_rows() -> Result<()> {
    ensure!(
        std::env::var_os("FAULT").is_none(),
        "FAULT names rows of a table: make test TESTS=faults::table"
    );
    Ok(())
}

fn rest_of_the_hour(began: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    HOUR.saturating_sub(now.saturating_sub(began))
}

/// A time that the environment sets, for the tests of this program.
fn seconds(name: &str) -> Result<Option<Duration>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    let seconds = text.parse().with_context(|| format!("{name} is {text:?}, and no number of seconds"))?;
    Ok(Some(Duration::from_secs(seconds)))
}
