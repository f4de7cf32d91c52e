//! A filesystem on a device, made by its own tool, with features that its readers know.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use uuid::Uuid;

use crate::command::{self, Tool, ToolError};
use crate::filesystem::{Filesystem, KernelVersion};
use crate::report;

/// How a filesystem is made.
#[derive(Debug, Clone, Copy)]
pub struct Format<'a> {
    pub filesystem: Filesystem,
    pub uuid: Uuid,
    /// May be empty.
    pub label: &'a str,
    /// The kernel that must read it, where that may be older than the node's tools; its fsck and its boot loader are
    /// of the same age.
    pub oldest_kernel: Option<KernelVersion>,
    /// More options for the tool.
    pub options: &'a [&'a str],
}

impl<'a> Format<'a> {
    /// With a UUID of its own, and all that the node's tools do by default.
    pub fn new(filesystem: Filesystem) -> Format<'a> {
        Format { filesystem, uuid: Uuid::new_v4(), label: "", oldest_kernel: None, options: &[] }
    }
}

/// The tool that makes a filesystem.
pub fn mkfs_of(filesystem: Filesystem) -> &'static str {
    match filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => "mke2fs",
        Filesystem::Xfs => "mkfs.xfs",
        Filesystem::Btrfs => "mkfs.btrfs",
    }
}

/// What tells one ext filesystem's maker from another: its program, and what /etc says of its defaults.
pub fn maker_of_ext() -> String {
    let program = command::located(mkfs_of(Filesystem::Ext4)).and_then(|path| path.metadata().ok());
    let program = program.map(|meta| (meta.len(), meta.mtime()));
    let defaults = std::fs::read("/etc/mke2fs.conf").unwrap_or_default();
    format!("{program:?} {}", blake3::hash(&defaults).to_hex())
}

/// Makes a filesystem.
pub fn make_filesystem(device: &Path, format: &Format) -> Result<()> {
    let Format { filesystem, uuid, label, options, .. } = *format;
    let tool = Tool::new(mkfs_of(filesystem));
    let tool = match filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => {
            tool.args(["-F", "-q", "-t", filesystem.name(), "-U", &uuid.to_string()])
        }
        Filesystem::Xfs => tool.args(["-f", "-q", "-m", &format!("uuid={uuid}")]),
        Filesystem::Btrfs => tool.args(["-f", "-q", "-U", &uuid.to_string()]),
    };
    let tool = if label.is_empty() { tool } else { tool.args(["-L", label]) };
    let tool = tool.args(options);
    let mut made = Ok(());
    // mke2fs heeds the last of several lists: who names features knows the kernel.
    let named = options.contains(&"-O");
    let attempts = if named { vec![Vec::new()] } else { features(filesystem, format.oldest_kernel) };
    for (count, features) in attempts.iter().enumerate() {
        let tool = tool.clone().args(features).arg(device);
        let last = count + 1 == attempts.len();
        made = if last { tool.run() } else { tool.quiet().run() };
        // A tool that is older than a feature does not know its name, and does not make it either.
        if !matches!(&made, Err(error) if matches!(report::cause(error), Some(ToolError::Status(..)))) {
            break;
        }
    }
    made.with_context(|| format!("formatting {} as {filesystem}", device.display()))
}

