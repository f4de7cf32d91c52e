//! Files of a guest's root that name its disks by their identifiers: changed where a copy's are others.

use anyhow::Result;

use super::{Thawed, fstab};
use crate::rootdir::{Kind, RootDir};

const MAX_BYTES: u64 = 1 << 20;
/// What is mounted, also from other disks.
const MOUNTS: [&str; 2] = [fstab::PATH, "etc/crypttab"];
/// What starts the guest, and how it resumes.
const FILES: [&str; 9] = [
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

/// Has every such file, if it is one, say what `text` makes of what it says; `true` for those that say what is mounted.
pub fn rewrite(root: &RootDir, text: impl Fn(&[u8], bool) -> Vec<u8>) -> Result<()> {
    let mut paths: Vec<String> = FILES.map(str::to_owned).into();
    for dir in DIRS {
        if root.is_dir(dir)? {
            let names = root.list(dir, MAX_ENTRIES)?.into_iter().filter_map(|name| name.into_string().ok());
            paths.extend(names.map(|name| format!("{dir}/{name}")));
        }
    }
    for (path, mounts) in MOUNTS
        .map(|path| (path.to_owned(), true))
        .into_iter()
        .chain(paths.into_iter().map(|path| (path, false)))
    {
        if root.kind(&path)? != Some(Kind::File) {
            continue;
        }
        let old = root.read(&path, MAX_BYTES)?.unwrap_or_default();
        let new = text(&old, mounts);
        if new != old {
            let thawed = Thawed::thaw(root, [path.as_str()])?;
            root.rewrite(&path, &new)?;
            thawed.freeze(root)?;
        }
    }
    Ok(())
}
