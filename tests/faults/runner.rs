//! What the runner of the tests promises: a test that leaves something behind fails, by its name, beside others; a test that
//! did not run to its end is not taken for one that passed; and nothing outlives a run.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};

use crate::common::{KERNEL_TIMEOUT, killed_with_us, log_of, scratch, text, tool};

mod on_purpose;

const ON_PURPOSE: &str = "faults::runner::on_purpose::";
const MACHINE: &str = "ganeti-instance-debootstrap-tests";
const GATE: &str = "ganeti-instance-debootstrap-tests.gate";

/// The runner, with those tests of `on_purpose` whose names begin so.
fn runner(name: &str) -> Command {
    let mut command = itself();
    command.arg("--named").arg(format!("{ON_PURPOSE}{name}"));
    command
}

fn itself() -> Command {
    let mut command = Command::new(std::env::var_os("TEST_RUNNER").expect("run by `make test`"));
    killed_with_us(&mut command).stdin(Stdio::null());
    command
}

/// Runs it to its end; returns what it said.
fn ran(mut runner: Command) -> (Output, String) {
    let output = runner.output().unwrap();
    let log = log_of(&output);
    clear();
    (output, log)
}

/// Removes what a run keeps in its checkout.
fn clear() {
    let _ = fs::remove_dir_all(scratch().join("logs"));
    for lock in ["runner.lock", MACHINE, GATE] {
        let _ = fs::remove_file(scratch().join(lock));
    }
}

/// What the log says of a test that failed.
fn said_of<'a>(log: &'a str, name: &str) -> &'a str {
    assert!(log.contains(&format!("FAILED: {ON_PURPOSE}{name}\n")), "{name}\n{log}");
    let said =
        log.split(&format!("==== {ON_PURPOSE}{name}\n")).nth(1).unwrap_or_else(|| panic!("{name}\n{log}"));
    said.split("\n==== ").next().unwrap().split("\nFAILED: ").next().unwrap()
}

/// A runner that was started, and its lines.
struct Started {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Started {
    fn new(mut command: Command) -> Started {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Started { child, lines }
    }

    /// Reads up to a line with `part` in it, and returns that.
    fn wait_for(&mut self, part: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "{part:?} does not come\n{all}");
            if line.contains(part) {
                return line;
            }
            all += &line;
        }
    }

    /// The exit status, and the rest of what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = Vec::new();
        self.lines.read_to_end(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        clear();
        (status.code(), text(&rest))
    }
}

fn lock(name: &str, operation: FlockOperation) -> File {
    let file = File::create(scratch().join(name)).unwrap();
    flock(&file, operation).unwrap();
    file
}

fn own_process() -> String {
    format!("(process {})", std::process::id())
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < KERNEL_TIMEOUT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Directories of tests in here.
fn rooms() -> Vec<PathBuf> {
    let entries = fs::read_dir(scratch()).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("var-tmp").is_dir()).collect()
}

/// Files of loop devices that lie in here. Where the mount is gone by which one was opened, its name begins later.
fn attached() -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").unwrap().flatten();
    let files = blocks.filter_map(|block| fs::read_to_string(block.path().join("loop/backing_file")).ok());
    let own = scratch();
    files
        .filter(|file| Path::new(file).components().any(|part| Some(part.as_os_str()) == own.file_name()))
        .collect()
}

/// Command lines of all processes of tests that run on purpose.
fn tests() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| Some(text(&fs::read(entry.path().join("cmdline")).ok()?)));
    lines.filter(|line| line.contains("on_purpose::") || line.contains("sleep\x001000")).collect()
}

