//! Writes the table of a new disk, and reads it back.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use super::gpt::{self, Gpt, entry};
use super::layout::{Layout, Partition, Role};
use super::mbr::{self, Entry};
use super::{SECTOR, read};
use crate::filesystem::{PartitionStyle, SECTOR_BYTES};
use crate::reader::{Budget, Region};

/// Type of a Linux partition in an MBR.
const MBR_LINUX: u8 = 0x83;
/// Type of Linux swap in an MBR.
const MBR_SWAP: u8 = 0x82;
/// "No block I/O protocol", UEFI specification 5.3.3: firmware leaves the partition alone, and so does a systemd that
/// mounts what it finds.
const NOT_FOR_FIRMWARE: u64 = 1 << 1;

/// Writes the layout's table through an open disk, flushes it and reads it back. With style none it writes nothing.
pub fn write_table(disk: &File, layout: &Layout) -> Result<()> {
    match layout.style {
        PartitionStyle::None => return Ok(()),
        PartitionStyle::Gpt => write_gpt(disk, layout)?,
        PartitionStyle::Msdos => write_mbr(disk, layout)?,
    }
    disk.sync_all().context("writing the partition table")?;
    let (size_bytes, budget) = (layout.disk_sectors * SECTOR_BYTES, Budget::unlimited());
    let table =
        read(&Region::new(disk, &budget, 0, size_bytes)).context("reading the partition table back")?;
    let found: Vec<_> =
        table.iter().flat_map(|t| &t.partitions).map(|p| (p.number, p.start_bytes, p.size_bytes)).collect();
    let mut expected: Vec<_> =
        layout.partitions.iter().map(|p| (p.number, p.start_bytes(), p.size_bytes())).collect();
    expected.sort_unstable();
    ensure!(found == expected, "the table reads back as {found:?}, not as {expected:?}");
    Ok(())
}

/// Whether the table is still there once hooks had the disk: the signatures alone, boot code may be new.
pub fn table_is_there(disk: &File, style: PartitionStyle) -> Result<bool> {
    let mut start = [0u8; 1024];
    disk.read_exact_at(&mut start, 0).context("reading the partition table")?;
    let boot_signature = start[510..512] == mbr::SIGNATURE;
    Ok(match style {
        PartitionStyle::None => true,
        PartitionStyle::Msdos => boot_signature,
        PartitionStyle::Gpt => boot_signature && start[512..].starts_with(&gpt::SIGNATURE),
    })
}

/// Types of the UEFI specification and the Discoverable Partitions Specification.
fn gpt_type(role: Role) -> Uuid {
    match role {
        Role::Root => Uuid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4),
        Role::BiosBoot => Uuid::from_u128(0x21686148_6449_6e6f_744e_656564454649),
        Role::Esp => Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b),
        Role::Swap => Uuid::from_u128(0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f),
    }
}

fn gpt_name(role: Role) -> &'static str {
    match role {
        Role::Root => "root",
        Role::BiosBoot => "bios-boot",
        Role::Esp => "esp",
        Role::Swap => "swap",
    }
}

fn write_gpt(disk: &File, layout: &Layout) -> Result<()> {
    let mut table = Gpt::new(Uuid::new_v4());
    table.place(layout.disk_sectors).context("the disk is too small for a partition table")?;
    for partition in &layout.partitions {
        let bytes = table.entry_mut(partition.number).context("the layout has too many partitions")?;
        fill_entry(bytes, partition, layout.uefi);
    }
    table.write_both(disk)?;
    let protective = Entry::protective(layout.disk_sectors);
    let sector = mbr::sector([0; 4], &[(1, protective)]);
    disk.write_all_at(&sector, 0).context("writing the protective partition table")
}

fn fill_entry(bytes: &mut [u8], partition: &Partition, uefi: bool) {
    let last = partition.start_sector + partition.sectors - 1;
    let attributes = if partition.role == Role::Esp && !uefi { NOT_FOR_FIRMWARE } else { 0 };
    bytes[entry::TYPE].copy_from_slice(&gpt_type(partition.role).to_bytes_le());
    bytes[entry::GUID].copy_from_slice(&Uuid::new_v4().to_bytes_le());
    for (at, value) in
        [(entry::FIRST_LBA, partition.start_sector), (entry::LAST_LBA, last), (entry::ATTRIBUTES, attributes)]
    {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let name = gpt_name(partition.role).encode_utf16().flat_map(u16::to_le_bytes);
    for (to, byte) in bytes[entry::NAME].iter_mut().zip(name) {
        *to = byte;
    }
}

fn write_mbr(disk: &File, layout: &Layout) -> Result<()> {
    let entries: Vec<(u32, Entry)> = layout
        .partitions
        .iter()
        .map(|partition| {
            let is_swap = partition.role == Role::Swap;
            let kind = if is_swap { MBR_SWAP } else { MBR_LINUX };
            (partition.number, Entry::new(!is_swap, kind, partition.start_sector, partition.sectors))
        })
        .collect();
    let random = Uuid::new_v4().into_bytes();
    let sector: [u8; SECTOR as usize] = mbr::sector([random[0], random[1], random[2], random[3]], &entries);
    disk.write_all_at(&sector, 0).context("writing the partition table")
}
