//! The cache: a base tar per recipe, with a manifest beside it. The tar is the cache; all else is derived.
//!
//! `base-SUITE-ARCH-KEY.tar[.gz]` and `base-SUITE-ARCH-KEY.toml` are ours. `cache-SUITE-ARCH.tar` is made by hand
//! or by the predecessor: it is used as it ever was, and never written. A file without its manifest, or a
//! manifest without its file, is nothing: a publication that was cut short.

mod base_tar;
mod manifest;
mod publish;
mod template;

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::admin_file::AdminFiles;
use crate::bootstrap::Recipe;
use crate::report::{self, Foreign, WithHint};
use crate::sys::lock;

pub use base_tar::{BaseTar, Origin, digest_of};
pub use manifest::{CHECKED, Manifest, NOT_CHECKED};
pub use publish::{Compression, NewBase};
pub use template::{BlockRuns, Chunk, NewTemplate, PIECE_BYTES, Template, TemplateEntry, TemplateSpec};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How a cache file came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Made by this program.
    Base,
    /// Made by hand or by the predecessor.
    Handmade,
}

/// A cache file that is there.
#[derive(Debug, Clone)]
pub struct Entry {
    pub kind: Kind,
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Made or, without a manifest, last changed.
    pub made: SystemTime,
    pub suite: String,
    pub arch: String,
    /// None for a handmade file that nobody sealed.
    pub manifest: Option<Manifest>,
    /// A handmade file that its owner may not write never expires: an old promise.
    pub owner_writable: bool,
    judgement: Judgement,
}

/// What becomes of a file of the cache that others than root could have written. One that everybody could have written is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is refused.
    Strict,
    /// It is used, with a warning.
    Lenient,
}

/// A file of the cache that others could have written: what is wrong, and the command that mends it.
#[derive(Debug)]
pub struct Exposed(String);

impl std::fmt::Display for Exposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Exposed {}

impl Judgement {
    /// By the settings: see [`crate::settings`].
    pub fn strict_if(strict: bool) -> Judgement {
        if strict { Judgement::Strict } else { Judgement::Lenient }
    }

    /// Refuses a file that others could have written ([`Exposed`]), or warns. One that is not there is none.
    fn of(self, path: &Path) -> Result<()> {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let mut files = AdminFiles::new(self == Judgement::Strict);
        let opened = files.open(path);
        files.tolerated().iter().for_each(|fault| report::warning(&Foreign(fault.as_bytes()).to_string()));
        let fault = opened.err().map(|fault| Exposed(Foreign(fault.as_bytes()).to_string()));
        fault
            .map_or(Ok(()), Err)
            .hint("a file of the cache becomes the files of guests: it is root's alone, or it goes")
    }
}

impl Entry {
    /// Whether it has outlived CLEAN_CACHE.
    pub fn expired(&self, clean_days: Option<u32>) -> bool {
        let sealed = self.manifest.as_ref().is_some_and(|manifest| manifest.sealed);
        let kept = sealed || (self.kind == Kind::Handmade && !self.owner_writable);
        let age = self.made.elapsed().unwrap_or_default();
        !kept && clean_days.is_some_and(|days| age.as_secs() / DAY.as_secs() > u64::from(days))
    }

    /// The file's name without its directory.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What templates of it say that they are made from.
    fn origin(&self, meta: &std::fs::Metadata) -> Origin {
        let manifest = self.manifest.as_ref();
        Origin {
            suite: self.suite.clone(),
            arch: self.arch.clone(),
            kernel: manifest.map(|manifest| manifest.boot.clone()).unwrap_or_default(),
            file: self.name(),
            digest: manifest.map(|manifest| manifest.digest.clone()).unwrap_or_default(),
            size_bytes: meta.len(),
            // Where no digest tells two files apart, the time that cp -p and rsync give does not either.
            modified_ns: if manifest.is_some() { modified_ns(meta) } else { changed_ns(meta) },
        }
    }

