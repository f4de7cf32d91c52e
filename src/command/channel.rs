//! A channel from a tool to us besides its log.

use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;

/// A file in memory that a tool inherits and writes to. The tool never waits for a reader.
#[derive(Debug, Clone)]
pub struct Channel(Arc<File>);

impl Channel {
    /// A channel for `max_bytes` at most: a write beyond gives the tool EPERM. Its number is
    /// `min_number` or more.
    pub fn open(name: &str, min_number: RawFd, max_bytes: u64) -> Result<Channel> {
        let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .context("making a file in memory")?;
        ftruncate(&memory, max_bytes).context("sizing a file in memory")?;
        fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK).context("sealing a file in memory")?;
        let file = fcntl_dupfd_cloexec(&memory, min_number).with_context(|| {
            format!("opening descriptor {min_number} (ulimit -n should be 1024 at least)")
        })?;
        Ok(Channel(Arc::new(file.into())))
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
}
