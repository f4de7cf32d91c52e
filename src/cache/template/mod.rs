//! Templates: filesystems that hold a base tar's tree, made once and copied to disk after disk. They are derived from the tar and
//! can be made again, so nothing waits for them to be flushed; what a power cut tore is found by its sums.

mod file;
mod index;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Origin, shown};
use crate::sys::signals;
use file::{HEADER_BYTES, Index};

pub use index::{NewTemplate, TemplateEntry};

/// The unit of the sums, and of what is read at once: a few of them stay in the processor's cache from the read to the write.
pub const PIECE_BYTES: usize = 256 << 10;

/// What an ext4 filesystem can have at most.
const SIZE_BYTES_MAX: u64 = 1 << 60;
/// Superblocks begin at multiples of their size.
const SUPERBLOCK_BYTES: u64 = 1024;
/// Direct I/O wants all runs to begin and end so.
const BLOCK_BYTES: u64 = 4096;

/// What a template is made for: nothing else may be made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSpec {
    pub filesystem: String,
    /// Of the partition, down to whole blocks of 4096 bytes.
    pub size_bytes: u64,
    pub label: String,
    /// Major and minor version of the oldest kernel that must read it.
    #[serde(rename = "reader")]
    pub oldest_kernel: Option<(u32, u32)>,
    /// Which tool made it, with which defaults.
    pub maker: String,
}

/// A filesystem as it lies in the file that it was made in; all offsets and lengths in bytes, runs ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRuns {
    /// What has to be copied.
    pub data: Vec<Range<u64>>,
    /// What has to read as zeros, and lies in no run of data.
    pub zero: Vec<Range<u64>>,
    /// Its superblock and the copies of it.
    pub superblocks: Vec<u64>,
    /// The superblock of its journal.
    pub journal: Option<u64>,
    /// Whether its UUID stands in those alone.
    pub uuid_stands_alone: bool,
}

/// A template that is open; it stays readable whatever a prune does meanwhile.
#[derive(Debug)]
pub struct Template {
    pub path: PathBuf,
    pub file: File,
    index: Index,
}

/// A part of a piece, and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// In the piece.
    pub at: usize,
    pub length: usize,
    /// In the template's file.
    pub in_file: u64,
    /// In the filesystem.
    pub in_filesystem: u64,
}

impl Template {
    /// Opens one, whatever it was made for; an error where it is none, or damaged.
    pub fn open(path: &Path) -> Result<Template> {
        // Whatever stands there is neither followed nor waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path);
        let file = file.with_context(|| format!("opening {}", shown(path)))?;
        let index =
            file::read_index(&file).with_context(|| format!("reading the template {}", shown(path)))?;
        Ok(Template { path: path.to_owned(), file, index })
    }

    pub fn origin(&self) -> &Origin {
        &self.index.origin
    }

    pub fn spec(&self) -> &TemplateSpec {
        &self.index.spec
    }

    pub fn runs(&self) -> &BlockRuns {
        &self.index.runs
    }

