//! The processes that are seen here.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;

pub struct Process {
    pub pid: i32,
    pub parent: i32,
    words: String,
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "process {} {}", self.pid, self.words)
    }
}

/// All of them.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// What a process started, and what those started; each comes after its parent.
pub fn below(first: i32) -> Vec<Process> {
    let (mut others, mut found) = (all(), Vec::new());
    let mut known = BTreeSet::from([first]);
    loop {
        let (new, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|p| known.contains(&p.parent));
        if new.is_empty() {
            return found;
        }
        known.extend(new.iter().map(|process| process.pid));
        found.extend(new);
        others = rest;
    }
}

/// A process, unless it has ended.
fn read(pid: i32) -> Option<Process> {
    let line = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
    // The name can have blanks and brackets in it.
    let (before, after) = line.rsplit_once(") ")?;
    let parent = after.split(' ').nth(1)?.parse().ok()?;
    let name = before.split_once('(')?.1;
    let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = format!("({name}) {}", String::from_utf8_lossy(&argv).replace('\0', " ").trim_end());
    Some(Process { pid, parent, words })
}
