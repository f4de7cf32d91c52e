use std::fs::File;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::gpt::{ENTRY_BYTES, Gpt};
use super::*;
use crate::filesystem::PartitionStyle;
use crate::reader::Budget;

const DISK: usize = 4 << 20;

const TABLE_AT: usize = 446;

/// A disk with a GPT of two partitions, byte by byte as the specification has it.
fn gpt() -> Vec<u8> {
    gpt_with(&[(1, 4096, 1024), (14, 2048, 1024)], |_, _| {})
}

/// A disk with a GPT; (number, start, sectors) of each partition. `change` gets the header and the entries of either table.
fn gpt_with(partitions: &[(usize, u64, u64)], change: impl Fn(&mut [u8], &mut [u8])) -> Vec<u8> {
    let mut disk = mbr(&[(0xee, 1, (DISK / 512 - 1) as u32)]);
    let last = DISK as u64 / 512 - 1;
    let mut entries = vec![0; 128 * 128];
    for (number, start, sectors) in partitions {
        let entry = &mut entries[(number - 1) * 128..][..128];
        entry[..16].fill(7);
        entry[16..32].fill(*number as u8);
        entry[32..40].copy_from_slice(&start.to_le_bytes());
        entry[40..48].copy_from_slice(&(start + sectors - 1).to_le_bytes());
        entry[56] = b'x';
    }
    for (own, other, entries_at) in [(1, last, 2), (last, 1, last - 32)] {
        let mut entries = entries.clone();
        let mut header = [0; 512];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (at, value) in [(24, own), (32, other), (40, 34), (48, last - 33), (72, entries_at)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[56..72].fill(1);
        header[80] = 128;
        header[84] = 128;
        change(&mut header, &mut entries);
        let used = u32::from_le_bytes(header[80..84].try_into().unwrap()) as usize * 128;
        header[88..92].copy_from_slice(&crc32fast::hash(&entries[..used]).to_le_bytes());
        let crc = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        disk[own as usize * 512..][..512].copy_from_slice(&header);
        disk[entries_at as usize * 512..][..entries.len()].copy_from_slice(&entries);
    }
    disk
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
        let entry = &mut disk[at + TABLE_AT + index * 16..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
}

fn numbers(disk: &[u8]) -> Vec<(u32, u64, u64)> {
    let table = read(&Region::new(&disk, &Budget::unlimited(), 0, disk.len() as u64)).unwrap().unwrap();
    table.partitions.iter().map(|p| (p.number, p.start_bytes / 512, p.size_bytes / 512)).collect()
}

fn refusal(disk: &[u8]) -> String {
    format!("{:#}", read(&Region::new(&disk, &Budget::unlimited(), 0, disk.len() as u64)).unwrap_err())
}

/// Writes a header's field and makes its checksum right again.
fn set_header(disk: &mut [u8], at: usize, bytes: &[u8]) {
    let header = &mut disk[512..1024];
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header[..92]);
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
        Gpt::read(&Region::new(file, &Budget::unlimited(), 0, DISK as u64), 512, lba).unwrap().guids()
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

fn is_usual(disk: &[u8]) -> bool {
    Gpt::primary(&Region::new(&disk, &Budget::unlimited(), 0, disk.len() as u64)).is_some()
}

#[test]
fn larger_entries_are_renewed_too_but_not_grown() {
    let mut disk = gpt();
    assert!(is_usual(&disk));
    let entry_bytes = 2 * ENTRY_BYTES as usize;
    let old = disk[1024..1024 + 128 * 128].to_vec();
    for (number, entry) in old.chunks_exact(128).enumerate() {
        disk[1024 + number * entry_bytes..][..entry_bytes].fill(0);
        disk[1024 + number * entry_bytes..][..128].copy_from_slice(entry);
    }
    let crc = crc32fast::hash(&disk[1024..1024 + 128 * entry_bytes]);
    set_header(&mut disk, 84, &(entry_bytes as u32).to_le_bytes());
    set_header(&mut disk, 88, &crc.to_le_bytes());
    assert!(!is_usual(&disk));
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
        assert_eq!(
            gpt::read(&Region::new(&file, &Budget::unlimited(), 0, DISK as u64)).unwrap().len(),
            2,
            "{at}"
        );
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
        assert_eq!(
            read(&Region::new(&disk.as_slice(), &Budget::unlimited(), 0, disk.len() as u64)).unwrap(),
            None
        );
    }
    let mut text = mbr(&[(0x83, 64, 100)]);
    text[TABLE_AT] = b'M';
    assert_eq!(
        read(&Region::new(&text.as_slice(), &Budget::unlimited(), 0, text.len() as u64)).unwrap(),
        None
    );
}

const GROWN: u64 = 3 * DISK as u64;
/// Of a disk that was smaller: two partitions, the last one up to the old end.
const SMALL: [(usize, u64, u64); 2] = [(1, 4096, 4000), (2, 2048, 2048)];

fn grow(file: &File) -> Option<Growth> {
    let new_bytes = file.metadata().unwrap().len();
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).unwrap();
    let table = read(&Region::new(file, &Budget::unlimited(), 0, new_bytes)).unwrap().unwrap();
    let last = table.partitions.iter().max_by_key(|part| part.start_bytes);
    grow_table(file, new_bytes, table.kind, last.copied(), &mut sector).unwrap()
}

