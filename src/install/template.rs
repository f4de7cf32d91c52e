//! A template: the root filesystem of a plan, made from the base tar once, and kept in the cache for the creates that come. It is
//! an advantage and never needed: whatever goes wrong with it costs time, and the tar is unpacked.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use super::base_tree::free_bytes;
use super::unpack::unpack;
use crate::allocation;
use crate::allocation::ext4::identity;
use crate::cache::{BaseTar, BlockRuns, Exposed, NewTemplate, Origin, Store, Template, TemplateSpec};
use crate::command::Tool;
use crate::disk::{Disk, Format, LoopDevice, make_filesystem, maker_of_ext};
use crate::filesystem::{Filesystem, KernelVersion};
use crate::guest::boot::LoaderFiles;
use crate::guest::{Trust, Workspace};
use crate::plan::{BasePlan, Plan};
use crate::probe::Content as Found;
use crate::report::{self, size};
use crate::sys::{signals, tmpfile};

/// Below it mke2fs makes blocks of 1 KiB and few of anything: such a disk is soon unpacked.
const SIZE_BYTES_MIN: u64 = 512 << 20;
/// Of direct I/O; a filesystem is whole blocks, and what is left of its partition is not its own.
const BLOCK_BYTES: u64 = 4096;
/// A tree of a gigabyte lies in some hundred runs.
const RUNS_MAX: usize = 1 << 16;
/// What making a template leaves of the cache's disk, besides what it takes twice: scratch and template.
const ROOM_BYTES: u64 = 256 << 20;

/// The template of a plan: that which is there, or a new one. None: the tar is to be unpacked.
pub fn ready(plan: &Plan, base: &BaseTar, workspace: &Workspace) -> Result<Option<Template>> {
    wanted(plan, base, workspace).or_else(|error| {
        signals::check()?;
        if report::cause::<Exposed>(&error).is_some() {
            return Err(error);
        }
        report::warning(&format!("no template: {}; the tree is unpacked", report::sentence(&error)));
        Ok(None)
    })
}

/// The same for whoever asks for nothing else: an error says why it could not be made.
pub fn wanted(plan: &Plan, base: &BaseTar, workspace: &Workspace) -> Result<Option<Template>> {
    let Some(origin) = base.origin.as_ref().filter(|_| plan.base.templates > 0) else { return Ok(None) };
    let Some(spec) = spec_of(plan) else { return Ok(None) };
    found_or_made(&plan.base, base, origin, &spec, workspace)
}

/// Makes templates of those specs, the last used first, where they are not there: of a tree that was made anew, which serves
/// without them.
pub fn make_again(
    plan: &BasePlan,
    base: &BaseTar,
    specs: &[TemplateSpec],
    workspace: &Workspace,
) -> Result<()> {
    let Some(origin) = base.origin.as_ref() else { return Ok(()) };
    // What is made last counts as used last.
    for spec in specs.iter().take(plan.templates).rev() {
        // By the tool that is there today.
        let spec = TemplateSpec { maker: maker_of_ext(), ..spec.clone() };
        if let Err(error) = found_or_made(plan, base, origin, &spec, workspace) {
            signals::check()?;
            let what = format!("{} of {}", spec.filesystem, size(spec.size_bytes));
            report::warning(&format!("no template, {what}: {}", report::sentence(&error)));
        }
    }
    Ok(())
}

/// What the root of a plan is to be; None where no copy of it would do.
fn spec_of(plan: &Plan) -> Option<TemplateSpec> {
    let size_bytes = plan.layout.root_extent().1 / BLOCK_BYTES * BLOCK_BYTES;
    (plan.filesystem.is_ext() && size_bytes >= SIZE_BYTES_MIN).then(|| TemplateSpec {
        filesystem: plan.filesystem.name().into(),
        size_bytes,
        label: plan.layout.unfinished_label().into(),
        oldest_kernel: plan.oldest_kernel.map(|KernelVersion(major, minor)| (major, minor)),
        maker: maker_of_ext(),
    })
}

