//! One run at a time in a checkout. On the machine many at a time, but for tests that want it for themselves.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ganeti_instance_debootstrap::sys::lock;

use crate::checkout;
use crate::report::say;

/// One lock for all checkouts on this machine.
const MACHINE: &str = "ganeti-instance-debootstrap-tests";
/// Everybody takes it before that one, and gives it back then. Who waits for the machine holds it, so that nobody else comes in.
const GATE: &str = "ganeti-instance-debootstrap-tests.gate";

const POLL: Duration = Duration::from_millis(100);
/// Who waits for so long says what for.
const SILENCE: Duration = Duration::from_secs(1);

/// How a run wants the machine.
#[derive(Clone, Copy)]
pub enum Want {
    Shared,
    Alone,
}

/// The lock of this checkout. There is one run at a time: a run removes what earlier ones left. The Makefile looks at the lock
/// before it builds, and shows who wrote to it.
pub fn checkout() -> Result<File> {
    let path = checkout::scratch().join("runner.lock");
    let mut file = open(&path)?;
    if !lock::try_exclusive(&file)? {
        bail!("another run of this checkout goes on ({})", fs::read_to_string(path)?);
    }
    file.set_len(0)?;
    write!(file, "process {}", std::process::id())?;
    Ok(file)
}

/// The lock of the machine, which goes with the file. Waits until it can be had.
pub fn machine(want: Want) -> Result<File> {
    // The run around a test has the real one.
    let dir = if checkout::is_inside_a_test() { checkout::scratch() } else { PathBuf::from("/run/lock") };
    let mut is_said = false;
    let _gate = wait_for(&dir.join(GATE), Want::Alone, &mut is_said)?;
    wait_for(&dir.join(MACHINE), want, &mut is_said)
}

fn wait_for(path: &Path, want: Want, is_said: &mut bool) -> Result<File> {
    let (file, start) = (open(path)?, Instant::now());
    let attempt = match want {
        Want::Shared => lock::try_shared,
        Want::Alone => lock::try_exclusive,
    };
    while !attempt(&file)? {
        if !*is_said && start.elapsed() > SILENCE {
            say(format_args!("waiting for other test runs on this machine ({})", holder(&file)));
            *is_said = true;
        }
        std::thread::sleep(POLL);
    }
    Ok(file)
}

fn open(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("opening the lock {}", path.display()))
}

/// `process 4711`
fn holder(file: &File) -> String {
    let named = lock::holder(file).unwrap_or_else(|| "a process that is not seen from here".into());
    named.split(" (").next().unwrap_or_default().to_owned()
}
