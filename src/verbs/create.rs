//! create: a request becomes a disk.

use anyhow::{Context as _, Result};

use super::{Outcome, answer, warn};
use crate::cache::BaseTar;
use crate::disk::{self, Disk};
use crate::guest::Workspace;
use crate::install::target_disk::preconditions;
use crate::install::tree;
use crate::plan::{DiskFacts, ImagePlan, Inputs, Plan, TreeSource, disk_path};
use crate::report::{self, size};
use crate::request::{Context, Instance};
use crate::restore::disk_image;
use crate::restore::source_file::{self, DiskImage, Opened};
use crate::settings::{Settings, Source};

/// Installs an instance on its first disk.
pub fn create(context: &Context, instance: &Instance, dry_run: bool) -> Result<Outcome> {
    let settings = Settings::load(context, "create")?;
    let inputs = Inputs { context, instance, settings: &settings };
    let address = &instance.disks.first().context("an instance without disks")?.address;
    let disk = Disk::open(&disk_path(address)?)?;
    if dry_run {
        warn(&settings);
        return show(inputs, DiskFacts::of(&disk));
    }
    let workspace = Workspace::enter()?;
    on_disk(inputs, &disk, &workspace)?;
    Ok(Outcome::Done)
}

/// What the new disk is made of, found and checked.
enum Contents {
    /// The tree that the settings describe.
    Recipe,
    /// Nothing: the guest is installed otherwise.
    Empty,
    Tree(BaseTar),
    Image(DiskImage),
}

impl Contents {
    fn open(settings: &Settings) -> Result<Contents> {
        Ok(match &settings.source {
            Source::Bootstrap => Contents::Recipe,
            Source::Empty => Contents::Empty,
            Source::File(sealed) => match source_file::open(sealed, settings.admin_files())? {
                Opened::Tree(file) => Contents::Tree(file),
                Opened::Image(image) => Contents::Image(image),
            },
        })
    }
}

/// The dry run: what a create would do, or why it would not.
pub fn show(inputs: Inputs<'_>, facts: DiskFacts) -> Result<Outcome> {
    let tree = |source| -> Result<String> {
        let plan = Plan::for_create(inputs, facts, source)?;
        preconditions(&plan)?;
        Ok(plan.to_string())
    };
    let text = match Contents::open(inputs.settings)? {
        Contents::Recipe => tree(TreeSource::Recipe)?,
        Contents::Tree(file) => tree(TreeSource::File(file.name))?,
        Contents::Image(image) => ImagePlan::new(inputs, facts, &image.name)?.to_string(),
        Contents::Empty => {
            let name = &inputs.instance.name;
            format!("instance    {name}\nsource      empty: the disk is wiped, and that is all\n")
        }
    };
    answer(&text)?;
    Ok(Outcome::Done)
}

/// The whole create, on a disk that is ours.
pub fn on_disk(inputs: Inputs<'_>, disk: &Disk, workspace: &Workspace) -> Result<()> {
    let start = std::time::Instant::now();
    introduce(inputs, disk);
    let facts = DiskFacts::of(disk);
    let name = &inputs.instance.name;
    let mut done = format!("{name} is installed");
    match Contents::open(inputs.settings)? {
        Contents::Recipe => {
            let plan = Plan::for_create(inputs, facts, TreeSource::Recipe)?;
            tree::install(&plan, disk, workspace, None)?;
        }
        Contents::Tree(file) => {
            let plan = Plan::for_create(inputs, facts, TreeSource::File(file.name.clone()))?;
            tree::install(&plan, disk, workspace, Some(file))?;
        }
        Contents::Image(image) => {
            let plan = ImagePlan::new(inputs, facts, &image.name)?;
            disk_image::install(&plan, disk, workspace, &image)?;
        }
        Contents::Empty => {
            empty(disk)?;
            done = format!("the disk of {name} is empty: nothing was installed, no hook ran");
        }
    }
    report::line(&format!("{:8.2} s  {done}", start.elapsed().as_secs_f64()));
    Ok(())
}

fn introduce(inputs: Inputs<'_>, disk: &Disk) {
    let Inputs { instance, settings, .. } = inputs;
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
