//! Something to run, and how it ended.

use std::path::PathBuf;
use std::time::Duration;

/// The module whose tests are steps before the others: each makes something that several tests share.
pub const STEPS: &str = "::steps::";

/// A job that takes longer hangs: this long where nothing says more, and never longer than the other.
const LIMIT: Duration = Duration::from_secs(10 * 60);
const LONGEST_LIMIT: Duration = Duration::from_secs(40 * 60);
/// What a busy machine may add to three times the recorded time.
const MARGIN: Duration = Duration::from_secs(60);

/// Something to run.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: String,
    pub argv: Vec<String>,
    /// A test gets a directory and private places of its own, and libtest says in its log that it passed.
    pub is_test: bool,
    /// It is one that `make test` leaves out.
    pub is_long: bool,
    /// Names of the jobs that must be over before, whether they passed or not.
    pub after: Vec<String>,
    /// Whole seconds of an earlier run. The longest job starts first.
    pub seconds: Option<u64>,
}

impl Job {
    pub fn command(name: &str, argv: &[&str]) -> Job {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        Job { name: name.to_owned(), argv, is_test: false, is_long: false, after: Vec::new(), seconds: None }
    }

    /// A test beside which no other one may run.
    pub fn is_alone(&self) -> bool {
        self.name.contains("::alone::")
    }

    /// How long it may take. What compiles or bootstraps takes its time once, and none in the run that was recorded; of a long
    /// test of which nothing is recorded nothing is known.
    pub fn limit(&self) -> Duration {
        let is_open = self.is_long && self.seconds.is_none();
        if !self.is_test || is_open || self.name.contains(STEPS) {
            return LONGEST_LIMIT;
        }
        let recorded = Duration::from_secs(self.seconds.unwrap_or_default());
        (recorded * 3 + MARGIN).clamp(LIMIT, LONGEST_LIMIT)
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
    /// What it printed. There is none where the runner itself broke.
    pub log: Option<PathBuf>,
}

impl Outcome {
    /// Of a job whose worker panicked.
    pub fn broken(name: &str, took: Duration) -> Outcome {
        Outcome { name: name.to_owned(), took, processor: 0.0, passed: false, log: None }
    }
}
