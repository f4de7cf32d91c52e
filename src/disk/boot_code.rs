//! GRUB's two images on a disk, as grub-install(8) would embed them: boot.img in sector 0 around the table that is
//! there, core.img where nothing else is. Offsets are those of GRUB's boot.S and diskboot.S (include/grub/i386/pc/boot.h).

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::filesystem::{PartitionStyle, SECTOR_BYTES};
use crate::partition_table::layout::{Layout, Role};

const SECTOR: usize = SECTOR_BYTES as usize;
/// The BIOS parameter block, which is the disk's own.
const BPB: std::ops::Range<usize> = 0x03..0x5a;
/// Signature, table and end mark of an MBR, which are the disk's own.
const TABLE: std::ops::Range<usize> = 0x1b8..0x200;
/// boot.img: u64, the sector that it loads first.
const KERNEL_SECTOR: usize = 0x5c;
/// boot.img: the drive that it loads from; 0xff means the one that the firmware started.
const BOOT_DRIVE: usize = 0x64;
/// boot.img: a jump over the check for a broken BIOS; two NOPs switch the check on, as on a hard disk.
const DRIVE_CHECK: usize = 0x66;
/// core.img, first sector: u64, the sector where the rest begins.
const BLOCKLIST_START: usize = 0x1f4;
/// Executable bytes of sector 0.
const CODE_BYTES: usize = 0x1b8;

/// Whether somebody has written boot code: a hook that ran its own loader.
pub fn has_boot_code(disk: &File) -> Result<bool> {
    let mut code = [0u8; CODE_BYTES];
    disk.read_exact_at(&mut code, 0).context("reading the boot sector")?;
    Ok(code.iter().any(|byte| *byte != 0))
}

/// A first sector with its table, and nothing that firmware would start.
pub fn without_code(sector: &[u8; SECTOR]) -> [u8; SECTOR] {
    let mut silent = *sector;
    silent[..CODE_BYTES].fill(0);
    silent
}

/// Embeds core.img, then boot.img: until the last sector is written firmware finds nothing.
pub fn embed(disk: &File, layout: &Layout, boot: &[u8], core: &[u8]) -> Result<()> {
    let (start_sector, room) = room(layout).context("finding room for GRUB")?;
    ensure!(boot.len() == SECTOR, "boot.img has {} bytes, not {SECTOR}", boot.len());
    let sectors = core.len().div_ceil(SECTOR) as u64;
    ensure!(core.len() >= SECTOR, "core.img is cut short");
    ensure!(sectors <= room, "core.img has {sectors} sectors; the disk has room for {room}");
    let mut padded = core.to_vec();
    padded.resize(sectors as usize * SECTOR, 0);
    put_u64(&mut padded, BLOCKLIST_START, start_sector + 1);
    disk.write_all_at(&padded, start_sector * SECTOR_BYTES).context("writing core.img")?;
    disk.sync_data().context("flushing core.img")?;
    let mut sector = [0u8; SECTOR];
    disk.read_exact_at(&mut sector, 0).context("reading the boot sector")?;
    disk.write_all_at(&boot_sector(boot, &sector, start_sector), 0).context("writing the boot sector")?;
    disk.sync_data().context("flushing the boot sector")
}

/// Sector 0 with boot.img in it.
fn boot_sector(boot: &[u8], disk: &[u8; SECTOR], core_sector: u64) -> [u8; SECTOR] {
    let mut sector = [0u8; SECTOR];
    sector.copy_from_slice(boot);
    put_u64(&mut sector, KERNEL_SECTOR, core_sector);
    sector[BOOT_DRIVE] = 0xff;
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    for own in [BPB, TABLE] {
        sector[own.clone()].copy_from_slice(&disk[own]);
    }
    sector
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Where core.img may stand: first sector and sectors. In a GPT its own partition, in an MBR the gap behind sector 0.
fn room(layout: &Layout) -> Option<(u64, u64)> {
    match layout.style {
        PartitionStyle::Gpt => {
            let partition = layout.partition(Role::BiosBoot)?;
            Some((partition.start_sector, partition.sectors))
        }
        PartitionStyle::Msdos => {
            let first = layout.partitions.iter().map(|partition| partition.start_sector).min()?;
            Some((1, first - 1))
        }
        PartitionStyle::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_sector_keeps_what_is_the_disks_own() {
        let boot: Vec<u8> = (0..SECTOR).map(|n| n as u8 ^ 0x5a).collect();
        let disk = [0xcc; SECTOR];
        let sector = boot_sector(&boot, &disk, 2048);
        assert!(sector[BPB].iter().chain(&sector[TABLE]).all(|byte| *byte == 0xcc));
        assert_eq!(sector[0..3], boot[0..3]);
        assert_eq!(sector[0x5c..0x64], 2048u64.to_le_bytes());
        assert_eq!((sector[0x64], &sector[0x66..0x68]), (0xff, &[0x90, 0x90][..]));
        assert_eq!(sector[0x68..0x1b8], boot[0x68..0x1b8]);
    }

    #[test]
    fn core_img_finds_its_place_or_is_refused() {
        let requirements = crate::partition_table::layout::Requirements {
            alignment_sectors: 2048,
            loader: true,
            uefi: false,
            swap_bytes: None,
            purpose: crate::partition_table::layout::Purpose::System,
        };
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        let layout = Layout::new(PartitionStyle::Msdos, 1 << 30, requirements).unwrap();
        let core = vec![7u8; SECTOR * 3 - 5];
        embed(&file, &layout, &[1; SECTOR], &core).unwrap();
        let mut read = [0u8; SECTOR * 3];
        file.read_exact_at(&mut read, SECTOR_BYTES).unwrap();
        assert_eq!(read[BLOCKLIST_START..BLOCKLIST_START + 8], 2u64.to_le_bytes());
        assert_eq!(read[..BLOCKLIST_START], core[..BLOCKLIST_START]);
        assert!(has_boot_code(&file).unwrap());
        let large = vec![0u8; SECTOR * 2048];
        assert!(
            embed(&file, &layout, &[1; SECTOR], &large).unwrap_err().to_string().contains("room for 2047")
        );
        let none = Layout::new(PartitionStyle::None, 1 << 30, requirements).unwrap();
        assert!(embed(&file, &none, &[1; SECTOR], &core).is_err());
    }
}
