//! A base tar, from the cache or bootstrapped: once, whoever asks first.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bootstrap::{self, Downloads};
use crate::cache::{BaseTar, Exposed, Kind, NewBase, Signatures, Store, StoreLock};
use crate::disk::{Format, LoopDevice, make_filesystem};
use crate::filesystem::Filesystem;
use crate::guest::{Trust, Workspace, boot};
use crate::plan::BasePlan;
use crate::report::{self, WithHint, size};
use crate::sys::signals;
use crate::sys::tmpfile;
use crate::tar;

/// What helps where a tree does not fit.
pub const LARGER_DISK: &str = "give the instance a larger disk, or set fewer extra_pkgs";

/// The file that a tree is bootstrapped in is sparse; this is only what it may grow to.
const SCRATCH_BYTES: u64 = 64 << 30;
/// A bootstrap takes about half of this, and its tar the other half.
const ROOM_BYTES: u64 = 1 << 30;

/// Whether what the cache has is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// What has not expired is used.
    Cached,
    /// What has not expired is used if it is what its manifest says.
    Checked,
    /// It is made anew.
    Anew,
}

/// The tar to make guests from.
pub fn ready(plan: &BasePlan, workspace: &Workspace, freshness: Freshness) -> Result<BaseTar> {
    let store = Store::open(&plan.cache_dir, plan.judgement)?;
    if let Some(base) = cached(plan, &store, freshness)? {
        return Ok(base);
    }
    if !plan.generate_cache {
        return made(plan, workspace, &scratch_dir(&store), None);
    }
    store.make_dir()?;
    tmpfile::create(&store.dir)
        .map(drop)
        .hint(format!("{} must be writable, or set generate_cache to false", store.dir.display()))?;
    let lock = store.lock(|holder| {
        report::line(&format!("{:>10}  waiting for {holder}, which makes a tree for the cache", "..."));
    })?;
    if let Some(base) = cached(plan, &store, freshness)? {
        return Ok(base);
    }
    let dir = store.dir.clone();
    made(plan, workspace, &dir, Some((store, lock)))
}

fn cached(plan: &BasePlan, store: &Store, freshness: Freshness) -> Result<Option<BaseTar>> {
    if freshness == Freshness::Anew {
        return Ok(None);
    }
    let Some(entry) = store.find(&plan.recipe, plan.clean_days)? else { return Ok(None) };
    let age = rounded(entry.made.elapsed().unwrap_or_default());
    let by = if entry.kind == Kind::Handmade { " (made by hand, or by the predecessor)" } else { "" };
    let base = match entry.open() {
        Ok(base) => base,
        Err(error) if report::cause::<Exposed>(&error).is_some() => return Err(error),
        // A prune may be faster than we are: then there is no cache, and that is all.
        Err(_) => return Ok(None),
    };
    if freshness == Freshness::Checked {
        match base.verify() {
            // What somebody made by hand is not replaced behind his back.
            Err(error) if entry.kind == Kind::Handmade => return Err(error),
            Err(error) => {
                signals::check()?;
                report::warning(&format!("{}; it is made anew", report::sentence(&error)));
                return Ok(None);
            }
            Ok(()) => {}
        }
    }
    report::line(&format!("{:>10}  using {}{by}, made {age} ago", "cache", base.name));
    warn_of(entry.signatures());
    Ok(Some(base))
}

/// Whoever installs from a tree that nobody vouches for is told so each time.
fn warn_of(signatures: Signatures) {
    match signatures {
        Signatures::Checked => {}
        Signatures::NotChecked => report::warning(
            "nobody signed all packages of this tree: allow_unsigned was set when it was made",
        ),
        Signatures::Unknown => report::warning(
            "an earlier version made this tree, and did not note whether its packages were signed; `cache refresh` makes it anew",
        ),
    }
}

