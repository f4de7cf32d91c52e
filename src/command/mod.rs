//! Alone spawns processes: explicit argv and environment, stdin from nowhere unless given, output live in the
//! log, a bounded tail for the error, death with us. It knows nothing of what the tools do.

mod channel;
pub mod init;
mod limits;
mod pump;
pub mod root;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::pipe::PipeFlags;
use std::os::unix::process::{CommandExt, ExitStatusExt};

pub use channel::Channel;
pub use pump::LINE_BYTES;
use pump::{OUTPUT_MAX_BYTES, Pump, Tail};

use crate::report::{self, WithHint};
use crate::sys::{self, signals};
use init::Job;
use root::{Device, JobRoot, MadeRoot};

/// Where tools are looked for when the caller's environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run, with everything it is given.
#[derive(Debug, Clone)]
pub struct Tool {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Vec<u8>,
    isolated: bool,
    root: JobRoot,
    channels: Vec<Channel>,
    quiet: bool,
}

/// How a tool ended when it did not end well. Its Display shows the command as one could paste it.
#[derive(Debug)]
pub enum ToolError {
    /// It could not be found.
    Missing(String),
    /// It said no: exit status, and the end of what it printed.
    Status(String, i32, String),
    /// A signal ended it.
    Signal(String, i32, String),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::Missing(program) => write!(f, "{program} is not installed on this node"),
            ToolError::Status(command, status, tail) => {
                write!(f, "{command}: exit status {status}{tail}")
            }
            ToolError::Signal(command, signal, tail) => {
                write!(f, "{command}: ended by signal {signal}{tail}")
            }
        }
    }
}

impl std::error::Error for ToolError {}

