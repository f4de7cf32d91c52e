//! All that can be run: the test binaries of this project with their tests, the trees that these want, and the checks.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use crate::pool::Job;

/// The module whose tests are steps before the others: each makes something that several tests share. What lies in its
/// module `long` is for the long ones.
const STEPS: &str = "::steps::";
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
        for line in cargo_test_no_run()?.lines() {
            let message: Value = serde_json::from_str(line).with_context(|| format!("reading {line}"))?;
            let Some(program) = message["executable"].as_str() else { continue };
            let target = &message["target"];
            let name = target["name"].as_str().unwrap_or_default();
            match target["kind"][0].as_str() {
                Some("test") if name == "runner" => {}
                Some("test") => catalogue.add(name, program)?,
                _ if message["profile"]["test"] == true => catalogue.units.push(program.into()),
                _ => {}
            }
        }
        Ok(catalogue)
    }

    fn add(&mut self, binary: &str, program: &str) -> Result<()> {
        let list = |more: &[&str]| -> Result<Vec<String>> {
            let args = [&["--list", "--format", "terse"], more].concat();
            let listed = Command::new(program).args(args).output()?;
            ensure!(listed.status.success(), "{program} --list: {}", listed.status);
            let lines = String::from_utf8(listed.stdout)?;
            Ok(lines.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect())
        };
        let long = list(&["--ignored"])?;
        self.tests.extend(list(&[])?.into_iter().map(|path| Test {
            name: format!("{binary}::{path}"),
            is_long: long.contains(&path) && !is_special(&format!("{binary}::{path}")),
            program: program.into(),
            path,
        }));
        Ok(())
    }

    pub fn long_tests(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().filter(|test| test.is_long).map(|test| test.name.as_str())
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

    /// Tests with one of these words in their names; those that fail on purpose only where the word says so.
    pub fn named(&self, words: &[String]) -> Vec<Job> {
        let means = |test: &Test, word: &str| {
            test.name.contains(word) && (!test.name.contains(ON_PURPOSE) || word.contains(ON_PURPOSE))
        };
        self.tests(|test| words.iter().any(|word| means(test, word)))
    }

    /// Tests that are wanted, after the steps that make what they share.
    pub fn tests(&self, wanted: impl Fn(&Test) -> bool) -> Vec<Job> {
        let mut steps: Vec<Job> = self.tests.iter().filter(|test| test.is_step()).map(Test::job).collect();
        steps.push(Job::command(PACKAGE, &["make", "--no-print-directory", "deb"]));
        let tests = self.tests.iter().filter(|test| !test.is_step() && wanted(test));
        let mut jobs: Vec<Job> = tests
            .map(|test| {
                let before = BEFORE.iter().filter(|(binary, _)| test.name.starts_with(binary));
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
        Job { is_test: true, ..Job::command(&self.name, &argv) }
    }
}

impl Job {
    pub fn command(name: &str, argv: &[&str]) -> Job {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        Job { name: name.to_owned(), argv, is_test: false, after: Vec::new(), seconds: 0 }
    }
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
    let built =
        command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
    ensure!(built.status.success(), "the tests cannot be built");
    Ok(String::from_utf8(built.stdout)?)
}
