//! What the runner prints. Nobody may be listening: an error of printing changes nothing of the run.

use std::cmp::Reverse;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use crate::job::Outcome;
use crate::queue::Queue;

/// How many of the slowest are shown.
const SLOWEST: usize = 20;

/// Prints a line.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// A line for a job that is over.
pub fn outcome(outcome: &Outcome) {
    let verdict = if outcome.passed { "ok" } else { "FAILED" };
    let (took, processor) = (outcome.took.as_secs_f64(), outcome.processor);
    say(format_args!("{took:7.1} s {processor:7.1} s  {verdict:6}  {}", outcome.name));
}

/// A line for what runs, when nothing else was said for a while.
pub fn running(jobs: &[(String, Duration)]) {
    say(format_args!("running: {}", listed(jobs)));
}

fn listed(jobs: &[(String, Duration)]) -> String {
    let shown = jobs.iter().map(|(name, time)| format!("{name} ({} s)", time.as_secs()));
    shown.collect::<Vec<_>>().join(", ")
}

/// The end of a run that a signal ended.
pub fn interrupted(queue: &Queue) {
    match &queue.running()[..] {
        [] => say("\ninterrupted; no test was running"),
        running => say(format_args!("\ninterrupted; these were running: {}", listed(running))),
    }
    failures(&queue.outcomes());
}

/// What failed, what took longest, and the total. Says whether all passed.
pub fn end(queue: &Queue, took: Duration) -> bool {
    let (mut outcomes, not_run) = (queue.outcomes(), queue.not_run());
    outcomes.sort_by_key(|outcome| Reverse(outcome.took));
    say("\nthe slowest:");
    outcomes.iter().take(SLOWEST).for_each(outcome);
    let failed = failures(&outcomes);
    for name in &not_run {
        say(format_args!("NOT RUN: {name}"));
    }
    let minutes = took.as_secs_f64() / 60.0;
    say(format_args!("\n{} passed, {failed} failed, in {minutes:.1} min", outcomes.len() - failed));
    failed == 0 && not_run.is_empty()
}

/// The output of what failed, and its names; how many there are.
fn failures(outcomes: &[Outcome]) -> usize {
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    for outcome in &failed {
        say(format_args!("\n==== {}\n{}", outcome.name, output(outcome)));
    }
    for outcome in &failed {
        say(format_args!("FAILED: {}", outcome.name));
    }
    failed.len()
}

fn output(outcome: &Outcome) -> String {
    let Some(log) = &outcome.log else { return "the runner itself broke; its panic is shown above".into() };
    match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("its log {} cannot be read: {error}", log.display()),
    }
}