impl Tool {
    /// A program, looked up in [`DEFAULT_PATH`], in the C locale.
    pub fn new(program: impl Into<OsString>) -> Tool {
        Tool {
            program: program.into(),
            args: Vec::new(),
            env: vec![("PATH".into(), DEFAULT_PATH.into()), ("LC_ALL".into(), "C".into())],
            cwd: None,
            stdin: Vec::new(),
            isolated: false,
            root: JobRoot::Node,
            channels: Vec::new(),
            quiet: false,
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Tool {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args<I: IntoIterator>(mut self, args: I) -> Tool
    where
        I::Item: Into<OsString>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more variable; a later one wins.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Tool {
        self.env.push((name.into(), value.into()));
        self
    }

    /// More variables.
    pub fn envs<'a>(mut self, vars: impl IntoIterator<Item = (&'a OsString, &'a OsString)>) -> Tool {
        self.env.extend(vars.into_iter().map(|(n, v)| (n.clone(), v.clone())));
        self
    }

    /// Nothing but what is given from here on: for what runs on behalf of an admin's own files.
    pub fn bare_env(mut self) -> Tool {
        self.env.clear();
        self
    }

    /// The directory it runs in.
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Tool {
        self.cwd = Some(dir.into());
        self
    }

    /// What it reads; at most a pipe's 64 KiB, so that writing never waits.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Tool {
        self.stdin = bytes.into();
        self
    }

    /// Its own mount and PID namespaces: what it leaves behind, processes and mounts, ends with it.
    pub fn isolated(mut self) -> Tool {
        self.isolated = true;
        self
    }

    /// Runs inside `root`, isolated.
    pub fn chroot(mut self, root: impl Into<PathBuf>) -> Tool {
        self.root = JobRoot::tree(root.into());
        self.isolated()
    }

    /// Runs inside `root`, isolated, where /dev has this disk and no other.
    pub fn chroot_with(mut self, root: impl Into<PathBuf>, device: Device) -> Tool {
        self.root = JobRoot::Tree { path: root.into().into(), device: Some(device) };
        self.isolated()
    }

    /// Runs isolated, where /dev has this block device and no other: a filesystem of a guest cannot lead the tool to another
    /// disk. The node's list of devices that libblkid keeps is neither read nor written.
    pub fn sees_only(mut self, device: &Path) -> Tool {
        self.root = JobRoot::NodeWithOne(device.into());
        self.env("BLKID_FILE", "/dev/null").isolated()
    }

    /// Runs in a root that is made for it, isolated.
    pub fn in_made_root(mut self, root: MadeRoot) -> Tool {
        self.root = JobRoot::Made(root);
        self.isolated()
    }

    /// The tool inherits this channel, by its number. Not for an isolated tool: its init starts it.
    pub fn channel(mut self, channel: &Channel) -> Tool {
        self.channels.push(channel.clone());
        self
    }

    /// Its output is kept for an error but not logged.
    pub fn quiet(mut self) -> Tool {
        self.quiet = true;
        self
    }

    /// Runs it to its end; stdout and stderr go to the log.
    pub fn run(&self) -> Result<()> {
        self.run_showing(|line| Some(line.into()))
    }

    /// The same; of each line only what `show` leaves goes to the log, and to an error.
    pub fn run_showing(&self, mut show: impl FnMut(&[u8]) -> Option<Cow<'_, [u8]>>) -> Result<()> {
        let mut tail = Tail::default();
        let (status, _) = self.wait(None, |line| {
            let Some(line) = show(line) else { return };
            if !self.quiet {
                report::tool_line(&line);
            }
            tail.push(&line);
        })?;
        self.judge(status, &tail)
    }

    /// Runs it to its end and returns its stdout; stderr goes to the log. More than 4 MiB are an error.
    pub fn output(&self) -> Result<Vec<u8>> {
        let mut tail = Tail::default();
        let (read, write) = pipe()?;
        let (status, out) = self.wait(Some((read, write)), |line| {
            if !self.quiet {
                report::tool_line(line);
            }
            tail.push(line);
        })?;
        self.judge(status, &tail)?;
        Ok(out)
    }

    /// The command as one could paste it.
    pub fn display(&self) -> String {
        let mut words: Vec<String> =
            std::iter::once(&self.program).chain(&self.args).map(|w| quote(w)).collect();
        if let JobRoot::Tree { path, .. } = &self.root {
            words.insert(0, format!("chroot {}", quote(path)));
        }
        words.join(" ")
    }

    fn judge(&self, status: ExitStatus, tail: &Tail) -> Result<()> {
        if let Some(signal) = status.signal() {
            return Err(ToolError::Signal(self.display(), signal, tail.text()).into());
        }
        match status.code().unwrap_or(-1) {
            0 => Ok(()),
            code if code > 128 && self.isolated => {
                Err(ToolError::Signal(self.display(), code - 128, tail.text()).into())
            }
            code => Err(ToolError::Status(self.display(), code, tail.text()).into()),
        }
    }

    /// Spawns, pumps output line by line, waits. `stdout` is a pipe whose content is returned.
    fn wait(
        &self,
        stdout: Option<(OwnedFd, OwnedFd)>,
        mut each_line: impl FnMut(&[u8]),
    ) -> Result<(ExitStatus, Vec<u8>)> {
        signals::check()?;
        report::detail(&self.display());
        let (log_read, log_write) = pipe()?;
        let (out_read, out_write) = match stdout {
            Some((read, write)) => (Some(File::from(read)), Some(write)),
            None => (None, None),
        };
        let mut command = self.command()?;
        command.stderr(Stdio::from(log_write.try_clone()?));
        match out_write {
            Some(write) => command.stdout(Stdio::from(write)),
            None => command.stdout(Stdio::from(log_write)),
        };
        let isolation = if self.isolated { sys::Isolation::Namespaces } else { sys::Isolation::None };
        let kept: Vec<_> = self.channels.iter().map(|channel| channel.as_fd()).collect();
        let mut child = self.spawned(sys::spawn(&mut command, isolation, &kept))?;
        drop(command); // our copies of the pipes' write ends
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that does not read is no error of ours: it shows in its status.
            let _ = stdin.write_all(&self.stdin);
        }
        let mut pump = Pump::new(log_read.into(), out_read);
        let status = pump.until_exit(&mut child, &mut each_line)?;
        ensure!(
            !pump.is_cut,
            "{} printed more than {}",
            self.display(),
            report::size(OUTPUT_MAX_BYTES as u64)
        );
        Ok((status, pump.taken))
    }