    /// Opens it for reading; it stays readable whatever a prune or refresh does meanwhile. An error is [`Exposed`] where others
    /// could have written it or its manifest.
    pub fn open(&self) -> Result<BaseTar> {
        let shown = shown(&self.path);
        self.judgement.of(&self.path)?;
        self.judgement.of(&manifest_path(&self.path))?;
        let file = File::open(&self.path).with_context(|| format!("opening the cache file {shown}"))?;
        let meta = file.metadata()?;
        let origin = self.origin(&meta);
        Ok(BaseTar {
            name: shown.to_string(),
            file,
            size_bytes: meta.len(),
            origin: Some(origin),
            by_hand: self.kind == Kind::Handmade,
            digest: self.manifest.as_ref().map(|manifest| manifest.digest.clone()),
            unpacked_bytes: self.manifest.as_ref().and_then(|manifest| manifest.unpacked_bytes),
        })
    }
}

/// The directory of the cache.
#[derive(Debug, Clone)]
pub struct Store {
    pub dir: PathBuf,
    judgement: Judgement,
}

/// The exclusive right to change what is in the cache: the lock of a file that only root can open. Ends with the process, however
/// it ends; the file stays.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

/// The name of that file. Whoever can open a file can lock it, so a directory that others may read is no lock.
const LOCK: &str = ".lock";
/// The same, for those who make templates.
const TEMPLATES_LOCK: &str = ".templates.lock";

/// `base-trixie-amd64-0123456789abcdef`
pub fn stem(recipe: &Recipe) -> String {
    let digest = format!("{:x}", Sha256::digest(recipe.cache_key()));
    let suite = recipe.suite.replace('/', "_");
    format!("base-{suite}-{}-{}", recipe.arch, &digest[..16])
}

/// What is known of the signatures of a tree's packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    /// All were checked, or the administrator vouches for the tree.
    Checked,
    /// Some were not: the administrator allowed that.
    NotChecked,
    /// An earlier version made it, and did not say.
    Unknown,
}

impl Entry {
    /// What is known of its packages' signatures. A tree that somebody made by hand, or sealed, is his own business.
    pub fn signatures(&self) -> Signatures {
        let manifest = self.manifest.as_ref().filter(|manifest| !manifest.sealed);
        match manifest.filter(|_| self.kind == Kind::Base).map(|manifest| manifest.signatures.as_str()) {
            None | Some(CHECKED) => Signatures::Checked,
            Some(NOT_CHECKED) => Signatures::NotChecked,
            Some(_) => Signatures::Unknown,
        }
    }
}

impl Store {
    /// The store in `dir`, which need not exist yet. Write is taken from others before anything in it is looked at.
    pub fn open(dir: &Path, judgement: Judgement) -> Result<Store> {
        let store = Store { dir: dir.to_owned(), judgement };
        store.take_write_from_others()?;
        Ok(store)
    }

    /// What a recipe is made from, if it is there and has not expired. A file made by hand comes first: whoever
    /// put it there wants it used.
    pub fn find(&self, recipe: &Recipe, clean_days: Option<u32>) -> Result<Option<Entry>> {
        let handmade = format!("cache-{}-{}.tar", recipe.suite, recipe.arch);
        let candidates = [self.entry(&handmade)?, self.entry_of(recipe)?];
        Ok(candidates.into_iter().flatten().find(|entry| !entry.expired(clean_days)))
    }

    /// Where packages lie that were fetched for bootstraps, by release.
    pub fn packages_dir(&self) -> PathBuf {
        self.dir.join("packages")
    }

    /// Whether one of ours is there for a recipe, expired or not.
    pub fn has(&self, recipe: &Recipe) -> Result<bool> {
        Ok(self.entry_of(recipe)?.is_some())
    }

    /// The entry of ours that was made of a recipe. A name has a part of the recipe's digest only: where the manifest has the
    /// whole recipe, it is compared. Earlier versions wrote none.
    fn entry_of(&self, recipe: &Recipe) -> Result<Option<Entry>> {
        let entry = self.entry(&format!("{}.toml", stem(recipe)))?;
        let is_its = |entry: &Entry| {
            let made_of = entry.manifest.as_ref().map_or("", |manifest| &manifest.recipe);
            made_of.is_empty() || made_of == recipe.cache_key()
        };
        Ok(entry.filter(is_its))
    }