    pub fn made(&self) -> SystemTime {
        humantime::parse_rfc3339(&self.index.made).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// How many pieces its data has.
    pub fn pieces(&self) -> usize {
        self.index.sums.len()
    }

    /// Reads a piece of the data into a buffer of [`PIECE_BYTES`]; an error where it is not what was written.
    pub fn read<'b>(&self, piece: usize, buffer: &'b mut [u8]) -> Result<&'b mut [u8]> {
        let start = (piece * PIECE_BYTES) as u64;
        let length = (self.index.runs.data_bytes() - start).min(PIECE_BYTES as u64) as usize;
        let bytes = &mut buffer[..length];
        self.file
            .read_exact_at(bytes, HEADER_BYTES as u64 + start)
            .with_context(|| format!("reading the template {}", shown(&self.path)))?;
        let sum = crc32fast::hash(bytes);
        ensure!(
            sum == self.index.sums[piece],
            "the template {} is damaged at byte {}",
            shown(&self.path),
            HEADER_BYTES as u64 + start
        );
        Ok(bytes)
    }

    /// Where the parts of a piece belong.
    pub fn parts(&self, piece: usize) -> Vec<Chunk> {
        let start = (piece * PIECE_BYTES) as u64;
        let end = (start + PIECE_BYTES as u64).min(self.index.runs.data_bytes());
        let mut parts = Vec::new();
        let mut before = 0;
        for run in &self.index.runs.data {
            let length = run.end - run.start;
            let from = start.max(before);
            let to = end.min(before + length);
            if from < to {
                parts.push(Chunk {
                    at: (from - start) as usize,
                    length: (to - from) as usize,
                    in_file: HEADER_BYTES as u64 + from,
                    in_filesystem: run.start + (from - before),
                });
            }
            before += length;
            if before >= end {
                break;
            }
        }
        parts
    }

    /// The block of 4096 bytes at `at` of the filesystem.
    pub fn block(&self, at: u64) -> Result<Vec<u8>> {
        let mut before = 0;
        for run in &self.index.runs.data {
            if run.contains(&at) {
                let mut block = vec![0; BLOCK_BYTES as usize];
                let in_file = HEADER_BYTES as u64 + before + (at - run.start);
                self.file
                    .read_exact_at(&mut block, in_file)
                    .with_context(|| format!("reading the template {}", shown(&self.path)))?;
                return Ok(block);
            }
            before += run.end - run.start;
        }
        anyhow::bail!("the template {} has nothing at byte {at}", shown(&self.path))
    }

    /// The files of its tree that stand here besides; an error where one is not what was written.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut at = HEADER_BYTES as u64 + self.index.runs.data_bytes();
        let mut files = BTreeMap::new();
        for file in &self.index.files {
            let mut bytes = vec![0; file.length as usize];
            self.file
                .read_exact_at(&mut bytes, at)
                .with_context(|| format!("reading the template {}", shown(&self.path)))?;
            let path = shown(&self.path);
            ensure!(crc32fast::hash(&bytes) == file.sum, "the template {path} is damaged at byte {at}");
            at += file.length;
            files.insert(file.path.clone(), bytes);
        }
        Ok(files)
    }

    /// Compares all data with its sums.
    pub fn verify(&self) -> Result<()> {
        let mut buffer = vec![0; PIECE_BYTES];
        for piece in 0..self.pieces() {
            signals::check()?;
            self.read(piece, &mut buffer)?;
        }
        self.files().map(drop)
    }

    /// It was needed: others go first.
    pub fn touch(&self) {
        // A cache that cannot be written serves all the same.
        let _ = self.file.set_modified(SystemTime::now());
    }

    /// It is damaged, or in the way.
    pub fn remove(&self) -> Result<()> {
        index::remove(&self.path)
    }
}

impl BlockRuns {
    fn data_bytes(&self) -> u64 {
        self.data.iter().map(|run| run.end - run.start).sum()
    }

