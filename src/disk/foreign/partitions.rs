//! Partition tables as strangers left them: GPT (UEFI specification, chapter 5) and MBR with logical partitions. Pure
//! and bounded: a table that contradicts itself, or reaches beyond the disk, is an error and never a guess.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use super::ReadAt;

/// Sectors that guests see: 512 bytes, or 4096 on some disks.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// An MBR counts in these, whatever the disk has.
const MBR_SECTOR: u64 = 512;

/// The UEFI specification asks for room for 128; nobody makes more than this.
const GPT_ENTRIES_MAX: u32 = 1024;
const GPT_ENTRY_BYTES: u32 = 128;
const GPT_ENTRY_BYTES_MAX: u32 = 4096;
const GPT_HEADER_BYTES: u32 = 92;

/// Logical partitions in an MBR; Linux numbers a few dozen at most.
const LOGICAL_MAX: usize = 60;

const MBR_TABLE_AT: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;
const MBR_PROTECTIVE: u8 = 0xee;
const MBR_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Which kind of table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Gpt,
    Msdos,
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableKind::Gpt => "gpt",
            TableKind::Msdos => "msdos",
        })
    }
}

/// A partition: its number and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

/// A table that holds together: its partitions lie on the disk, and none in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub kind: TableKind,
    /// By number.
    pub partitions: Vec<Partition>,
}

/// Reads the table of a disk of `size_bytes`; None where it has none.
pub fn read(disk: &(impl ReadAt + ?Sized), size_bytes: u64) -> Result<Option<Table>> {
    if size_bytes < 2 * MBR_SECTOR {
        return Ok(None);
    }
    let sector = read_sector(disk, 0)?;
    let Some(primary) = mbr_entries(&sector) else { return Ok(None) };
    // A boot sector without a table ends like an MBR; that of a filesystem may hold anything where the table would be.
    let plausible = primary.iter().all(|entry| entry.is_plausible());
    if !plausible || primary.iter().all(Entry::is_empty) {
        return Ok(None);
    }
    let table = if primary.iter().any(|entry| entry.kind == MBR_PROTECTIVE) {
        Table { kind: TableKind::Gpt, partitions: read_gpt(disk, size_bytes)? }
    } else {
        Table { kind: TableKind::Msdos, partitions: read_mbr(disk, size_bytes, &primary)? }
    };
    refuse_overlap(&table.partitions)?;
    Ok(Some(table))
}

/// Two owners of one sector: nothing that is read from it can be believed.
fn refuse_overlap(partitions: &[Partition]) -> Result<()> {
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|p| p.start_bytes);
    for pair in sorted.windows(2) {
        let end = pair[0].start_bytes + pair[0].size_bytes;
        ensure!(end <= pair[1].start_bytes, "partitions {} and {} overlap", pair[0].number, pair[1].number);
    }
    Ok(())
}

fn read_sector(disk: &(impl ReadAt + ?Sized), at: u64) -> Result<[u8; MBR_SECTOR as usize]> {
    let mut sector = [0u8; MBR_SECTOR as usize];
    disk.read_into(&mut sector, at).with_context(|| format!("reading the partition table at byte {at}"))?;
    Ok(sector)
}

/// One entry of an MBR; sectors of 512 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    active: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.kind == 0
    }

    fn is_plausible(&self) -> bool {
        self.active & 0x7f == 0 && (self.is_empty() || (self.start > 0 && self.sectors > 0))
    }

    fn is_extended(&self) -> bool {
        MBR_EXTENDED.contains(&self.kind)
    }

    /// As a partition of a disk; `base` is where its start is counted from.
    fn partition(&self, number: u32, base: u64, size_bytes: u64) -> Result<Partition> {
        let start_bytes = (base + self.start) * MBR_SECTOR;
        let length = self.sectors * MBR_SECTOR;
        ensure!(
            start_bytes + length <= size_bytes,
            "partition {number} ends at byte {}, the disk at {size_bytes}",
            start_bytes + length
        );
        Ok(Partition { number, start_bytes, size_bytes: length })
    }
}

/// The four entries; None without the signature.
fn mbr_entries(sector: &[u8; MBR_SECTOR as usize]) -> Option<[Entry; 4]> {
    let entry = |index: usize| {
        let at = MBR_TABLE_AT + index * MBR_ENTRY_BYTES;
        let bytes = &sector[at..at + MBR_ENTRY_BYTES];
        Entry {
            active: bytes[0],
            kind: bytes[4],
            start: u32_at(bytes, 8).into(),
            sectors: u32_at(bytes, 12).into(),
        }
    };
    (sector[510..] == [0x55, 0xaa]).then(|| [entry(0), entry(1), entry(2), entry(3)])
}