    /// Every cache file, by name.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for name in self.names()? {
            if is_handmade(&name) || (name.starts_with("base-") && name.ends_with(".toml")) {
                entries.extend(self.entry(&name)?);
            }
        }
        Ok(entries)
    }

    /// Files of ours that belong to no entry: publications cut short, and files that were replaced. Call with the lock
    /// held: what is being published looks like one.
    pub fn orphans(&self) -> Result<Vec<PathBuf>> {
        let entries = self.entries()?;
        let sealed_without_file = |name: &String| {
            let tar = name.strip_suffix(".toml").map(|stem| self.dir.join(format!("{stem}.tar")));
            name.starts_with("cache-") && tar.is_some_and(|tar| !tar.exists())
        };
        let known = |name: &String| {
            if sealed_without_file(name) {
                return false;
            }
            let used = entries.iter().any(|entry| {
                entry.name() == *name
                    || Some(name.as_str()) == manifest_path(&entry.path).file_name().and_then(|n| n.to_str())
            });
            used || !name.starts_with("base-")
        };
        Ok(self.names()?.into_iter().filter(|name| !known(name)).map(|name| self.dir.join(name)).collect())
    }

    /// Waits for the right to change what is in the cache; says for whom it waits. The directory must exist.
    pub fn lock(&self, waiting: impl FnMut(&str)) -> Result<StoreLock> {
        self.lock_file(LOCK, waiting)
    }

    /// Waits for the right to make templates, which goes on while another tree is bootstrapped.
    pub fn lock_templates(&self, waiting: impl FnMut(&str)) -> Result<StoreLock> {
        self.lock_file(TEMPLATES_LOCK, waiting)
    }

    fn lock_file(&self, name: &str, mut waiting: impl FnMut(&str)) -> Result<StoreLock> {
        let path = self.dir.join(name);
        let context = || format!("locking {}", shown(&path));
        self.take_write_from_others()?;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(&path)
            .with_context(context)?;
        let meta = file.metadata().with_context(context)?;
        let is_ours = meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw();
        if !is_ours {
            return Err(anyhow!("{} is not root's file", shown(&path)))
                .hint(format!("rm {}; somebody else made it", shown(&path)));
        }
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).with_context(context)?;
        lock::exclusive(&file, None, &mut waiting).with_context(context)?;
        Ok(StoreLock { _file: file })
    }

    /// A user who may write to the directory could replace the lock, or a tree.
    fn take_write_from_others(&self) -> Result<()> {
        let dir = shown(&self.dir);
        let mode = match std::fs::metadata(&self.dir) {
            Ok(meta) => meta.mode() & 0o7777,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("opening the cache directory {dir}")),
        };
        if mode & 0o002 == 0 {
            return Ok(());
        }
        // Who let everybody write chose no group.
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(mode & !0o022))
            .with_context(|| format!("taking write from others in {dir} (mode {mode:04o})"))
            .hint(format!("chmod go-w {dir}"))?;
        report::warning(&format!("{dir} could be written by everybody; it cannot any more"));
        Ok(())
    }

    /// Makes the directory, for root alone.
    pub fn make_dir(&self) -> Result<()> {
        if !self.dir.is_dir() {
            std::fs::create_dir_all(&self.dir)
                .with_context(|| format!("making the cache directory {}", shown(&self.dir)))?;
            std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// Records that the administrator trusts a file as it is now: it never expires, and is checked at every use.
    pub fn seal(&self, path: &Path) -> Result<Entry> {
        // A bare name is one of this directory.
        let bare = path.components().count() == 1;
        let path = if bare { self.dir.join(path) } else { path.to_owned() };
        let path = std::fs::canonicalize(&path).with_context(|| format!("opening {}", shown(&path)))?;
        let name = path.file_name().and_then(|name| name.to_str()).context("naming the file to seal")?;
        self.judgement.of(&path)?;
        let mut file = File::open(&path).with_context(|| format!("opening {}", shown(&path)))?;
        let known = self.entries()?.into_iter().find(|entry| entry.name() == name);
        if !is_handmade(name) && known.is_none() {
            bail!("{name} is no cache file; expected a name like cache-SUITE-ARCH.tar");
        }
        if path.parent() != Some(std::fs::canonicalize(&self.dir)?.as_path()) {
            bail!("{} does not lie in the cache directory {}", shown(&path), shown(&self.dir));
        }
        let digest = digest_of(&mut file)?;
        let size_bytes = file.metadata()?.len();
        let old = known.and_then(|entry| entry.manifest);
        let (suite, arch) = handmade_names(name).unwrap_or_default();
        let manifest = Manifest {
            sealed: true,
            digest,
            size_bytes,
            ..old.unwrap_or(Manifest::by_hand(
                suite,
                arch,
                name,
                file.metadata()?.modified()?.max(SystemTime::UNIX_EPOCH),
            ))
        };
        publish::write_manifest(&manifest_path(&path), &manifest)?;
        self.entry(name)?.or(self.entry(&file_name(&manifest_path(&path)))?).context("reading the seal back")
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("reading the cache directory {}", shown(&self.dir)));
            }
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// The entry of a handmade tar or of one of our manifests; None where it is not there or not whole.
    fn entry(&self, name: &str) -> Result<Option<Entry>> {
        let path = self.dir.join(name);
        let handmade = is_handmade(name);
        let manifest_at = if handmade { manifest_path(&path) } else { path.clone() };
        let manifest = match Manifest::read(&manifest_at) {
            // One of ours can be made again: it counts as nothing. A seal that cannot be read is an error.
            Err(error) if !handmade => {
                report::warning(&format!("{}; it is left out", report::sentence(&error)));
                return Ok(None);
            }
            read => read?.filter(|manifest| handmade || manifest.names_own_file(&path)),
        };
        let tar = match (&manifest, handmade) {
            (_, true) => path,
            (Some(manifest), false) => self.dir.join(&manifest.file),
            (None, false) => return Ok(None),
        };
        let Some(meta) = std::fs::metadata(&tar).ok().filter(|meta| meta.is_file()) else { return Ok(None) };
        let (suite, arch) = match &manifest {
            Some(manifest) => (manifest.suite.clone(), manifest.arch.clone()),
            None => handmade_names(name).unwrap_or_default(),
        };
        Ok(Some(Entry {
            kind: if handmade { Kind::Handmade } else { Kind::Base },
            size_bytes: meta.len(),
            made: manifest
                .as_ref()
                .and_then(Manifest::made_at)
                .unwrap_or(meta.modified()?)
                .max(SystemTime::UNIX_EPOCH),
            owner_writable: meta.mode() & 0o200 != 0,
            path: tar,
            suite,
            arch,
            manifest,
            judgement: self.judgement,
        }))
    }
}

