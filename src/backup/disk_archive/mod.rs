//! A disk as a tar: `instance.toml`, which says what disk it is; `disk.img`, its used blocks as a sparse file; `digest`, over
//! both. docs/backup-format.md specifies it for other programs. Must not know what a filesystem is.

mod read;
mod write;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use read::{Image, begins};
pub use write::Export;

use crate::report::WithHint;

/// The version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// The first member, by which such a backup is known.
pub const MANIFEST: &str = "instance.toml";
pub(super) const DISK: &str = "disk.img";
pub(super) const DIGEST: &str = "digest";

/// Of instance.toml: a stranger's claims about thousands of ranges fit.
pub const MANIFEST_BYTES_MAX: u64 = 2 << 20;
/// Runs of data, and of zeros, in a disk; whoever finds more joins those that lie close together.
pub const RANGES_MAX: usize = 32 * 1024;

/// The smallest that a disk reads or writes; disks of larger sectors have fewer.
const SECTOR_BYTES: u64 = 512;

/// How many a disk of `size_bytes` may have: a small one has no more than it has sectors.
fn ranges_max(size_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(SECTOR_BYTES)).map_or(RANGES_MAX, |sectors| sectors.min(RANGES_MAX))
}

/// A parser makes tens of bytes of each byte that separates something: what an honest one has, and some more.
const MANIFEST_LINES_MAX: usize = 32 * 1024;
const MANIFEST_ELEMENTS_MAX: usize = 4 * RANGES_MAX;

/// What stands in instance.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`]
    pub format: u32,
    /// Who wrote it, for people.
    pub program: String,
    pub disk: DiskFacts,
    /// By number; none where there is no table.
    #[serde(default, rename = "partition", skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionFacts>,
}

/// The disk as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Ganeti's index of it.
    pub index: usize,
    pub size_bytes: u64,
    pub sector_bytes: u64,
    /// "gpt", "msdos" or "none".
    pub layout: String,
    /// Bytes of data in disk.img.
    pub used_bytes: u64,
    /// What a disk without a table holds, as for a partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Ranges, start and length in bytes, that are in use and read as zeros without being in disk.img. What is neither here
    /// nor there is free: it may hold anything.
    #[serde(default)]
    pub zero: Vec<(u64, u64)>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionFacts {
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
    /// "ext4", "xfs", "swap", ...
    pub content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Why all of it is there, where only what is in use could have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// A format's version alone: what a newer one means otherwise is not known.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

impl Manifest {
    /// Reads and checks one that a stranger wrote: its ranges lie on its disk, and what has to be zero only once.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        let count = |separators: &[u8]| bytes.iter().filter(|byte| separators.contains(byte)).count();
        let small = count(b"\n=.") <= MANIFEST_LINES_MAX && count(b",[{") <= MANIFEST_ELEMENTS_MAX;
        ensure!(small, "instance.toml has too many lines or elements");
        let text = std::str::from_utf8(bytes).context("reading instance.toml")?;
        let version: Version = toml::from_str(text).context("reading instance.toml")?;
        if version.format != FORMAT {
            return Err(anyhow::anyhow!(
                "the backup has format {}, this program reads format {FORMAT}",
                version.format
            ))
            .hint("import it with a newer version of this program");
        }
        let manifest: Manifest = toml::from_str(text).context("reading instance.toml")?;
        let size = manifest.disk.size_bytes;
        ensure!(size <= i64::MAX as u64, "instance.toml says that the disk has {size} bytes");
        ensure!(
            manifest.partitions.len() <= 1024,
            "instance.toml has {} partitions",
            manifest.partitions.len()
        );
        ensure!(manifest.disk.zero.len() <= ranges_max(size), "instance.toml has too many ranges of zeros");
        let partitions = manifest.partitions.iter().map(|part| (part.start_bytes, part.size_bytes));
        for (start, length) in partitions.chain(manifest.disk.zero.iter().copied()) {
            let fits = start.checked_add(length).is_some_and(|end| end <= size);
            ensure!(fits, "instance.toml names {length} bytes at {start}, beyond the disk's {size}");
        }
        let ascend = manifest.disk.zero.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        ensure!(ascend, "instance.toml has ranges of zeros that do not ascend");
        Ok(manifest)
    }

    /// As it stands in the archive.
    fn text(&self) -> Result<String> {
        toml::to_string(self).context("writing instance.toml")
    }
}

/// The digest: BLAKE3 over instance.toml, then offset and length of each run of data as 64-bit little-endian numbers, then
/// the data of all runs.
struct Digest(blake3::Hasher);

impl Digest {
    fn begin(manifest: &[u8], runs: impl Iterator<Item = (u64, u64)>) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(manifest);
        for (offset, length) in runs {
            hasher.update(&offset.to_le_bytes());
            hasher.update(&length.to_le_bytes());
        }
        Digest(hasher)
    }

    fn add(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// `blake3:HEX` and a newline, as the member holds it.
    fn finish(&self) -> String {
        format!("blake3:{}\n", self.0.finalize().to_hex())
    }
}
