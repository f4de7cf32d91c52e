//! What a new disk is made of where that is a file of the administrator's: opened, compared with its digest, and told by what
//! it holds.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::DiskRestore;
use crate::admin_file::{SealedFile, writable_by_others};
use crate::backup::qcow2::{self, Qcow2};
use crate::backup::{self, Source};
use crate::cache::BaseTar;
use crate::report::{self, WithHint, size};

/// A file that is what its digest says.
pub enum Opened {
    /// A root tar.
    Tree(BaseTar),
    /// A disk.
    Image(DiskImage),
}

/// A disk image, in one of the formats that are read.
pub struct DiskImage {
    /// For messages.
    pub name: String,
    file: File,
}

/// Opens a file and reads all of it once: what is not what the administrator sealed is refused.
pub fn open(sealed: &SealedFile) -> Result<Opened> {
    let name = sealed.path.display().to_string();
    // Opening what is none, a pipe for instance, would wait.
    let meta = std::fs::metadata(&sealed.path)
        .with_context(|| format!("opening {name}"))
        .hint("the setting source names it; it must lie on every node that installs from it")?;
    ensure!(meta.is_file(), "{name}, which source names, is no regular file");
    if let Some(fault) = writable_by_others(&sealed.path) {
        return Err(anyhow!("{fault}; what was compared could become something else"))
            .hint(format!("chown root {name}; chmod go-w {name}"));
    }
    let file = File::open(&sealed.path).with_context(|| format!("opening {name}"))?;
    report::step(&format!("checking {name}, {}", size(meta.len())), || sealed.compare(&file))?;
    let image = DiskImage { name, file };
    if image.is_qcow2()? {
        return Ok(Opened::Image(image));
    }
    let name = image.name.clone();
    match backup::open(image.bytes()?).with_context(|| format!("looking at {name}"))? {
        Source::Tree(_) => Ok(Opened::Tree(BaseTar::sealed(name, image.file)?)),
        Source::Image(_) | Source::Raw(..) => Ok(Opened::Image(image)),
        Source::Dump(_) => bail!("{name} is a dump(8); that is a backup, and `gnt-backup import` takes it"),
    }
}

impl DiskImage {
    /// Writes it to a disk.
    pub fn restore(&self, restore: DiskRestore<'_>) -> Result<()> {
        if self.is_qcow2()? {
            return restore.qcow2(&Qcow2::open(&self.file)?);
        }
        match backup::open(self.bytes()?)? {
            Source::Image(mut source) => restore.archive(&mut source),
            Source::Raw(mut source, first) => restore.raw(&mut source, &first),
            Source::Dump(_) | Source::Tree(_) => bail!("{} is no disk image any more", self.name),
        }
    }

    fn is_qcow2(&self) -> Result<bool> {
        let mut first = [0; qcow2::MAGIC.len()];
        let read = self.file.read_at(&mut first, 0).with_context(|| format!("reading {}", self.name))?;
        Ok(first[..read] == *qcow2::MAGIC)
    }

    /// All of the file, from its start.
    fn bytes(&self) -> Result<Box<dyn Read>> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        Ok(Box::new(file))
    }
}
