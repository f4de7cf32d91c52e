//! Whole disks, as an export looks at them: many partitions, many holes, and a signal meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ganeti_instance_debootstrap::reader::{Budget, Work};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ext::{one_revoke_a_million_times, with_revokes_of_its_own};
use super::{KIB, MIB};
use crate::common::backup::env_of;
use crate::common::{Node, log_of, tool};

/// What an export would carry of a disk, without carrying it.
fn dry_run(node: &Node, disk: &Path) -> Command {
    let mut env = env_of(node, "export", disk);
    env.insert("DEBUG_LEVEL".into(), "1".into());
    let mut command = node.verb("export", &env);
    command.arg("--dry-run");
    command
}

/// The work that an export says it took to look at a disk, and its log.
fn work_of(node: &Node, disk: &Path) -> (Work, String) {
    let output = dry_run(node, disk).output().unwrap();
    let log = log_of(&output);
    assert!(output.status.success(), "{log}");
    let line =
        log.lines().find(|line| line.contains("bytes were read for it")).unwrap_or_else(|| panic!("{log}"));
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    (Work { bytes: numbers.next().unwrap(), records: numbers.next().unwrap() }, log)
}

/// A disk with a GPT, whose partitions all hold the same.
fn divided(node: &Node, count: u64, content: &[u8]) -> std::path::PathBuf {
    let (start, each) = (MIB, content.len() as u64);
    let disk = node.disk("divided", start + count * each + MIB);
    let lines: String =
        (0..count).map(|n| format!("start={}, size={}\n", (start + n * each) / 512, each / 512)).collect();
    let script = format!("label: gpt\ntable-length: {count}\n{lines}");
    let input = node.path().join("table");
    fs::write(&input, script).unwrap();
    tool("sh", &["-c", &format!("sfdisk -q --no-reread {} < {}", disk.display(), input.display())]);
    let file = File::options().write(true).open(&disk).unwrap();
    for n in 0..count {
        for (index, block) in
            content.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0))
        {
            file.write_all_at(block, start + n * each + index as u64 * 4096).unwrap();
        }
    }
    disk
}

#[test]
fn the_partitions_of_a_disk_are_bounded_together() {
    let node = Node::bare();
    // Each of them for itself would look at 16 Ki records, and some.
    let disk = divided(&node, 512, &with_revokes_of_its_own(256));
    let limit = Budget::of_disk(fs::metadata(&disk).unwrap().len()).limit();
    let (work, log) = work_of(&node, &disk);
    assert_eq!(log.matches("more work than its size is worth").count(), 512, "{log}");
    // And holes of the file, which are no partition's.
    let holes = fs::metadata(&disk).unwrap().len() / (64 * KIB) + 1;
    assert!(work.bytes <= limit.bytes && work.records <= limit.records + holes, "{work:?} of {limit:?}");
    assert!(work.records > limit.records - 32 * KIB, "{work:?} of {limit:?}");
}

#[test]
fn a_thousand_partitions_with_a_journal_of_one_block_take_little() {
    let node = Node::bare();
    let disk = divided(&node, 1024, &one_revoke_a_million_times());
    let (work, log) = work_of(&node, &disk);
    assert_eq!(log.matches("its journal has 1048576 blocks").count(), 1024, "{log}");
    assert!(work.bytes <= 1024 * 16 * KIB && work.records <= 1024 * 16, "{work:?}");
}

#[test]
fn a_file_of_small_holes_is_asked_for_no_more_of_them_than_matter() {
    let node = Node::bare();
    let disk = node.disk("holes", 4 * MIB);
    let file = File::options().write(true).open(&disk).unwrap();
    (0..512).for_each(|n| file.write_all_at(&[7; 4096], n * 8192).unwrap());
    let (work, log) = work_of(&node, &disk);
    // A granule has 64 KiB.
    assert!(work.records <= 64 + 8, "{work:?}\n{log}");
}

/// The process that strace runs, once it reads of a disk; before that strace starts others, to see what it can do.
fn traced(strace: u32, disk: &Path) -> Pid {
    let children = format!("/proc/{strace}/task/{strace}/children");
    let has_open = |pid: &str| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == disk))
    };
    let start = Instant::now();
    loop {
        let pids = fs::read_to_string(&children).unwrap_or_default();
        if let Some(pid) = pids.split_whitespace().find(|pid| has_open(pid)) {
            return Pid::from_raw(pid.parse().unwrap());
        }
        assert!(start.elapsed() < Duration::from_secs(30), "nothing reads of the disk");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_ends_a_look_at_a_map_between_two_reads() {
    let node = Node::bare();
    let disk = node.disk("slow", 4 * MIB);
    fs::write(&disk, super::ext::with_few_revokes(4096)).unwrap();
    let command = dry_run(&node, &disk);
    // Eight thousand reads, each of which takes 50 ms.
    let mut slow = Command::new("strace");
    slow.args(["-f", "-qqq", "-o", "/dev/null", "-e", "trace=pread64"]);
    slow.args(["-e", "inject=pread64:delay_enter=50000"]).arg(command.get_program()).args(command.get_args());
    slow.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    slow.current_dir(command.get_current_dir().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = slow.spawn().unwrap();
    let pid = traced(running.id(), &disk);
    std::thread::sleep(Duration::from_millis(500));
    kill(pid, Signal::SIGTERM).unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > Duration::from_secs(20) {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = running.wait();
            panic!("it does not hear the signal");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // strace ends as what it ran.
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{status}");
}