/// Options that keep features away which a reader does not know yet: to be tried one after the other, the last one is
/// none at all.
fn features(filesystem: Filesystem, oldest_kernel: Option<KernelVersion>) -> Vec<Vec<String>> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut attempts = Vec::new();
    match (filesystem, oldest_kernel) {
        // e2fsprogs 1.43 made checksums first.
        (Filesystem::Ext4, Some(kernel)) if kernel < KernelVersion(4, 9) => {
            attempts.push(words("-O ^metadata_csum_seed,^orphan_file,^metadata_csum,^64bit"));
            attempts.push(words("-O ^metadata_csum_seed,^metadata_csum,^64bit"));
        }
        // A GRUB that reads what e2fsprogs 1.47 makes came with kernels of that age.
        (Filesystem::Ext4, Some(kernel)) if kernel < KernelVersion(6, 1) => {
            attempts.push(words("-O ^metadata_csum_seed,^orphan_file"));
        }
        // With its own seed another UUID changes the superblock alone, and not the sum of everything there is.
        (Filesystem::Ext4, Some(reader)) => {
            if reader < KernelVersion(6, 6) {
                attempts.push(words("-O metadata_csum_seed,^orphan_file"));
            }
            attempts.push(words("-O metadata_csum_seed"));
        }
        (Filesystem::Xfs, Some(reader)) => {
            let profile = xfs_profile(Path::new("/usr/share/xfsprogs/mkfs"), reader);
            attempts.extend(profile.map(|file| vec!["-c".into(), format!("options={}", file.display())]));
            // The profiles of xfsprogs 6.1 are wrong: it refuses its own.
            let times = if reader < KernelVersion(5, 15) { "-m bigtime=0,inobtcount=0" } else { "" };
            if reader < KernelVersion(6, 6) {
                attempts.push(words(format!("{times} -i nrext64=0").trim()));
            }
            if !times.is_empty() {
                attempts.push(words(times));
            }
        }
        // ext2 and ext3 are what they ever were.
        _ => {}
    }
    attempts.push(Vec::new());
    attempts
}

/// xfsprogs brings a file of options per long-term kernel, `lts_6.1.conf`: the newest that the reader is not older
/// than, or the oldest there is.
fn xfs_profile(dir: &Path, reader: KernelVersion) -> Option<PathBuf> {
    let version = |path: &Path| {
        let (major, minor) =
            path.file_name()?.to_str()?.strip_prefix("lts_")?.strip_suffix(".conf")?.split_once('.')?;
        Some(KernelVersion(major.parse().ok()?, minor.parse().ok()?))
    };
    let entries = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    let mut profiles: Vec<(KernelVersion, PathBuf)> =
        entries.filter_map(|path| Some((version(&path)?, path))).collect();
    profiles.sort();
    let fitting = profiles.iter().rfind(|(version, _)| *version <= reader).or(profiles.first());
    fitting.map(|(_, path)| path.clone())
}

/// Makes a swap area of a whole device or file.
pub fn make_swap(device: &Path) -> Result<Uuid> {
    let uuid = Uuid::new_v4();
    Tool::new("mkswap")
        .args(["-f", "-U", &uuid.to_string()])
        .arg(device)
        .run()
        .with_context(|| format!("making {} a swap area", device.display()))?;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_reader_gets_the_profile_of_its_age() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["lts_4.19.conf", "lts_5.10.conf", "lts_6.1.conf", "dax_x86_64.conf"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        for (reader, expected) in [
            (KernelVersion(6, 1), "lts_6.1.conf"),
            (KernelVersion(6, 8), "lts_6.1.conf"),
            (KernelVersion(5, 15), "lts_5.10.conf"),
            (KernelVersion(3, 16), "lts_4.19.conf"),
        ] {
            assert_eq!(xfs_profile(dir.path(), reader), Some(dir.path().join(expected)));
        }
        assert_eq!(xfs_profile(Path::new("/nonexistent"), KernelVersion(6, 1)), None);
    }

    #[test]
    fn a_reader_of_today_gets_what_the_tools_make() {
        for filesystem in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
            assert_eq!(features(filesystem, None), [Vec::<String>::new()]);
        }
        let today = features(Filesystem::Ext4, Some(KernelVersion(6, 12)));
        assert_eq!(today, [vec!["-O", "metadata_csum_seed"], vec![]]);
        assert_eq!(
            features(Filesystem::Ext4, Some(KernelVersion(5, 10))),
            [vec!["-O".to_owned(), "^metadata_csum_seed,^orphan_file".to_owned()], vec![]]
        );
    }
}
