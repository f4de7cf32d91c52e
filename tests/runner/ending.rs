//! How the runner ends before its time: by a signal, or with its parent. What it started ends with it.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, alarm, getpid, getppid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::queue::Queue;
use crate::report;

/// Cargo's process number, as the Makefile knows it before cargo starts.
pub const PARENT: &str = "TESTS_PARENT";
/// Seconds for the last words: whoever listens may have stopped reading.
const LAST_WORDS: u32 = 10;

/// Asks the kernel to end this process with its parent; an error where the parent has ended before.
pub fn with_parent() -> Result<()> {
    let parent = getppid();
    set_pdeathsig(Signal::SIGTERM)?;
    let known = std::env::var(PARENT).ok().and_then(|text| text.parse().ok()).map(Pid::from_raw);
    let is_there = known.is_none_or(|known| kill(known, None).is_ok());
    ensure!(getppid() == parent && is_there, "what started the tests has ended");
    Ok(())
}

/// Says at a signal what was running and what failed, and ends the process. The kernel ends what it started.
pub fn on_signals(queue: Arc<Queue>) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            alarm::set(LAST_WORDS);
            report::interrupted(&queue);
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Lets a command end with the thread that starts it.
pub fn with_us(command: &mut Command) -> &mut Command {
    let us = getpid();
    let before = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() == us { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: prctl and getppid are async-signal-safe.
    #[allow(unsafe_code, reason = "no job outlives the runner")]
    unsafe {
        command.pre_exec(before)
    }
}
