//! Files of a guest's root that name its disks by their identifiers: changed where a copy's are others.

use anyhow::{Result, ensure};

use super::{UnlockedFiles, fstab};
use crate::rootdir::{Kind, RootDir};
use crate::sys::signals;

const MAX_BYTES: u64 = 1 << 20;
/// Of all of them: each is searched for every name that the disk has.
const MAX_TOTAL_BYTES: usize = 8 << 20;
/// What is mounted, also from other disks.
const MOUNTS: [&str; 1] = [fstab::PATH];
/// What starts the guest, and how it resumes. What crypttab names on other disks are encrypted volumes, which keep their
/// UUIDs.
const FILES: [&str; 10] = [
    "etc/crypttab",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "etc/initramfs-tools/conf.d/resume",
    "boot/grub/grub.cfg",
    "boot/grub/menu.lst",
    "boot/grub2/grub.cfg",
    "boot/extlinux/extlinux.conf",
    "boot/syslinux/syslinux.cfg",
    "extlinux.conf",
];
/// Directories of snippets (systemd-boot, update-grub).
const DIRS: [&str; 2] = ["boot/loader/entries", "etc/default/grub.d"];
const MAX_ENTRIES: usize = 1024;

/// Has every such file of a root, if it is one, say what `text` makes of what it says; `true` for those that say what is
/// mounted.
pub fn rewrite(root: &RootDir, text: impl Fn(&[u8], bool) -> Vec<u8>) -> Result<()> {
    rewrite_in(root, "", text)
}

/// The same of a filesystem that is mounted on /boot, or may be: its loaders' configurations.
pub fn rewrite_boot(boot: &RootDir, text: impl Fn(&[u8]) -> Vec<u8>) -> Result<()> {
    rewrite_in(boot, "boot/", |old, _| text(old))
}

/// In the tree that is seen from `below`.
fn rewrite_in(root: &RootDir, below: &str, text: impl Fn(&[u8], bool) -> Vec<u8>) -> Result<()> {
    let mounts = MOUNTS.into_iter().map(|path| (path, true));
    let mut paths: Vec<(String, bool)> = mounts
        .chain(FILES.into_iter().map(|path| (path, false)))
        .filter_map(|(path, mounts)| Some((path.strip_prefix(below)?.to_owned(), mounts)))
        .collect();
    for dir in DIRS.iter().filter_map(|dir| dir.strip_prefix(below)) {
        if root.is_dir(dir)? {
            let names = root.list(dir, MAX_ENTRIES)?.into_iter().filter_map(|name| name.into_string().ok());
            paths.extend(names.map(|name| (format!("{dir}/{name}"), false)));
        }
    }
    let mut total_bytes = 0;
    for (path, mounts) in paths {
        signals::check()?;
        if root.kind(&path)? != Some(Kind::File) {
            continue;
        }
        let old = root.read(&path, MAX_BYTES)?.unwrap_or_default();
        total_bytes += old.len();
        ensure!(
            total_bytes <= MAX_TOTAL_BYTES,
            "the files that name the guest's disks have more than {MAX_TOTAL_BYTES} bytes together"
        );
        let new = text(&old, mounts);
        if new != old {
            let unlocked = UnlockedFiles::unlock(root, [path.as_str()])?;
            root.rewrite(&path, &new)?;
            unlocked.relock(root)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> (tempfile::TempDir, RootDir) {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let root = RootDir::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn only_fstab_says_what_other_disks_have() {
        let files =
            ["etc/fstab", "etc/crypttab", "boot/grub/grub.cfg", "etc/default/grub.d/x.cfg", "etc/motd"];
        let (dir, root) = tree(&files.map(|path| (path, &b"old"[..])));
        rewrite(&root, |_, mounts| if mounts { b"all".into() } else { b"own".into() }).unwrap();
        let now = files.map(|path| fs::read_to_string(dir.path().join(path)).unwrap());
        assert_eq!(now, ["all", "own", "own", "own", "old"]);
    }

    #[test]
    fn a_filesystem_for_boot_has_the_loaders_configurations_at_its_top() {
        let files = ["grub/grub.cfg", "loader/entries/a.conf", "etc/fstab", "fstab"];
        let (dir, root) = tree(&files.map(|path| (path, &b"old"[..])));
        rewrite_boot(&root, |_| b"new".into()).unwrap();
        let now = files.map(|path| fs::read_to_string(dir.path().join(path)).unwrap());
        assert_eq!(now, ["new", "new", "old", "old"]);
    }

    #[test]
    fn what_a_guest_has_of_them_is_bounded() {
        let paths: Vec<String> = (0..9).map(|n| format!("boot/loader/entries/{n}")).collect();
        let dashes = vec![b'-'; MAX_BYTES as usize];
        let files: Vec<(&str, &[u8])> = paths.iter().map(|path| (path.as_str(), &dashes[..])).collect();
        let (_dir, root) = tree(&files);
        let error = rewrite(&root, |old, _| old.to_vec()).unwrap_err();
        assert!(error.to_string().contains("8388608 bytes together"), "{error:#}");
    }
}