#[test]
fn a_test_that_leaves_something_behind_fails_by_its_name_beside_others() {
    let (output, log) = ran(runner("leaves::"));
    assert!(!output.status.success(), "{log}");
    let cases: &[(&str, &[&str])] = &[
        ("a_process", &["process "]),
        ("a_mount", &["mount "]),
        ("a_loop_device", &["loop device "]),
        ("a_loop_device_over_a_file_of_tmp", &["loop device "]),
        ("a_loop_device_over_another_one", &["loop device loop", "loop device loop"]),
        ("a_loop_device_over_a_file_of_a_mount", &["mount ", "loop device "]),
        ("a_loop_device_whose_file_has_another_name", &["loop device ", "file file"]),
        ("a_file", &["file file"]),
        ("a_file_in_tmp", &["file /tmp/file"]),
        ("a_file_in_var_tmp", &["file /var/tmp/file"]),
        ("a_network_namespace", &["network namespace left"]),
        ("no_proc", &["no /proc of its own"]),
        ("no_var_tmp", &["no /var/tmp of its own"]),
    ];
    for (name, things) in cases {
        let said = said_of(&log, &format!("leaves::{name}"));
        let left: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("left behind: ")).collect();
        let as_expected = left.len() == things.len()
            && left.iter().zip(*things).all(|(line, beginning)| line.starts_with(beginning));
        assert!(as_expected, "{name}: expected {things:?}\n{said}");
        assert!(!said.contains("still attached"), "{name}\n{said}");
    }
    assert!(log.contains(&format!("\n1 passed, {} failed", cases.len())), "{log}");
}

#[test]
fn a_test_that_does_not_say_that_it_passed_has_failed() {
    let (output, log) = ran(runner("ends_without_a_verdict"));
    assert!(!output.status.success(), "{log}");
    assert!(
        said_of(&log, "ends_without_a_verdict").contains("libtest did not say that a test passed"),
        "{log}"
    );
}

#[test]
fn a_test_that_hangs_is_ended_and_what_was_running_is_said() {
    let mut command = runner("hangs");
    command.env("TESTS_LIMIT", "10").env("TESTS_QUIET", "1");
    let (output, log) = ran(command);
    assert!(!output.status.success(), "{log}");
    assert!(log.contains(&format!("running: {ON_PURPOSE}hangs (")), "{log}");
    let said = said_of(&log, "hangs");
    assert!(said.contains("it does not end within 10 s") && said.contains("(sleep) sleep 1000"), "{log}");
    assert_eq!((tests(), attached()), (vec![], vec![]), "{log}");
}

#[test]
fn a_failed_test_says_what_it_left_and_its_directory_can_be_kept() {
    let mut command = runner("fails");
    command.env("KEEP", "1");
    let (output, log) = ran(command);
    assert!(!output.status.success(), "{log}");
    let said = said_of(&log, "fails");
    assert!(said.contains("on purpose") && said.contains("\nleft behind: file file\n"), "{log}");
    let kept = said.lines().find_map(|line| line.strip_prefix("kept until the next run: ")).expect(&log);
    assert!(Path::new(kept).join("file").is_file(), "{log}");

    let (output, log) = ran(runner("leaves::nothing"));
    assert!(output.status.success() && log.contains(&format!("left in {kept}\n")), "{log}");
    assert_eq!(rooms(), Vec::<PathBuf>::new(), "{log}");
}

#[test]
fn a_log_that_cannot_be_read_is_said_and_the_report_goes_on() {
    let (output, log) = ran(runner("loses_its_log"));
    assert!(!output.status.success(), "{log}");
    let said = said_of(&log, "loses_its_log");
    assert!(said.contains("its log ") && said.contains(" cannot be read: "), "{log}");
    assert!(log.contains("0 passed, 1 failed"), "{log}");
}

#[test]
fn a_word_is_never_a_command_and_one_that_no_test_has_is_named() {
    let mut command = itself();
    command.arg("inside").arg(scratch()).args(["touch", "/tmp/file"]);
    let (output, log) = ran(command);
    assert!(!output.status.success() && !Path::new("/tmp/file").exists(), "{log}");

    let mut command = runner("leaves::nothing");
    command.args(["no_such_test", "test"]);
    let (output, log) = ran(command);
    assert!(!output.status.success() && log.contains("no test has \"no_such_test\" in its name"), "{log}");
    assert!(!log.contains("passed"), "{log}");
}

#[test]
fn a_row_of_the_table_that_is_not_there_is_named() {
    let mut command = itself();
    command.args(["--named", "faults::table::what_is_wrong_with_a_disk"]).env("FAULT", "no such row");
    let (output, log) = ran(command);
    assert!(!output.status.success() && log.contains("no row has \"no such row\" in its name"), "{log}");
}

#[test]
fn a_run_that_nobody_listens_to_ends() {
    let mut command = runner("leaves::nothing");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    clear();
}

