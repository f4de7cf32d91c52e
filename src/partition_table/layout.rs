//! Where partitions lie: pure arithmetic in sectors of 512 bytes.

use std::fmt;

use crate::filesystem::{INCOMPLETE_LABEL, PartitionStyle, SECTOR_BYTES};
use crate::report::size;

const MIB_SECTORS: u64 = (1 << 20) / SECTOR_BYTES;
/// BIOS boot partition: room for any core.img.
const BIOS_BOOT_SECTORS: u64 = 3 * MIB_SECTORS;
/// EFI system partition.
const ESP_SECTORS: u64 = 124 * MIB_SECTORS;
/// Backup header and entries of a GPT.
const GPT_TAIL_SECTORS: u64 = 33;
/// The predecessor asked for 512 MiB and took 511, for rounding in volume managers; so do we, for the root.
const NEW_ROOT_MIN_BYTES: u64 = 511 << 20;
/// What comes from a backup may be small, a disk for data above all; less than this can hardly be formatted.
const RESTORED_ROOT_MIN_BYTES: u64 = 8 << 20;
/// Where 32 bits of sectors end.
const MSDOS_MAX_SECTORS: u64 = u32::MAX as u64;

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Root,
    BiosBoot,
    Esp,
    Swap,
}

/// What a disk is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A new system.
    System,
    /// The root that a backup holds, whatever its size.
    RestoredRoot,
    /// A backup's other disk: nothing ever starts from it.
    RestoredData,
}

impl Purpose {
    /// A smaller root is refused.
    fn root_min_bytes(self) -> u64 {
        match self {
            Purpose::System => NEW_ROOT_MIN_BYTES,
            Purpose::RestoredRoot | Purpose::RestoredData => RESTORED_ROOT_MIN_BYTES,
        }
    }
}

/// What a disk is to hold beside the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirements {
    /// Partitions begin at multiples of this.
    pub alignment_sectors: u64,
    /// Room for a boot loader before the first partition of an MBR.
    pub loader: bool,
    /// Firmware is to look at the EFI system partition.
    pub uefi: bool,
    /// A partition for swap, before the root.
    pub swap_bytes: Option<u64>,
    pub purpose: Purpose,
}

/// One partition; sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub role: Role,
    pub start_sector: u64,
    pub sectors: u64,
}

impl Partition {
    pub fn start_bytes(&self) -> u64 {
        self.start_sector * SECTOR_BYTES
    }

    pub fn size_bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }
}

/// A whole disk's division. The root is partition 1 wherever there are partitions: Ganeti's default is
/// root_path=/dev/vda1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub style: PartitionStyle,
    pub disk_sectors: u64,
    /// Firmware is to look at the EFI system partition; otherwise nobody is.
    pub uefi: bool,
    /// By position on the disk; empty with style none.
    pub partitions: Vec<Partition>,
}

/// A disk that the layout does not fit on.
#[derive(Debug, PartialEq, Eq)]
pub enum Misfit {
    TooSmall { disk_bytes: u64, needed_bytes: u64, style: PartitionStyle },
    TooLarge { disk_bytes: u64 },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::TooSmall { disk_bytes, needed_bytes, style } => write!(
                f,
                "the disk has {} ({disk_bytes} bytes), but partition_style {style} needs {} ({needed_bytes} bytes)",
                size(*disk_bytes),
                size(*needed_bytes)
            ),
            Misfit::TooLarge { disk_bytes } => write!(
                f,
                "the disk has {}, but partition_style msdos can address 2 TiB only; use gpt",
                size(*disk_bytes)
            ),
        }
    }
}

impl std::error::Error for Misfit {}

