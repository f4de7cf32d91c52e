//! Partition tables, written by the gptman and mbrman crates and read back.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use gptman::{GPT, GPTPartitionEntry};
use mbrman::{BOOT_ACTIVE, BOOT_INACTIVE, CHS, MBR, MBRPartitionEntry};
use uuid::Uuid;

use super::layout::{Layout, Partition, Role};
use crate::filesystem::{PartitionStyle, SECTOR_BYTES};

/// Type of a Linux partition in an MBR.
const MBR_LINUX: u8 = 0x83;
/// Type of Linux swap in an MBR.
const MBR_SWAP: u8 = 0x82;

/// Writes the layout's table through an open disk, flushes it and reads it back. With style none nothing.
pub fn write_table(disk: &File, layout: &Layout) -> Result<()> {
    let found = match layout.style {
        PartitionStyle::None => return Ok(()),
        PartitionStyle::Gpt => write_gpt(disk, layout)?,
        PartitionStyle::Msdos => write_mbr(disk, layout)?,
    };
    let mut expected: Vec<(u32, u64, u64)> =
        layout.partitions.iter().map(|p| (p.number, p.start_sector, p.sectors)).collect();
    expected.sort_unstable();
    ensure!(found == expected, "the table reads back as {found:?}, not as {expected:?}");
    Ok(())
}

/// Whether the table is still there once hooks had the disk: the signatures alone, boot code may be new.
pub fn table_is_there(disk: &File, style: PartitionStyle) -> Result<bool> {
    let mut start = [0u8; 1024];
    disk.read_exact_at(&mut start, 0).context("reading the partition table")?;
    let boot_signature = start[510..512] == [0x55, 0xaa];
    Ok(match style {
        PartitionStyle::None => true,
        PartitionStyle::Msdos => boot_signature,
        PartitionStyle::Gpt => boot_signature && start[512..520] == *b"EFI PART",
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

/// "No block I/O protocol", UEFI specification 5.3.3: firmware leaves the partition alone, and so does a systemd that
/// mounts what it finds.
const NOT_FOR_FIRMWARE: u64 = 1 << 1;

fn gpt_entry(partition: &Partition, uefi: bool) -> GPTPartitionEntry {
    let name = match partition.role {
        Role::Root => "root",
        Role::BiosBoot => "bios-boot",
        Role::Esp => "esp",
        Role::Swap => "swap",
    };
    GPTPartitionEntry {
        partition_type_guid: gpt_type(partition.role).to_bytes_le(),
        unique_partition_guid: Uuid::new_v4().to_bytes_le(),
        starting_lba: partition.start_sector,
        ending_lba: partition.start_sector + partition.sectors - 1,
        attribute_bits: if partition.role == Role::Esp && !uefi { NOT_FOR_FIRMWARE } else { 0 },
        partition_name: name.into(),
    }
}

fn write_gpt(disk: &File, layout: &Layout) -> Result<Vec<(u32, u64, u64)>> {
    let mut io = disk;
    let context = "writing the partition table";
    let mut gpt = GPT::new_from(&mut io, SECTOR_BYTES, Uuid::new_v4().to_bytes_le()).context(context)?;
    for partition in &layout.partitions {
        gpt[partition.number] = gpt_entry(partition, layout.uefi);
    }
    gpt.write_into(&mut io).context(context)?;
    GPT::write_protective_mbr_into(&mut io, SECTOR_BYTES).context(context)?;
    disk.sync_all().context(context)?;
    let read = GPT::find_from(&mut io).context("reading the partition table back")?;
    let used = read.iter().filter(|(_, entry)| entry.is_used());
    Ok(used.map(|(n, e)| (n, e.starting_lba, e.ending_lba + 1 - e.starting_lba)).collect())
}

fn write_mbr(disk: &File, layout: &Layout) -> Result<Vec<(u32, u64, u64)>> {
    let mut io = disk;
    let context = "writing the partition table";
    let signature = Uuid::new_v4().into_bytes();
    let signature = [signature[0], signature[1], signature[2], signature[3]];
    io.seek(SeekFrom::Start(0)).context(context)?;
    let mut mbr = MBR::new_from(&mut io, SECTOR_BYTES as u32, signature).context(context)?;
    for partition in &layout.partitions {
        let (boot, sys) = match partition.role {
            Role::Swap => (BOOT_INACTIVE, MBR_SWAP),
            _ => (BOOT_ACTIVE, MBR_LINUX),
        };
        mbr[partition.number as usize] = MBRPartitionEntry {
            boot,
            first_chs: CHS::empty(),
            sys,
            last_chs: CHS::empty(),
            starting_lba: u32::try_from(partition.start_sector).context(context)?,
            sectors: u32::try_from(partition.sectors).context(context)?,
        };
    }
    mbr.write_into(&mut io).context(context)?;
    disk.sync_all().context(context)?;
    io.seek(SeekFrom::Start(0)).context(context)?;
    let read = MBR::read_from(&mut io, SECTOR_BYTES as u32).context("reading the partition table back")?;
    let used = read.iter().filter(|(_, entry)| entry.is_used());
    Ok(used.map(|(n, e)| (n as u32, u64::from(e.starting_lba), u64::from(e.sectors))).collect())
}
