//! A test's own directory on the machine: made for it, and removed with all that the kernel holds of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::loops::{self, Attached, KERNEL_TIMEOUT, Owner};
use crate::report::say;

/// How the names of the directories begin, and how many random letters follow.
const PREFIX: &str = "t";
const LETTERS: usize = 6;

/// A test's directory.
pub struct Room {
    pub dir: PathBuf,
    /// What was attached before.
    loops: Vec<Attached>,
}

impl Room {
    pub fn new(scratch: &Path) -> io::Result<Room> {
        let dir = tempfile::Builder::new().prefix(PREFIX).rand_bytes(LETTERS).tempdir_in(scratch)?.keep();
        Ok(Room { dir, loops: loops::attached() })
    }

    /// Lets go what the kernel still holds of it. Says what that was.
    pub fn let_go(&self) -> Vec<String> {
        let devices = Owner { dir: &self.dir, before: &self.loops, filesystems: &[] }.devices();
        let mut said: Vec<String> =
            devices.iter().map(|device| format!("still attached: {device}")).collect();
        said.extend(loops::detach(&devices));
        said
    }

    /// Removes it. Processes that were just killed may still write there.
    pub fn remove(&self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            match fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if start.elapsed() > KERNEL_TIMEOUT => return Err(error),
                Err(_) => self.make_removable(),
                Ok(()) => return Ok(()),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// chattr's flags keep even root from removing a file.
    fn make_removable(&self) {
        let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(&self.dir).output();
    }
}

/// Removes what runs left that were interrupted.
pub fn sweep(scratch: &Path) -> io::Result<()> {
    for entry in fs::read_dir(scratch)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_room = name.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == LETTERS);
        if !is_room || !entry.file_type()?.is_dir() {
            continue;
        }
        let room = Room { dir: entry.path(), loops: Vec::new() };
        say(format_args!("removing what an earlier run left in {}", room.dir.display()));
        room.let_go().iter().for_each(say);
        room.remove()?;
    }
    Ok(())
}
