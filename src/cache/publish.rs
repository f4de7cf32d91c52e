//! A new cache file: written without a name, so that nothing is left of it if the program dies, flushed, and
//! published under a name that was never used before. The manifest, which names the tar, comes last.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::manifest::{CHECKED, NOT_CHECKED, now};
use super::{BaseTar, Manifest, Origin, Store, StoreLock, modified_ns, shown, stem};
use crate::bootstrap::{Kernel, Made, Recipe};
use crate::report;
use crate::sys::tmpfile;

/// How a new cache file is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
}

/// A base tar while it is written.
pub struct NewBase {
    sink: Sink,
    dir: PathBuf,
}

enum Sink {
    Plain(BufWriter<Hashing>),
    Gzip(GzEncoder<BufWriter<Hashing>>),
}

/// Digests what goes to the file.
struct Hashing {
    file: File,
    hash: Sha256,
    size_bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Write for NewBase {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.sink {
            Sink::Plain(sink) => sink.write(bytes),
            Sink::Gzip(sink) => sink.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.sink {
            Sink::Plain(sink) => sink.flush(),
            Sink::Gzip(sink) => sink.flush(),
        }
    }
}

impl NewBase {
    /// Begins a base tar in `dir`.
    pub fn begin(dir: &Path, compression: Compression) -> Result<NewBase> {
        let hashing = Hashing { file: tmpfile::create(dir)?, hash: Sha256::new(), size_bytes: 0 };
        let buffered = BufWriter::with_capacity(1 << 20, hashing);
        let sink = match compression {
            Compression::None => Sink::Plain(buffered),
            Compression::Gzip => Sink::Gzip(GzEncoder::new(buffered, Level::default())),
        };
        Ok(NewBase { sink, dir: dir.to_owned() })
    }

    /// Ends writing; the file can be read, but has no name and is not flushed.
    pub fn finish(self, recipe: &Recipe, made: Made, unpacked_bytes: u64) -> Result<Finished> {
        let context = "writing the cache file";
        let (buffered, ending) = match self.sink {
            Sink::Plain(sink) => (sink, "tar"),
            Sink::Gzip(sink) => (sink.finish().context(context)?, "tar.gz"),
        };
        let hashing = buffered.into_inner().map_err(std::io::IntoInnerError::into_error).context(context)?;
        let build = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let manifest = Manifest {
            file: format!("{}.{build}.{ending}", stem(recipe)),
            suite: recipe.suite.clone(),
            codename: made.codename,
            arch: recipe.arch.clone(),
            mirror: recipe.mirror.clone(),
            components: recipe.components.clone(),
            extra_pkgs: recipe.extra_pkgs.clone(),
            bootstrapper: made.bootstrapper.name().into(),
            boot: recipe.boot.map_or("", Kernel::name).into(),
            signatures: if made.signed { CHECKED } else { NOT_CHECKED }.into(),
            recipe: recipe.cache_key(),
            made: now(),
            program: crate::VERSION.into(),
            digest: format!("sha256:{:x}", hashing.hash.finalize()),
            size_bytes: hashing.size_bytes,
            unpacked_bytes: Some(unpacked_bytes),
            sealed: false,
            packages: made.packages,
        };
        Ok(Finished { file: hashing.file, manifest, dir: self.dir, stem: stem(recipe) })
    }
}

/// A base tar that is whole.
#[derive(Debug)]
pub struct Finished {
    file: File,
    manifest: Manifest,
    dir: PathBuf,
    stem: String,
}

impl Finished {
    /// Flushes it and gives it its name; what it replaces goes, and what was cut short earlier. Call with the lock
    /// held.
    pub fn publish(&self, store: &Store, _lock: &StoreLock) -> Result<()> {
        self.file.sync_all().context("flushing the cache file")?;
        let manifest = prepared(&self.dir, &self.manifest).context("writing the manifest")?;
        // Both are on the disk: from one name to the other it is a moment.
        tmpfile::link(&self.file, &self.dir.join(&self.manifest.file))?;
        named(&manifest, &self.dir.join(format!("{}.toml", self.stem)))?;
        // It is published; what it replaced is only in the way of space, and so is what was made from that.
        let orphans = store.orphans().unwrap_or_default().into_iter();
        let ours =
            |old: &PathBuf| old.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-"));
        let orphans = orphans.filter(ours).collect::<Vec<_>>();
        for old in orphans.into_iter().chain(store.stale_templates().unwrap_or_default()) {
            if let Err(error) = std::fs::remove_file(&old) {
                report::warning(&format!("removing {}: {error}", shown(&old)));
            }
        }
        Ok(())
    }

    /// The tar, to read from; `published` in the cache or not.
    pub fn into_base(self, published: bool) -> BaseTar {
        let manifest = &self.manifest;
        let meta = self.file.metadata().ok().filter(|_| published);
        let origin = meta.map(|meta| Origin {
            suite: manifest.suite.clone(),
            arch: manifest.arch.clone(),
            kernel: manifest.boot.clone(),
            file: manifest.file.clone(),
            digest: manifest.digest.clone(),
            size_bytes: manifest.size_bytes,
            modified_ns: modified_ns(&meta),
        });
        BaseTar {
            origin,
            name: self.manifest.file,
            size_bytes: self.manifest.size_bytes,
            by_hand: false,
            // It was written by this process a moment ago.
            digest: None,
            unpacked_bytes: self.manifest.unpacked_bytes,
            file: self.file,
        }
    }
}

/// Writes a manifest beside its tar, replacing an earlier one in one step.
pub fn write_manifest(path: &Path, manifest: &Manifest) -> Result<()> {
    let context = || format!("writing {}", shown(path));
    let dir = path.parent().with_context(context)?;
    let file = prepared(dir, manifest).with_context(context)?;
    named(&file, path)
}

/// A manifest on the disk, without a name yet.
fn prepared(dir: &Path, manifest: &Manifest) -> Result<File> {
    let mut file = tmpfile::create(dir)?;
    file.write_all(toml::to_string(manifest)?.as_bytes())?;
    file.sync_all()?;
    Ok(file)
}

/// Gives a file its name for good, in one step where it replaces another.
fn named(file: &File, path: &Path) -> Result<()> {
    let context = || format!("publishing {}", shown(path));
    if path.exists() {
        // An orphan of its key, should the program die before the rename.
        let staged = path.with_extension("new");
        let _ = std::fs::remove_file(&staged);
        tmpfile::link(file, &staged)?;
        std::fs::rename(&staged, path).with_context(context)?;
    } else {
        tmpfile::link(file, path)?;
    }
    let dir = path.parent().with_context(context)?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(context)
}
