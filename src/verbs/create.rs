//! create: a request becomes a disk.

use anyhow::{Context as _, Result};

use super::{Outcome, answer, warn};
use crate::disk::{self, Disk};
use crate::guest::Workspace;
use crate::install::target_disk::preconditions;
use crate::install::tree;
use crate::plan::{DiskFacts, ImagePlan, Plan, TreeSource, disk_path};
use crate::report::{self, size};
use crate::request::{Context, Instance};
use crate::restore::disk_image;
use crate::restore::source_file::{self, Opened};
use crate::settings::{Settings, Source};

/// Installs an instance on its first disk.
pub fn create(context: &Context, instance: &Instance, dry_run: bool) -> Result<Outcome> {
    let settings = Settings::load(context, "create")?;
    let address = &instance.disks.first().context("an instance without disks")?.address;
    let disk = Disk::open(&disk_path(address)?)?;
    if dry_run {
        return show(context, instance, &settings, DiskFacts::of(&disk));
    }
    let workspace = Workspace::enter()?;
    on_disk(context, instance, &settings, &disk, &workspace)?;
    Ok(Outcome::Done)
}

/// The dry run: what a create would do, or why it would not.
pub fn show(
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    facts: DiskFacts,
) -> Result<Outcome> {
    let tree = |source| -> Result<String> {
        let plan = Plan::for_create(context, instance, settings, facts, source)?;
        preconditions(&plan)?;
        Ok(plan.to_string())
    };
    let text = match &settings.source {
        Source::Empty => {
            format!("instance    {}\nsource      empty: the disk is wiped, and that is all\n", instance.name)
        }
        Source::Bootstrap => tree(TreeSource::Recipe)?,
        Source::File(sealed) => match source_file::open(sealed)? {
            Opened::Tree(file) => tree(TreeSource::File(file.name))?,
            Opened::Image(image) => {
                ImagePlan::new(context, instance, settings, facts, &image.name)?.to_string()
            }
        },
    };
    answer(&text)?;
    Ok(Outcome::Done)
}

/// The whole create, on a disk that is ours.
pub fn on_disk(
    context: &Context,
    instance: &Instance,
    settings: &Settings,
    disk: &Disk,
    workspace: &Workspace,
) -> Result<()> {
    let start = std::time::Instant::now();
    introduce(instance, settings, disk);
    let facts = DiskFacts::of(disk);
    let plan = |source| Plan::for_create(context, instance, settings, facts, source);
    match &settings.source {
        Source::Bootstrap => tree::install(&plan(TreeSource::Recipe)?, disk, workspace, None)?,
        Source::Empty => empty(disk)?,
        Source::File(sealed) => match source_file::open(sealed)? {
            Opened::Tree(file) => {
                let plan = plan(TreeSource::File(file.name.clone()))?;
                tree::install(&plan, disk, workspace, Some(file))?;
            }
            Opened::Image(image) => {
                let plan = ImagePlan::new(context, instance, settings, facts, &image.name)?;
                disk_image::install(&plan, disk, workspace, &image)?;
            }
        },
    }
    let (seconds, name) = (start.elapsed().as_secs_f64(), &instance.name);
    report::line(&match settings.source {
        Source::Empty => {
            format!("{seconds:8.2} s  the disk of {name} is empty: nothing was installed, no hook ran")
        }
        Source::Bootstrap | Source::File(_) => format!("{seconds:8.2} s  {name} is installed"),
    });
    Ok(())
}

fn introduce(instance: &Instance, settings: &Settings, disk: &Disk) {
    let layers = &settings.layers;
    let what = match &settings.source {
        Source::Bootstrap => format!(
            "{} {}, {} on {}",
            settings.suite, settings.arch, settings.filesystem, settings.partition_style
        ),
        Source::Empty => "empty".into(),
        Source::File(file) => format!("from {}", file.path.display()),
    };
    report::line(&format!(
        "{} {}: {} on {} ({}), {what}",
        crate::PROGRAM,
        crate::VERSION,
        instance.name,
        disk.path.display(),
        size(disk.size_bytes),
    ));
    report::line(&format!(
        "{:>10}  defaults = \"{}\": {}",
        "settings", layers.defaults, layers.defaults_reason
    ));
    warn(settings);
}

/// Nothing but a wiped disk, for a guest that is installed otherwise.
fn empty(disk: &Disk) -> Result<()> {
    report::step("wiping the disk", || {
        // What an earlier table names would be found again by the next one that has a partition there.
        let parts = disk.survey().map(|survey| survey.parts).unwrap_or_default();
        for part in parts {
            disk::wipe_root(disk, part.start_bytes, part.size_bytes)?;
        }
        disk::wipe_ends(disk)
    })
}
