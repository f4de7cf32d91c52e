//! What stands for the node: files, directories and a device outside of every guest. Whoever follows a guest's link
//! to them finds a complete /etc of a guest with the right names, so that nothing but restraint keeps it intact.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::common::small_guest::{Flavour, plant};
use crate::common::{BlockDevice, digest};

/// Files and directories of this very machine that a confused program would write.
const NODE: [&str; 11] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mailname",
    "/etc/fstab",
    "/etc/resolv.conf",
    "/etc/machine-id",
    "/etc/network",
    "/etc/network/interfaces",
    "/etc/netplan",
    "/etc/systemd/network",
    "/etc/udev/rules.d",
];

const DEVICE_BYTES: usize = 1 << 20;

/// A filesystem in memory, which only this test sees: whoever else walks through the machine's disks reads nothing in it.
struct Hidden(tempfile::TempDir);

impl Hidden {
    fn new() -> Hidden {
        let dir = tempfile::Builder::new().prefix("canary-").tempdir_in(crate::common::scratch()).unwrap();
        crate::common::tool("mount", &["-t", "tmpfs", "canary", dir.path().to_str().unwrap()]);
        Hidden(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        crate::common::tool("umount", &[self.path().to_str().unwrap()]);
    }
}

pub struct Canary {
    dir: Hidden,
    pub device: BlockDevice,
    backing: tempfile::NamedTempFile,
}

/// All that is known of it at one moment.
pub struct Look {
    files: BTreeMap<PathBuf, String>,
    /// Sectors written. (Whatever lists a machine's disks reads a little of each.)
    device_written: String,
    device_content: String,
    strays: String,
}

impl Canary {
    pub fn new() -> Canary {
        // Beside the node's directory: what is attached from there is looked for.
        let dir = Hidden::new();
        for flavour in [Flavour::Ifupdown, Flavour::Netplan, Flavour::Networkd] {
            let etc = tempfile::tempdir_in(dir.path()).unwrap();
            plant(etc.path(), flavour);
            crate::common::tool(
                "cp",
                &["-a", &format!("{}/.", etc.path().display()), tree_of(dir.path()).to_str().unwrap()],
            );
        }
        let backing = tempfile::NamedTempFile::new_in(crate::common::scratch()).unwrap();
        fs::write(backing.path(), [b"canary\n\0".as_slice()].concat().repeat(DEVICE_BYTES / 8)).unwrap();
        let device = BlockDevice::over(backing.path(), &[]);
        let canary = Canary { dir, device, backing };
        // Accessed before it was changed: then the next read shows, however seldom the mount writes access times.
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for entry in walkdir::WalkDir::new(canary.tree()).contents_first(true) {
            let entry = entry.unwrap();
            if !entry.file_type().is_symlink() {
                let times = FileTimes::new().set_accessed(long_ago);
                File::open(entry.path()).unwrap().set_times(times).unwrap();
            }
        }
        canary
    }

    /// A tree like that of a guest.
    pub fn tree(&self) -> PathBuf {
        tree_of(self.dir.path())
    }

    pub fn look(&self) -> Look {
        let mut files = BTreeMap::new();
        // Listing a directory changes its access time: its own change time tells of entries that came or went.
        for path in self.paths() {
            files.insert(path.clone(), state_of(&path, Times::All));
        }
        for path in NODE.map(PathBuf::from) {
            files.insert(path.clone(), state_of(&path, Times::Changes));
        }
        let name = self.device.0.file_name().unwrap().to_str().unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let device_written = stat.split_ascii_whitespace().nth(6).unwrap().to_owned();
        let device_content = digest(self.backing.path());
        Look { files, device_written, device_content, strays: strays() }
    }

    /// Wants that nothing outside of the guest has changed since an earlier look.
    pub fn assert_untouched(&self, before: &Look, log: &str) {
        let after = self.look();
        for (path, state) in &before.files {
            assert_eq!(after.files.get(path), Some(state), "{} was touched\n{log}", path.display());
        }
        let rest =
            |look: &Look| [&look.device_written, &look.device_content, &look.strays].map(String::clone);
        assert_eq!(rest(&after), rest(before), "the node was touched\n{log}");
    }

    /// Everything of the tree, without listing it again.
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for name in [
            "",
            "etc",
            "etc/hostname",
            "etc/hosts",
            "etc/mailname",
            "etc/fstab",
            "etc/resolv.conf",
            "etc/machine-id",
            "etc/network",
            "etc/network/interfaces",
            "etc/network/interfaces.d",
            "etc/network/interfaces.d/ganeti",
            "etc/systemd",
            "etc/systemd/network",
            "etc/systemd/network/10-ganeti-nic0.link",
            "etc/systemd/network/50-ganeti-nic0.network",
            "etc/systemd/system",
            "etc/udev/rules.d",
            "etc/netplan",
            "etc/netplan/50-ganeti.yaml",
            "usr/sbin",
        ] {
            paths.push(self.tree().join(name));
        }
        paths
    }
}

fn tree_of(dir: &Path) -> PathBuf {
    dir.join("tree")
}

/// Which times of a file count.
#[derive(PartialEq, Eq)]
enum Times {
    All,
    /// Other programs of this machine read its files.
    Changes,
}

fn state_of(path: &Path, times: Times) -> String {
    let Ok(meta) = fs::symlink_metadata(path) else { return "absent".into() };
    let accessed = (times == Times::All).then(|| (meta.atime(), meta.atime_nsec()));
    let changed = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    let what = (meta.ino(), meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.len());
    let mut content = Vec::new();
    if meta.is_file() {
        let noatime = nix::libc::O_NOATIME;
        OpenOptions::new()
            .read(true)
            .custom_flags(noatime)
            .open(path)
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
    }
    format!("{what:?} {changed:?} {accessed:?} {}", String::from_utf8_lossy(&content))
}

/// Names that the program uses for what is not finished, where they would be the node's.
fn strays() -> String {
    let dirs = ["/", "/etc", "/run", "/run/ganeti-instance-debootstrap", "/tmp"];
    let names = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".tmp-") || name == "was-run").collect()
}
