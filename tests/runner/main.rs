//! Runs the tests that make disks: several at a time, each in mount and PID namespaces of its own, and fails a test that
//! leaves a process, a mount, a loop device or a file behind. `cargo test --test runner -- WORD`:
//!
//!   test          all that `make test` runs: checks, the package, trees, tests
//!   full          all that takes long, part by part; `full PART...` some parts
//!   parts         those parts that end within the hour that began at TESTS_BEGAN (seconds since 1970)
//!   NAME...       the tests whose names contain one of these, also those that take long
//!
//! A test whose path has `alone::` in it runs when no other one does, on the whole machine.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a program of its own: it starts processes and prints"
)]

mod inside;
mod jobs;
mod parts;
mod pool;
mod times;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use jobs::{Catalogue, Job};
use parts::Part;
use pool::{Outcome, Pool};
use times::Times;

/// One lock for all checkouts on this machine.
const MACHINE_LOCK: &str = "/run/lock/ganeti-instance-debootstrap-tests";
/// `.ci/run` ends within this.
const CI_SECONDS: u64 = 60 * 60;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, dir, argv @ ..] = &args[..]
        && first == "inside"
    {
        return ExitCode::from(u8::try_from(inside::run(Path::new(dir), argv)).unwrap_or(1));
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the tests attach loop devices and mount: run as root");
    let mut runner = Runner::new()?;
    match args {
        [] => bail!("usage: cargo test --test runner -- test | full | parts | NAME..."),
        [word] if word == "test" => runner.test()?,
        [word, parts @ ..] if word == "full" => runner.full(parts)?,
        [word] if word == "parts" => runner.parts_of_the_hour()?,
        names => runner.named(names)?,
    }
    runner.finish()
}

struct Runner {
    catalogue: Catalogue,
    times: Times,
    pool: Pool,
    outcomes: Vec<Outcome>,
    began: Instant,
}

impl Runner {
    fn new() -> Result<Runner> {
        let began = Instant::now();
        let catalogue = Catalogue::build()?;
        println!("{:7.1} s  the tests are built", began.elapsed().as_secs_f64());
        // A test runs it inside of itself.
        let scratch =
            std::env::var_os("TEST_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let logs = scratch.join("logs");
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs)?;
        let cores = std::thread::available_parallelism()?.get();
        let pool = Pool { scratch, logs, workers: cores + cores.div_ceil(2) };
        Ok(Runner { catalogue, times: Times::read(), pool, outcomes: Vec::new(), began })
    }

    /// What `make test` runs.
    fn test(&mut self) -> Result<()> {
        let mut jobs = self.catalogue.checks();
        jobs.extend(self.catalogue.short_tests());
        self.run(jobs)
    }

    /// Everything that takes long, or the parts of it that are named.
    fn full(&mut self, names: &[String]) -> Result<()> {
        let named = names.iter().map(|name| {
            let known = parts::all().iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
            Part::named(name).with_context(|| format!("there is no part {name:?}; the parts are {known}"))
        });
        let named = named.collect::<Result<Vec<_>>>()?;
        let wanted = if names.is_empty() { parts::all().iter().collect() } else { named };
        wanted.into_iter().try_for_each(|part| self.part(part))
    }

    /// As many parts as end in time, in an order that changes from run to run.
    fn parts_of_the_hour(&mut self) -> Result<()> {
        let began: u64 =
            std::env::var("TESTS_BEGAN").context("TESTS_BEGAN")?.parse().context("TESTS_BEGAN")?;
        let seed = times::next_seed()?;
        println!("the parts of make test-full, in the order of seed {seed}");
        for part in parts::in_order_of(seed) {
            let gone = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().saturating_sub(began);
            let takes = self.times.seconds(&part.key()).unwrap_or(CI_SECONDS);
            if gone + takes > CI_SECONDS {
                println!(
                    "NOT RUN: {} (it takes {} min, and {} min are over)",
                    part.name,
                    takes.div_ceil(60),
                    gone / 60
                );
                continue;
            }
            self.part(part)?;
        }
        Ok(())
    }

    fn part(&mut self, part: &Part) -> Result<()> {
        println!("part {}", part.name);
        let began = Instant::now();
        let lost = self.catalogue.long_tests().find(|name| parts::of(name).is_none());
        ensure!(lost.is_none(), "no part has {}", lost.unwrap_or_default());
        let mut jobs = self.catalogue.tests(|test| test.is_long && part.has(&test.name));
        jobs.extend(part.command.map(|argv| Job::command(part.name, argv)));
        ensure!(!jobs.is_empty(), "no test is in the part {}", part.name);
        self.run(jobs)?;
        self.times.set(&part.key(), began.elapsed());
        Ok(())
    }

    fn named(&mut self, words: &[String]) -> Result<()> {
        let jobs = self.catalogue.named(words);
        ensure!(!jobs.is_empty(), "no test has {} in its name", words.join(" or "));
        self.run(jobs)
    }

    /// Runs jobs side by side, then those that want the machine for themselves.
    fn run(&mut self, mut jobs: Vec<Job>) -> Result<()> {
        for job in &mut jobs {
            job.seconds = self.times.seconds(&job.name).unwrap_or(0);
        }
        let (alone, beside): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(Job::is_alone);
        {
            let _shared = machine_lock(FlockArg::LockShared)?;
            self.take(&self.pool.run(beside, tell));
        }
        for job in alone {
            let _exclusive = machine_lock(FlockArg::LockExclusive)?;
            self.take(&self.pool.run(vec![job], tell));
        }
        Ok(())
    }

    fn take(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            self.times.set(&outcome.name, outcome.took);
        }
        self.outcomes.extend_from_slice(outcomes);
    }

    /// Prints what failed, what took longest, and the total; whether all passed.
    fn finish(mut self) -> Result<bool> {
        self.times.write()?;
        self.outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
        println!("\nthe slowest:");
        self.outcomes.iter().take(20).for_each(tell);
        let (passed, failed): (Vec<&Outcome>, Vec<&Outcome>) = self.outcomes.iter().partition(|o| o.passed);
        for outcome in &failed {
            println!("\n==== {}", outcome.name);
            println!("{}", String::from_utf8_lossy(&fs::read(&outcome.log)?));
        }
        for outcome in &failed {
            println!("FAILED: {}", outcome.name);
        }
        let total: Duration = self.began.elapsed();
        println!(
            "\n{} passed, {} failed, in {:.1} min",
            passed.len(),
            failed.len(),
            total.as_secs_f64() / 60.0
        );
        Ok(failed.is_empty())
    }
}

fn tell(outcome: &Outcome) {
    let verdict = if outcome.passed { "ok" } else { "FAILED" };
    println!(
        "{:7.1} s {:7.1} s  {verdict:6}  {}",
        outcome.took.as_secs_f64(),
        outcome.processor,
        outcome.name
    );
}

/// Tests that can run beside others share the lock, also with those of another checkout; one that wants the machine for
/// itself waits until it has it alone.
fn machine_lock(kind: FlockArg) -> Result<Flock<File>> {
    let path = PathBuf::from(MACHINE_LOCK);
    let file =
        File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    Flock::lock(file, kind).map_err(|(_, error)| error).context("locking the machine for tests")
}
