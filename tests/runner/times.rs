//! How long tests took: of the last run in target/, and of the last one that somebody recorded in the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

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
        if std::env::var_os("TEST_DIR").is_some() {
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

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn last() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-times")
}

/// One more than the last run's in this checkout; the first run takes the number of its commit, so that the runs of fresh
/// checkouts differ, too.
pub fn next_seed() -> Result<u64> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-seed");
    let last = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let seed = match last {
        Some(last) => last + 1,
        None => {
            let count =
                Command::new("git").args(["rev-list", "--count", "HEAD"]).current_dir(project()).output()?;
            String::from_utf8_lossy(&count.stdout).trim().parse().context("git rev-list --count")?
        }
    };
    fs::write(file, format!("{seed}\n"))?;
    Ok(seed)
}
