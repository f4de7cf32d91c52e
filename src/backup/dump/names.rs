//! Owns which names an inode has, for as many as there are, in bounded memory: they come directory by
//! directory and are wanted inode by inode, so they are sorted in runs, which lie in a file without a
//! name. Must not know what a name is for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::reader::Budget;
use crate::reader::integers::le32;

/// What is sorted at once.
const RUN_BYTES: usize = 4 * 1024 * 1024;

/// What is read of a run at once, when all are merged.
const READ_BYTES: usize = 8 * 1024;

/// Four million KiB of names: more than a hundred million files.
const RUNS_MAX: usize = 1024;

/// Inode number, directory, length of the name.
const HEAD_BYTES: usize = 9;

/// A name of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) inode_number: u32,
    /// The directory that it is in.
    pub(super) parent: u32,
    pub(super) name: Vec<u8>,
}

/// The names while they come.
pub(super) struct Collector<'a> {
    budget: &'a Budget<'a>,
    file: File,
    file_bytes: u64,
    /// Entries as they will lie in the file, and where each begins.
    buffer: Vec<u8>,
    starts: Vec<u32>,
    /// Where each run ends in the file.
    runs: Vec<u64>,
}

/// All names, to be read in the order of their inodes.
pub(super) struct Sorted {
    file: File,
    runs: Vec<u64>,
}

impl<'a> Collector<'a> {
    /// `file` is empty. Each name is spent of the budget, and once more where it is read again.
    pub(super) fn new(file: File, budget: &'a Budget<'a>) -> Collector<'a> {
        let (buffer, starts, runs) = (Vec::new(), Vec::new(), Vec::new());
        Collector { budget, file, file_bytes: 0, buffer, starts, runs }
    }

    /// Adds a name of at most 255 bytes.
    pub(super) fn add(&mut self, inode_number: u32, parent: u32, name: &[u8]) -> Result<()> {
        self.budget.look_at(1)?;
        if self.buffer.len() + HEAD_BYTES + name.len() > RUN_BYTES {
            self.write_run()?;
        }
        self.starts.push(u32::try_from(self.buffer.len())?);
        self.buffer.extend_from_slice(&inode_number.to_le_bytes());
        self.buffer.extend_from_slice(&parent.to_le_bytes());
        self.buffer.push(u8::try_from(name.len())?);
        self.buffer.extend_from_slice(name);
        Ok(())
    }

    pub(super) fn sort(mut self) -> Result<Sorted> {
        self.write_run()?;
        Ok(Sorted { file: self.file, runs: self.runs })
    }

    fn write_run(&mut self) -> Result<()> {
        ensure!(
            self.runs.len() < RUNS_MAX,
            "the dump has more than {RUNS_MAX} times {RUN_BYTES} bytes of names"
        );
        let buffer = &self.buffer;
        self.starts.sort_unstable_by_key(|&start| {
            (le32(buffer, start as usize), le32(buffer, start as usize + 4), start)
        });
        let mut run =
            io::BufWriter::with_capacity(128 * 1024, Tail { file: &self.file, at: self.file_bytes });
        for &start in &self.starts {
            let entry = &buffer[start as usize..];
            let length = HEAD_BYTES + usize::from(entry[HEAD_BYTES - 1]);
            io::Write::write_all(&mut run, &entry[..length]).context("writing down names")?;
        }
        io::Write::flush(&mut run).context("writing down names")?;
        drop(run);
        self.file_bytes += self.buffer.len() as u64;
        self.runs.push(self.file_bytes);
        self.buffer.clear();
        self.starts.clear();
        Ok(())
    }
}

impl Sorted {
    /// All names from the first one on.
    pub(super) fn read<'a>(&'a self, budget: &'a Budget<'a>) -> Result<Merge<'a>> {
        let begins = std::iter::once(0).chain(self.runs.iter().copied());
        let mut merge = Merge { budget, runs: Vec::new(), heads: BinaryHeap::new() };
        for (at, end) in begins.zip(self.runs.iter().copied()) {
            merge.runs.push(BufReader::with_capacity(READ_BYTES, Section { file: &self.file, at, end }));
            merge.advance(merge.runs.len() - 1)?;
        }
        Ok(merge)
    }
}

/// Names in the order of their inodes, then of their directories.
pub(super) struct Merge<'a> {
    budget: &'a Budget<'a>,
    runs: Vec<BufReader<Section<'a>>>,
    /// Inode number, directory, run: of the next entry of each run. The rest of it is still to be read.
    heads: BinaryHeap<Reverse<(u32, u32, usize)>>,
}

impl Merge<'_> {
    /// Whose name is next.
    pub(super) fn next_inode(&self) -> Option<u32> {
        self.heads.peek().map(|Reverse((inode_number, _, _))| *inode_number)
    }

    /// The next name.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let Some(Reverse((inode_number, parent, index))) = self.heads.pop() else {
            return Ok(None);
        };
        self.budget.look_at(1)?;
        let run = &mut self.runs[index];
        let mut length = [0];
        run.read_exact(&mut length).context("reading names")?;
        let mut name = vec![0; usize::from(length[0])];
        run.read_exact(&mut name).context("reading names")?;
        self.advance(index)?;
        Ok(Some(Entry { inode_number, parent, name }))
    }

    /// The next name if it is one of `inode_number`.
    pub(super) fn next_of(&mut self, inode_number: u32) -> Result<Option<Entry>> {
        match self.next_inode() {
            Some(next) if next == inode_number => self.next(),
            _ => Ok(None),
        }
    }

    fn advance(&mut self, index: usize) -> Result<()> {
        let run = &mut self.runs[index];
        if !run.fill_buf().context("reading names")?.is_empty() {
            let mut head = [0; HEAD_BYTES - 1];
            run.read_exact(&mut head).context("reading names")?;
            self.heads.push(Reverse((le32(&head, 0), le32(&head, 4), index)));
        }
        Ok(())
    }
}

/// A part of a file, read on its own.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.end - self.at).min(buffer.len() as u64) as usize;
        let length = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// A file written from a place on.
struct Tail<'a> {
    file: &'a File,
    at: u64,
}

impl io::Write for Tail<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write_at(bytes, self.at)?;
        self.at += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Collector, Entry, RUN_BYTES};
    use crate::reader::Budget;

    #[test]
    fn names_of_several_runs_come_inode_by_inode_as_often_as_wanted() {
        let count = 3 * RUN_BYTES as u32 / 200;
        let entry = |number: u32| Entry {
            inode_number: number.wrapping_mul(7919) % (count / 2),
            parent: number,
            name: format!("{number:0200}").into_bytes(),
        };
        let budget = Budget::unlimited();
        let mut collector = Collector::new(tempfile::tempfile().unwrap(), &budget);
        let mut expected: Vec<Entry> = (0..count).map(entry).collect();
        for entry in &expected {
            collector.add(entry.inode_number, entry.parent, &entry.name).unwrap();
        }
        expected.sort_by_key(|entry| (entry.inode_number, entry.parent));
        let sorted = collector.sort().unwrap();
        assert!(sorted.runs.len() > 2);
        for _ in 0..2 {
            let mut merge = sorted.read(&budget).unwrap();
            let mut found = Vec::new();
            while let Some(inode) = merge.next_inode() {
                while let Some(entry) = merge.next_of(inode).unwrap() {
                    found.push(entry);
                }
            }
            assert!(found == expected);
        }
    }
}
