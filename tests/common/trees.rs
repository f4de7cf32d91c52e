//! What is made once for many tests: trees of Debian in caches, and whatever else takes long. The tests in modules called
//! `steps` make it before the others. Where they were not run, the first test that wants it makes it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};

use super::small_guest::plant_bootstrapped;
use super::{NODED_PATH, PROGRAM, SUITE, live, scratch, shared_cache, text, tool};

/// A tree of a cache expires after 14 days; nobody shall wait for that in the middle of a test.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The directory of something shared, made by `make` unless it is there and was made of the same `origin`. `make` finds
/// what was made of another origin, or nothing.
///
/// No test may write there or link to what a program might write to: its files are compared with what they were.
pub fn shared(name: &str, origin: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-cache");
    fs::create_dir_all(&all).unwrap();
    let all = fs::canonicalize(all).unwrap();
    let (dir, stamp) = (all.join(name), all.join(format!("{name}.stamp")));
    if is_made(&dir, &stamp, origin) {
        return dir;
    }
    let lock = File::create(all.join(format!("{name}.lock"))).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    if is_made(&dir, &stamp, origin) {
        return dir;
    }
    let is_of_use = age(&stamp).is_some_and(|age| age < KEPT);
    let _ = fs::remove_file(&stamp);
    if dir.exists() && !is_of_use {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    make(&dir);
    let part = stamp.with_extension("part");
    fs::write(&part, format!("{}\n{}", live::hash(origin.as_bytes()), listing(&dir))).unwrap();
    fs::rename(part, stamp).unwrap();
    dir
}

fn is_made(dir: &Path, stamp: &Path, origin: &str) -> bool {
    let Ok(text) = fs::read_to_string(stamp) else { return false };
    let (of, listed) = text.split_once('\n').unwrap();
    if of != live::hash(origin.as_bytes()) || age(stamp).is_none_or(|age| age > KEPT) {
        return false;
    }
    assert_eq!(listing(dir), listed, "something wrote to {}, which tests share", dir.display());
    true
}

fn age(stamp: &Path) -> Option<Duration> {
    fs::metadata(stamp).ok()?.modified().ok()?.elapsed().ok()
}

/// Names, sizes and times of its files.
fn listing(dir: &Path) -> String {
    let mut lines: Vec<String> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            let name = entry.path().strip_prefix(dir).unwrap().display().to_string();
            format!("{name} {} {}.{:09}\n", meta.len(), meta.mtime(), meta.mtime_nsec())
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// What tells one build of the program from another.
pub fn program() -> String {
    let meta = fs::metadata(PROGRAM).unwrap();
    let built = meta.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{} {}", meta.len(), built.as_nanos())
}

/// A cache with a tree of `suite`, and a template of it for disks of that size. `boot` as in the settings.
pub fn cache(suite: &str, boot: &str, size: &str) -> PathBuf {
    let name = format!("cache-{suite}-{}", if boot == "no" { "bare" } else { "boots" });
    shared(&name, &program(), |dir| build(dir, suite, boot, &[size]))
}

/// A cache where a tree of a handful of files is in the place of the Debian that [`cache`] has.
pub fn small() -> PathBuf {
    let debian = shared_cache();
    shared("cache-small", &program(), |dir| {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
        let is_manifest = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
        let manifest =
            fs::read_dir(debian).unwrap().flatten().map(|entry| entry.path()).find(is_manifest).unwrap();
        let mut facts: toml::Table = toml::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();

        let tree = tempfile::tempdir_in(scratch()).unwrap();
        plant_bootstrapped(tree.path());
        let tar = dir.join(facts["file"].as_str().unwrap());
        pack(tree.path(), &tar);
        let bytes = fs::read(&tar).unwrap();
        facts.insert("digest".into(), format!("sha256:{}", live::hash(&bytes)).into());
        facts.insert("size_bytes".into(), (bytes.len() as i64).into());
        facts.insert("unpacked_bytes".into(), (4 << 20).into());
        facts.insert("packages".into(), toml::Table::new().into());
        fs::write(dir.join(manifest.file_name().unwrap()), toml::to_string(&facts).unwrap()).unwrap();
        build(dir, SUITE, "no", &["1G", "2G", "3G"]);
    })
}

/// Packs a tree with GNU tar.
pub fn pack(tree: &Path, tar: &Path) {
    let (tree, tar) = (tree.to_str().unwrap(), tar.to_str().unwrap());
    let all = ["--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse"];
    tool("tar", &[&all[..], &["-C", tree, "-cf", tar, "."]].concat());
}

/// `cache build`, into a directory.
fn build(dir: &Path, suite: &str, boot: &str, sizes: &[&str]) {
    let etc = tempfile::tempdir().unwrap();
    let settings = format!("defaults = \"1\"\nboot = \"{boot}\"\n");
    fs::write(etc.path().join("config.toml"), settings).unwrap();
    for size in sizes {
        let output = Command::new(PROGRAM)
            .args(["cache", "build", suite, "--size", size])
            .env_clear()
            .env("PATH", NODED_PATH)
            .env("GANETI_DEBOOTSTRAP_CONFIG_DIR", etc.path())
            .env("GANETI_DEBOOTSTRAP_LEGACY_DEFAULTS", etc.path().join("none"))
            .env("GANETI_DEBOOTSTRAP_CACHE_DIR", dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}