    /// Its offsets lead nowhere but into a filesystem of that size.
    fn check(&self, size_bytes: u64) -> Result<()> {
        ensure!(size_bytes <= SIZE_BYTES_MAX, "it claims a filesystem of {size_bytes} bytes");
        for runs in [&self.data, &self.zero] {
            let mut at = 0;
            for run in runs {
                let whole = run.start % BLOCK_BYTES == 0 && run.end % BLOCK_BYTES == 0;
                ensure!(
                    at <= run.start && run.start < run.end && run.end <= size_bytes && whole,
                    "a run of it is out of place"
                );
                at = run.end;
            }
        }
        ensure!(self.data.first().is_some_and(|run| run.start == 0), "it has no beginning");
        for at in self.superblocks.iter().chain(&self.journal) {
            let there = at % SUPERBLOCK_BYTES == 0 && self.data.iter().any(|run| run.contains(at));
            ensure!(there, "a superblock of it is not in its data");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Judgement, Store};

    fn origin() -> Origin {
        Origin {
            suite: "trixie".into(),
            arch: "amd64".into(),
            kernel: String::new(),
            file: "base-trixie.tar".into(),
            digest: "sha256:00".into(),
            size_bytes: 1,
            modified_ns: 2,
        }
    }

    fn spec() -> TemplateSpec {
        let (filesystem, label) = ("ext4".into(), String::new());
        TemplateSpec {
            filesystem,
            size_bytes: 64 << 20,
            label,
            oldest_kernel: Some((6, 12)),
            maker: "mke2fs".into(),
        }
    }

    /// Three runs, of which pieces cut the second; each block bears its own number.
    fn published(store: &Store) -> Template {
        let runs = [0..8192u64, (1 << 20)..(4 << 20), (8 << 20)..(8 << 20) + 4096];
        let file = tempfile::tempfile().unwrap();
        for run in &runs {
            for at in run.clone().step_by(4096) {
                file.write_all_at(&(at / 4096).to_le_bytes().repeat(512), at).unwrap();
            }
        }
        let runs = BlockRuns {
            data: runs.to_vec(),
            zero: vec![(32 << 20)..(34 << 20), (36 << 20)..(37 << 20)],
            superblocks: vec![1024, 8 << 20],
            journal: Some(1 << 20),
            uuid_stands_alone: true,
        };
        let files = [("a", 3), ("boot/b", 7)].map(|(path, length)| (path.to_owned(), vec![9; length]));
        let (origin, spec) = (origin(), spec());
        let new = NewTemplate { origin: &origin, spec: &spec, runs, filesystem: &file, files: files.into() };
        store.publish_template(new).unwrap()
    }

    #[test]
    fn what_was_put_in_comes_out_where_it_belongs() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::open(dir.path(), Judgement::Strict).unwrap();
        assert!(store.template(&origin(), &spec()).unwrap().is_none());
        published(&store);
        let template = store.template(&origin(), &spec()).unwrap().unwrap();
        template.verify().unwrap();
        assert_eq!(
            template.files().unwrap().into_iter().collect::<Vec<_>>(),
            [("a".into(), vec![9; 3]), ("boot/b".into(), vec![9; 7])]
        );
        let mut seen = 0;
        let mut buffer = vec![0; PIECE_BYTES];
        for piece in 0..template.pieces() {
            let bytes = template.read(piece, &mut buffer).unwrap();
            for part in template.parts(piece) {
                for at in (0..part.length).step_by(4096) {
                    let number = (part.in_filesystem + at as u64) / 4096;
                    assert_eq!(bytes[part.at + at..][..8], number.to_le_bytes());
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 2 + 768 + 1);
        assert_eq!(template.block(8 << 20).unwrap()[..8], (8u64 << 8).to_le_bytes());
        assert!(template.block(9 << 20).is_err());
        let other = TemplateSpec { size_bytes: 65 << 20, ..spec() };
        assert!(store.template(&origin(), &other).unwrap().is_none());
        assert!(store.template(&Origin { modified_ns: 3, ..origin() }, &spec()).unwrap().is_none());
    }

    #[test]
    fn a_damaged_one_is_none() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::open(dir.path(), Judgement::Strict).unwrap();
        let path = published(&store).path;
        let whole = std::fs::read(&path).unwrap();
        let template = || store.template(&origin(), &spec()).unwrap();
        for at in [0, 20, 28, 33, whole.len() - 2] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert!(template().is_none(), "byte {at}");
            assert!(!path.exists(), "byte {at}");
        }
        for length in [0, 10, 4096, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(template().is_none(), "{length} bytes");
        }
        let mut bytes = whole.clone();
        bytes[HEADER_BYTES + PIECE_BYTES + 5] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = template().unwrap().verify().unwrap_err();
        assert!(error.to_string().contains("damaged at byte 266240"), "{error}");
    }

    #[test]
    fn places_that_no_filesystem_has_are_refused() {
        let runs = |data: Range<u64>, superblock| BlockRuns {
            data: vec![data],
            zero: Vec::new(),
            superblocks: vec![superblock],
            journal: None,
            uuid_stands_alone: true,
        };
        runs(0..8192, 7168).check(8192).unwrap();
        let most = u64::MAX / 4096 * 4096;
        for (data, superblock, size) in [
            (0..8192, 7169, 8192),
            (0..8192, 8192, 8192),
            (0..8192, 1024, 4096),
            (0..most, 1024, most),
            (4096..8192, 4096, 8192),
            (0..5000, 1024, 8192),
        ] {
            assert!(runs(data.clone(), superblock).check(size).is_err(), "{data:?} {superblock} {size}");
        }
    }

    #[test]
    fn those_that_were_used_last_stay() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::open(dir.path(), Judgement::Strict).unwrap();
        let path = published(&store).path;
        let day = std::time::Duration::from_secs(24 * 3600);
        for age in 1..4 {
            let other = dir.path().join(format!("template-{age}.img"));
            std::fs::copy(&path, &other).unwrap();
            let file = File::options().write(true).open(other).unwrap();
            file.set_modified(SystemTime::now() - day * age).unwrap();
        }
        store.keep_templates(2).unwrap();
        let left: Vec<String> = store.templates().unwrap().iter().map(TemplateEntry::name).collect();
        assert_eq!(left, [crate::cache::file_name(&path), "template-1.img".into()]);
        let template = Template::open(&path).unwrap();
        store.keep_templates(0).unwrap();
        assert_eq!(store.templates().unwrap().len(), 0);
        // Somebody was faster.
        template.remove().unwrap();
    }
}
