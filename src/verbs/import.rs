//! import: a stream becomes a disk. Nothing of the stream is trusted: its tree is restored through the guest's root, no
//! program of it runs, and until all of it is there the disk looks like an empty one.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};

use super::restore_disk::{Restoring, Sector};
use super::unpack::full_or;
use super::work::Work;
use super::{Outcome, adopted, answer, create, import_plan, new_identity, warn};
use crate::backup::dump::Stats;
use crate::backup::{self, Source};
use crate::disk::Disk;
use crate::guest::network::Mode;
use crate::guest::{Root, Thawed, Tree, Workspace, boot, fstab};
use crate::partition_table::layout::Purpose;
use crate::plan::{DiskFacts, Plan, disk_path};
use crate::report::{self, Hint, WithHint, size};
use crate::request::{Context, DiskAddress, Instance, InstanceName};
use crate::rootdir::RootDir;
use crate::settings::{BootWish, Identity, Settings, SwapWish};
use crate::sys::signals;
use crate::tar;

/// What helps where a backup does not fit.
const LARGER_DISK: &str = "give the instance a larger disk; the backup holds more than this one";

/// Makes disk `index` of an instance from the stream on standard input.
pub fn import(
    context: &Context,
    instance: &Instance,
    address: &DiskAddress,
    index: usize,
    dry_run: bool,
) -> Result<Outcome> {
    let settings = Settings::load(context, "import")?;
    let disk = Disk::open(&disk_path(address)?)?;
    if dry_run {
        let identity = settings.import_identity;
        let plan = plan(context, instance, settings, &disk, index);
        answer(&import_plan::text(&instance.name, index, &disk, identity, plan))?;
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
    // What is no backup is refused before the disk is touched.
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("opening standard input")?;
    backup::widen(&stdin);
    let stdin = signals::Interruptible(std::fs::File::from(stdin));
    let source = backup::open(Box::new(stdin)).map_err(|error| signals::check().err().unwrap_or(error))?;
    let workspace = Workspace::enter()?;
    let new_identity = settings.import_identity == Identity::New;
    let mut fitting = |sector: &mut Sector| match new_identity {
        true => new_identity::renew(&disk, &workspace, sector, &instance.name, instance.disks.len() > 1),
        false => Ok(()),
    };
    let restoring =
        Restoring { disk: &disk, workspace: &workspace, keep_failed: false, fitting: &mut fitting };
    let make_disk = |backup| -> Result<()> {
        let plan = plan(context, instance, settings, &disk, index)?;
        create::preconditions(&plan)?;
        make_disk(&disk, &plan, index, &workspace, backup, new_identity.then_some(&instance.name))
    };
    match source {
        Source::Image(mut source) => restoring.archive(&mut source),
        Source::Raw(mut source, first) => restoring.raw(&mut source, &first),
        Source::Dump(source) => make_disk(Backup::Dump(source)),
        Source::Tree(source) => make_disk(Backup::Tar(source)),
    }
    .with_context(|| format!("importing disk {index} of {}", instance.name))?;
    report::line(&format!(
        "{:8.2} s  disk {index} of {} is imported",
        start.elapsed().as_secs_f64(),
        instance.name
    ));
    Ok(Outcome::Done)
}

/// As for a create, but for what a backup brings along, and what the run for another disk makes.
fn plan(
    context: &Context,
    instance: &Instance,
    mut settings: Settings,
    disk: &Disk,
    index: usize,
) -> Result<Plan> {
    // The network's files are in the backup; a rename gives them new NICs.
    settings.network = Mode::Manual;
    settings.customize_dir = None;
    if index > 0 {
        settings.boot = BootWish::No;
    }
    if index > 0 || !matches!(settings.swap, SwapWish::Size(_)) {
        settings.swap = SwapWish::No;
    }
    let mut instance = instance.clone();
    instance.swap = None;
    if index < instance.disks.len() {
        instance.disks.swap(0, index);
    }
    let purpose = if index == 0 { Purpose::RestoredRoot } else { Purpose::RestoredData };
    let facts = DiskFacts { size_bytes: disk.size_bytes, medium: disk.medium, purpose };
    let mut plan = Plan::new(context, &instance, &settings, facts)?;
    plan.disk_path = disk.path.clone();
    Ok(plan)
}

/// A stream that is a tree and no disk.
enum Backup {
    Dump(Box<dyn Read>),
    Tar(Box<dyn Read>),
}

/// A disk as for a new instance, with the tree of the stream; as another guest called `twin` than the one that was backed up,
/// if that is so.
fn make_disk(
    disk: &Disk,
    plan: &Plan,
    index: usize,
    workspace: &Workspace,
    source: Backup,
    twin: Option<&InstanceName>,
) -> Result<()> {
    let pieces = adopted::pieces(plan, workspace)?;
    let mut work = Work::new(disk, plan, None);
    let restored = restore(&mut work, source, pieces.as_ref(), index, workspace, twin);
    restored.map_err(|error| work.abandon(signals::check().err().unwrap_or(error)))
}

/// From a blank disk to one that holds what the stream does.
fn restore(
    work: &mut Work<'_>,
    source: Backup,
    pieces: Option<&Root>,
    index: usize,
    workspace: &Workspace,
    twin: Option<&InstanceName>,
) -> Result<()> {
    work.format(workspace, Tree::Strangers)?;
    let root = work.root()?;
    report::long_step("restoring the tree", || match source {
        Backup::Dump(mut dump) => {
            tell_losses(&backup::dump::restore(&mut dump, root.dir()?, &signals::check)?);
            Ok(())
        }
        Backup::Tar(mut tar) => {
            tar::unpack(&mut tar, root.dir()?, &signals::check)?;
            // Whoever writes it must not find us gone while he pads its end.
            std::io::copy(&mut tar, &mut std::io::sink()).map(drop).context("reading the end of the tar")
        }
    })
    .map_err(|error| {
        full_or(error, root, LARGER_DISK, Hint("the backup is damaged or no backup; export it again".into()))
    })?;
    if index == 0 {
        adapt(work, pieces)?;
        let root = RootDir::open(work.root()?.path())?;
        if let Some(name) = twin.filter(|_| root.is_dir("etc").unwrap_or(false)) {
            new_identity::renew_tree(&root, name)?;
        }
    }
    work.complete()?;
    work.finish()
}

/// What the tree says of its disk becomes what the new disk is.
fn adapt(work: &mut Work<'_>, pieces: Option<&Root>) -> Result<()> {
    let dir = RootDir::open(work.root()?.path())?;
    if !dir.is_dir("etc")? {
        report::warning("the backup holds no system, there is no /etc: it stays as it is");
        return Ok(());
    }
    let plan = work.plan;
    let thawed = Thawed::thaw(&dir, ["etc", fstab::PATH].into_iter().chain(boot::changed_paths()))?;
    adopted::prepare(work, &dir, pieces, "the backup")?;
    work.make_swap()?;
    fstab::repair(&dir, plan.filesystem, &work.volumes)?;
    thawed.freeze(&dir)
}

/// What dump(8) did not write, or this filesystem does not take.
fn tell_losses(stats: &Stats) {
    for (count, what) in [
        (stats.names_without_inode, "names had no file in the backup; it was made of a filesystem in use"),
        (stats.names_lost, "names of 255 bytes were lost by dump; their files are called # and a number"),
        (stats.inodes_without_name, "files had no name in the backup and are left out"),
        (stats.flags_not_set, "files have flags (chattr) that the new filesystem does not take"),
    ] {
        if count > 0 {
            report::warning(&format!("{count} {what}"));
        }
    }
}