fn larger(disk: &[u8], bytes: u64) -> File {
    let file = file_of(disk);
    file.set_len(bytes).unwrap();
    file
}

fn partitions(file: &File) -> Vec<Partition> {
    let size_bytes = file.metadata().unwrap().len();
    read(&Region::new(file, &Budget::unlimited(), 0, size_bytes)).unwrap().unwrap().partitions
}

#[test]
fn the_last_partition_takes_the_room_behind_it() {
    let file = larger(&gpt_with(&SMALL, |_, _| {}), GROWN);
    let growth = grow(&file).unwrap();
    assert_eq!(growth, Growth { start_bytes: 2 << 20, size_bytes: GROWN - (1 << 20) - (2 << 20) });
    assert_eq!(partitions(&file)[0].size_bytes, growth.size_bytes);
    let mut old_copy = [1; 8];
    file.read_exact_at(&mut old_copy, DISK as u64 - 512).unwrap();
    assert_eq!(old_copy, [0; 8], "no other reader finds the old copy");
}

#[test]
fn the_copy_is_whole_however_little_is_added() {
    for added in [512, 4096, 16 << 10, 17 << 10, 1 << 20] {
        let file = larger(&gpt_with(&SMALL, |_, _| {}), DISK as u64 + added);
        grow(&file);
        file.write_all_at(&[0; 512], 512).unwrap();
        assert_eq!(partitions(&file).len(), 2, "{added}");
    }
}

#[test]
fn a_table_that_cannot_be_grown_stays_as_it_is() {
    type Change = fn(&mut [u8], &mut [u8]);
    let changes: [(&str, Change); 4] = [
        ("no entries", |header, _| header[80] = 0),
        ("one GUID twice", |_, entries| entries[128 + 16..128 + 32].fill(1)),
        ("another revision", |header, _| header[8..12].copy_from_slice(&[9, 9, 1, 0])),
        ("a partition on the entries", |_, entries| {
            entries[128 + 32..128 + 40].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0])
        }),
    ];
    for (what, change) in changes {
        let file = larger(&gpt_with(&SMALL, change), GROWN);
        let head = |file: &File| {
            let mut bytes = vec![0; 1 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let before = head(&file);
        assert_eq!(grow(&file), None, "{what}");
        assert!(head(&file) == before, "{what}");
    }
}

#[test]
fn a_new_table_is_read_back_and_its_copy_is_whole() {
    let requirements = layout::Requirements {
        alignment_sectors: 2048,
        loader: true,
        uefi: false,
        swap_bytes: Some(1 << 20),
        purpose: layout::Purpose::RestoredRoot,
    };
    let bytes = 160 << 20;
    for style in [PartitionStyle::Gpt, PartitionStyle::Msdos] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let layout = layout::Layout::new(style, bytes, requirements).unwrap();
        write_table(&file, &layout).unwrap();
        assert!(table_is_there(&file, style).unwrap());
        if style == PartitionStyle::Gpt {
            file.write_all_at(&[0; 512], 512).unwrap();
            assert_eq!(partitions(&file).len(), 4);
        }
    }
}