impl Layout {
    /// Divides a disk of `disk_bytes`.
    pub fn new(style: PartitionStyle, disk_bytes: u64, requirements: Requirements) -> Result<Layout, Misfit> {
        let disk_sectors = disk_bytes / SECTOR_BYTES;
        let Requirements { alignment_sectors, loader, uefi, swap_bytes, purpose } = requirements;
        let align_up = |sector: u64| sector.div_ceil(alignment_sectors) * alignment_sectors;
        // What precedes the root, and the first sector behind the last that the root may use.
        let mut partitions = Vec::new();
        let (root_start, tail) = match style {
            PartitionStyle::None => (0, 0),
            PartitionStyle::Msdos => (align_up(if loader { MIB_SECTORS } else { 1 }), 0),
            PartitionStyle::Gpt if purpose == Purpose::RestoredData => (align_up(34), GPT_TAIL_SECTORS),
            PartitionStyle::Gpt => {
                let bios_start = align_up(34);
                let esp_start = align_up(bios_start + BIOS_BOOT_SECTORS);
                partitions.push(Partition {
                    number: 14,
                    role: Role::BiosBoot,
                    start_sector: bios_start,
                    sectors: BIOS_BOOT_SECTORS,
                });
                partitions.push(Partition {
                    number: 15,
                    role: Role::Esp,
                    start_sector: esp_start,
                    sectors: ESP_SECTORS,
                });
                (align_up(esp_start + ESP_SECTORS), GPT_TAIL_SECTORS)
            }
        };
        let mut root_start = root_start;
        if let Some(bytes) = swap_bytes.filter(|_| style != PartitionStyle::None) {
            let sectors = bytes.div_ceil(1 << 20) * MIB_SECTORS;
            partitions.push(Partition { number: 2, role: Role::Swap, start_sector: root_start, sectors });
            root_start = align_up(root_start + sectors);
        }
        let needed_bytes = (root_start + tail) * SECTOR_BYTES + purpose.root_min_bytes();
        if disk_bytes < needed_bytes {
            return Err(Misfit::TooSmall { disk_bytes, needed_bytes, style });
        }
        if style == PartitionStyle::Msdos && disk_sectors > MSDOS_MAX_SECTORS {
            return Err(Misfit::TooLarge { disk_bytes });
        }
        if style != PartitionStyle::None {
            // Whole units of 1 MiB, as parted and fdisk leave it; a rest at the end stays unused.
            let available = disk_sectors - tail - root_start;
            let sectors = available / MIB_SECTORS * MIB_SECTORS;
            partitions.push(Partition { number: 1, role: Role::Root, start_sector: root_start, sectors });
        }
        Ok(Layout { style, disk_sectors, uefi, partitions })
    }

    /// The partition of the root; None with style none.
    pub fn root(&self) -> Option<&Partition> {
        self.partition(Role::Root)
    }

