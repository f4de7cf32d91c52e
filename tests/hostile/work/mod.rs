//! Small inputs that ask for much work: what is done for each is counted, and stays within what its size is worth. Counts and
//! not clocks: they are the same on every node.

mod btrfs;
mod disks;
mod ext;
mod identity;
mod images;
mod xfs;

use std::cell::Cell;
use std::io;

use ganeti_instance_debootstrap::allocation::{AllocationMap, Usage};
use ganeti_instance_debootstrap::reader::{Budget, Parsed, ReadAt, Region, Work};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A disk in memory that counts what is read of it.
struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<Work>,
}

impl<'a> Counted<'a> {
    fn of(bytes: &'a [u8]) -> Counted<'a> {
        Counted { bytes, read: Cell::default() }
    }
}

impl ReadAt for Counted<'_> {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Work { bytes, records } = self.read.get();
        self.read.set(Work { bytes: bytes + buffer.len() as u64, records: records + 1 });
        self.bytes.read_into(buffer, offset)
    }
}

/// A reader of maps.
type Reader = fn(&Region<'_>) -> Parsed<AllocationMap>;

/// What a reader of maps answers, and the work that it took: no more than the disk is worth, and no more than was counted.
fn answer(reader: Reader, disk: &[u8]) -> (Usage, Work) {
    let counted = Counted::of(disk);
    let budget = Budget::of_disk(disk.len() as u64);
    let usage = Usage::of(reader(&Region::new(&counted, &budget, 0, disk.len() as u64))).unwrap();
    let (read, spent, limit) = (counted.read.get(), budget.spent(), budget.limit());
    assert!(spent.bytes <= limit.bytes && spent.records <= limit.records, "{spent:?} of {limit:?}");
    assert!(read.bytes <= spent.bytes && read.records <= spent.records, "{read:?} are read, {spent:?} spent");
    (usage, spent)
}

/// Wants all of a disk carried, for this reason, and with at most this work.
fn assert_whole(reader: Reader, disk: &[u8], reason: &str, most: Work) {
    let (usage, spent) = answer(reader, disk);
    let Usage::Whole(told) = usage else { panic!("a map, and not {reason:?}") };
    assert!(told.contains(reason), "{told}, and not {reason:?}");
    assert!(spent.bytes <= most.bytes && spent.records <= most.records, "{spent:?} for {told}");
}

/// Puts bytes into a disk.
fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}
