//! Either side struck by a signal, or left by the other: an import leaves an empty disk or the right one, an export a stream
//! that is refused.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM};

use super::bench::{Bench, assert_nothing_on, assert_told, noise, pipe, written_by};
use crate::common::bytes::Numbers;
use crate::common::log_of;
use crate::common::running::{Ended, Family, Running, SOON};

impl Bench {
    /// Wants that nobody knows the target for anything, or else that it is exactly what was backed up; says which.
    fn is_blank(&self, what: &str, target: &Path) -> bool {
        let found = Command::new("blkid").arg("-p").arg(target).output().unwrap();
        match found.status.code() {
            Some(2) => {}
            _ => self.assert_right(what, target),
        }
        found.status.code() == Some(2)
    }
}

/// A filesystem on the bare disk, known by its first bytes, with data up to the last.
fn used_to_its_end() -> Bench {
    let mut bench = Bench::bare();
    let (mut backup, tail) = (bench.backup(), noise(8, 64 << 10));
    let start = backup.size_bytes - tail.len() as u64;
    assert!(backup.runs.last().is_some_and(|(offset, length)| offset + length <= start));
    backup.runs.push((start, tail.len() as u64));
    backup.data.extend(&tail);
    bench.reference[start as usize..].copy_from_slice(&tail);
    bench.stream = backup.stream();
    bench
}

