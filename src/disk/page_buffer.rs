//! A device under a library that reads and writes a few bytes at a time: what it touches is kept in memory, and written in
//! few pieces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

const PAGE_BYTES: usize = 4096;

/// The pages of a device that were touched. Nothing is written before [`Pages::write_back`].
pub struct Pages<'a> {
    device: &'a File,
    size_bytes: u64,
    position: u64,
    /// What stands on it means nothing, and is taken for zeros.
    blank: bool,
    pages: BTreeMap<u64, Page>,
}

struct Page {
    bytes: [u8; PAGE_BYTES],
    changed: bool,
}

impl<'a> Pages<'a> {
    /// Of a device, which has `size_bytes`.
    pub fn new(device: &'a File, size_bytes: u64) -> Pages<'a> {
        Pages { device, size_bytes, position: 0, blank: false, pages: BTreeMap::new() }
    }

    /// The same of one on which nothing stands that counts.
    pub fn blank(device: &'a File, size_bytes: u64) -> Pages<'a> {
        Pages { blank: true, ..Pages::new(device, size_bytes) }
    }

    /// Writes what was changed: what lies last on the device first.
    pub fn write_back(&mut self) -> Result<()> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, page) in self.pages.iter_mut().filter(|(_, page)| page.changed) {
            page.changed = false;
            let at = number * PAGE_BYTES as u64;
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == at => bytes.extend(page.bytes),
                _ => runs.push((at, page.bytes.to_vec())),
            }
        }
        let whole = |at: u64, bytes: &[u8]| bytes.len().min((self.size_bytes - at) as usize);
        runs.iter()
            .rev()
            .try_for_each(|(at, bytes)| self.device.write_all_at(&bytes[..whole(*at, bytes)], *at))
    }

    /// The page at the position, how far the position is in it, and how much of `wanted` lies on it and on the device.
    fn here(&mut self, wanted: usize) -> Result<(&mut Page, usize, usize)> {
        let (number, within) = (self.position / PAGE_BYTES as u64, self.position as usize % PAGE_BYTES);
        let left = usize::try_from(self.size_bytes.saturating_sub(self.position)).unwrap_or(usize::MAX);
        if !self.pages.contains_key(&number) {
            let at = number * PAGE_BYTES as u64;
            let mut bytes = [0; PAGE_BYTES];
            if !self.blank {
                let there = usize::try_from(self.size_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
                self.device.read_exact_at(&mut bytes[..there.min(PAGE_BYTES)], at)?;
            }
            self.pages.insert(number, Page { bytes, changed: false });
        }
        let page = self.pages.get_mut(&number).ok_or(std::io::ErrorKind::NotFound)?;
        Ok((page, within, wanted.min(PAGE_BYTES - within).min(left)))
    }
}

impl Read for Pages<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let (page, within, count) = self.here(buffer.len())?;
        buffer[..count].copy_from_slice(&page.bytes[within..within + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Pages<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let (page, within, count) = self.here(bytes.len())?;
        page.bytes[within..within + count].copy_from_slice(&bytes[..count]);
        page.changed |= count > 0;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for Pages<'_> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.size_bytes.checked_add_signed(by),
        };
        self.position = position.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_writes_come_through_together_and_not_before() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 10_000], 0).unwrap();
        let mut pages = Pages::new(&file, 10_000);
        pages.seek(SeekFrom::Start(4090)).unwrap();
        pages.write_all(&[2; 10]).unwrap();
        pages.seek(SeekFrom::End(-3)).unwrap();
        assert_eq!(pages.write(&[3; 10]).unwrap(), 3, "it ends");
        pages.seek(SeekFrom::Start(4080)).unwrap();
        let mut seen = [0; 30];
        pages.read_exact(&mut seen).unwrap();
        assert_eq!(seen, *[[1; 10], [2; 10], [1; 10]].concat());
        let all = || {
            let mut all = vec![0; 10_000];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(all().iter().all(|byte| *byte == 1), "too early");
        pages.write_back().unwrap();
        let expected = [vec![1; 4090], vec![2; 10], vec![1; 5897], vec![3; 3]].concat();
        assert_eq!(all(), expected);
        assert_eq!(file.metadata().unwrap().len(), 10_000);
    }
}