    fn spawned(&self, spawned: std::io::Result<Child>) -> Result<Child> {
        match spawned {
            Ok(child) => Ok(child),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let name = Path::new(&self.program).file_name().unwrap_or(&self.program);
                let name = name.to_string_lossy().into_owned();
                let hint = match debian_package(&name) {
                    Some(package) => format!("apt-get install {package}"),
                    None => format!("install {name} on this node"),
                };
                Err(ToolError::Missing(name)).hint(hint)
            }
            Err(error) => Err(anyhow!(error).context(format!("starting {}", self.display()))),
        }
    }

    fn command(&self) -> Result<Command> {
        #[allow(clippy::disallowed_methods, reason = "this is the room")]
        let mut command = if self.isolated {
            if !matches!(self.root, JobRoot::Tree { .. }) {
                self.find()?;
            }
            let argv = std::iter::once(&self.program).chain(&self.args).cloned().collect();
            init_command(&Job { root: self.root.clone(), ..Job::single(argv) })?
        } else {
            let mut command = Command::new(&self.program);
            command.args(&self.args);
            command
        };
        command.env_clear().envs(self.env.iter().map(|(n, v)| (n, v)));
        command.stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        Ok(command)
    }

    /// An isolated program is started by init: whether it exists is asked beforehand.
    fn find(&self) -> Result<()> {
        match self.located() {
            Some(_) => Ok(()),
            None => self.spawned(Err(ErrorKind::NotFound.into())).map(drop),
        }
    }

    fn located(&self) -> Option<PathBuf> {
        let path = self.env.iter().rfind(|(n, _)| n == "PATH").map(|(_, v)| v.clone()).unwrap_or_default();
        find_in(&self.program, &path)
    }
}

/// Refuses where a tool is not there, with what to install: for asking before anything is destroyed.
pub fn require(program: &str) -> Result<()> {
    Tool::new(program).find()
}

/// The file that a tool is.
pub fn located(program: &str) -> Option<PathBuf> {
    Tool::new(program).located()
}

/// The file that `program` names in a search path.
pub fn find_in(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists().then(|| program.into());
    }
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The program itself as the init of a new PID namespace.
pub fn init_command(job: &Job) -> Result<Command> {
    #[allow(clippy::disallowed_methods, reason = "this is the room")]
    let mut command = Command::new("/proc/self/exe");
    command.arg0(init::ARGV0).arg(job.to_arg()?);
    Ok(command)
}

