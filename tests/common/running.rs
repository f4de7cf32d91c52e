//! A run that is stopped on its way: started, waited for by lines of its log, struck by a signal; and all that could
//! be left of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{KERNEL_TIMEOUT, Node, killed_with_us, text};

/// How long a line of the log is waited for, and the end after a signal.
const PATIENCE: Duration = Duration::from_secs(150);
/// What a run gets that has nothing to do but to look, to change little, or to refuse.
pub const SOON: Duration = Duration::from_secs(30);

/// What our process may use at its peak, in KiB.
const PEAK_KIB: u64 = 64 << 10;

/// A run with its log so far.
pub struct Running {
    child: Child,
    /// Ends with the run; its peak of memory in KiB.
    peak: JoinHandle<u64>,
    lines: Receiver<String>,
    pub log: String,
}

/// How it ended.
pub struct Ended {
    pub status: ExitStatus,
    pub log: String,
    pub family: Family,
}

/// The processes of a run, and the namespaces that are theirs alone.
#[derive(Default)]
pub struct Family {
    pids: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    /// Clock ticks since boot when it was looked at: whoever is younger and not our child is a stranger with a
    /// number that was used before.
    seen_at: u64,
}

impl Running {
    pub fn start(command: Command) -> Running {
        Running::writing(command, Stdio::null())
    }

    /// With somewhere for its standard output.
    pub fn writing(mut command: Command, stdout: Stdio) -> Running {
        killed_with_us(&mut command).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            log.split(b'\n').map_while(Result::ok).all(|line| sender.send(text(&line)).is_ok())
        });
        let pid = child.id();
        let peak = std::thread::spawn(move || peak_kib(pid));
        Running { child, peak, lines, log: String::new() }
    }

    /// Reads the log up to a line with `part` in it.
    pub fn wait_for(&mut self, part: &str) {
        let start = Instant::now();
        loop {
            let line = self.lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed()));
            let line = line.unwrap_or_else(|e| panic!("waiting for {part:?}: {e}\n{}", self.log));
            self.log += &format!("{line}\n");
            if line.contains(part) {
                return;
            }
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends the signal, unless the run is over already, and waits for its end.
    pub fn strike(mut self, signal: Signal) -> Ended {
        let family = Family::of(self.pid());
        if self.child.try_wait().unwrap().is_none() {
            kill(self.pid(), signal).unwrap();
        }
        self.end(family)
    }

    /// Waits for the end of the run and of its log.
    pub fn end(self, family: Family) -> Ended {
        self.end_within(PATIENCE, family)
    }

    /// Like [`Running::end`]; a run that takes longer is killed, and that is a failure.
    pub fn end_within(mut self, patience: Duration, family: Family) -> Ended {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() < patience => {}
                None => {
                    self.child.kill().unwrap();
                    self.log.extend(self.lines.iter().map(|line| line + "\n"));
                    panic!("it does not end within {patience:?}:\n{}", self.log);
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        loop {
            match self.lines.recv_timeout(KERNEL_TIMEOUT) {
                Ok(line) => self.log += &format!("{line}\n"),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("a process holds the log open:\n{}", self.log),
            }
        }
        let peak_kib = self.peak.join().unwrap();
        assert!(peak_kib < PEAK_KIB, "peak memory {peak_kib} KiB\n{}", self.log);
        Ended { status, log: self.log, family }
    }
}

/// The most memory that a process had until its end; the kernel keeps the peak, so the last look is enough.
fn peak_kib(pid: u32) -> u64 {
    let mut peak = 0;
    while let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
        let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { break };
        peak = line.trim().trim_end_matches(" kB").parse().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    peak
}

impl Family {
    pub fn of(pid: Pid) -> Family {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let seen_at = uptime.split(' ').next().unwrap().replace('.', "").parse().unwrap();
        let mut family = Family { pids: BTreeSet::from([pid.to_string()]), seen_at, ..Family::default() };
        // A child can have a lower number than its parent: until nothing is added.
        loop {
            let known = family.pids.len();
            for pid in processes() {
                if stat(&pid).is_some_and(|stat| family.pids.contains(&stat.parent)) {
                    family.pids.insert(pid);
                }
            }
            if family.pids.len() == known {
                break;
            }
        }
        family.namespaces = family.pids.iter().flat_map(|pid| namespaces(pid)).collect();
        for own in namespaces("self") {
            family.namespaces.remove(&own);
        }
        family
    }
}

