//! export: a disk becomes a stream of its used blocks. It is only read, and nothing is mounted; nothing but the stream
//! passes standard output.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use super::Outcome;
use crate::disk::foreign::{Content, Part, TableKind};
use crate::disk::{Disk, SECTOR_BYTES, foreign, used};
use crate::plan::disk_path;
use crate::report::{self, size};
use crate::request::{DiskAddress, Instance};
use crate::stream::image::{self, DiskFacts, Export, Manifest, PartitionFacts};
use crate::{PROGRAM, VERSION, sys};

/// Writes disk `index` to standard output; `size_fd` is where Ganeti hears how much to expect.
pub fn export(
    instance: &Instance,
    address: &DiskAddress,
    index: usize,
    size_fd: Option<i32>,
    dry_run: bool,
) -> Result<Outcome> {
    let start = Instant::now();
    let disk = Disk::open_to_read(&disk_path(address)?)?;
    let (table, parts) = survey(&disk);
    let in_use =
        report::step("finding out what is in use", || used::of_disk(&disk, &parts, image::RANGES_MAX))?;
    let manifest = manifest(&disk, index, table, &parts, &in_use);
    let path = disk.path.display();
    report::line(&format!(
        "{PROGRAM} {VERSION}: disk {index} of {}, {path} ({}), {} in use",
        instance.name,
        size(disk.size_bytes),
        size(manifest.disk.used_bytes)
    ));
    for (part, whole) in parts.iter().zip(&in_use.whole) {
        let why = whole.as_ref().map_or(String::new(), |why| format!("; all of it: {why}"));
        report::line(&format!("{:>10}  {part}{why}", ""));
    }
    if dry_run {
        return Ok(Outcome::Done);
    }
    let made = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64);
    let stream = Export::new(&manifest, in_use.data.extents().collect(), made)?;
    announce(size_fd, stream.size_bytes()?);
    let sink = std::io::stdout().as_fd().try_clone_to_owned().context("opening standard output")?;
    report::long_step("writing the backup", || stream.write(&disk.file, sink.into()))
        .with_context(|| format!("exporting disk {index} of {}", instance.name))?;
    report::line(&format!("{:8.2} s  disk {index} is exported", start.elapsed().as_secs_f64()));
    Ok(Outcome::Done)
}

/// A disk whose table does not hold together is carried as it lies: what is wrong with it is its owner's business.
fn survey(disk: &Disk) -> (Option<TableKind>, Vec<Part>) {
    foreign::survey(disk).unwrap_or_else(|error| {
        report::warning(&format!("{}; all of the disk is carried", report::sentence(&error)));
        let (content, size_bytes) = (Content::Unknown, disk.size_bytes);
        (None, vec![Part { number: None, start_bytes: 0, size_bytes, content }])
    })
}

fn manifest(
    disk: &Disk,
    index: usize,
    table: Option<TableKind>,
    parts: &[Part],
    in_use: &used::DiskUse,
) -> Manifest {
    let partition = |(part, whole): (&Part, &Option<String>)| {
        let uuid = match &part.content {
            Content::Filesystem(volume) => Some(volume.uuid),
            Content::Swap(uuid) => Some(*uuid),
            Content::Fat(_) | Content::Other(_) | Content::Unknown => None,
        };
        Some(PartitionFacts {
            number: part.number?,
            start_bytes: part.start_bytes,
            size_bytes: part.size_bytes,
            content: part.content.to_string(),
            uuid: uuid.map(|uuid| uuid.to_string()),
            whole: whole.clone(),
        })
    };
    Manifest {
        format: image::FORMAT,
        program: format!("{PROGRAM} {VERSION}"),
        disk: DiskFacts {
            index,
            size_bytes: disk.size_bytes,
            sector_bytes: SECTOR_BYTES,
            layout: table.map_or("none".into(), |table| table.to_string()),
            used_bytes: in_use.data.used_bytes(),
            content: parts.iter().find(|part| part.number.is_none()).map(|part| part.content.to_string()),
            zero: in_use.zero.extents().map(|run| (run.start, run.end - run.start)).collect(),
        },
        partitions: parts.iter().zip(&in_use.whole).filter_map(partition).collect(),
    }
}

/// Tells Ganeti how many bytes to expect, from which it shows progress. Nobody may be listening.
fn announce(size_fd: Option<i32>, size_bytes: u64) {
    let Some(fd) = size_fd else { return };
    let told =
        sys::inherited_fd(fd).and_then(|mut file| file.write_all(format!("{size_bytes}\n").as_bytes()));
    if let Err(error) = told {
        report::warning(&format!("EXP_SIZE_FD is {fd}, but the size could not be written there: {error}"));
    }
}
