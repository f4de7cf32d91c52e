//! Writes buffers to what may stall (a pipe) beside the work that fills them, so that a caught signal ends the work although
//! the other side has stopped reading.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::widen;
use crate::report::Hint;
use crate::signals;

/// As long as the writer works, the filler fills the next.
const BUFFERS: usize = 4;
/// How often a waiting filler looks for signals.
const POLL: Duration = Duration::from_millis(50);

/// What stands behind an error of whoever takes the backup.
fn explained(error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::BrokenPipe => "whoever was to read the backup ended first; its log says why",
        io::ErrorKind::StorageFull => "make room where the backup goes",
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(Hint(hint.into()))
}

/// A writer in a thread of its own.
pub struct Outlet {
    full: Sender<Vec<u8>>,
    empty: Receiver<io::Result<Vec<u8>>>,
    /// Buffers that are not with the writer.
    spare: Vec<Vec<u8>>,
}

impl Outlet {
    /// Takes the sink; the thread ends with it, or with the process.
    pub fn to(mut sink: File, buffer_bytes: usize) -> Outlet {
        widen(&sink);
        let (full, to_write) = channel::<Vec<u8>>();
        let (written, empty) = channel();
        thread::spawn(move || {
            for buffer in to_write {
                let result = sink.write_all(&buffer);
                if written.send(result.map(|()| buffer)).is_err() {
                    return;
                }
            }
        });
        let spare = (0..BUFFERS).map(|_| Vec::with_capacity(buffer_bytes)).collect();
        Outlet { full, empty, spare }
    }

    /// A buffer to fill, with what it carried before: emptying it would have it zeroed again. Waits until there is one.
    pub fn buffer(&mut self) -> Result<Vec<u8>> {
        match self.spare.pop() {
            Some(buffer) => Ok(buffer),
            None => self.written(),
        }
    }

    /// Hands a buffer over to be written after those before it.
    pub fn send(&mut self, buffer: Vec<u8>) -> Result<()> {
        self.full.send(buffer).ok().context("writing the backup: the writer has ended")
    }

    /// Waits until all is written.
    pub fn finish(mut self) -> Result<()> {
        while self.spare.len() < BUFFERS {
            let buffer = self.written()?;
            self.spare.push(buffer);
        }
        Ok(())
    }

    fn written(&self) -> Result<Vec<u8>> {
        loop {
            signals::check()?;
            match self.empty.recv_timeout(POLL) {
                Ok(buffer) => return buffer.map_err(explained).context("writing the backup"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("writing the backup: the writer has ended"),
            }
        }
    }
}
