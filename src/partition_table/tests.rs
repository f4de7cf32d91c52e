use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::gpt::{ENTRY_BYTES, crc32, entries_bytes, is_used, read_header};
use super::mbr::{self, TABLE_AT};
use super::*;

const DISK: usize = 4 << 20;

/// A disk with a GPT of two partitions, by an independent writer.
fn gpt() -> Vec<u8> {
    let mut disk = Cursor::new(vec![0u8; DISK]);
    let mut gpt = gptman::GPT::new_from(&mut disk, 512, [1; 16]).unwrap();
    for (number, start) in [(1, 4096), (14, 2048)] {
        gpt[number] = gptman::GPTPartitionEntry {
            partition_type_guid: [7; 16],
            unique_partition_guid: [number as u8; 16],
            starting_lba: start,
            ending_lba: start + 1023,
            attribute_bits: 0,
            partition_name: "x".into(),
        };
    }
    gpt.write_into(&mut disk).unwrap();
    gptman::GPT::write_protective_mbr_into(&mut disk, 512).unwrap();
    disk.into_inner()
}

/// A disk with an MBR; (kind, start, sectors) of each entry.
fn mbr(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0u8; DISK];
    table(&mut disk, 0, entries);
    disk
}

fn table(disk: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
    let at = sector * 512;
    disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    for (index, (kind, start, sectors)) in entries.iter().enumerate() {
        let entry = &mut disk[at + TABLE_AT + index * mbr::ENTRY_BYTES..][..mbr::ENTRY_BYTES];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
}

fn numbers(disk: &[u8]) -> Vec<(u32, u64, u64)> {
    let table = read(disk, disk.len() as u64).unwrap().unwrap();
    table.partitions.iter().map(|p| (p.number, p.start_bytes / 512, p.size_bytes / 512)).collect()
}

fn refusal(disk: &[u8]) -> String {
    format!("{:#}", read(disk, disk.len() as u64).unwrap_err())
}

/// Writes a header's field and makes its checksum right again.
fn set_header(disk: &mut [u8], at: usize, bytes: &[u8]) {
    let header = &mut disk[512..1024];
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header[16..20].fill(0);
    let crc = crc32(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_gpt_is_read_from_either_end() {
    let mut disk = gpt();
    let both = [(1, 4096, 1024), (14, 2048, 1024)];
    assert_eq!(numbers(&disk), both);
    disk[512] = b'X';
    assert_eq!(numbers(&disk), both);
    let last = disk.len() - 512;
    disk[last] = b'X';
    assert!(refusal(&disk).contains("no table that is whole"), "{}", refusal(&disk));
}

fn file_of(disk: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(disk, 0).unwrap();
    file
}

/// The GUIDs of both tables: the disk's, and those of the partitions.
fn guids(file: &File) -> [Vec<Uuid>; 2] {
    [1, DISK as u64 / 512 - 1].map(|lba| {
        let header = read_header(file, DISK as u64, 512, lba).unwrap();
        let guid = |bytes: &[u8]| Uuid::from_bytes_le(bytes[..16].try_into().unwrap());
        let entries = entries_bytes(file, &header).unwrap();
        let used = entries.chunks_exact(header.entry_bytes as usize).filter(|entry| is_used(entry));
        let sector = read_sector(file, lba * 512).unwrap();
        std::iter::once(guid(&sector[56..])).chain(used.map(|entry| guid(&entry[16..]))).collect()
    })
}

#[test]
fn a_gpt_and_its_copy_get_other_guids_and_nothing_else() {
    let new = |old: Uuid| Uuid::from_u128(!old.as_u128());
    let disk = gpt();
    let file = file_of(&disk);
    let old = guids(&file);
    renew_gpt(&file, DISK as u64, new).unwrap();
    let expected = old[0].iter().map(|old| new(*old)).collect::<Vec<_>>();
    assert_eq!(guids(&file), [expected.clone(), expected]);
    renew_gpt(&file, DISK as u64, new).unwrap();
    let mut again = vec![0; DISK];
    file.read_exact_at(&mut again, 0).unwrap();
    assert!(again == disk);
}

#[test]
fn larger_entries_are_renewed_too_but_no_other_reader_is_let_at_them() {
    let mut disk = gpt();
    assert_eq!(primary_gpt(disk.as_slice(), DISK as u64), Some(512));
    let entry_bytes = 2 * ENTRY_BYTES as usize;
    let old = disk[1024..1024 + 128 * 128].to_vec();
    for (number, entry) in old.chunks_exact(128).enumerate() {
        disk[1024 + number * entry_bytes..][..entry_bytes].fill(0);
        disk[1024 + number * entry_bytes..][..128].copy_from_slice(entry);
    }
    let crc = crc32(&disk[1024..1024 + 128 * entry_bytes]);
    set_header(&mut disk, 84, &(entry_bytes as u32).to_le_bytes());
    set_header(&mut disk, 88, &crc.to_le_bytes());
    assert_eq!(primary_gpt(disk.as_slice(), DISK as u64), None);
    let file = file_of(&disk);
    let old = guids(&file);
    renew_gpt(&file, DISK as u64, |old| Uuid::from_u128(!old.as_u128())).unwrap();
    assert!(guids(&file)[0].iter().all(|guid| !old[0].contains(guid)));
}

#[test]
fn a_table_beside_the_one_that_is_read_is_not_believed() {
    // Numbers that another reader would take for memory, or for places to write to; each header is signed.
    for (at, bytes) in [
        (80, &u32::MAX.to_le_bytes()[..]),
        (72, &(1u64 << 40).to_le_bytes()[..]),
        (32, &(1u64 << 40).to_le_bytes()[..]),
        (48, &(1u64 << 40).to_le_bytes()[..]),
        (48, &u64::MAX.to_le_bytes()[..]),
    ] {
        let mut disk = gpt();
        set_header(&mut disk, at, bytes);
        let file = file_of(&disk);
        renew_gpt(&file, DISK as u64, |old| Uuid::from_u128(!old.as_u128())).unwrap();
        assert_eq!(file.metadata().unwrap().len(), DISK as u64, "{at}");
        assert_eq!(gpt::read(&file, DISK as u64).unwrap().len(), 2, "{at}");
    }
}

#[test]
fn a_header_that_lies_is_no_table() {
    for (at, bytes, part) in [
        (80, &u32::MAX.to_le_bytes()[..], "4294967295 entries"),
        (84, &0u32.to_le_bytes()[..], "entries of 0 bytes"),
        (84, &(1u32 << 31).to_le_bytes()[..], "entries of 2147483648 bytes"),
        (72, &1u64.to_le_bytes()[..], "stand at sector 1"),
        (72, &u64::MAX.to_le_bytes()[..], "stand at sector 18446744073709551615"),
        (24, &5u64.to_le_bytes()[..], "stands at sector 5"),
        (12, &u32::MAX.to_le_bytes()[..], "a header of"),
        (88, &[0u8; 4][..], "the entries' checksum"),
    ] {
        let mut disk = gpt();
        let last = disk.len() - 512;
        disk[last] = b'X';
        set_header(&mut disk, at, bytes);
        assert!(refusal(&disk).contains(part), "{part}: {}", refusal(&disk));
    }
}

#[test]
fn primary_and_logical_partitions_are_numbered_as_linux_does() {
    let mut disk = mbr(&[(0x83, 64, 100), (0, 0, 0), (0x05, 1000, 3000)]);
    table(&mut disk, 1000, &[(0x83, 10, 50), (0x05, 1000, 500)]);
    table(&mut disk, 2000, &[(0x82, 10, 50)]);
    assert_eq!(numbers(&disk), [(1, 64, 100), (5, 1010, 50), (6, 2010, 50)]);
}

#[test]
fn a_chain_that_does_not_lead_onwards_ends_there() {
    for (link, part) in [
        ((0x05, 0, 500), "leads from sector 1000 to 1000"),
        ((0x05, 9000, 500), "leads from sector 1000 to 10000"),
        ((0x05, u32::MAX, 500), "leads from sector 1000"),
        ((0x83, 500, 500), "breaks off at sector 1000"),
    ] {
        let mut disk = mbr(&[(0x05, 1000, 3000)]);
        table(&mut disk, 1000, &[(0x83, 10, 50), link]);
        assert!(refusal(&disk).contains(part), "{part}: {}", refusal(&disk));
    }
    let mut disk = mbr(&[(0x05, 1, 8000)]);
    for sector in 1..200 {
        table(&mut disk, sector, &[(0, 0, 0), (0x05, sector as u32, 8)]);
    }
    assert!(refusal(&disk).contains("more than 60"), "{}", refusal(&disk));
}

#[test]
fn partitions_overlap_nothing_and_end_on_the_disk() {
    let disk = mbr(&[(0x83, 64, 100), (0x83, 163, 100)]);
    assert_eq!(refusal(&disk), "partitions 1 and 2 overlap");
    let disk = mbr(&[(0x83, 64, u32::MAX)]);
    assert!(refusal(&disk).starts_with("partition 1 ends at byte"));
    let mut disk = mbr(&[(0x05, 1000, 3000)]);
    table(&mut disk, 1000, &[(0x83, 10, 0)]);
    assert_eq!(refusal(&disk), "partition 5 has no sectors");
}

#[test]
fn a_boot_sector_without_a_table_is_none() {
    for disk in [vec![0u8; DISK], mbr(&[]), mbr(&[(0x83, 0, 0)]), vec![0x55; 512], Vec::new()] {
        assert_eq!(read(disk.as_slice(), disk.len() as u64).unwrap(), None);
    }
    let mut text = mbr(&[(0x83, 64, 100)]);
    text[TABLE_AT] = b'M';
    assert_eq!(read(text.as_slice(), text.len() as u64).unwrap(), None);
}