fn found_or_made(
    plan: &BasePlan,
    base: &BaseTar,
    origin: &Origin,
    spec: &TemplateSpec,
    workspace: &Workspace,
) -> Result<Option<Template>> {
    let store = Store::open(&plan.cache_dir, plan.judgement)?;
    if let Some(template) = store.template(origin, spec)? {
        return Ok(Some(template));
    }
    if !plan.generate_cache {
        return Ok(None);
    }
    let _lock = store.lock_templates(|holder| {
        report::line(&format!("{:>10}  waiting for {holder}, which makes a template of the tree", "..."));
    })?;
    // Whoever had the lock may have made just this one.
    if let Some(template) = store.template(origin, spec)? {
        return Ok(Some(template));
    }
    refuse_full(&store.dir, base)?;
    let text = format!("making a template: {} of {}", spec.filesystem, size(spec.size_bytes));
    let template = report::long_step(&text, || made(&store, base, origin, spec, workspace))?;
    store.keep_templates(plan.templates)?;
    Ok(Some(template))
}

fn refuse_full(dir: &Path, base: &BaseTar) -> Result<()> {
    let (free, needed) = (free_bytes(dir)?, base.needed_bytes() * 2 + ROOM_BYTES);
    ensure!(
        free >= needed,
        "{} has {} free, and making one takes {}",
        dir.display(),
        size(free),
        size(needed)
    );
    Ok(())
}

/// Makes one in a sparse file without a name: whatever happens, nothing of it is left.
fn made(
    store: &Store,
    base: &BaseTar,
    origin: &Origin,
    spec: &TemplateSpec,
    workspace: &Workspace,
) -> Result<Template> {
    let scratch = tmpfile::create(&store.dir)?;
    scratch.set_len(spec.size_bytes).context("making the file for a template")?;
    base.verify()?;
    let filesystem = Filesystem::named(&spec.filesystem).context("a filesystem that is known")?;
    let device = LoopDevice::attach_file(&scratch, false).context("attaching the file for a template")?;
    let oldest_kernel = spec.oldest_kernel.map(|(major, minor)| KernelVersion(major, minor));
    let format = Format { label: &spec.label, oldest_kernel, ..Format::new(filesystem) };
    make_filesystem(&device.path(), &format)?;
    // Its inode tables stay as mke2fs left them: each guest's kernel finishes them, as after any mke2fs.
    let trusted = Trust::Trusted { options: "noinit_itable,nobarrier" };
    let options = if filesystem == Filesystem::Ext2 { Trust::Trusted { options: "" } } else { trusted };
    let mut root = workspace.mount(&device.path(), filesystem, "template", options)?;
    unpack(base, &root)?;
    let pieces = LoaderFiles::of(root.dir()?)?;
    root.finish()?;
    // All copies of it are as good as this one; and tune2fs wants to know that it was checked.
    Tool::new("e2fsck").args(["-f", "-p"]).arg(device.path()).quiet().run()?;
    device.finish()?;
    let runs = runs_of(&scratch, store, spec)?;
    let files = pieces.into_files();
    store.publish_template(NewTemplate { origin, spec, runs, filesystem: &scratch, files })
}

/// What of the filesystem in `file` is to be copied; the log of its journal, which means nothing any more, becomes zeros.
fn runs_of(file: &File, store: &Store, spec: &TemplateSpec) -> Result<BlockRuns> {
    let identity = identity::identity(file, spec.size_bytes)?;
    for run in &identity.log {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file.as_fd(), hole, run.start, run.end - run.start).context("emptying a journal")?;
    }
    let disk = Disk::of_new_file(file.try_clone().context("opening a new template")?, &store.dir)?;
    let parts = disk.survey_cached()?.parts;
    let is_it = |found: &Found| matches!(found, Found::Filesystem(volume) if volume.filesystem.is_ext());
    ensure!(parts.len() == 1 && is_it(&parts[0].content), "what was made is not found again");
    let in_use = allocation::of_disk(&disk, &parts, RUNS_MAX)?;
    if let Some(Some(reason)) = in_use.whole.first() {
        anyhow::bail!("what it uses is not known: {reason}");
    }
    Ok(BlockRuns {
        data: in_use.data.extents().collect(),
        zero: in_use.zero.extents().collect(),
        superblocks: identity.superblocks,
        journal: identity.journal,
        uuid_stands_alone: identity.is_all,
    })
}
