//! What the runner of the tests decides without starting anything: which job comes next, how long it may take, which part of
//! `make test-full` has its turn. What it does with real tests is in tests/faults/runner.rs.
#![allow(dead_code, reason = "of these modules only what decides is looked at")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use job::{Job, Outcome};
use parts::HOUR;
use queue::Queue;
use walkdir::WalkDir;

use crate::common::project;

#[path = "../runner/job.rs"]
mod job;
#[path = "../runner/parts.rs"]
mod parts;
#[path = "../runner/queue.rs"]
mod queue;

fn job(name: &str, after: &[&str]) -> Job {
    let after = after.iter().map(|name| (*name).to_owned()).collect();
    Job { after, is_test: true, ..Job::command(name, &["true"]) }
}

fn passed(name: &str) -> Outcome {
    Outcome { passed: true, ..Outcome::broken(name, Duration::ZERO) }
}

#[test]
fn a_job_starts_when_those_before_it_are_over_and_the_longest_first() {
    let queue = Queue::default();
    let long = Job { seconds: Some(9), ..job("long", &[]) };
    queue.add(vec![job("last", &["step"]), job("short", &[]), long, job("step", &[])]);
    let (step, long, short) = (queue.next().unwrap(), queue.next().unwrap(), queue.next().unwrap());
    assert_eq!([&step, &long, &short].map(|turn| &*turn.job.name), ["step", "long", "short"]);
    std::thread::scope(|scope| {
        let last = scope.spawn(|| queue.next().map(|turn| turn.job.name.clone()));
        step.end(passed("step"));
        assert_eq!(last.join().unwrap().as_deref(), Some("last"));
    });
}

#[test]
fn a_worker_that_panics_ends_the_run_and_fails_it() {
    let queue = Queue::default();
    queue.add(vec![job("breaks", &[]), job("waits", &["breaks"])]);
    std::thread::scope(|scope| {
        let broken = queue.next().unwrap();
        // It would wait for ever for what never ends.
        let other = scope.spawn(|| queue.next().is_none());
        let watcher = scope.spawn(|| queue.watch(Duration::from_secs(600), |_| {}));
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _turn = broken;
            panic!("on purpose");
        }));
        assert!(panicked.is_err() && other.join().unwrap());
        watcher.join().unwrap();
    });
    let outcomes = queue.outcomes();
    assert!(outcomes.len() == 1 && outcomes[0].name == "breaks" && !outcomes[0].passed, "{outcomes:?}");
    queue.add(vec![job("later", &[])]);
    assert!(queue.next().is_none());
    assert_eq!(queue.not_run(), ["waits", "later"]);
}

#[test]
fn jobs_that_wait_for_each_other_are_not_waited_for() {
    let queue = Queue::default();
    queue.add(vec![job("one", &["other"]), job("other", &["one"])]);
    assert!(queue.next().is_none());
    assert_eq!(queue.not_run().len(), 2);
}

#[test]
fn the_limit_of_a_test_follows_its_recorded_time() {
    let limit = |name, seconds| Job { seconds, ..job(name, &[]) }.limit().as_secs() / 60;
    assert_eq!(limit("a::test", None), 10);
    assert_eq!(limit("a::test", Some(60)), 10);
    assert_eq!(limit("a::test", Some(300)), 16);
    assert_eq!(limit("a::test", Some(3000)), 40);
    assert_eq!(limit("a::steps::tree", None), 40);
    let long = Job { is_long: true, ..job("a::long_test", &[]) };
    assert_eq!(long.limit().as_secs() / 60, 40);
    assert_eq!(Job { seconds: Some(300), ..long }.limit().as_secs() / 60, 16);
    assert_eq!(Job::command("make deb", &["make"]).limit().as_secs() / 60, 40);
}

#[test]
fn a_long_test_that_no_part_has_is_found() {
    assert_eq!(parts::lost(["faults::kill::a", "hostile::b"].into_iter()), None);
    assert_eq!(parts::lost(["faults::kill::a", "faults::table::b"].into_iter()), Some("faults::table::b"));
}

#[test]
fn each_part_is_among_the_first_in_one_of_four_runs() {
    for seed in [0, 5, u64::from(u32::MAX)] {
        let first = |seed| parts::in_order_of(seed).take(2).map(|part| part.name);
        let seen: BTreeSet<&str> = (seed..seed + 4).flat_map(first).collect();
        assert_eq!(seen.len(), parts::all().len(), "{seed}");
        assert_eq!(parts::in_order_of(seed).map(|part| part.name).collect::<BTreeSet<_>>(), seen);
    }
}

#[test]
fn a_part_that_never_fits_into_the_rest_of_the_hour_has_its_turn() {
    let turns = |seeds: std::ops::Range<u64>, takes: fn(&str) -> u64| -> Vec<&str> {
        let turn = |seed| parts::whose_turn(seed, HOUR / 2, |part| takes(part.name));
        seeds.filter_map(turn).map(|part| part.name).collect()
    };
    // One of four: the others have their time, too.
    assert_eq!(turns(0..8, |name| if name == "boots" { HOUR / 2 + 1 } else { 60 }), ["boots", "boots"]);
    assert_eq!(turns(0..8, |_| HOUR / 2), [""; 0]);
    assert_eq!(turns(0..8, |_| HOUR + 1), [""; 0], "no hour has room for these");
    // Where nothing is recorded, all have it sooner or later.
    assert_eq!(turns(0..8, |_| HOUR).iter().collect::<BTreeSet<_>>().len(), parts::all().len());
}

/// The files of the modules that a file declares.
fn modules_of(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap();
    let owns_its_directory = file.ends_with("main.rs") || file.ends_with("mod.rs");
    let dir = if owns_its_directory { file.parent().unwrap().to_owned() } else { file.with_extension("") };
    let declared = |line: &str| {
        let name = line.trim().trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned();
        Some([dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")])
    };
    text.lines().filter_map(declared).flatten().collect()
}

/// A test in a file that belongs to no binary would never run.
#[test]
fn every_file_of_tests_belongs_to_a_binary_that_cargo_knows() {
    let tests = project().join("tests");
    let files = WalkDir::new(&tests).into_iter().map(|entry| entry.unwrap().into_path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect();
    let mut known: BTreeSet<PathBuf> = files.iter().flat_map(|file| modules_of(file)).collect();
    // By its path.
    known.insert(tests.join("common/mod.rs"));
    let cargo = fs::read_to_string(project().join("Cargo.toml")).unwrap();
    let is_known = |file: &PathBuf| {
        let path = file.strip_prefix(project()).unwrap().display();
        known.contains(file) || cargo.contains(&format!("path = \"{path}\""))
    };
    let unknown: Vec<&PathBuf> = files.iter().filter(|file| !is_known(file)).collect();
    assert!(files.len() > 80 && unknown.is_empty(), "{unknown:#?} of {}", files.len());
}
