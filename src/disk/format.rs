//! A filesystem on a device, made by its own tool.

use std::path::Path;

use anyhow::{Context, Result};
use uuid::Uuid;

use super::Filesystem;
use crate::tool::Tool;

/// The label that a filesystem on a bare disk bears until its tree is complete.
pub const INCOMPLETE_LABEL: &str = "incomplete";

/// A device that now holds an empty filesystem.
#[derive(Debug)]
pub struct Formatted {
    pub filesystem: Filesystem,
    /// The UUID it was given.
    pub uuid: Uuid,
}

/// The tool that makes a filesystem.
pub fn mkfs_of(filesystem: Filesystem) -> &'static str {
    match filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => "mke2fs",
        Filesystem::Xfs => "mkfs.xfs",
        Filesystem::Btrfs => "mkfs.btrfs",
    }
}

/// Makes a filesystem with a UUID of its own; `label` may be empty.
pub fn make_filesystem(device: &Path, filesystem: Filesystem, label: &str) -> Result<Formatted> {
    make_filesystem_with(device, filesystem, label, &[])
}

/// The same with more options for the tool.
pub fn make_filesystem_with(
    device: &Path,
    filesystem: Filesystem,
    label: &str,
    options: &[&str],
) -> Result<Formatted> {
    let uuid = Uuid::new_v4();
    let tool = Tool::new(mkfs_of(filesystem));
    let tool = match filesystem {
        Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => {
            tool.args(["-F", "-q", "-t", filesystem.name(), "-U", &uuid.to_string()])
        }
        Filesystem::Xfs => tool.args(["-f", "-q", "-m", &format!("uuid={uuid}")]),
        Filesystem::Btrfs => tool.args(["-f", "-q", "-U", &uuid.to_string()]),
    };
    let tool = if label.is_empty() { tool } else { tool.args(["-L", label]) };
    tool.args(options)
        .arg(device)
        .run()
        .with_context(|| format!("formatting {} as {filesystem}", device.display()))?;
    Ok(Formatted { filesystem, uuid })
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