/// The manifest of a tar, sealed by hand or ours.
pub fn manifest_path(tar: &Path) -> PathBuf {
    let name = file_name(tar);
    let stem = name.strip_suffix(".tar").or_else(|| name.strip_suffix(".tar.gz")).unwrap_or(&name);
    // The name of one of ours also bears the build: base-SUITE-ARCH-KEY.BUILD.tar
    let stem =
        if stem.starts_with("base-") { stem.rsplit_once('.').map_or(stem, |(stem, _)| stem) } else { stem };
    tar.with_file_name(format!("{stem}.toml"))
}

/// When a file was written, in nanoseconds since 1970.
fn modified_ns(meta: &std::fs::Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or_default()
}

/// When anything of a file was changed, in nanoseconds since 1970; nobody can set it.
fn changed_ns(meta: &std::fs::Metadata) -> u64 {
    let seconds = u64::try_from(meta.ctime()).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(meta.ctime_nsec()).unwrap_or_default())
}

/// A path for a message: names in the directory may be anybody's.
fn shown(path: &Path) -> String {
    Foreign(path.as_os_str().as_encoded_bytes()).to_string()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_handmade(name: &str) -> bool {
    name.starts_with("cache-") && name.ends_with(".tar")
}

/// Suite and architecture in `cache-SUITE-ARCH.tar`.
fn handmade_names(name: &str) -> Option<(String, String)> {
    let middle = name.strip_prefix("cache-")?.strip_suffix(".tar")?;
    let (suite, arch) = middle.rsplit_once('-')?;
    Some((suite.to_owned(), arch.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{AptFile, Bootstrapper, Kernel};
    use std::collections::BTreeMap;

    fn recipe() -> Recipe {
        Recipe {
            suite: "trixie".into(),
            arch: "amd64".into(),
            mirror: vec![],
            components: vec![],
            extra_pkgs: vec![],
            apt_files: vec![],
            bootstrapper: Bootstrapper::Auto,
            boot: None,
            proxy: None,
            credentials: None,
            keys: None,
            allow_unsigned: false,
            refusal: None,
            scripts: Vec::new(),
            exports: BTreeMap::new(),
        }
    }

    #[test]
    fn the_key_covers_all_that_shapes_the_tree_and_nothing_else() {
        let stems = [
            recipe(),
            Recipe { suite: "sid".into(), ..recipe() },
            Recipe { arch: "i386".into(), ..recipe() },
            Recipe { mirror: vec!["http://mirror.example.org/debian".into()], ..recipe() },
            Recipe { components: vec!["main".into()], ..recipe() },
            Recipe { extra_pkgs: vec!["vim".into()], ..recipe() },
            Recipe {
                apt_files: vec![AptFile { path: "etc/apt/sources.list.d/x.list".into(), content: vec![] }],
                ..recipe()
            },
            Recipe { scripts: vec!["/srv/script sha256:00".into()], ..recipe() },
            Recipe { bootstrapper: Bootstrapper::Debootstrap, ..recipe() },
            Recipe { bootstrapper: Bootstrapper::Mmdebstrap, ..recipe() },
            Recipe { boot: Some(Kernel::Cloud), ..recipe() },
            Recipe { keys: Some(vec![0x98]), ..recipe() },
            Recipe { allow_unsigned: true, ..recipe() },
            Recipe { boot: Some(Kernel::Generic), ..recipe() },
        ]
        .map(|recipe| stem(&recipe));
        let mut unique = stems.to_vec();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), stems.len());
        assert_eq!(stem(&Recipe { proxy: Some("http://p:1".into()), ..recipe() }), stems[0]);
    }

    #[test]
    fn a_file_made_by_hand_is_used_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Judgement::Strict).unwrap();
        let path = dir.path().join("cache-trixie-amd64.tar");
        std::fs::write(&path, b"x").unwrap();
        let found = store.find(&recipe(), Some(14)).unwrap().unwrap();
        assert_eq!(
            (found.kind, found.suite.as_str(), found.arch.as_str()),
            (Kind::Handmade, "trixie", "amd64")
        );

        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - DAY * 15 - Duration::from_secs(60)).unwrap();
        assert!(store.find(&recipe(), Some(14)).unwrap().is_none());
        assert!(store.find(&recipe(), None).unwrap().is_some(), "CLEAN_CACHE=\"\" means never");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        assert!(store.find(&recipe(), Some(14)).unwrap().is_some(), "not writable by its owner");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let sealed = store.seal(&path).unwrap();
        assert!(!sealed.expired(Some(0)), "sealed");
        sealed.open().unwrap().verify().unwrap();
        std::fs::write(&path, b"y").unwrap();
        let error = store.find(&recipe(), Some(14)).unwrap().unwrap().open().unwrap().verify().unwrap_err();
        assert!(format!("{error:#}").contains("is damaged"));
    }

    #[test]
    fn a_lock_goes_with_its_holder_and_strangers_cannot_take_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Judgement::Strict).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let held = store.lock(|_| {}).unwrap();
        let lock_file = || File::options().write(true).open(dir.path().join(LOCK)).unwrap();
        assert!(!lock::try_exclusive(&lock_file()).unwrap(), "it is busy");
        drop(held);
        // Of the directory, which others may open, nobody takes notice.
        let _stranger = File::open(dir.path()).unwrap();
        assert!(lock::try_exclusive(&_stranger).unwrap());
        let _held = store.lock(|_| panic!("it waits")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(dir.path()), mode(&dir.path().join(LOCK))), (0o755, 0o600));
        assert!(store.entries().unwrap().is_empty() && store.orphans().unwrap().is_empty());
    }

    #[test]
    fn a_manifest_without_its_tar_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Judgement::Strict).unwrap();
        let manifest = Manifest::by_hand("trixie".into(), "amd64".into(), "gone.tar", SystemTime::now());
        publish::write_manifest(&dir.path().join(format!("{}.toml", stem(&recipe()))), &manifest).unwrap();
        assert!(store.find(&recipe(), None).unwrap().is_none());
        assert_eq!(store.orphans().unwrap().len(), 1);
    }
}
