//! The words for filesystems and layouts that all rooms share. Owns names and constants; must not read or write anything.

use std::fmt;

/// The sector size of every table and loop device that we make; what Ganeti's guests see by default.
pub const SECTOR_BYTES: u64 = 512;

/// The label that a filesystem on a bare disk bears until its tree is complete.
pub const INCOMPLETE_LABEL: &str = "incomplete";

/// Major and minor version of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

/// A filesystem that we can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
}

impl Filesystem {
    pub const ALL: [Filesystem; 5] =
        [Filesystem::Ext2, Filesystem::Ext3, Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs];

    /// Its name, as in /proc/filesystems and fstab.
    pub fn name(self) -> &'static str {
        match self {
            Filesystem::Ext2 => "ext2",
            Filesystem::Ext3 => "ext3",
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
        }
    }

    /// The filesystem of that name.
    pub fn named(name: &str) -> Option<Filesystem> {
        Filesystem::ALL.into_iter().find(|filesystem| filesystem.name() == name)
    }

    /// The module of GRUB that reads it.
    pub fn grub_module(self) -> &'static str {
        match self {
            Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4 => "ext2",
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
        }
    }

    /// Whether it is one of ext2, ext3 and ext4.
    pub fn is_ext(self) -> bool {
        matches!(self, Filesystem::Ext2 | Filesystem::Ext3 | Filesystem::Ext4)
    }
}

// Whoever adds one above adds it to ALL.
const _: () = assert!(Filesystem::ALL.len() == Filesystem::Btrfs as usize + 1);

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionStyle {
    /// BIOS boot, ESP, and the root as partition 1, last on the disk.
    Gpt,
    /// One active partition.
    Msdos,
    /// The filesystem on the bare disk.
    None,
}

impl PartitionStyle {
    pub const ALL: [PartitionStyle; 3] = [PartitionStyle::Gpt, PartitionStyle::Msdos, PartitionStyle::None];

    /// The setting's value.
    pub fn name(self) -> &'static str {
        match self {
            PartitionStyle::Gpt => "gpt",
            PartitionStyle::Msdos => "msdos",
            PartitionStyle::None => "none",
        }
    }
}

impl fmt::Display for PartitionStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