fn read_mbr(disk: &(impl ReadAt + ?Sized), size_bytes: u64, primary: &[Entry; 4]) -> Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(primary).filter(|(_, entry)| !entry.is_empty()) {
        let partition = entry.partition(number, 0, size_bytes)?;
        if !entry.is_extended() {
            partitions.push(partition);
            continue;
        }
        ensure!(extended.is_none(), "the partition table has two extended partitions");
        extended = Some(*entry);
    }
    if let Some(extended) = extended {
        read_logical(disk, size_bytes, &extended, &mut partitions)?;
    }
    Ok(partitions)
}

/// Follows the chain of tables in an extended partition: each begins behind the one before, so that it ends.
fn read_logical(
    disk: &(impl ReadAt + ?Sized),
    size_bytes: u64,
    extended: &Entry,
    partitions: &mut Vec<Partition>,
) -> Result<()> {
    let end = extended.start + extended.sectors;
    let mut at = extended.start;
    for number in 5.. {
        let sector = read_sector(disk, at * MBR_SECTOR)?;
        let Some([logical, link, _, _]) = mbr_entries(&sector) else {
            // An extended partition that was never divided.
            ensure!(at == extended.start, "the chain of logical partitions breaks off at sector {at}");
            return Ok(());
        };
        if !logical.is_empty() {
            let partition = logical.partition(number, at, size_bytes)?;
            // To a loop device no length is all that follows.
            ensure!(logical.sectors > 0, "partition {number} has no sectors");
            ensure!(
                logical.start > 0 && at + logical.start + logical.sectors <= end,
                "partition {number} lies outside the extended partition"
            );
            partitions.push(partition);
        }
        if link.is_empty() {
            return Ok(());
        }
        let next = extended.start + link.start;
        ensure!(link.is_extended(), "the chain of logical partitions breaks off at sector {at}");
        ensure!(next > at && next < end, "the chain of logical partitions leads from sector {at} to {next}");
        ensure!(number as usize - 4 < LOGICAL_MAX, "there are more than {LOGICAL_MAX} logical partitions");
        at = next;
    }
    Ok(())
}

/// The primary table, or the backup at the end of the disk where the primary is damaged.
fn read_gpt(disk: &(impl ReadAt + ?Sized), size_bytes: u64) -> Result<Vec<Partition>> {
    let mut damage = Vec::new();
    for sector_bytes in SECTOR_SIZES {
        let last = (size_bytes / sector_bytes).saturating_sub(1);
        for (which, lba) in [("primary", 1), ("backup", last)] {
            let header = read_header(disk, size_bytes, sector_bytes, lba);
            match header.and_then(|header| read_entries(disk, size_bytes, &header)) {
                Ok(partitions) => return Ok(partitions),
                Err(error) => damage.push(format!("{which} of {sector_bytes}-byte sectors: {error:#}")),
            }
        }
    }
    bail!("the disk is marked as GPT, but has no table that is whole ({})", damage.join("; "))
}

/// The sectors, in bytes, of a primary GPT that is whole, has room for partitions, and entries of the usual size: what
/// another reader can be let at.
pub fn primary_gpt(disk: &(impl ReadAt + ?Sized), size_bytes: u64) -> Option<u64> {
    let whole = |sector_bytes| {
        let header = read_header(disk, size_bytes, sector_bytes, 1).ok()?;
        read_entries(disk, size_bytes, &header).ok().map(|_| header)
    };
    let first = SECTOR_SIZES.into_iter().find_map(whole)?;
    (first.count > 0 && first.entry_bytes == GPT_ENTRY_BYTES).then_some(first.sector_bytes)
}