impl Node {
    /// Files of the cache, but for its locks and packages that were fetched: name, inode and size.
    pub fn cache_files(&self) -> Vec<(String, u64, u64)> {
        let mut files: Vec<_> = fs::read_dir(self.cache())
            .unwrap()
            .flatten()
            .filter_map(|e| Some((e.file_name().into_string().ok()?, e.metadata().ok()?)))
            .filter(|(name, meta)| meta.is_file() && !name.ends_with(".lock"))
            .map(|(name, meta)| (name, meta.ino(), meta.len()))
            .collect();
        files.sort();
        files
    }

    /// Wants that nothing is held of a run that ended: loop devices and their partitions, mounts in any namespace,
    /// processes, namespaces, locks. After SIGKILL the kernel gets a moment for the children.
    pub fn assert_released(&self, ended: &Ended) {
        let start = Instant::now();
        loop {
            let held = self.held(&ended.family);
            if held.is_empty() {
                return;
            }
            let over = start.elapsed() > KERNEL_TIMEOUT;
            assert!(!over, "still held: {held:#?}\n{}", ended.log);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn held(&self, family: &Family) -> Vec<String> {
        let dir = self.path().display().to_string();
        let mut held = Vec::new();
        for block in fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = fs::read_to_string(block.path().join("loop/backing_file")).unwrap_or_default();
            let name = block.file_name().into_string().unwrap();
            let partition = block.path().join(format!("{name}p1"));
            if backing.contains(&dir)
                || (name.starts_with("loop") && backing.is_empty() && partition.exists())
            {
                held.push(format!("{name} {backing}, {}", partition.exists()));
            }
        }
        let own = std::process::id().to_string();
        for pid in processes().into_iter().filter(|pid| *pid != own) {
            let Some(stat) = stat(&pid).filter(|stat| stat.state != "Z") else { continue };
            let read =
                |what: &str| fs::read(format!("/proc/{pid}/{what}")).map(|b| text(&b)).unwrap_or_default();
            let known = family.pids.contains(&pid)
                || namespaces(&pid).iter().any(|ns| family.namespaces.contains(ns));
            if stat.parent == own || (known && stat.born <= family.seen_at) {
                held.push(format!("process {pid} {} {}", stat.state, read("cmdline").replace('\0', " ")));
            }
            let mounts = read("mountinfo");
            held.extend(mounts.lines().filter(|l| l.contains(&dir)).map(|l| format!("{pid}: {l}")));
        }
        let inodes: BTreeSet<String> = ["", "cache", "disks"]
            .iter()
            .flat_map(|sub| walkdir::WalkDir::new(self.path().join(sub)).max_depth(1))
            .filter_map(|entry| Some(format!(":{}", entry.ok()?.metadata().ok()?.ino())))
            .collect();
        for lock in fs::read_to_string("/proc/locks").unwrap().lines() {
            let fields: Vec<&str> = lock.split_ascii_whitespace().filter(|field| *field != "->").collect();
            let [_, _, _, _, pid, file, ..] = fields[..] else { continue };
            if family.pids.contains(pid) || inodes.contains(&file[file.rfind(':').unwrap()..]) {
                held.push(format!("lock {lock}"));
            }
        }
        held
    }
}

fn processes() -> Vec<String> {
    let names = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())).collect()
}

struct Stat {
    state: String,
    parent: String,
    /// Clock ticks since boot.
    born: u64,
}

fn stat(pid: &str) -> Option<Stat> {
    let line = text(&fs::read(format!("/proc/{pid}/stat")).ok()?);
    let fields: Vec<&str> = line.rsplit_once(") ")?.1.split(' ').collect();
    Some(Stat { state: fields[0].into(), parent: fields[1].into(), born: fields[19].parse().ok()? })
}

/// Mount and PID namespace.
fn namespaces(pid: &str) -> Vec<String> {
    let link = |kind| fs::read_link(Path::new("/proc").join(pid).join("ns").join(kind)).ok();
    ["mnt", "pid"].into_iter().filter_map(link).map(|to| to.display().to_string()).collect()
}
