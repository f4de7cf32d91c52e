//! Devices that are a part of something larger: a member of an array, a physical volume, an encrypted volume. What looks like
//! a filesystem on one is a piece of it, or lies below it: a write there changes one half of a mirror.

use anyhow::{Context, Error, Result};

use crate::partition_table::Partition;
use crate::reader::Region;
use crate::reader::integers::{be32, le32};

const SECTOR_BYTES: u64 = 512;

const MD: &str = "a member of an md array";
const LVM: &str = "a physical volume of LVM";

/// The offset of a mark, its bytes, and the kind of device that has it. The offsets are those of libblkid's superblocks/*.c.
type Mark = (usize, &'static [u8], &'static str);

/// By the distance from the start; all of them lie within [`START_BYTES`]. A label of LVM is in one of the first four sectors.
const AT_START: [Mark; 11] = [
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (3, b"-FVE-FS-", "an encrypted volume (BitLocker)"),
    (0, b"integrt\0", "a volume of dm-integrity"),
    (0, b"verity\0\0", "the hashes of dm-verity"),
    (0, b"dmvdo001", "a volume of VDO"),
    (0x018, b"LVM2 001", LVM),
    (0x218, b"LVM2 001", LVM),
    (0x418, b"LVM2 001", LVM),
    (0x618, b"LVM2 001", LVM),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a device of bcache"),
    (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a device of bcachefs"),
];
const START_BYTES: usize = 8192;

/// By the distance from the start of the last 4 KiB.
const IN_LAST_PAGE: [Mark; 5] = [
    (60, b"\x83\x74\x02\x6a", "a device of DRBD"),
    (60, b"\x83\x74\x02\x6b", "a device of DRBD"),
    (60, b"\x83\x74\x02\x6c", "a device of DRBD"),
    (60, b"\x83\x74\x02\x6d", "a device of DRBD"),
    (4096 - 1024, b"Intel Raid ISM Cfg Sig. ", "a member of a firmware's array"),
];
const DDF_AT: usize = 4096 - 512;
const DDF_MAGIC: u32 = 0xde11_de11;
const PAGE_BYTES: u64 = 4096;

/// What a device is a part of, by the marks at its start and at its end.
pub fn of_device(device: &Region<'_>) -> Result<Option<&'static str>> {
    match at_start(device)? {
        None => Ok(at_end(device)?.map(|(_, what)| what)),
        found => Ok(found),
    }
}

/// The same of a disk with a table: by the marks at its end. One that lies in a partition is of the partition alone.
pub fn of_divided_disk(disk: &Region<'_>, partitions: &[Partition]) -> Result<Option<&'static str>> {
    let mark = at_end(disk)?.filter(|(at, _)| {
        !partitions.iter().any(|part| (part.start_bytes..part.start_bytes + part.size_bytes).contains(at))
    });
    Ok(mark.map(|(_, what)| what))
}

fn at_start(device: &Region<'_>) -> Result<Option<&'static str>> {
    let bytes = read(device, 0, device.size_bytes().min(START_BYTES as u64) as usize)?;
    let found = AT_START.iter().find(|mark| has(&bytes, mark)).map(|(.., what)| *what);
    // Metadata of the versions 1.1 and 1.2.
    let md = [0, 4096].into_iter().filter_map(|at| bytes.get(at..at + 8)).any(is_md_1);
    Ok(found.or(md.then_some(MD)))
}

/// The mark and its place.
fn at_end(device: &Region<'_>) -> Result<Option<(u64, &'static str)>> {
    let size = device.size_bytes();
    // md(4): version 1.0 is 8 to 12 KiB before the end, 0.90 at the last multiple of 64 KiB that leaves 64 KiB.
    let version_1 = (size / SECTOR_BYTES).checked_sub(16).map(|sectors| (sectors & !7) * SECTOR_BYTES);
    if let Some(at) = version_1.filter(|at| at + 8 <= size) {
        if is_md_1(&read(device, at, 8)?) {
            return Ok(Some((at, MD)));
        }
    }
    if let Some(at) = (size & !0xffff).checked_sub(0x1_0000) {
        if is_md_0(&read(device, at, 8)?) {
            return Ok(Some((at, MD)));
        }
    }
    let Some(at) = (size / PAGE_BYTES).checked_sub(1).map(|page| page * PAGE_BYTES) else { return Ok(None) };
    let page = read(device, at, PAGE_BYTES as usize)?;
    let found = IN_LAST_PAGE.iter().find(|mark| has(&page, mark)).map(|(.., what)| *what);
    let ddf = be32(&page, DDF_AT) == DDF_MAGIC;
    Ok(found.or(ddf.then_some("a member of a firmware's array")).map(|what| (at, what)))
}

fn read(device: &Region<'_>, at: u64, length: usize) -> Result<Vec<u8>> {
    device.read(at, length).map_err(Error::from).context("looking for the mark of an array or a volume")
}

fn has(bytes: &[u8], (at, magic, _): &Mark) -> bool {
    bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic))
}

/// Number and major version (include/uapi/linux/raid/md_p.h); the older one is in the byte order of the machine that made it.
const MD_MAGIC: u32 = 0xa92b_4efc;

fn is_md_1(bytes: &[u8]) -> bool {
    (le32(bytes, 0), le32(bytes, 4)) == (MD_MAGIC, 1)
}

fn is_md_0(bytes: &[u8]) -> bool {
    [le32(bytes, 0), be32(bytes, 0)].contains(&MD_MAGIC) && le32(bytes, 4) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::Filesystem;
    use crate::probe::{Content, Part, Survey, probe, survey};
    use crate::reader::Budget;

    const SIZE: usize = (1 << 20) + 0x3400;
    const MD_1: [u8; 8] = *b"\xfc\x4e\x2b\xa9\x01\0\0\0";
    const MD_0: [u8; 8] = *b"\xfc\x4e\x2b\xa9\0\0\0\0";
    const MD_0_BIG: [u8; 8] = *b"\xa9\x2b\x4e\xfc\0\0\0\0";

    fn ext2() -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        bytes[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        bytes
    }

    fn of(bytes: &[u8]) -> Content {
        probe(&Region::new(&bytes, &Budget::unlimited(), 0, bytes.len() as u64)).unwrap()
    }

    fn with(at: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = ext2();
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn a_filesystem_on_a_part_of_something_larger_is_none() {
        assert!(matches!(of(&ext2()), Content::Filesystem(volume) if volume.filesystem == Filesystem::Ext2));
        let sectors = SIZE / 512;
        let page = SIZE / 4096 * 4096 - 4096;
        let own = [
            (0, &MD_1[..], MD),
            (4096, &MD_1, MD),
            (((sectors - 16) & !7) * 512, &MD_1, MD),
            ((SIZE & !0xffff) - 0x1_0000, &MD_0, MD),
            ((SIZE & !0xffff) - 0x1_0000, &MD_0_BIG, MD),
            (page + DDF_AT, &DDF_MAGIC.to_be_bytes(), "a member of a firmware's array"),
        ];
        let start = AT_START.map(|(at, magic, what)| (at, magic, what));
        let end = IN_LAST_PAGE.map(|(at, magic, what)| (page + at, magic, what));
        for (at, mark, what) in own.into_iter().chain(start).chain(end) {
            assert_eq!(of(&with(at, mark)), Content::Other(format!("{what}, with an ext2")), "{at:#x}");
            let mut alone = with(at, mark);
            alone[1024 + 0x38..][..2].fill(0);
            assert_eq!(of(&alone), Content::Other(what.into()), "{at:#x}");
        }
    }

    #[test]
    fn a_mark_elsewhere_is_none() {
        for at in [8192, (SIZE & !0xffff) - 0x1_0000 - 4096, SIZE - 8] {
            assert!(matches!(of(&with(at, &MD_1)), Content::Filesystem(_)), "{at:#x}");
        }
        // As a member of version 1 at the place of the older one.
        assert!(matches!(of(&with((SIZE & !0xffff) - 0x1_0000, &MD_1)), Content::Filesystem(_)));
    }

    #[test]
    fn an_array_of_whole_disks_has_its_table_too() {
        let table = |sectors: u32| {
            let mut bytes = vec![0; SIZE];
            bytes[446 + 4] = 0x83;
            bytes[446 + 8..446 + 12].copy_from_slice(&8_u32.to_le_bytes());
            bytes[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            let at = ((SIZE / 512 - 16) & !7) * 512;
            bytes[at..at + 8].copy_from_slice(&MD_1);
            bytes
        };
        let look = |bytes: Vec<u8>| {
            survey(&Region::new(&bytes.as_slice(), &Budget::unlimited(), 0, SIZE as u64)).unwrap()
        };
        let member = Content::Other(MD.into());
        let whole = Part { number: None, start_bytes: 0, size_bytes: SIZE as u64, content: member.clone() };
        assert_eq!(look(table(1024)), Survey { table: None, parts: vec![whole] });
        // The partition's own.
        let divided = look(table(SIZE as u32 / 512 - 8));
        assert!(divided.table.is_some());
        assert_eq!(divided.parts[0].content, member);
    }
}
