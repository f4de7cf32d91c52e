//! How long tests took: of the last run in target/, and of the last one that somebody recorded in the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::checkout::{self, project, target};

/// What a fresh checkout knows. `UPDATE_TIMES=1` writes what took three seconds or more.
const RECORDED: &str = "tests/runner/times";
const WORTH_RECORDING: u64 = 3;

/// Whole seconds by the name of a job.
pub struct Times(BTreeMap<String, u64>);

impl Times {
    pub fn read() -> Times {
        let mut times = BTreeMap::new();
        for file in [project().join(RECORDED), last()] {
            // The first run has no file of a last one.
            let text = fs::read_to_string(file).unwrap_or_default();
            times.extend(text.lines().filter_map(|line| {
                let (seconds, name) = line.trim().split_once(' ')?;
                Some((name.to_owned(), seconds.parse().ok()?))
            }));
        }
        Times(times)
    }

    pub fn seconds(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    pub fn set(&mut self, name: &str, took: Duration) {
        self.0.insert(name.to_owned(), took.as_secs_f64().ceil() as u64);
    }

    /// For the next run; not where a test runs this program inside of itself.
    pub fn write(&self) -> Result<()> {
        if checkout::is_inside_a_test() {
            return Ok(());
        }
        fs::write(last(), self.text(0))?;
        if std::env::var_os("UPDATE_TIMES").is_some() {
            fs::write(project().join(RECORDED), self.text(WORTH_RECORDING))?;
        }
        Ok(())
    }

    fn text(&self, least: u64) -> String {
        let lines = self.0.iter().filter(|(_, seconds)| **seconds >= least);
        lines.map(|(name, seconds)| format!("{seconds:5} {name}\n")).collect()
    }
}

fn last() -> PathBuf {
    target().join("test-times")
}

/// One more than the last run's in this checkout. The first run takes a number from its commit, so that the runs of fresh
/// checkouts differ, too.
pub fn next_seed() -> Result<u64> {
    let file = target().join("test-seed");
    let last = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let seed = last.map(|last| last.wrapping_add(1)).or_else(of_the_commit).unwrap_or_else(of_the_clock);
    fs::write(file, format!("{seed}\n"))?;
    Ok(seed)
}

/// From the commit's hash, which a shallow clone has as well.
fn of_the_commit() -> Option<u64> {
    let said = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(project()).output().ok()?;
    let hash = String::from_utf8(said.stdout).ok()?;
    u64::from_str_radix(hash.get(..8)?, 16).ok()
}

fn of_the_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
