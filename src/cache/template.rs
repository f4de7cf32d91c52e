//! Templates: filesystems that hold a base tar's tree, made once and copied to disk after disk. They are derived from the tar and can
//! be made again, so nothing waits for them to be flushed; what a power cut tore is found by its sums.
//!
//! A file `template-SUITE-ARCH-FILESYSTEM-SIZE-KEY.img`, dense, so that whoever backs up the cache reads what is there:
//! a header of 4096 bytes, the data in use (run after run, no matter where each belongs), files of the tree that are wanted
//! before it is mounted, and an index in JSON. The header
//! holds the magic, then as little-endian numbers where the index begins (64 bits), its length (64), and its CRC-32.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Store;
use super::base_tar::Origin;
use crate::bootstrap::Recipe;
use crate::nameless::{give_name, nameless};
use crate::report;
use crate::signals;

/// The unit of the sums, and of what is read at once: a few of them stay in the processor's cache from the read to the write.
pub const PIECE_BYTES: usize = 256 << 10;

/// The version stands in it: another format has another magic.
const MAGIC: &[u8; 16] = b"gid-template-1\n\0";
const HEADER_BYTES: usize = 4096;
const INDEX_BYTES_MAX: u64 = 16 << 20;
const FILE_BYTES_MAX: u64 = 32 << 20;
/// What an ext4 filesystem can have at most.
const SIZE_BYTES_MAX: u64 = 1 << 60;
/// Superblocks begin at multiples of their size.
const SUPERBLOCK_BYTES: u64 = 1024;
/// Direct I/O wants all runs to begin and end so.
const BLOCK_BYTES: u64 = 4096;

/// What a template is made for: nothing else may be made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub filesystem: String,
    /// Of the partition, down to whole blocks of 4096 bytes.
    pub size_bytes: u64,
    pub label: String,
    /// Major and minor version of the oldest kernel that must read it.
    pub reader: Option<(u32, u32)>,
    /// Which tool made it, with which defaults.
    pub maker: String,
}

