//! xfs whose log asks for much: a version without checksums, with blocks of 64 KiB.

use ganeti_instance_debootstrap::allocation::xfs;
use ganeti_instance_debootstrap::reader::Work;

use super::{KIB, MIB, assert_whole, put};

const BLOCK: usize = 64 << 10;
const UNIT: usize = 512;
/// Data of a record: as much as one unit of header describes.
const RECORD_DATA: usize = 32 << 10;
/// Where the log is, in blocks.
const LOG: usize = 4;
const LOG_BLOCKS: usize = 56;
const UUID: [u8; 16] = [7; 16];

const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
const CANCELLED: u16 = 0x2;

/// An operation of the log: transaction, length, client, flags, and its body.
fn operation(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [1u32.to_be_bytes(), (body.len() as u32).to_be_bytes()].concat();
    bytes.extend([0x69, flags, 0, 0]);
    bytes.extend(body);
    bytes
}

/// What describes a buffer of one block: whether it is given up, or its first piece is changed.
fn buffer(regions: u16, flags: u16, sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    let length = (BLOCK / UNIT) as u16;
    for (at, number) in [(0, 0x123c), (2, regions), (4, flags), (6, length)] {
        put(&mut bytes, at, &number.to_le_bytes());
    }
    put(&mut bytes, 8, &sector.to_le_bytes());
    put(&mut bytes, 16, &1u32.to_le_bytes());
    put(&mut bytes, 20, &1u32.to_le_bytes());
    bytes
}

/// A transaction that changes a block, and gives it up.
fn changed_and_given_up() -> Vec<Vec<u8>> {
    vec![
        operation(START, &[]),
        operation(0, b"NART\0\0\0\0\0\0\0\0\0\0\0\0"),
        operation(0, &buffer(2, 0, 0)),
        operation(0, &[0; 128]),
        operation(0, &buffer(1, CANCELLED, 0)),
        operation(COMMIT, &[]),
    ]
}

/// A disk of 4 MiB with one allocation group.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    put(&mut disk, 0, b"XFSB");
    for (at, number) in [(4, BLOCK), (12, 64), (84, 64), (88, 1), (96, LOG_BLOCKS)] {
        put(&mut disk, at, &(number as u32).to_be_bytes());
    }
    put(&mut disk, 32, &UUID);
    put(&mut disk, 48, &(LOG as u64).to_be_bytes());
    put(&mut disk, 100, &[0xb4, 0xa4, 2, 0]);
    disk[120] = 16;
    disk[124] = 6;
    disk
}

/// Writes records of operations, as many as the log has room for; each begins where the one before ends.
fn fill_log(disk: &mut [u8], transaction: &[Vec<u8>]) {
    let bytes: usize = transaction.iter().map(Vec::len).sum();
    let each = RECORD_DATA / bytes;
    let mut data = transaction.concat().repeat(each);
    let used = data.len();
    data.resize(used.next_multiple_of(UNIT), 0);
    let units = 1 + data.len() / UNIT;
    for record in 0..LOG_BLOCKS * BLOCK / UNIT / units {
        let (mut data, at) = (data.clone(), record * units);
        let mut header = vec![0; UNIT];
        let lsn = 1u64 << 32 | at as u64;
        for (at, number) in [
            (0, 0xfeed_babe),
            (4, 1),
            (8, 2),
            (12, used),
            (40, each * transaction.len()),
            (300, 1),
            (320, RECORD_DATA),
        ] {
            put(&mut header, at, &(number as u32).to_be_bytes());
        }
        put(&mut header, 16, &lsn.to_be_bytes());
        put(&mut header, 24, &(1u64 << 32).to_be_bytes());
        put(&mut header, 304, &UUID);
        for (index, unit) in data.chunks_exact_mut(UNIT).enumerate() {
            let word: [u8; 4] = unit[..4].try_into().unwrap();
            put(&mut header, 44 + index * 4, &word);
            put(unit, 0, &1u32.to_be_bytes());
        }
        let place = LOG * BLOCK + at * UNIT;
        put(disk, place, &header);
        put(disk, place + UNIT, &data);
    }
}

#[test]
fn a_log_that_gives_up_what_it_has_changed_is_followed_within_bounds() {
    let mut disk = disk();
    fill_log(&mut disk, &changed_and_given_up());
    let most = Work { bytes: 9 * MIB, records: 32 * KIB };
    assert_whole(xfs::map, &disk, "more work than its size is worth", most);
}

#[test]
fn a_log_of_operations_without_anything_is_followed_within_bounds() {
    let mut disk = disk();
    fill_log(&mut disk, &[operation(0, &[])]);
    let most = Work { bytes: 9 * MIB, records: 32 * KIB };
    assert_whole(xfs::map, &disk, "more work than its size is worth", most);
}