/// Runs several commands, one after the other, in one pair of namespaces; returns (index, status) of each that
/// ran, with the end of what it printed. Output goes to the log line by line.
pub fn run_sequence(mut job: Job, env: &[(OsString, OsString)], cwd: &Path) -> Result<Vec<Ended>> {
    signals::check()?;
    let (status_read, status_write) = pipe()?;
    let (log_read, log_write) = pipe()?;
    job.status_fd = Some(status_write.as_raw_fd());
    let mut command = init_command(&job)?;
    command.env_clear().envs(env.iter().map(|(n, v)| (n, v))).current_dir(cwd).stdin(Stdio::null());
    command.stdout(Stdio::from(log_write.try_clone()?));
    command.stderr(Stdio::from(log_write));
    let spawned = sys::spawn(&mut command, sys::Isolation::Namespaces, &[status_write.as_fd()]);
    let mut child = spawned.context("starting an init for the hooks")?;
    drop((command, status_write));
    let mut pump = Pump::new(log_read.into(), None);
    let mut tails = vec![Tail::default(); job.commands.len()];
    let mut running = 0;
    let status = pump.until_exit(&mut child, &mut |line| match init::announced(line) {
        Some(index) => running = index,
        None => {
            report::tool_line(line);
            if let Some(tail) = tails.get_mut(running) {
                tail.push(line);
            }
        }
    })?;
    let mut text = String::new();
    File::from(status_read).read_to_string(&mut text).context("reading the hooks' statuses")?;
    if status.code() == Some(i32::from(init::INIT_FAILED)) || status.signal().is_some() {
        return Err(anyhow!("the init of the hooks' namespace ended with {status}"));
    }
    let parse = |line: &str| {
        let (index, status) = line.split_once(' ')?;
        let index: usize = index.parse().ok()?;
        Some(Ended { index, status: status.parse().ok()?, tail: tails.get(index)?.text() })
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// How one command of a sequence ended.
#[derive(Debug)]
pub struct Ended {
    pub index: usize,
    /// Exit status, [`init::SIGNALLED`] + N for signal N, 127 where it could not be started.
    pub status: i32,
    /// The last lines of its output, each on a line of its own.
    pub tail: String,
}

/// Read end and write end; close-on-exec.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("making a pipe")
}

/// The package that has a tool, on Debian.
fn debian_package(tool: &str) -> Option<&'static str> {
    Some(match tool {
        "debootstrap" => "debootstrap",
        "mmdebstrap" => "mmdebstrap",
        "mke2fs" | "tune2fs" | "e2label" => "e2fsprogs",
        "mkfs.xfs" | "xfs_admin" => "xfsprogs",
        "mkfs.btrfs" | "btrfs" => "btrfs-progs",
        "mkswap" => "util-linux",
        "qemu-img" => "qemu-utils",
        "bash" => "bash",
        _ => return None,
    })
}

fn quote(word: &OsStr) -> String {
    let text = report::ascii(word.as_encoded_bytes());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_could_paste_it() {
        let tool = Tool::new("mke2fs").args(["-L", "a b", "", "it's"]);
        assert_eq!(tool.display(), r"mke2fs -L 'a b' '' 'it'\''s'");
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = Tool { program: "/nonexistent/mkfs.xfs".into(), ..Tool::new("x") }.run().unwrap_err();
        assert!(
            matches!(report::cause::<ToolError>(&error), Some(ToolError::Missing(name)) if name == "mkfs.xfs")
        );
        assert!(format!("{error:?}").contains("apt-get install xfsprogs"));
    }

    #[test]
    fn the_end_of_the_output_stands_in_the_error() {
        let error = Tool::new("sh").args(["-c", "seq 30; exit 3"]).quiet().run().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("sh -c 'seq 30; exit 3': exit status 3\n    | 23\n"), "{text}");
        assert!(text.ends_with("| 30"), "{text}");
    }

    #[test]
    fn output_is_stdout_alone_and_stdin_is_what_was_given() {
        let out = Tool::new("sh").args(["-c", "cat; echo no >&2"]).stdin("yes").quiet().output().unwrap();
        assert_eq!(out, b"yes");
    }

    #[test]
    fn too_much_output_is_an_error_and_not_cut() {
        let head = |bytes: usize| Tool::new("head").args(["-c", &bytes.to_string(), "/dev/zero"]).output();
        assert_eq!(head(OUTPUT_MAX_BYTES).unwrap().len(), OUTPUT_MAX_BYTES);
        let error = head(OUTPUT_MAX_BYTES + 1).unwrap_err().to_string();
        assert!(error.ends_with("printed more than 4 MiB"), "{error}");
    }

    #[test]
    fn a_lingering_child_does_not_hold_us() {
        let start = std::time::Instant::now();
        Tool::new("sh").args(["-c", "sleep 5 & exit 0"]).quiet().run().unwrap();
        assert!(start.elapsed().as_secs() < 4);
    }
}
