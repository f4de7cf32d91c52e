//! import: a stream becomes a disk. Nothing of the stream is trusted: a tree is restored through the guest's root, none of its
//! programs runs, and until all of it is there the disk looks like an empty one.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};

use super::{Outcome, answer, warn};
use crate::backup::{self, Source};
use crate::disk::Disk;
use crate::guest::Workspace;
use crate::plan::{DiskFacts, ImportPlan, Inputs, disk_path};
use crate::report::{self, WithHint, size};
use crate::request::{Context, DiskAddress, Instance};
use crate::restore::tree::{self, TreeBackup};
use crate::restore::{DiskRestore, Seen, reidentify};
use crate::settings::Settings;
use crate::sys::signals;

/// Makes disk `index` of an instance from the stream on standard input.
pub fn import(
    context: &Context,
    instance: &Instance,
    address: &DiskAddress,
    index: usize,
    dry_run: bool,
) -> Result<Outcome> {
    let settings = Settings::load(context, "import")?;
    let inputs = Inputs { context, instance, settings: &settings };
    let disk = Disk::open(&disk_path(address)?)?;
    let plan = ImportPlan::new(inputs, (&disk.path, DiskFacts::of(&disk)), index);
    if dry_run {
        answer(&plan.to_string())?;
        return Ok(Outcome::Done);
    }
    if std::io::stdin().is_terminal() {
        return Err(anyhow!("standard input is a terminal, and no backup comes from there"))
            .hint("import < FILE");
    }
    let start = Instant::now();
    let path = disk.path.display();
    report::line(&format!(
        "{} {}: disk {index} of {}, {path} ({}), from a backup",
        crate::PROGRAM,
        crate::VERSION,
        instance.name,
        size(disk.size_bytes)
    ));
    warn(&settings);
    // What is not a backup is refused before the disk is touched.
    let source = open_stream().map_err(|error| signals::check().err().unwrap_or(error))?;
    let workspace = Workspace::enter()?;
    on_disk(plan, &disk, &workspace, source)
        .with_context(|| format!("importing disk {index} of {}", instance.name))?;
    let seconds = start.elapsed().as_secs_f64();
    report::line(&format!("{seconds:8.2} s  disk {index} of {} is imported", instance.name));
    Ok(Outcome::Done)
}

fn open_stream() -> Result<Source> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("opening standard input")?;
    backup::widen(&stdin);
    backup::open(Box::new(signals::Interruptible(std::fs::File::from(stdin))))
}

/// What the stream holds decides what the disk becomes.
fn on_disk(plan: ImportPlan, disk: &Disk, workspace: &Workspace, source: Source) -> Result<()> {
    let mut setup = |seen: Seen<'_>| match plan.new_identity {
        true => reidentify::renew(disk, workspace, seen, &plan.name, plan.many_disks),
        false => Ok(()),
    };
    let restore = DiskRestore { disk, workspace, on_failure: plan.on_failure, setup: &mut setup };
    let backup = match source {
        Source::Image(mut source) => return restore.archive(&mut source),
        Source::Raw(mut source, first) => return restore.raw(&mut source, &first),
        Source::Dump(source) => TreeBackup::Dump(source),
        Source::Tree(source) => TreeBackup::Tar(source),
    };
    tree::restore(plan, disk, workspace, backup)
}
