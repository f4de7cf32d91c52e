//! Which jobs wait, run and are over. A worker that panics takes nothing of this with it: the others end, and the run fails.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::{Job, Outcome};

/// All jobs of a run.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Job>,
    running: BTreeMap<String, Instant>,
    outcomes: Vec<Outcome>,
    /// A worker panicked: nothing is started any more.
    is_broken: bool,
    not_run: Vec<String>,
}

/// A job that was taken from the queue. When it is dropped without an outcome, its worker panicked.
pub struct Turn<'a> {
    queue: &'a Queue,
    pub job: Job,
    start: Instant,
    outcome: Option<Outcome>,
}

impl Queue {
    /// Those that others wait for come first, then the longest.
    pub fn add(&self, mut jobs: Vec<Job>) {
        let wanted: BTreeSet<String> = jobs.iter().flat_map(|job| job.after.clone()).collect();
        jobs.sort_by_key(|job| (!wanted.contains(&job.name), Reverse(job.seconds), job.name.clone()));
        let mut state = self.state();
        state.waiting.extend(jobs);
        if state.is_broken {
            state.give_up();
        }
    }

    /// The next job that can start. There is none when all have started.
    pub fn next(&self) -> Option<Turn<'_>> {
        let mut state = self.state();
        while !state.waiting.is_empty() {
            if let Some(at) = state.waiting.iter().position(|job| state.is_ready(job)) {
                let (job, start) = (state.waiting.remove(at), Instant::now());
                state.running.insert(job.name.clone(), start);
                return Some(Turn { queue: self, job, start, outcome: None });
            }
            if state.running.is_empty() {
                state.give_up();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        None
    }

    /// Until all jobs are over: tells what is running whenever no job ended for so long.
    pub fn watch(&self, quiet: Duration, tell: impl Fn(&[(String, Duration)])) {
        let mut state = self.state();
        while !state.is_over() {
            let over = state.outcomes.len();
            let no_news = |state: &mut State| state.outcomes.len() == over && !state.is_over();
            let waited = self.changed.wait_timeout_while(state, quiet, no_news);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if timeout.timed_out() {
                let running = state.running();
                drop(state);
                tell(&running);
                state = self.state();
            }
        }
    }

    /// Those that run, and for how long.
    pub fn running(&self) -> Vec<(String, Duration)> {
        self.state().running()
    }

    /// Those that ended, in this order.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.state().outcomes.clone()
    }

    /// Those that were never started.
    pub fn not_run(&self) -> Vec<String> {
        self.state().not_run.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_ready(&self, job: &Job) -> bool {
        let is_open =
            |name| self.running.contains_key(name) || self.waiting.iter().any(|job| job.name == *name);
        !job.after.iter().any(is_open)
    }

    fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    fn running(&self) -> Vec<(String, Duration)> {
        self.running.iter().map(|(name, start)| (name.clone(), start.elapsed())).collect()
    }

    fn give_up(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.not_run.extend(waiting.into_iter().map(|job| job.name));
    }
}

impl Turn<'_> {
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.running.remove(&self.job.name);
        let outcome = self.outcome.take().unwrap_or_else(|| {
            state.is_broken = true;
            state.give_up();
            Outcome::broken(&self.job.name, self.start.elapsed())
        });
        state.outcomes.push(outcome);
        self.queue.changed.notify_all();
    }
}
