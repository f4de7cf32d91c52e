//! The mounts of a test: places of its own in its mount namespace, and what it made besides.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::checkout;

/// Directories of the machine that each test has for itself, and those below its own directory that lie over them.
pub const PRIVATE: [(&str, &str); 2] = [("/tmp", "tmp"), ("/var/tmp", "var-tmp")];
/// Named network namespaces are files here; each test has a tmpfs of its own over it.
const NETWORKS: &str = "/run/netns";

/// A line of proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    number: String,
    /// What is seen where: device, root in it, mount point.
    what: [String; 3],
    line: String,
}

impl Mount {
    fn read(line: &str) -> Option<Mount> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [number, _, device, root, point, ..] = fields[..] else { return None };
        let what = [device, root, point].map(str::to_owned);
        Some(Mount { number: number.to_owned(), what, line: line.to_owned() })
    }

    pub fn line(&self) -> &str {
        &self.line
    }

    pub fn point(&self) -> &str {
        &self.what[2]
    }

    /// The number of its filesystem, as stat(2) has it.
    pub fn filesystem(&self) -> Option<u64> {
        let (major, minor) = self.what[0].split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    }

    fn key(&self) -> (&str, &[String; 3]) {
        (&self.number, &self.what)
    }
}

fn list(text: &str) -> Vec<Mount> {
    text.lines().filter_map(Mount::read).collect()
}

/// Mounts outside of the test's namespace, by an open mountinfo of there.
pub struct Outside(File);

impl Outside {
    /// The runner gives it as the standard input.
    pub fn of_stdin() -> Result<Outside> {
        let file = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Outside(file))
    }

    fn mounts(&mut self) -> Result<Vec<Mount>> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text).context("the mounts outside")?;
        Ok(list(&text))
    }
}

/// Mounts of this namespace.
pub fn here() -> Result<Vec<Mount>> {
    Ok(list(&fs::read_to_string("/proc/self/mountinfo").context("the mounts of the test")?))
}

/// Mounts of this namespace that were not there before, in the order in which they can be unmounted. What was mounted
/// outside meanwhile came in by itself and is not the test's; nor is a namespace's file, which is named for itself.
pub fn made_since(before: &[Mount], outside: &mut Outside) -> Result<Vec<Mount>> {
    let known: BTreeSet<_> = before.iter().map(Mount::key).collect();
    let mut made = here()?;
    // In this order: what comes or goes outside in between is not taken for the test's.
    let (outside, now) = (outside.mounts()?, here()?);
    made.retain(|mount| {
        let came_in = outside.iter().any(|other| other.what == mount.what);
        let is_new = !known.contains(&mount.key()) && now.iter().any(|other| other.key() == mount.key());
        is_new && !came_in && !Path::new(mount.point()).starts_with(NETWORKS)
    });
    made.reverse();
    Ok(made)
}

/// Unmounts what a test left, so that it holds no loop device any more.
pub fn let_go(mounts: &[Mount]) {
    for mount in mounts {
        let _ = umount2(mount.point(), MntFlags::MNT_DETACH);
    }
}

/// Makes the namespace that of a test. Mounts come in from the machine, and none goes out. As on a node where systemd made the
/// root shared, namespaces below this one see what it mounts: that comes last, since mounts are copied between places that were
/// shared when one was put over the other.
pub fn enter(dir: &Path) -> Result<()> {
    change_all(MsFlags::MS_SLAVE)?;
    for (place, name) in PRIVATE {
        let own = dir.join(name);
        fs::create_dir(&own).with_context(|| own.display().to_string())?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o1777))?;
        cover(Path::new(place), &own)?;
    }
    fs::create_dir_all(NETWORKS)?;
    mount_fs("tmpfs", NETWORKS)?;
    mount_fs("proc", "/proc")?;
    change_all(MsFlags::MS_SHARED)
}

fn change_all(kind: MsFlags) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | kind, none).context("the propagation of mounts")
}

pub fn mount_fs(kind: &str, at: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {at}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("mounting {}", to.display()))
}

/// Puts a directory over a place. A checkout that lies there stays seen.
fn cover(place: &Path, own: &Path) -> Result<()> {
    let below = [checkout::project(), checkout::target()].map(|dir| dir.starts_with(place).then_some(dir));
    let open = |dir: &Path| Ok::<_, std::io::Error>((dir.to_owned(), File::open(dir)?));
    let kept = below.into_iter().flatten().map(open).collect::<std::io::Result<Vec<_>>>()?;
    bind(own, place)?;
    for (path, dir) in kept {
        fs::create_dir_all(&path)?;
        bind(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())), &path)?;
    }
    Ok(())
}

/// Whether something of a place is there only for the checkout that lies below it.
fn leads_to_the_checkout(path: &Path) -> bool {
    [checkout::project(), checkout::target()].iter().any(|dir| dir.starts_with(path))
}

/// What is in a test's directory and in its private places, under the names that the test knows.
pub fn files(dir: &Path) -> Vec<String> {
    let private = |path: &Path| PRIVATE.iter().find(|(_, name)| path == dir.join(name));
    let mut files = Vec::new();
    for path in entries(dir) {
        match private(&path) {
            Some((place, _)) => {
                let inside =
                    entries(&path).into_iter().filter_map(|p| Some(Path::new(place).join(p.file_name()?)));
                files.extend(inside.filter(|path| !leads_to_the_checkout(path)));
            }
            None => files.push(path.strip_prefix(dir).unwrap_or(&path).to_owned()),
        }
    }
    files.iter().map(|path| format!("file {}", path.display())).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Network namespaces that have a name.
pub fn networks() -> Vec<String> {
    let names = entries(Path::new(NETWORKS)).into_iter();
    let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    names.map(|path| format!("network namespace {}", name(path))).collect()
}

/// Which of its own places a test does not have any more.
pub fn gone(before: &[Mount]) -> Result<Vec<String>> {
    let now = here()?;
    let is_gone = |place: &&str| {
        let own = before.iter().rfind(|mount| mount.point() == *place);
        own.is_none_or(|own| !now.iter().any(|mount| mount.key() == own.key()))
    };
    let places = PRIVATE.iter().map(|(place, _)| *place).chain([NETWORKS]);
    Ok(places.filter(is_gone).map(|place| format!("no {place} of its own: the test unmounted it")).collect())
}

/// Moves the private places to a directory with the name of the test's. A loop device shows its file by where this mount is
/// now: so whose it is can be told even when the file is removed.
pub fn move_places(dir: &Path) -> Result<()> {
    change_all(MsFlags::MS_PRIVATE)?;
    mount_fs("tmpfs", NETWORKS)?;
    let there = Path::new(NETWORKS).join(dir.file_name().unwrap_or_default());
    for (place, name) in PRIVATE.iter().rev() {
        let to = there.join(name);
        fs::create_dir_all(&to)?;
        // A place that the test unmounted is no mount.
        let _ = mount(Some(*place), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>);
    }
    Ok(())
}
