//! The EFI system partition: a FAT filesystem, made and filled by the fatfs crate without mounting it.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::page_buffer::Pages;

/// Small clusters keep the filesystem a FAT32, which the UEFI specification wants of a disk.
const CLUSTER_BYTES: u32 = 1024;

/// Formats the partition and writes files into it, and does not flush them; returns its volume number.
pub fn make(partition: &Path, size_bytes: u64, files: &[(String, Vec<u8>)]) -> Result<u32> {
    let context = || format!("making the EFI system partition {}", partition.display());
    let device = open(partition).with_context(context)?;
    let volume = (uuid::Uuid::new_v4().as_u128() >> 96) as u32;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_sector(512)
        .total_sectors(u32::try_from(size_bytes / 512).with_context(context)?)
        .bytes_per_cluster(CLUSTER_BYTES)
        .volume_id(volume)
        .volume_label(*b"ESP        ");
    let mut pages = Pages::blank(&device, size_bytes);
    fatfs::format_volume(&mut pages, options).with_context(context)?;
    write(&mut pages, files).with_context(context)?;
    Ok(volume)
}

/// Flushes what was written to the partition.
pub fn flush(partition: &Path) -> Result<()> {
    let flushed = open(partition).and_then(|device| device.sync_all());
    flushed.with_context(|| format!("flushing the EFI system partition {}", partition.display()))
}

/// Adds files to a partition that was made before, unless they are there; what makes them files comes last.
pub fn add(partition: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let context = || format!("writing to the EFI system partition {}", partition.display());
    let mut device = open(partition).with_context(context)?;
    let size_bytes = device.seek(SeekFrom::End(0)).with_context(context)?;
    write(&mut Pages::new(&device, size_bytes), files).with_context(context)?;
    device.sync_all().with_context(context)
}

fn open(partition: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(partition)
}

fn write(pages: &mut Pages<'_>, files: &[(String, Vec<u8>)]) -> Result<()> {
    let filesystem = FileSystem::new(&mut *pages, FsOptions::new())?;
    for (path, bytes) in files {
        let mut dir = filesystem.root_dir();
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        for parent in parents.split('/').filter(|part| !part.is_empty()) {
            dir = dir.create_dir(parent)?;
        }
        if dir.open_file(name).is_ok() {
            continue;
        }
        let mut file = dir.create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    filesystem.unmount()?;
    // Tables and directories lie before what they speak of, and are written after it.
    Ok(pages.write_back()?)
}

/// A volume number as blkid and fstab write it.
pub fn volume_name(volume: u32) -> String {
    format!("{:04X}-{:04X}", volume >> 16, volume & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn files_are_there_and_are_not_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(124 << 20).unwrap();
        let files = |text: &str| vec![("EFI/BOOT/a.efi".to_owned(), text.as_bytes().to_vec())];
        make(file.path(), 124 << 20, &files("first")).unwrap();
        add(file.path(), &files("second")).unwrap();
        add(file.path(), &[("EFI/BOOT/BOOTX64.EFI".into(), vec![9; 1 << 20])]).unwrap();
        let filesystem = FileSystem::new(file.as_file(), FsOptions::new()).unwrap();
        assert_eq!(filesystem.fat_type(), FatType::Fat32);
        let mut text = String::new();
        filesystem.root_dir().open_file("efi/boot/A.EFI").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "first");
        assert_eq!(volume_name(0x00ab_12cd), "00AB-12CD");
    }
}
