//! A channel between a tool and us besides its command line and its log.

use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;

/// A file in memory that a tool inherits, and writes to or reads. Neither side waits for the other.
#[derive(Debug, Clone)]
pub struct Channel(Arc<File>);

impl Channel {
    /// A channel for `max_bytes` at most: a write beyond gives the tool EPERM. Its number is
    /// `min_number` or more.
    pub fn open(name: &str, min_number: RawFd, max_bytes: u64) -> Result<Channel> {
        Channel::of_size(name, min_number, max_bytes)?.sealed(SealFlags::empty())
    }

    /// A channel with these bytes, which the tool can only read: a command line would show them to
    /// every process of the node.
    pub fn holding(name: &str, min_number: RawFd, bytes: &[u8]) -> Result<Channel> {
        let channel = Channel::of_size(name, min_number, u64::try_from(bytes.len())?)?;
        channel.0.write_all_at(bytes, 0).context("writing a file in memory")?;
        channel.sealed(SealFlags::WRITE)
    }

    fn of_size(name: &str, min_number: RawFd, bytes: u64) -> Result<Channel> {
        let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .context("making a file in memory")?;
        ftruncate(&memory, bytes).context("sizing a file in memory")?;
        let file = fcntl_dupfd_cloexec(&memory, min_number).with_context(|| {
            format!("opening descriptor {min_number} (ulimit -n should be 1024 at least)")
        })?;
        Ok(Channel(Arc::new(file.into())))
    }

    /// No side changes its size any more, nor does what `besides` says.
    fn sealed(self, besides: SealFlags) -> Result<Channel> {
        let seals = SealFlags::GROW | SealFlags::SHRINK | besides;
        fcntl_add_seals(&self.0, seals).context("sealing a file in memory")?;
        Ok(self)
    }

    /// The number of its descriptor, here and in the tool.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// What the tool wrote.
    pub fn written(&self) -> Result<Vec<u8>> {
        // The tool's descriptor and ours share one position.
        let length = self.0.as_ref().stream_position().context("asking how much a tool wrote")?;
        let length = usize::try_from(length).context("asking how much a tool wrote")?;
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, 0).context("reading what a tool wrote")?;
        Ok(bytes)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Tool;

    #[test]
    fn what_a_tool_writes_comes_back_up_to_the_limit() {
        let one = Channel::open("one", 300, 8192).unwrap();
        let other = Channel::open("other", 300, 8192).unwrap();
        assert!(one.number() >= 300 && other.number() > one.number());
        let script =
            format!("printf 'a\\0b' >&{}; yes | tr -d '\\n' >&{} || :", one.number(), other.number());
        Tool::new("bash").args(["-c", &script]).channel(&one).channel(&other).quiet().run().unwrap();
        assert_eq!(one.written().unwrap(), b"a\0b");
        assert_eq!(other.written().unwrap(), [b'y'; 8192]);
    }

    #[test]
    fn a_tool_reads_what_a_channel_holds_and_cannot_change_it() {
        let held = Channel::holding("held", 300, b"secret").unwrap();
        let answer = Channel::open("answer", 300, 100).unwrap();
        let script = format!("! echo x >&{0} && cat <&{0} >&{1}", held.number(), answer.number());
        Tool::new("bash").args(["-c", &script]).channel(&held).channel(&answer).quiet().run().unwrap();
        assert_eq!(answer.written().unwrap(), b"secret");
    }
}