/// A filesystem as it lies in the file that it was made in; all offsets and lengths in bytes, runs ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    origin: Origin,
    shape: Shape,
    content: Content,
    /// CRC-32 of each piece of the data.
    sums: Vec<u32>,
    /// Files of its tree that are wanted besides, and stand behind the data in this order.
    files: Vec<KeptFile>,
    /// RFC 3339.
    made: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptFile {
    path: String,
    length: u64,
    /// CRC-32.
    sum: u32,
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
pub struct Part {
    /// In the piece.
    pub at: usize,
    pub length: usize,
    /// In the template's file.
    pub in_file: u64,
    /// In the filesystem.
    pub in_filesystem: u64,
}

/// A template's file, as a list shows it.
#[derive(Debug)]
pub struct TemplateEntry {
    pub path: PathBuf,
    pub size_bytes: u64,
    pub used: SystemTime,
    /// An error where it is none, or damaged.
    pub template: Result<Template>,
}

impl TemplateEntry {
    pub fn name(&self) -> String {
        super::file_name(&self.path)
    }
}

impl Template {
    /// Opens one, whatever it was made for; an error where it is none, or damaged.
    pub fn open(path: &Path) -> Result<Template> {
        // Whatever stands there is neither followed nor waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let index = read_index(&file).with_context(|| format!("reading the template {}", path.display()))?;
        Ok(Template { path: path.to_owned(), file, index })
    }

    pub fn origin(&self) -> &Origin {
        &self.index.origin
    }

    pub fn shape(&self) -> &Shape {
        &self.index.shape
    }

    pub fn content(&self) -> &Content {
        &self.index.content
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
        let length = (self.index.content.data_bytes() - start).min(PIECE_BYTES as u64) as usize;
        let bytes = &mut buffer[..length];
        self.file
            .read_exact_at(bytes, HEADER_BYTES as u64 + start)
            .with_context(|| format!("reading the template {}", self.path.display()))?;
        let sum = crc32fast::hash(bytes);
        ensure!(
            sum == self.index.sums[piece],
            "the template {} is damaged at byte {}",
            self.path.display(),
            HEADER_BYTES as u64 + start
        );
        Ok(bytes)
    }

    /// Where the parts of a piece belong.
    pub fn parts(&self, piece: usize) -> Vec<Part> {
        let start = (piece * PIECE_BYTES) as u64;
        let end = (start + PIECE_BYTES as u64).min(self.index.content.data_bytes());
        let mut parts = Vec::new();
        let mut before = 0;
        for run in &self.index.content.data {
            let length = run.end - run.start;
            let from = start.max(before);
            let to = end.min(before + length);
            if from < to {
                parts.push(Part {
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
        for run in &self.index.content.data {
            if run.contains(&at) {
                let mut block = vec![0; BLOCK_BYTES as usize];
                let in_file = HEADER_BYTES as u64 + before + (at - run.start);
                self.file
                    .read_exact_at(&mut block, in_file)
                    .with_context(|| format!("reading the template {}", self.path.display()))?;
                return Ok(block);
            }
            before += run.end - run.start;
        }
        anyhow::bail!("the template {} has nothing at byte {at}", self.path.display())
    }

    /// The files of its tree that stand here besides; an error where one is not what was written.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut at = HEADER_BYTES as u64 + self.index.content.data_bytes();
        let mut files = BTreeMap::new();
        for file in &self.index.files {
            let mut bytes = vec![0; file.length as usize];
            self.file
                .read_exact_at(&mut bytes, at)
                .with_context(|| format!("reading the template {}", self.path.display()))?;
            let path = self.path.display();
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
        remove(&self.path)
    }
}

impl Index {
    /// Where it stands in the file: behind all that it speaks of.
    fn begins_at(&self) -> Result<u64> {
        ensure!(self.files.iter().all(|file| file.length <= FILE_BYTES_MAX), "a file in it is too large");
        let files: u64 = self.files.iter().map(|file| file.length).sum();
        Ok(HEADER_BYTES as u64 + self.content.data_bytes() + files)
    }
}

impl Content {
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

impl Store {
    /// Where the template of a tree and a shape lies, if it is there.
    pub fn template_path(&self, origin: &Origin, shape: &Shape) -> Result<PathBuf> {
        let key = serde_json::to_vec(&(origin, shape)).context("naming a template")?;
        let key = &format!("{:x}", Sha256::digest(key))[..16];
        let (suite, arch) = (origin.suite.replace('/', "_"), &origin.arch);
        let mib = shape.size_bytes >> 20;
        Ok(self.dir.join(format!("template-{suite}-{arch}-{}-{mib}M-{key}.img", shape.filesystem)))
    }

    /// The template of a tree and a shape; None where there is none. One that is damaged is removed, with a word.
    pub fn template(&self, origin: &Origin, shape: &Shape) -> Result<Option<Template>> {
        let path = self.template_path(origin, shape)?;
        if !path.exists() {
            return Ok(None);
        }
        match Template::open(&path) {
            Ok(template) if template.origin() == origin && template.shape() == shape => {
                template.touch();
                Ok(Some(template))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                report::warning(&format!("{}; it is made anew", report::sentence(&error)));
                remove(&path)?;
                Ok(None)
            }
        }
    }

    /// Every template, those that were used last first.
    pub fn templates(&self) -> Result<Vec<TemplateEntry>> {
        let names = self.names()?.into_iter();
        let mut entries: Vec<TemplateEntry> = names
            .filter(|name| name.starts_with("template-") && name.ends_with(".img"))
            .filter_map(|name| {
                let path = self.dir.join(name);
                let meta = std::fs::symlink_metadata(&path).ok().filter(|meta| !meta.is_dir())?;
                let (size_bytes, used) = (meta.len(), meta.modified().ok()?);
                Some(TemplateEntry { size_bytes, used, template: Template::open(&path), path })
            })
            .collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(entries)
    }

    /// Those that nothing will be copied from any more: what they were made from is gone or another one, or they are damaged.
    pub fn stale_templates(&self) -> Result<Vec<PathBuf>> {
        let entries = self.entries()?;
        let origins: Vec<Origin> = entries
            .iter()
            .filter_map(|entry| Some(entry.origin(&std::fs::metadata(&entry.path).ok()?)))
            .collect();
        let serves = |entry: &TemplateEntry| {
            entry.template.as_ref().is_ok_and(|template| origins.contains(template.origin()))
        };
        Ok(self.templates()?.into_iter().filter(|entry| !serves(entry)).map(|entry| entry.path).collect())
    }

    /// What templates there are of any tree that was made by a recipe, those that were used last first.
    pub fn shapes(&self, recipe: &Recipe) -> Result<Vec<Shape>> {
        let of_recipe = format!("{}.", super::stem(recipe));
        let templates = self.templates()?.into_iter().filter_map(|entry| entry.template.ok());
        let ours = templates.filter(|template| template.origin().file.starts_with(&of_recipe));
        Ok(ours.map(|template| template.shape().clone()).collect())
    }

    /// Copies the data of a filesystem out of the sparse file that it was made in, and publishes that as a template, with
    /// `files` of its tree besides.
    pub fn publish_template(
        &self,
        origin: &Origin,
        shape: &Shape,
        content: Content,
        filesystem: &File,
        files: BTreeMap<String, Vec<u8>>,
    ) -> Result<Template> {
        let path = self.template_path(origin, shape)?;
        content.check(shape.size_bytes).context("writing a template")?;
        let file = nameless(&self.dir)?;
        let kept = |(path, bytes): (&String, &Vec<u8>)| KeptFile {
            path: path.clone(),
            length: bytes.len() as u64,
            sum: crc32fast::hash(bytes),
        };
        let index = Index {
            origin: origin.clone(),
            shape: shape.clone(),
            content,
            sums: Vec::new(),
            files: files.iter().map(kept).collect(),
            made: super::manifest::now(),
        };
        let index = write(&file, index, filesystem, files.into_values()).context("writing a template")?;
        // What stands there was found to be no template for this.
        remove(&path)?;
        give_name(&file, &path)?;
        Ok(Template { path, file, index })
    }

    /// Removes all templates but the `count` that were used last; one that cannot be removed is told of, and stays.
    pub fn keep_templates(&self, count: usize) -> Result<()> {
        for entry in self.templates()?.iter().skip(count) {
            report::detail(&format!("removing {}, which was not used for long", entry.path.display()));
            if let Err(error) = remove(&entry.path) {
                report::warning(&report::sentence(&error));
            }
        }
        Ok(())
    }
}

/// Others do so too, of other trees and without our lock: who was faster is right.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("removing {}", path.display())),
    }
}

fn write(
    file: &File,
    mut index: Index,
    filesystem: &File,
    files: impl Iterator<Item = Vec<u8>>,
) -> Result<Index> {
    let mut sink = BufWriter::with_capacity(PIECE_BYTES, file);
    sink.write_all(&[0; HEADER_BYTES])?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for run in &index.content.data {
        let mut at = run.start;
        while at < run.end {
            signals::check()?;
            let filled = piece.len();
            let count = (run.end - at).min((PIECE_BYTES - filled) as u64);
            piece.resize(filled + count as usize, 0);
            filesystem.read_exact_at(&mut piece[filled..], at)?;
            at += count;
            if piece.len() == PIECE_BYTES {
                index.sums.push(crc32fast::hash(&piece));
                sink.write_all(&piece)?;
                piece.clear();
            }
        }
    }
    if !piece.is_empty() {
        index.sums.push(crc32fast::hash(&piece));
        sink.write_all(&piece)?;
    }
    for bytes in files {
        sink.write_all(&bytes)?;
    }
    let text = serde_json::to_vec(&index)?;
    ensure!(text.len() as u64 <= INDEX_BYTES_MAX, "its index would have {} bytes", text.len());
    sink.write_all(&text)?;
    sink.flush()?;
    let mut header = MAGIC.to_vec();
    header.extend(index.begins_at()?.to_le_bytes());
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(crc32fast::hash(&text).to_le_bytes());
    file.write_all_at(&header, 0)?;
    Ok(index)
}

fn read_index(file: &File) -> Result<Index> {
    let mut header = [0; 36];
    file.read_exact_at(&mut header, 0).context("it is too short")?;
    ensure!(header.starts_with(MAGIC), "it does not begin as one");
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
    let (at, length) = (number(16), number(24));
    let sum = u32::from_le_bytes(std::array::from_fn(|byte| header[32 + byte]));
    ensure!(length <= INDEX_BYTES_MAX, "its index claims {length} bytes");
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, at).context("its index is not there")?;
    ensure!(crc32fast::hash(&text) == sum, "its index is damaged");
    let index: Index = serde_json::from_slice(&text).context("its index says nothing that is known")?;
    index.content.check(index.shape.size_bytes)?;
    let data_bytes = index.content.data_bytes();
    ensure!(at == index.begins_at()?, "its data is not of the length that its index says");
    ensure!(index.sums.len() as u64 == data_bytes.div_ceil(PIECE_BYTES as u64), "its sums are not all there");
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn shape() -> Shape {
        let (filesystem, label) = ("ext4".into(), String::new());
        Shape { filesystem, size_bytes: 64 << 20, label, reader: Some((6, 12)), maker: "mke2fs".into() }
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
        let content = Content {
            data: runs.to_vec(),
            zero: vec![(32 << 20)..(34 << 20), (36 << 20)..(37 << 20)],
            superblocks: vec![1024, 8 << 20],
            journal: Some(1 << 20),
            uuid_stands_alone: true,
        };
        let files = [("a", 3), ("boot/b", 7)].map(|(path, length)| (path.to_owned(), vec![9; length]));
        store.publish_template(&origin(), &shape(), content, &file, files.into()).unwrap()
    }

    #[test]
    fn what_was_put_in_comes_out_where_it_belongs() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::new(dir.path());
        assert!(store.template(&origin(), &shape()).unwrap().is_none());
        published(&store);
        let template = store.template(&origin(), &shape()).unwrap().unwrap();
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
        let other = Shape { size_bytes: 65 << 20, ..shape() };
        assert!(store.template(&origin(), &other).unwrap().is_none());
        assert!(store.template(&Origin { modified_ns: 3, ..origin() }, &shape()).unwrap().is_none());
    }

    #[test]
    fn a_damaged_one_is_none() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::new(dir.path());
        let path = published(&store).path;
        let whole = std::fs::read(&path).unwrap();
        let template = || store.template(&origin(), &shape()).unwrap();
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
        let content = |data: Range<u64>, superblock| Content {
            data: vec![data],
            zero: Vec::new(),
            superblocks: vec![superblock],
            journal: None,
            uuid_stands_alone: true,
        };
        content(0..8192, 7168).check(8192).unwrap();
        let most = u64::MAX / 4096 * 4096;
        for (data, superblock, size) in [
            (0..8192, 7169, 8192),
            (0..8192, 8192, 8192),
            (0..8192, 1024, 4096),
            (0..most, 1024, most),
            (4096..8192, 4096, 8192),
            (0..5000, 1024, 8192),
        ] {
            assert!(content(data.clone(), superblock).check(size).is_err(), "{data:?} {superblock} {size}");
        }
    }

    #[test]
    fn those_that_were_used_last_stay() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::new(dir.path());
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
