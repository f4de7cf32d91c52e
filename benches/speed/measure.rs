//! What a run takes: the time until all is on the disk, the processor time of all its processes, the memory of the largest.
//!
//! A run is started by a process of its own, whose only children it has: the kernel's account of a process's children
//! is then that of the run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::BENCH;

/// Often enough to see a process shortly before its end, and seldom enough not to be seen in what it takes.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A command line, its whole environment, and where it runs.
#[derive(Serialize, Deserialize)]
pub struct Invocation {
    pub argv: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub directory: PathBuf,
}

impl Invocation {
    /// A tool's.
    pub fn of(argv: &[String]) -> Invocation {
        let path = ("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        Invocation { argv: argv.to_vec(), environment: BTreeMap::from([path]), directory: "/".into() }
    }
}

/// What is started at once, and whose bytes must be on the disk before the clock stops.
#[derive(Serialize, Deserialize)]
struct Spec {
    at_once: Vec<Invocation>,
    flushed: Vec<PathBuf>,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Run {
    pub wall_s: f64,
    /// User and system time of all processes.
    pub cpu_s: f64,
    /// Of the largest process.
    pub peak_kib: u64,
    /// Of what was started itself, without the tools that it ran.
    pub own_peak_kib: u64,
}

/// Where the run's standard input comes from, or its output goes to: through a pipe, as noded connects them.
pub enum Pipe<'a> {
    None,
    From(&'a Path),
    Into(&'a Path),
}

/// Runs what starts at once to its end.
pub fn run(at_once: Vec<Invocation>, pipe: Pipe<'_>, flushed: &[PathBuf]) -> Result<Run> {
    let (spec, into, log) = (in_bench("spec"), in_bench("run"), in_bench("log"));
    let what: Vec<String> = at_once.iter().map(|invocation| invocation.argv.join(" ")).collect();
    fs::write(&spec, serde_json::to_vec(&Spec { at_once, flushed: flushed.to_vec() })?)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("measure").args([&spec, &into]).stderr(File::create(&log)?);
    command.stdin(if matches!(pipe, Pipe::From(_)) { Stdio::piped() } else { Stdio::null() });
    command.stdout(if matches!(pipe, Pipe::Into(_)) { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().context("starting what measures")?;
    let piped = carry(&mut child, &pipe);
    let status = child.wait()?;
    let said = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    ensure!(status.success(), "{}: {status}\n{}", what.join(", "), said());
    piped.context("carrying the stream")?;
    serde_json::from_slice(&fs::read(into)?).context("reading what a run took")
}

/// Splices, so that the other end of the pipe costs both sides next to nothing.
fn carry(child: &mut Child, pipe: &Pipe<'_>) -> io::Result<u64> {
    match (pipe, child.stdin.take(), child.stdout.take()) {
        (Pipe::From(path), Some(mut to), _) => io::copy(&mut File::open(path)?, &mut to),
        (Pipe::Into(path), _, Some(mut from)) => io::copy(&mut from, &mut File::create(path)?),
        _ => Ok(0),
    }
}

/// In the process of the run's own.
pub fn child(spec: &Path, into: &Path) -> Result<()> {
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?)?;
    // noded's
    umask(Mode::from_bits_truncate(0o077));
    let start = Instant::now();
    let mut running = Vec::new();
    for invocation in &spec.at_once {
        let (program, arguments) = invocation.argv.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&invocation.environment).current_dir(&invocation.directory);
        running.push(command.spawn().with_context(|| format!("starting {program}"))?);
    }
    let looking: Vec<_> =
        running.iter().map(Child::id).map(|pid| thread::spawn(move || own_peak_kib(pid))).collect();
    for mut child in running {
        let status = child.wait()?;
        ensure!(status.success(), "{status}");
    }
    for path in &spec.flushed {
        File::open(path)?.sync_all().with_context(|| format!("flushing {}", path.display()))?;
    }
    let wall_s = start.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu_us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    let peaks = looking.into_iter().filter_map(|looking| looking.join().ok());
    let run = Run {
        wall_s,
        cpu_s: cpu_us as f64 / 1e6,
        peak_kib: usage.max_rss().unsigned_abs(),
        own_peak_kib: peaks.max().unwrap_or(0),
    };
    fs::write(into, serde_json::to_vec(&run)?)?;
    Ok(())
}

/// The kernel keeps a process's peak, so the last look before its end is enough.
fn own_peak_kib(pid: u32) -> u64 {
    let (mut peak, mut looked) = (0, false);
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        match line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()) {
            Some(now) => (peak, looked) = (now, true),
            None if looked => return peak,
            // Ended before it was seen, or not begun.
            None if status.is_empty() || status.contains("State:\tZ") => return peak,
            None => {}
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// What the page cache holds of the sources when a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageCache {
    Warm,
    Cold,
}

impl PageCache {
    /// Reads the data of the sources, or drops all that any file has in memory.
    pub fn prepare(self, sources: &[PathBuf]) -> Result<()> {
        rustix::fs::sync();
        match self {
            PageCache::Cold => {
                fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")?
            }
            PageCache::Warm => {
                for source in sources {
                    read_data(source).with_context(|| format!("reading {}", source.display()))?;
                }
            }
        }
        Ok(())
    }
}

fn read_data(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    for (start, end) in data_of(&file)? {
        file.seek(io::SeekFrom::Start(start))?;
        io::copy(&mut io::Read::take(&file, end - start), &mut io::sink())?;
    }
    Ok(())
}

/// The ranges of a file that are no holes.
pub fn data_of(file: &File) -> Result<Vec<(u64, u64)>> {
    use rustix::fs::SeekFrom;
    let size = file.metadata()?.len();
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            found => found?,
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        ranges.push((start, at));
    }
    Ok(ranges)
}

/// A new disk of that size, without a block of its own.
pub fn new_disk(path: &Path, size_bytes: u64) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(size_bytes).with_context(|| format!("making {}", path.display()))
}

pub fn in_bench(name: &str) -> PathBuf {
    Path::new(BENCH).join(name)
}