/// `3 days`: the largest unit says enough.
fn rounded(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Without a cache the tree needs a place all the same.
fn scratch_dir(store: &Store) -> std::path::PathBuf {
    let writable = |dir: &Path| {
        rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok() && tmpfile::create(dir).is_ok()
    };
    if writable(&store.dir) { store.dir.clone() } else { "/var/tmp".into() }
}

/// Bootstraps in a filesystem of its own in a file without a name: whatever happens, nothing of it is left.
fn made(
    plan: &BasePlan,
    workspace: &Workspace,
    dir: &Path,
    publish: Option<(Store, StoreLock)>,
) -> Result<BaseTar> {
    // What is missing on this node is told before anything is begun.
    plan.recipe.program()?;
    refuse_full(dir)?;
    let file = tmpfile::create(dir)?;
    file.set_len(SCRATCH_BYTES).context("making the file to bootstrap in")?;
    let device = LoopDevice::attach_file(&file, false).context("attaching the file to bootstrap in")?;
    // No journal, no reserve: it lives for a minute.
    let options = &["-O", "^has_journal", "-m", "0", "-N", "400000", "-E", "nodiscard,lazy_itable_init=1"];
    // Its UUID is what a configuration in the tree names, and is replaced in each guest.
    let format = Format { uuid: boot::PLACEHOLDER, options, ..Format::new(Filesystem::Ext4) };
    make_filesystem(&device.path(), &format)?;
    // Nobody needs it flushed: what it becomes is flushed before it gets a name.
    let trusted = Trust::Trusted { options: "noinit_itable,nobarrier" };
    let scratch = workspace.mount(&device.path(), Filesystem::Ext4, "bootstrap", trusted)?;
    // mke2fs made it for this filesystem, not for the guest's.
    std::fs::remove_dir(scratch.path().join("lost+found")).context("emptying the new filesystem")?;
    // Two bootstraps at once would be in each other's way: who publishes has the lock.
    let shared = publish.as_ref().filter(|_| plan.recipe.is_debians());
    let downloads = shared.map(|(store, _)| {
        let recipe = &plan.recipe;
        Downloads::new(store.packages_dir().join(format!("{}-{}", recipe.suite, recipe.arch)))
    });
    let made = bootstrap::make(&plan.recipe, scratch.path(), &device.path(), downloads.as_ref())
        .map_err(|error| with_full_disk(error, dir))?;
    // Below the filesystem lies a file on another: what that could not take shows only now.
    scratch.flush().context("writing the bootstrapped tree").map_err(|error| with_full_disk(error, dir))?;

    let mut new = NewBase::begin(dir, plan.compression)?;
    report::step("packing the tree", || {
        let mut skipped = |what: &Path, why: &str| {
            report::warning(&format!(
                "{} is left out: {why}",
                report::Foreign(what.as_os_str().as_encoded_bytes())
            ))
        };
        tar::pack(scratch.dir()?, &mut new, &mut skipped, &signals::check)
            .map_err(|error| with_full_disk(error, dir))
    })?;
    if !made.signed {
        warn_of(Signatures::NotChecked);
    }
    let finished = new.finish(&plan.recipe, made, scratch.used_bytes()?)?;
    let published = publish.is_some();
    if let Some((store, lock)) = publish {
        report::step("publishing it in the cache", || {
            finished.publish(&store, &lock).map_err(|error| with_full_disk(error, dir))
        })?;
    }
    Ok(finished.into_base(published))
}

/// What an unprivileged user could still write there.
pub fn free_bytes(dir: &Path) -> Result<u64> {
    let fs =
        rustix::fs::statvfs(dir).with_context(|| format!("asking for the space in {}", dir.display()))?;
    Ok(fs.f_bavail * fs.f_frsize)
}

fn refuse_full(dir: &Path) -> Result<()> {
    let free = free_bytes(dir)?;
    if free < ROOM_BYTES {
        let refusal =
            format!("{} has {} free; a bootstrap needs {}", dir.display(), size(free), size(ROOM_BYTES));
        return Err(anyhow::anyhow!(refusal))
            .hint("`cache prune` removes what has expired; or make room there");
    }
    Ok(())
}

/// A full disk below the scratch file shows as errors of input and output: say what it was.
fn with_full_disk(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    match free_bytes(dir) {
        // What a tool said of it stands in the log above; its own hint would lead astray.
        Ok(free) if free < 16 << 20 && report::cause::<signals::Interrupted>(&error).is_none() => {
            let full = anyhow::anyhow!("the filesystem of {} is full", dir.display());
            report::with_hint(full, "`cache prune` removes what has expired; or make room there")
        }
        _ => error,
    }
}

/// Refuses a tree that cannot fit, before anything is written.
pub fn refuse_misfit(base: &BaseTar, root_bytes: u64) -> Result<()> {
    // A filesystem keeps a part for itself: inode tables, journal, 5% for root.
    let room = root_bytes / 100 * 90;
    if base.needed_bytes() > room {
        let refusal = format!(
            "the tree needs {}, but the root filesystem of {} has room for {} only",
            size(base.needed_bytes()),
            size(root_bytes),
            size(room)
        );
        return Err(anyhow::anyhow!(refusal)).hint(LARGER_DISK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_by_its_largest_unit() {
        let table =
            [(0, "0 seconds"), (61, "1 minute"), (7200, "2 hours"), (100_000, "1 day"), (900_000, "10 days")];
        for (seconds, text) in table {
            assert_eq!(rounded(Duration::from_secs(seconds)), text);
        }
    }
}
