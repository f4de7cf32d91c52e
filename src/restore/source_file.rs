//! What a new disk is made of where that is a file of the administrator's: opened, compared with its digest, and told by what
//! it holds.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Error, Result, bail, ensure};

use super::DiskRestore;
use crate::admin_file::{AdminFiles, SealedFile};
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
pub fn open(sealed: &SealedFile, mut files: AdminFiles) -> Result<Opened> {
    let name = sealed.path.display().to_string();
    let file = files.open(&sealed.path).map_err(Error::msg).hint(
        "the setting source names it; it must lie on every node that installs from it, and be root's alone",
    )?;
    files.tolerated().iter().for_each(|fault| report::warning(fault));
    let meta = file.metadata().with_context(|| format!("opening {name}"))?;
    ensure!(meta.is_file(), "{name}, which source names, is no regular file");
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
