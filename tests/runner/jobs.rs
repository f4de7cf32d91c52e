//! All that can be run: the test binaries of this project with their tests, the trees that these want, and the checks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::checkout;
use crate::ending;
use crate::job::{Job, STEPS};
use crate::parts;

/// Steps that make what only the long tests want.
const LONG_STEPS: &str = "::steps::long::";
/// Tests of this module fail on purpose, when they are asked for by their names.
const ON_PURPOSE: &str = "::on_purpose::";

/// What must be over before the tests of a binary begin: jobs whose names begin like this.
const BEFORE: [(&str, &[&str]); 5] = [
    ("installs::", &["installs::steps::"]),
    ("backups::", &["installs::steps::"]),
    ("faults::", &["installs::steps::"]),
    ("machines::", &["installs::steps::", "machines::steps::"]),
    ("upgrade::", &["upgrade::steps::", PACKAGE]),
];
const PACKAGE: &str = "make deb";

/// A test of a binary.
pub struct Test {
    /// `BINARY::PATH`.
    pub name: String,
    /// It is ignored by `cargo test` and `make test`, and not by `make test-full`.
    pub is_long: bool,
    program: PathBuf,
    path: String,
}

/// The tests of all binaries.
pub struct Catalogue {
    tests: Vec<Test>,
    /// The unit tests run in one process.
    units: Vec<PathBuf>,
}

impl Catalogue {
    /// Builds the test binaries as this one was built, and asks them what is in them.
    pub fn build() -> Result<Catalogue> {
        let mut catalogue = Catalogue { tests: Vec::new(), units: Vec::new() };
        for line in built()?.lines() {
            let message: Value = serde_json::from_str(line).with_context(|| format!("reading {line}"))?;
            let Some(program) = message["executable"].as_str() else { continue };
            let target = &message["target"];
            let name = target["name"].as_str().unwrap_or_default();
            match target["kind"][0].as_str() {
                Some("test") if name == "runner" => {}
                Some("test") => catalogue.add(name, program)?,
                _ if message["profile"]["test"] == true && !list(program, &[])?.is_empty() => {
                    catalogue.units.push(program.into());
                }
                _ => {}
            }
        }
        let lost = parts::lost(catalogue.tests.iter().filter(|test| test.is_long).map(|test| &*test.name));
        ensure!(
            lost.is_none(),
            "no part in tests/runner/parts.rs has the long test {}",
            lost.unwrap_or_default()
        );
        Ok(catalogue)
    }

    fn add(&mut self, binary: &str, program: &str) -> Result<()> {
        let long = list(program, &["--ignored"])?;
        self.tests.extend(list(program, &[])?.into_iter().map(|path| Test {
            name: format!("{binary}::{path}"),
            is_long: long.contains(&path) && !is_special(&format!("{binary}::{path}")),
            program: program.into(),
            path,
        }));
        Ok(())
    }

    /// What needs no disk: format, lints, scripts, unit tests.
    pub fn checks(&self) -> Vec<Job> {
        let check = |name: &str, argv: &[&str]| Job::command(name, argv);
        let mut jobs = vec![check("make lint", &["make", "--no-print-directory", "lint"])];
        for program in &self.units {
            let stem = program.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("units of {}", stem.rsplit_once('-').map_or(&*stem, |(name, _)| name));
            jobs.push(Job { is_test: true, ..check(&name, &[&program.display().to_string()]) });
        }
        jobs
    }

    /// What `make test` runs of the tests.
    pub fn short_tests(&self) -> Vec<Job> {
        self.tests(|test| !test.is_long && !is_special(&test.name))
    }

    /// Tests with one of these words in their names. Those that fail on purpose are meant only where the word says so.
    pub fn named(&self, words: &[String]) -> Result<Vec<Job>> {
        let is_meant = |test: &Test, word: &str| {
            let is_asked_for = word.contains(ON_PURPOSE) || !test.name.contains(ON_PURPOSE);
            test.name.contains(word) && is_asked_for && !test.is_step()
        };
        let unknown = words.iter().find(|word| !self.tests.iter().any(|test| is_meant(test, word)));
        ensure!(unknown.is_none(), "no test has {:?} in its name", unknown.map_or("", |word| word));
        Ok(self.tests(|test| words.iter().any(|word| is_meant(test, word))))
    }

    /// Tests that are wanted, after the steps that make what they share.
    pub fn tests(&self, wanted: impl Fn(&Test) -> bool) -> Vec<Job> {
        let mut steps: Vec<Job> = self.tests.iter().filter(|test| test.is_step()).map(Test::job).collect();
        steps.push(Job::command(PACKAGE, &["make", "--no-print-directory", "deb"]));
        let tests = self.tests.iter().filter(|test| !test.is_step() && wanted(test));
        let mut jobs: Vec<Job> = tests
            .map(|test| {
                let wants = |binary| test.name.starts_with(binary) && !test.name.contains(ON_PURPOSE);
                let before = BEFORE.iter().filter(|(binary, _)| wants(binary));
                let before: Vec<&str> = before.flat_map(|row| row.1).copied().collect();
                let needed = steps.iter().filter(|step| {
                    before.iter().any(|name| step.name.starts_with(name))
                        && (test.is_long || !step.name.contains(LONG_STEPS))
                });
                Job { after: needed.map(|step| step.name.clone()).collect(), ..test.job() }
            })
            .collect();
        steps.retain(|step| jobs.iter().any(|job| job.after.contains(&step.name)));
        steps.append(&mut jobs);
        steps
    }
}

/// The names of the tests of a binary.
fn list(program: &str, more: &[&str]) -> Result<Vec<String>> {
    let listed = Command::new(program).args(["--list", "--format", "terse"]).args(more).output()?;
    ensure!(listed.status.success(), "{program} --list: {}", listed.status);
    let lines = String::from_utf8(listed.stdout)?;
    Ok(lines.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect())
}

fn is_special(name: &str) -> bool {
    name.contains(STEPS) || name.contains(ON_PURPOSE)
}

impl Test {
    fn is_step(&self) -> bool {
        self.name.contains(STEPS)
    }

    fn job(&self) -> Job {
        let args = ["--exact", &self.path, "--include-ignored", "--nocapture", "--test-threads=1"];
        let argv = [&[self.program.to_str().unwrap_or_default()], &args[..]].concat();
        Job { is_test: true, is_long: self.is_long, ..Job::command(&self.name, &argv) }
    }
}

/// What cargo said of the test binaries. A run inside of a test takes what the run around it was told: cargo may be busy.
fn built() -> Result<String> {
    let kept = checkout::target_tmp().join("built");
    if checkout::is_inside_a_test() {
        return fs::read_to_string(&kept).with_context(|| format!("reading {}", kept.display()));
    }
    let messages = cargo_test_no_run()?;
    fs::write(kept, &messages)?;
    Ok(messages)
}

/// The messages of `cargo test --no-run`, with the profile that this program was built with.
fn cargo_test_no_run() -> Result<String> {
    let own = std::env::current_exe()?;
    let dir =
        own.parent().and_then(Path::parent).and_then(Path::file_name).context("no profile's directory")?;
    let profile = match dir.to_str().context("a profile's name")? {
        "debug" => "dev",
        name => name,
    };
    let args =
        ["test", "--locked", "--no-run", "--message-format=json-render-diagnostics", "--profile", profile];
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(checkout::project()).stderr(Stdio::inherit());
    let built = ending::with_us(&mut command).output()?;
    ensure!(built.status.success(), "the tests cannot be built");
    Ok(String::from_utf8(built.stdout)?)
}