/// The command with something done to one of its system calls, by strace.
fn with_fault(command: &Command, calls: &str, fault: &str, nth: usize) -> Command {
    let mut traced = Command::new("strace");
    let inject = format!("inject={calls}:{fault}:when={nth}");
    traced.args(["-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject]);
    traced.arg(command.get_program()).args(command.get_args());
    traced.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced.current_dir(command.get_current_dir().unwrap());
    traced
}

/// What an import does to the disk.
const WRITES: &str = "pwrite64,fsync,fallocate";

/// Strikes imports before their writes, one in `step` of them.
fn strike_before_writes(bench: &Bench, step: usize) {
    let (mut blank, mut nth) = (0, 1);
    loop {
        let target = bench.target();
        let command = bench.import_command(&target, Stdio::null());
        let mut command = with_fault(&command, WRITES, "signal=KILL", nth);
        let output = command.stdin(bench.feed(&bench.stream)).output().unwrap();
        let what = format!("killed before write {nth}");
        bench.node.assert_nothing_left();
        blank += usize::from(bench.is_blank(&what, &target));
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.signal(), Some(SIGKILL as i32), "{what}: {}", log_of(&output));
        nth += step;
    }
    assert!(blank > 6 / step, "{blank} were blank");
}

#[test]
fn an_import_that_is_killed_before_a_write_leaves_nothing_or_all() {
    strike_before_writes(&used_to_its_end(), 1);
    strike_before_writes(&Bench::divided(), 9);
}

#[test]
#[ignore = "run by make test-full"]
fn an_import_that_is_killed_before_any_write_leaves_nothing_or_all() {
    strike_before_writes(&used_to_its_end(), 1);
    strike_before_writes(&Bench::bare(), 1);
    strike_before_writes(&Bench::divided(), 1);
}

#[test]
fn an_import_whose_disk_fails_in_a_write_leaves_nothing() {
    let bench = Bench::bare();
    let mut failed = 0;
    for (calls, error, why) in
        [("pwrite64", "EIO", "Input/output error"), ("fsync", "ENOSPC", "No space left on device")]
    {
        for nth in (1..).step_by(3) {
            let target = bench.target();
            let command = bench.import_command(&target, Stdio::null());
            let mut command = with_fault(&command, calls, &format!("error={error}"), nth);
            let output = command.stdin(bench.feed(&bench.stream)).output().unwrap();
            let what = format!("{error} in {calls} {nth}");
            bench.node.assert_nothing_left();
            if output.status.success() {
                bench.assert_right(&what, &target);
                break;
            }
            let ended = Ended { status: output.status, log: log_of(&output), family: Family::default() };
            assert_told(&what, &ended, why);
            assert_nothing_on(&what, &target);
            failed += 1;
        }
    }
    assert!(failed > 4, "{failed}");
}

/// A stream that comes in pieces, over that time.
fn slowly(bench: &Bench, over: Duration) -> Stdio {
    let stream = bench.stream.clone();
    written_by(move |input| {
        const PIECES: usize = 40;
        stream.chunks(stream.len().div_ceil(PIECES)).try_for_each(|piece| {
            sleep(over / PIECES as u32);
            input.write_all(piece)
        })
    })
}

/// Strikes imports at moments that are spread over their life.
fn strike_at_moments(bench: &Bench, times: u64, signal: Signal) {
    let over = Duration::from_millis(120);
    let start = Instant::now();
    let target = bench.target();
    let ended = bench.import(&target, slowly(bench, over));
    assert!(ended.status.success(), "{}", ended.log);
    let length = start.elapsed().as_millis() as u64;
    let mut numbers = Numbers(0x70);
    for _ in 0..times {
        let target = bench.target();
        let moment = numbers.below(length);
        let run = Running::start(bench.import_command(&target, slowly(bench, over)));
        sleep(Duration::from_millis(moment));
        let ended = run.strike(signal);
        let what = format!("{signal} after {moment} ms");
        let struck = ended.status.signal() == Some(signal as i32);
        assert!(struck || ended.status.success(), "{what}: {} {}", ended.status, ended.log);
        bench.node.assert_released(&ended);
        match signal == SIGKILL || ended.status.success() {
            true => drop(bench.is_blank(&what, &target)),
            false => assert_nothing_on(&what, &target),
        }
    }
}

#[test]
fn an_import_that_is_struck_leaves_nothing_or_all() {
    let bench = Bench::divided();
    strike_at_moments(&bench, 6, SIGTERM);
    strike_at_moments(&bench, 6, SIGKILL);
}

#[test]
#[ignore = "run by make test-full"]
fn imports_that_are_struck_at_many_moments_leave_nothing_or_all() {
    for bench in [Bench::bare(), Bench::divided()] {
        strike_at_moments(&bench, 30, SIGKILL);
        strike_at_moments(&bench, 30, SIGTERM);
    }
}

#[test]
fn an_import_whose_writer_goes_away_leaves_nothing() {
    let bench = Bench::divided();
    for percent in [0, 1, 30, 99] {
        let stream = bench.stream[..bench.stream.len() / 100 * percent].to_vec();
        let target = bench.target();
        let input = written_by(move |input| {
            input.write_all(&stream)?;
            sleep(Duration::from_millis(50));
            Ok(())
        });
        let ended = bench.import(&target, input);
        bench.assert_failed(&format!("gone after {percent}%"), &ended, &target, "error: ");
    }
}

/// An export with our end of a pipe.
fn piped_export(bench: &Bench) -> (Running, File) {
    let (reader, writer) = pipe();
    (Running::writing(bench.export_command(&bench.disk), writer.into()), reader)
}

fn read(reader: &mut File, bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    reader.take(bytes as u64).read_to_end(&mut read).unwrap();
    read
}

#[test]
fn an_export_whose_reader_goes_away_ends_with_a_word() {
    let bench = Bench::divided();
    let all = bench.stream.len();
    for bytes in [0, 1, 600, 5000, all / 2, all - (2 << 20)] {
        let (run, mut reader) = piped_export(&bench);
        assert_eq!(read(&mut reader, bytes).len(), bytes);
        drop(reader);
        let ended = run.end_within(SOON, Family::default());
        assert_told(&format!("gone after {bytes} bytes"), &ended, "writing the backup\n  Broken pipe");
        bench.node.assert_nothing_left();
    }
}

#[test]
fn an_export_stays_what_it_was_while_its_reader_holds_it() {
    let bench = Bench::divided();
    let (run, mut reader) = piped_export(&bench);
    // What is in this pipe are the pages that the export put into its own.
    let (mut held, holding) = pipe();
    fcntl(&holding, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
    let count = splice(&reader, None, &holding, None, 1 << 20, SpliceFFlags::empty()).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    let ended = run.end_within(SOON, Family::default());
    assert!(ended.status.success(), "{}", ended.log);
    drop(holding);
    let mut stream = Vec::new();
    held.read_to_end(&mut stream).unwrap();
    assert_eq!(stream.len(), count);
    stream.extend(rest);
    bench.assert_restored("held back by its reader", &stream);
}

#[test]
fn an_export_that_is_struck_leaves_a_stream_that_is_refused() {
    let bench = Bench::divided();
    let all = bench.stream.len();
    for signal in [SIGKILL, SIGTERM] {
        for bytes in [0, 600, 5000, all / 3, all - (2 << 20)] {
            let (run, mut reader) = piped_export(&bench);
            let mut stream = read(&mut reader, bytes);
            // Nobody reads: it waits.
            let ended = run.strike(signal);
            let what = format!("{signal} after {bytes} bytes");
            assert_eq!(ended.status.signal(), Some(signal as i32), "{what}: {}", ended.log);
            bench.node.assert_released(&ended);
            reader.read_to_end(&mut stream).unwrap();
            assert!(stream.len() < all);
            bench.assert_refused(&what, &stream, "error: ");
        }
    }
}
