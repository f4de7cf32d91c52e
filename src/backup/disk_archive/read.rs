//! Reads a disk's archive that a stranger may have written. Whoever takes the data must not make a disk of it that can be
//! mistaken for a good one until [`Image::finish`] says that all of it was right.

use std::io::Read;

use anyhow::{Context, Result, anyhow, ensure};

use super::{DIGEST, DISK, Digest, MANIFEST, MANIFEST_BYTES_MAX, Manifest, ranges_max};
use crate::reader::Budget;
use crate::report::Foreign;
use crate::report::WithHint;
use crate::tar::archive::{self, Entry, EntryKind, Extent, Input};

/// Of the digest's member.
const DIGEST_BYTES_MAX: u64 = 1024;

/// What is read is hashed while the processor's cache has it.
const AT_ONCE_BYTES: usize = 256 << 10;

/// What to do with a backup that is not what was written.
const DAMAGED: &str = "the backup is damaged; export it again";

/// An archive of which the description was read; its data comes next.
pub struct Image<'a> {
    input: Input<'a>,
    pub manifest: Manifest,
    /// Runs of data, ascending and on the disk.
    runs: Vec<Extent>,
    digest: Digest,
}

impl<'a> Image<'a> {
    /// Reads up to the data: what disk it is, and where the data belongs. All that is read is spent of the budget.
    pub fn open(source: &'a mut dyn Read, budget: &'a Budget<'a>) -> Result<Image<'a>> {
        Image::begin(source, budget).hint(DAMAGED)
    }

    fn begin(source: &'a mut dyn Read, budget: &'a Budget<'a>) -> Result<Image<'a>> {
        let mut input = Input::new(source, budget);
        let first = next(&mut input, MANIFEST)?;
        ensure!(first.sparse.is_none(), "{MANIFEST} is a sparse file");
        let text = input.whole(MANIFEST_BYTES_MAX)?;
        let manifest = Manifest::parse(&text)?;
        let disk = next(&mut input, DISK)?;
        let size = manifest.disk.size_bytes;
        let runs = match disk.sparse {
            Some(sparse) => {
                ensure!(
                    sparse.real_size == size,
                    "{DISK} has {} bytes, {MANIFEST} says {size}",
                    sparse.real_size
                );
                sparse.extents
            }
            // A disk without a hole.
            None => {
                let stored = input.data_left();
                ensure!(stored == size, "{DISK} has {stored} bytes, {MANIFEST} says {size}");
                vec![Extent { offset: 0, length: size }]
            }
        };
        let runs: Vec<Extent> = runs.into_iter().filter(|run| run.length > 0).collect();
        let most = ranges_max(size);
        ensure!(runs.len() <= most, "{DISK} comes in {} pieces; {most} are read", runs.len());
        let digest = Digest::begin(&text, runs.iter().map(|run| (run.offset, run.length)));
        Ok(Image { input, manifest, runs, digest })
    }

    /// Where data comes for: start and length in bytes, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|run| (run.offset, run.length))
    }

    /// Reads some of the data, run after run, into the room there is; what is asked for beyond the last run is missing.
    pub fn read(&mut self, room: &mut [u8]) -> Result<usize> {
        let most = room.len().min(AT_ONCE_BYTES);
        let count = self.input.data_into(&mut room[..most]).hint(DAMAGED)?;
        if count == 0 {
            return Err(anyhow!("the archive has too little data")).hint(DAMAGED);
        }
        self.digest.add(&room[..count]);
        Ok(count)
    }

    /// Reads what follows the data: the digest must be right, and nothing may come behind it.
    pub fn finish(self) -> Result<()> {
        self.end().hint(DAMAGED)
    }

    fn end(mut self) -> Result<()> {
        next(&mut self.input, DIGEST).context("the backup ends without its digest")?;
        let stored = self.input.whole(DIGEST_BYTES_MAX)?;
        ensure!(
            stored == self.digest.finish().as_bytes(),
            "the digest is wrong: the backup is not what was exported"
        );
        let over = archive::next(&mut self.input)?.is_none() && self.input.ends()?;
        ensure!(over, "there is more behind the digest");
        Ok(())
    }
}

/// Whether a tar that begins with `first_bytes` is a disk's: also one that another program packed, or in which something
/// else comes first than should. As a tree it would become a disk of three files.
pub fn begins(first_bytes: &[u8]) -> bool {
    let mut rest = first_bytes;
    let first = archive::next(&mut Input::new(&mut rest, &Budget::unlimited()));
    let path = match &first {
        Ok(Some(entry)) => &entry.path,
        // Damaged: by what its first header seems to say.
        _ => first_bytes.split(|byte| *byte == 0).next().unwrap_or_default(),
    };
    let name = path.strip_prefix(b"./").unwrap_or(path);
    [MANIFEST, DISK, DIGEST].iter().any(|ours| ours.as_bytes() == name)
}

/// The next member, which must be the file `name`.
fn next(input: &mut Input<'_>, name: &str) -> Result<Entry> {
    let entry = archive::next(input)?.with_context(|| format!("the backup ends before {name}"))?;
    let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
    ensure!(
        path == name.as_bytes() && entry.kind == EntryKind::File,
        "the backup has \"{}\" where {name} belongs",
        Foreign(&entry.path)
    );
    Ok(entry)
}