#[test]
fn a_run_ends_with_its_parent_and_the_next_one_removes_what_it_left() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" & wait", "sh"]).arg(std::env::var_os("TEST_RUNNER").unwrap());
    shell.arg("--named").arg(format!("{ON_PURPOSE}hangs")).env("TESTS_QUIET", "1");
    let mut started = Started::new(shell);
    started.wait_for("running: ");
    wait_until("the test runs", || attached().len() == 1);
    started.child.kill().unwrap();
    let (_, said) = started.end();
    assert!(said.contains(&format!("interrupted; these were running: {ON_PURPOSE}hangs (")), "{said}");
    wait_until("they end", || tests().is_empty());
    assert_eq!((rooms().len(), attached().len()), (1, 1), "{said}");

    let (output, log) = ran(runner("leaves::nothing"));
    assert!(output.status.success() && log.contains("removing what an earlier run left in "), "{log}");
    assert_eq!((rooms(), attached()), (vec![], vec![]), "{log}");
}

#[test]
fn a_run_whose_parent_ended_before_does_not_begin() {
    let mut command = runner("leaves::nothing");
    // Greater than any.
    command.env("TESTS_PARENT", (1 << 30).to_string());
    let (output, log) = ran(command);
    assert!(!output.status.success() && log.contains("what started the tests has ended"), "{log}");
}

#[test]
fn an_interrupted_run_says_what_was_running_and_what_had_failed() {
    let mut command = runner("fails");
    command.arg(format!("{ON_PURPOSE}hangs"));
    let mut started = Started::new(command);
    started.wait_for("FAILED");
    wait_until("the other test runs", || attached().len() == 1);
    kill(Pid::from_raw(started.child.id() as i32), Signal::SIGINT).unwrap();
    let (status, log) = started.end();
    assert_eq!(status, Some(130), "{log}");
    assert!(log.contains(&format!("interrupted; these were running: {ON_PURPOSE}hangs (")), "{log}");
    assert!(said_of(&log, "fails").contains("on purpose"), "{log}");
    wait_until("they end", || tests().is_empty());
    // Removes what is left.
    let (output, log) = ran(runner("leaves::nothing"));
    assert!(output.status.success(), "{log}");
}

#[test]
fn a_checkout_has_one_run_at_a_time() {
    let mut held = lock("runner.lock", FlockOperation::LockExclusive);
    write!(held, "process 4711").unwrap();
    let (output, log) = ran(runner("leaves::nothing"));
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("another run of this checkout goes on (process 4711)\n"), "{log}");
}

#[test]
fn a_run_waits_for_those_that_have_the_machine_and_says_so() {
    let held = lock(MACHINE, FlockOperation::LockExclusive);
    let mut started = Started::new(runner("leaves::nothing"));
    let line = started.wait_for("waiting for other test runs on this machine ");
    assert!(line.contains(&own_process()), "{line}");
    drop(held);
    let (status, log) = started.end();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn nobody_comes_in_before_a_test_that_wants_the_machine_alone() {
    let held = lock(MACHINE, FlockOperation::LockShared);
    let mut started = Started::new(runner("alone::"));
    started.wait_for("waiting for other test runs on this machine ");
    let gate = File::open(scratch().join(GATE)).unwrap();
    assert!(flock(&gate, FlockOperation::NonBlockingLockExclusive).is_err(), "the gate is open");
    drop(held);
    let (status, log) = started.end();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn mounts_of_the_machine_come_and_go_while_a_test_runs() {
    let [goes, comes, ready] = ["goes", "comes", "ready"].map(|name| scratch().join(name));
    let mount = |dir: &Path| {
        tool("mount", &["-t", "tmpfs", "outside", dir.to_str().unwrap()]);
        fs::write(dir.join("there"), "").unwrap();
    };
    fs::create_dir(&goes).unwrap();
    fs::create_dir(&comes).unwrap();
    mount(&goes);
    let started = Started::new(runner("sees_the_mounts_outside"));
    wait_until("the test runs", || ready.exists());
    tool("umount", &[goes.to_str().unwrap()]);
    mount(&comes);
    let (status, log) = started.end();
    tool("umount", &[comes.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{log}");
    fs::remove_dir(goes).unwrap();
    fs::remove_dir(comes).unwrap();
}