/// Gives a GPT, and its copy where that is whole, other GUIDs in place: the disk's and those of its partitions, each of
/// which `new` makes of the old one. What is not whole stays as it is, and is read by nobody.
pub fn renew_gpt(disk: &File, size_bytes: u64, mut new: impl FnMut(Uuid) -> Uuid) -> Result<()> {
    let old = read_gpt(disk, size_bytes)?;
    let mut renew = |bytes: &mut [u8]| {
        let uuid = Uuid::from_bytes_le(std::array::from_fn(|at| bytes[at]));
        bytes.copy_from_slice(&new(uuid).to_bytes_le());
    };
    for sector_bytes in SECTOR_SIZES {
        // Both are read before one is written: they may share their entries.
        let mut writes = Vec::new();
        for lba in [1, (size_bytes / sector_bytes).saturating_sub(1)] {
            let Ok(header) = read_header(disk, size_bytes, sector_bytes, lba) else { continue };
            let Ok(mut entries) = entries_bytes(disk, &header) else { continue };
            let used = entries.chunks_exact_mut(header.entry_bytes as usize).filter(|entry| is_used(entry));
            used.for_each(|entry| renew(&mut entry[16..32]));
            let mut sector = read_sector(disk, lba * sector_bytes)?;
            renew(&mut sector[56..72]);
            sector[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            sector[16..20].fill(0);
            let crc = crc32(&sector[..u32_at(&sector, 12) as usize]);
            sector[16..20].copy_from_slice(&crc.to_le_bytes());
            writes.extend([(header.entries_at, entries), (lba * sector_bytes, sector.to_vec())]);
        }
        for (at, bytes) in &writes {
            disk.write_all_at(bytes, *at)
                .with_context(|| format!("writing the partition table at byte {at}"))?;
        }
        if !writes.is_empty() {
            break;
        }
    }
    ensure!(read_gpt(disk, size_bytes)? == old, "the partition table lies over itself");
    Ok(())
}

/// What a header says of its entries, checked.
struct Header {
    sector_bytes: u64,
    entries_at: u64,
    entry_bytes: u32,
    count: u32,
    entries_crc: u32,
}

fn read_header(
    disk: &(impl ReadAt + ?Sized),
    size_bytes: u64,
    sector_bytes: u64,
    lba: u64,
) -> Result<Header> {
    let sectors = size_bytes / sector_bytes;
    ensure!(lba > 0 && lba < sectors, "the disk is too small");
    let mut sector = read_sector(disk, lba * sector_bytes)?;
    ensure!(sector[..8] == *b"EFI PART", "no header");
    let header_bytes = u32_at(&sector, 12);
    ensure!(
        (GPT_HEADER_BYTES..=MBR_SECTOR as u32).contains(&header_bytes),
        "a header of {header_bytes} bytes"
    );
    let crc = u32_at(&sector, 16);
    sector[16..20].fill(0);
    ensure!(crc32(&sector[..header_bytes as usize]) == crc, "the header's checksum is wrong");
    ensure!(u64_at(&sector, 24) == lba, "the header says it stands at sector {}", u64_at(&sector, 24));
    let (entries_lba, count, entry_bytes) = (u64_at(&sector, 72), u32_at(&sector, 80), u32_at(&sector, 84));
    ensure!(
        entry_bytes.is_power_of_two() && (GPT_ENTRY_BYTES..=GPT_ENTRY_BYTES_MAX).contains(&entry_bytes),
        "entries of {entry_bytes} bytes"
    );
    ensure!(count <= GPT_ENTRIES_MAX, "{count} entries; at most {GPT_ENTRIES_MAX} are read");
    let bytes = u64::from(count) * u64::from(entry_bytes);
    let fits = entries_lba > 0
        && entries_lba < sectors
        && entries_lba * sector_bytes + bytes <= size_bytes
        && !(entries_lba..entries_lba + bytes.div_ceil(sector_bytes)).contains(&lba);
    ensure!(fits, "the entries are said to stand at sector {entries_lba}");
    let entries_at = entries_lba * sector_bytes;
    Ok(Header { sector_bytes, entries_at, entry_bytes, count, entries_crc: u32_at(&sector, 88) })
}

fn read_entries(disk: &(impl ReadAt + ?Sized), size_bytes: u64, header: &Header) -> Result<Vec<Partition>> {
    let bytes = entries_bytes(disk, header)?;
    let sectors = size_bytes / header.sector_bytes;
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(bytes.chunks_exact(header.entry_bytes as usize)) {
        if !is_used(entry) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        ensure!(
            first > 0 && first <= last && last < sectors,
            "partition {number} goes from sector {first} to {last}, the disk has {sectors}"
        );
        partitions.push(Partition {
            number,
            start_bytes: first * header.sector_bytes,
            size_bytes: (last - first + 1) * header.sector_bytes,
        });
    }
    Ok(partitions)
}

/// The entries as they stand there, with the right checksum.
fn entries_bytes(disk: &(impl ReadAt + ?Sized), header: &Header) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; header.count as usize * header.entry_bytes as usize];
    disk.read_into(&mut bytes, header.entries_at).context("reading the entries")?;
    ensure!(crc32(&bytes) == header.entries_crc, "the entries' checksum is wrong");
    Ok(bytes)
}

/// A partition has a type.
fn is_used(entry: &[u8]) -> bool {
    entry[..16].iter().any(|byte| *byte != 0)
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

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
            let entry = &mut disk[at + MBR_TABLE_AT + index * MBR_ENTRY_BYTES..][..MBR_ENTRY_BYTES];
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
        let entry_bytes = 2 * GPT_ENTRY_BYTES as usize;
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
            assert_eq!(read_gpt(&file, DISK as u64).unwrap().len(), 2, "{at}");
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
        text[MBR_TABLE_AT] = b'M';
        assert_eq!(read(text.as_slice(), text.len() as u64).unwrap(), None);
    }
}
