//! export: a disk becomes a stream of its used blocks. It is only read, and nothing is mounted; nothing but the stream
//! passes standard output.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};

use super::Outcome;
use crate::backup::disk_archive::{self, DiskFacts, Export, Manifest, PartitionFacts};
use crate::disk::{Disk, Medium};
use crate::filesystem::SECTOR_BYTES;
use crate::plan::disk_path;
use crate::probe::{Content, Part, Survey};
use crate::report::{self, WithHint, size};
use crate::request::{DiskAddress, Instance};
use crate::{PROGRAM, VERSION, allocation, sys};

/// Writes disk `index` to standard output; `size_fd` is where Ganeti hears how much to expect.
pub fn export(
    instance: &Instance,
    address: &DiskAddress,
    index: usize,
    size_fd: Option<i32>,
    dry_run: bool,
) -> Result<Outcome> {
    let start = Instant::now();
    if !dry_run {
        look_at_stdout()?;
    }
    let disk = Disk::open_to_read(&disk_path(address)?)?;
    let path = disk.path.display();
    report::line(&format!(
        "{PROGRAM} {VERSION}: disk {index} of {}, {path} ({}), to a backup",
        instance.name,
        size(disk.size_bytes)
    ));
    let survey = survey(&disk);
    let exporting = || format!("exporting disk {index} of {}", instance.name);
    let in_use = report::step("finding out what is in use", || {
        allocation::of_disk(&disk, &survey.parts, disk_archive::RANGES_MAX)
    })
    .with_context(exporting)?;
    let work = in_use.work;
    report::detail(&format!("{} bytes were read for it, {} records looked at", work.bytes, work.records));
    let manifest = manifest(&disk, index, &survey, &in_use);
    for (part, whole) in survey.parts.iter().zip(&in_use.whole) {
        report::line(&format!("{:>10}  {}", "", carried(part, whole.as_deref())));
    }
    let made = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64);
    let stream = Export::new(&manifest, in_use.data.extents().collect(), made)?;
    let (stream_bytes, used_bytes) = (stream.size_bytes()?, manifest.disk.used_bytes);
    report::line(&format!("{:>10}  {} in use, a backup of {}", "", size(used_bytes), size(stream_bytes)));
    if dry_run {
        return Ok(Outcome::Done);
    }
    announce(size_fd, stream_bytes);
    let sink = std::io::stdout().as_fd().try_clone_to_owned().context("opening standard output")?;
    report::long_step("writing the backup", || stream.write(&disk.file, sink.into()))
        .with_context(exporting)?;
    report::line(&format!("{:8.2} s  disk {index} is exported", start.elapsed().as_secs_f64()));
    Ok(Outcome::Done)
}

/// A backup is for a file or a program.
fn look_at_stdout() -> Result<()> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(anyhow!("standard output is a terminal, and a backup is no text")).hint("export > FILE");
    }
    // The runtime opens /dev/null where a descriptor was closed.
    let null = std::fs::metadata("/dev/null").map(|null| null.rdev()).ok();
    let sink = std::fs::File::from(stdout.as_fd().try_clone_to_owned().context("opening standard output")?);
    if sink.metadata().is_ok_and(|meta| meta.file_type().is_char_device() && Some(meta.rdev()) == null) {
        report::warning("standard output is closed or /dev/null: nobody keeps this backup");
    }
    Ok(())
}

/// A part, and how it travels where that is not by the blocks in use.
fn carried(part: &Part, whole: Option<&str>) -> String {
    let name = part.number.map_or("the bare disk".into(), |number| format!("partition {number}"));
    match (&part.content, whole) {
        (content, None) => format!("{name}: {content}"),
        (Content::Filesystem(_) | Content::Swap(_), Some(why)) => {
            format!("{name}, whole: {}; {why}", part.content)
        }
        (content, Some(_)) => format!("{name}, whole: {content}"),
    }
}

/// A disk whose table does not hold together is carried as it lies: what is wrong with it is its owner's business.
fn survey(disk: &Disk) -> Survey {
    let survey = match disk.medium {
        // It has one page cache, whoever writes it, and no loop device is going to read past that: dropping it would
        // only cost (a warm export takes twice as long).
        Medium::File => disk.survey_cached(),
        Medium::Block => disk.survey(),
    };
    survey.unwrap_or_else(|error| {
        report::warning(&format!("{}; all of the disk is carried", report::sentence(&error)));
        let (content, size_bytes) = (Content::Unknown, disk.size_bytes);
        Survey { table: None, parts: vec![Part { number: None, start_bytes: 0, size_bytes, content }] }
    })
}

fn manifest(disk: &Disk, index: usize, survey: &Survey, in_use: &allocation::DiskUse) -> Manifest {
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
        format: disk_archive::FORMAT,
        program: format!("{PROGRAM} {VERSION}"),
        disk: DiskFacts {
            index,
            size_bytes: disk.size_bytes,
            sector_bytes: SECTOR_BYTES,
            layout: survey.table.map_or("none".into(), |table| table.to_string()),
            used_bytes: in_use.data.used_bytes(),
            content: survey
                .parts
                .iter()
                .find(|part| part.number.is_none())
                .map(|part| part.content.to_string()),
            zero: in_use.zero.extents().map(|run| (run.start, run.end - run.start)).collect(),
        },
        partitions: survey.parts.iter().zip(&in_use.whole).filter_map(partition).collect(),
    }
}

/// Tells Ganeti how many bytes to expect, from which it shows progress. Nobody may be listening.
fn announce(size_fd: Option<i32>, size_bytes: u64) {
    let Some(fd) = size_fd else { return };
    if (0..=2).contains(&fd) {
        report::warning(&format!(
            "EXP_SIZE_FD is {fd}, which is for the backup and its log: no size is told"
        ));
        return;
    }
    let told =
        sys::inherited_fd(fd).and_then(|mut file| file.write_all(format!("{size_bytes}\n").as_bytes()));
    if let Err(error) = told {
        report::warning(&format!("EXP_SIZE_FD is {fd}, but the size could not be written there: {error}"));
    }
}