    /// The partition of a role.
    pub fn partition(&self, role: Role) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.role == role)
    }

    /// The label of a root that is not whole yet. With a table, its absence says the same.
    pub fn unfinished_label(&self) -> &'static str {
        if self.style == PartitionStyle::None { INCOMPLETE_LABEL } else { "" }
    }

    /// Where the root lies: offset and size in bytes.
    pub fn root_extent(&self) -> (u64, u64) {
        match self.root() {
            Some(root) => (root.start_bytes(), root.size_bytes()),
            None => (0, self.disk_sectors * SECTOR_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn aligned(alignment_sectors: u64) -> Requirements {
        let purpose = Purpose::System;
        Requirements { alignment_sectors, loader: false, uefi: false, swap_bytes: None, purpose }
    }

    fn extents(style: PartitionStyle, bytes: u64, alignment: u64) -> Vec<(u32, u64, u64)> {
        let layout = Layout::new(style, bytes, aligned(alignment)).unwrap();
        layout.partitions.iter().map(|p| (p.number, p.start_sector, p.sectors)).collect()
    }

    #[test]
    fn gpt_puts_the_root_last_and_first_in_number() {
        let expected = [(14, 2048, 6144), (15, 8192, 253_952), (1, 262_144, 3_930_112)];
        assert_eq!(extents(PartitionStyle::Gpt, 2 * GIB, 2048), expected);
    }

    #[test]
    fn msdos_is_one_partition_from_the_alignment_on() {
        assert_eq!(extents(PartitionStyle::Msdos, GIB, 2048), [(1, 2048, 2_095_104)]);
        assert_eq!(extents(PartitionStyle::Msdos, GIB + 512 * 777, 8192), [(1, 8192, 2_088_960)]);
    }

    #[test]
    fn swap_stands_before_the_root_and_a_loader_has_its_gap() {
        let requirements =
            Requirements { loader: true, uefi: true, swap_bytes: Some(1000 << 20), ..aligned(8) };
        let layout = Layout::new(PartitionStyle::Msdos, 4 * GIB, requirements).unwrap();
        let extents: Vec<_> = layout.partitions.iter().map(|p| (p.number, p.start_sector)).collect();
        assert_eq!(extents, [(2, 2048), (1, 2048 + 1000 * 2048)]);
        let gpt = Layout::new(PartitionStyle::Gpt, 4 * GIB, requirements).unwrap();
        assert_eq!(gpt.partitions.last(), gpt.root());
        assert!(Layout::new(PartitionStyle::Gpt, GIB, requirements).is_err(), "swap takes its part");
    }

    #[test]
    fn none_has_no_partition_and_the_whole_disk() {
        let layout = Layout::new(PartitionStyle::None, GIB + 100, aligned(2048)).unwrap();
        assert_eq!((layout.root(), layout.root_extent()), (None, (0, GIB)));
    }

    #[test]
    fn one_byte_less_than_the_minimum_is_refused_with_both_sizes() {
        for style in [PartitionStyle::Gpt, PartitionStyle::Msdos, PartitionStyle::None] {
            let Err(Misfit::TooSmall { needed_bytes, .. }) = Layout::new(style, 1, aligned(2048)) else {
                panic!()
            };
            let layout = Layout::new(style, needed_bytes, aligned(2048)).unwrap();
            assert!(layout.root_extent().1 > 510 << 20);
            let misfit = Layout::new(style, needed_bytes - 1, aligned(2048)).unwrap_err();
            let text = misfit.to_string();
            assert!(
                text.contains(&(needed_bytes - 1).to_string()) && text.contains(&needed_bytes.to_string())
            );
        }
    }

    #[test]
    fn a_backup_may_have_a_small_disk() {
        let requirements = Requirements { purpose: Purpose::RestoredRoot, ..aligned(2048) };
        for (style, bytes) in [
            (PartitionStyle::None, 8 << 20),
            (PartitionStyle::Msdos, 9 << 20),
            (PartitionStyle::Gpt, 137 << 20),
        ] {
            assert!(Layout::new(style, bytes, requirements).is_ok(), "{style}");
            assert!(Layout::new(style, bytes - (2 << 20), requirements).is_err(), "{style}");
        }
    }

    #[test]
    fn msdos_ends_at_two_tib() {
        assert!(Layout::new(PartitionStyle::Msdos, 2048 * GIB - 512, aligned(2048)).is_ok());
        let misfit = Layout::new(PartitionStyle::Msdos, 2048 * GIB, aligned(2048)).unwrap_err();
        assert!(misfit.to_string().ends_with("use gpt"));
    }

    #[test]
    fn partitions_never_overlap_and_end_before_the_backup_table() {
        for alignment in [64, 2048, 4096, 1 << 20] {
            for bytes in [8 * GIB, 8 * GIB + 512, 9 * GIB - 512, 3000 * GIB] {
                let layout = Layout::new(PartitionStyle::Gpt, bytes, aligned(alignment)).unwrap();
                let mut end = 34;
                for partition in &layout.partitions {
                    assert!(partition.start_sector >= end && partition.start_sector % alignment == 0);
                    end = partition.start_sector + partition.sectors;
                }
                assert!(end <= layout.disk_sectors - 33);
            }
        }
    }
}
