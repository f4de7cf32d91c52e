//! Partition tables and filesystems of a stranger's disk. The input is the size of the disk (a byte that chooses one, and
//! whether the checksums of a GPT are made right), then sectors of 512 bytes, each behind its number in four bytes, little
//! endian; all others are zero.
#![no_main]

#[path = "../common/sparse.rs"]
mod sparse;

use ganeti_instance_debootstrap::partition_table;
use ganeti_instance_debootstrap::probe::probe;
use ganeti_instance_debootstrap::reader::{Budget, Region};
use libfuzzer_sys::fuzz_target;
use sparse::{SECTOR, Sparse};

const SIZES: [u64; 8] = [0, 512, 1 << 16, 1 << 20, (1 << 30) + 512, 3 << 30, 3 << 40, 1 << 62];

fuzz_target!(|input: &[u8]| {
    let Some((choice, records)) = input.split_first() else { return };
    let size_bytes = SIZES[usize::from(choice & 7)];
    let mut disk = Sparse::of(size_bytes, records);
    if choice & 8 != 0 {
        for header in [1, 8] {
            make_checksums_right(&mut disk, header);
        }
    }

    let budget = Budget::of_disk(size_bytes);
    let mut parts = vec![(0, size_bytes)];
    match partition_table::read(&Region::new(&disk, &budget, 0, size_bytes)) {
        Err(refusal) => assert!(!format!("{refusal:#}").is_empty()),
        Ok(None) => {}
        Ok(Some(table)) => {
            assert!(table.partitions.is_sorted_by(|one, next| one.number < next.number), "{table:?}");
            let mut by_place: Vec<_> =
                table.partitions.iter().map(|p| (p.start_bytes, p.size_bytes)).collect();
            by_place.sort();
            let mut free_from = SECTOR;
            for (start_bytes, size_bytes) in &by_place {
                assert!(*start_bytes >= free_from && *size_bytes > 0, "{table:?}");
                free_from = start_bytes.checked_add(*size_bytes).expect("an end");
            }
            assert!(free_from <= disk.size_bytes, "{table:?}");
            parts = by_place;
        }
    }
    for (start_bytes, size_bytes) in parts {
        match probe(&Region::new(&disk, &budget, start_bytes, size_bytes)) {
            Ok(content) => assert!(content.to_string().is_ascii()),
            Err(refusal) => assert!(!format!("{refusal:#}").is_empty()),
        }
    }
    disk.assert_within(&budget);
});

/// Nobody finds a CRC by chance: those of the entries, then that of the header at a sector.
fn make_checksums_right(disk: &mut Sparse, header_sector: u64) {
    let mut header = match disk.sectors.get(&header_sector) {
        Some(header) if header.starts_with(b"EFI PART") => *header,
        _ => return,
    };
    let number =
        |header: &[u8], at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let bytes = u64::from(number(&header, 80)) * u64::from(number(&header, 84));
    if bytes <= 1 << 20 {
        let lba = u64::from(number(&header, 72));
        if let Some(entries) = disk.bytes(lba * SECTOR * header_sector, bytes as usize) {
            header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        }
    }
    header[16..20].fill(0);
    let length = (number(&header, 12) as usize).min(header.len());
    let checksum = crc32fast::hash(&header[..length]);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    disk.sectors.insert(header_sector, header);
}
