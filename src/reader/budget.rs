//! How much work a stranger's bytes may cause, and the one look at signals while they are read.
//!
//! Sizes, counts and pointers of a format are claims: a few bytes can ask for the same block a million times. So work is
//! counted where it is done, whatever the format, and its bound follows from the size of the disk that it is done for.
//! Counts and not clocks: the same input has the same answer on every node.

use std::cell::Cell;
use std::ops::Add;

use super::give_up::{GiveUp, Parsed};
use crate::sys::signals;

/// Work: bytes that are read, and records that are looked at. Each read counts as a record too: it is a call of the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    pub bytes: u64,
    pub records: u64,
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            bytes: self.bytes.saturating_add(other.bytes),
            records: self.records.saturating_add(other.records),
        }
    }
}

/// The work that may be done, and the work that was done. Whoever reads holds it by reference.
#[derive(Debug)]
pub struct Budget<'a> {
    limit: Work,
    spent: Cell<Work>,
    /// What it is a share of.
    whole: Option<&'a Budget<'a>>,
}

impl Budget<'_> {
    /// For the maps and tables of a disk or partition of `size_bytes`.
    ///
    /// Bytes: a MiB, and all of a small disk twice. An xfs log is read once to find its end and once for its content; nothing
    /// else is read more than once. Beyond some GiB maps are a small part of a disk: the densest (a btrfs of files of 4 KiB)
    /// have 1/64 of it.
    ///
    /// Records: no map has more than one for each block of 4 KiB. On small disks logs are large, and have more.
    pub fn of_disk(size_bytes: u64) -> Budget<'static> {
        let bytes = size_bytes.saturating_mul(2).min((4 << 30) + size_bytes / 16);
        let records = (size_bytes / 256).min((32 << 20) + size_bytes / 4096);
        Budget::new(Work { bytes: (1 << 20) + bytes, records: (16 << 10) + records })
    }

    /// For a stream of files or blocks that is to come on a disk of `size_bytes`.
    ///
    /// Bytes: 64 MiB, and four times what the disk holds. Headers and padding take less than files do; a dump also has maps
    /// of all inodes of a larger filesystem, and headers for what is a hole.
    ///
    /// Records: 64 Ki, and one for each 128 bytes of the disk. A file has about ten, with its name, its attributes and the
    /// directories on the way to it; the smallest files of a btrfs take a KiB each.
    pub fn of_stream(size_bytes: u64) -> Budget<'static> {
        let bytes = size_bytes.saturating_mul(4).saturating_add(64 << 20);
        Budget::new(Work { bytes, records: (64 << 10) + size_bytes / 128 })
    }

    /// For what this node made itself: only signals end it.
    pub fn unlimited() -> Budget<'static> {
        Budget::new(Work { bytes: u64::MAX, records: u64::MAX })
    }

    pub fn new(limit: Work) -> Budget<'static> {
        Budget { limit, spent: Cell::default(), whole: None }
    }

    /// The share of a partition of `size_bytes`: what it spends is spent of the whole too.
    pub fn part(&self, size_bytes: u64) -> Budget<'_> {
        Budget { whole: Some(self), ..Budget::of_disk(size_bytes) }
    }

    /// What was done so far.
    pub fn spent(&self) -> Work {
        self.spent.get()
    }

    /// What may be done.
    pub fn limit(&self) -> Work {
        self.limit
    }

    /// `bytes` are about to be read, at once.
    pub fn read(&self, bytes: u64) -> Parsed<()> {
        self.spend(Work { bytes, records: 1 })
    }

    /// So many records are about to be looked at.
    pub fn look_at(&self, records: u64) -> Parsed<()> {
        self.spend(Work { bytes: 0, records })
    }

    fn spend(&self, work: Work) -> Parsed<()> {
        signals::check().map_err(GiveUp::Failed)?;
        self.take(work)
    }

    fn take(&self, work: Work) -> Parsed<()> {
        let spent = self.spent.get() + work;
        if spent.bytes > self.limit.bytes || spent.records > self.limit.records {
            let Work { bytes, records } = self.limit;
            return Err(GiveUp::TooMuchWork(format!(
                "it asks for more work than its size is worth ({bytes} bytes read, {records} records)"
            )));
        }
        self.spent.set(spent);
        self.whole.map_or(Ok(()), |whole| whole.take(work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn is_refused(answer: Parsed<()>) -> bool {
        matches!(answer, Err(GiveUp::TooMuchWork(_)))
    }

    #[test]
    fn a_small_disk_gets_little_work() {
        let limit = Budget::of_disk(4 * MIB).limit();
        assert_eq!(limit, Work { bytes: 9 * MIB, records: 32 << 10 });
        for size_bytes in [0, MIB, 4 * MIB, 1 << 30, 1 << 40, 1 << 62] {
            let limit = Budget::of_disk(size_bytes).limit();
            assert!(limit.bytes >= MIB && limit.bytes / 2 <= MIB + size_bytes, "{size_bytes}");
            let stream = Budget::of_stream(size_bytes).limit();
            assert!(stream.bytes >= size_bytes && stream.records >= limit.records, "{size_bytes}");
        }
    }

    #[test]
    fn reads_and_records_are_spent_up_to_the_limit_and_not_beyond() {
        let budget = Budget::of_disk(0);
        budget.read(MIB).unwrap();
        budget.look_at(100).unwrap();
        assert_eq!(budget.spent(), Work { bytes: MIB, records: 101 });
        assert!(is_refused(budget.read(1)));
        assert!(is_refused(budget.look_at(u64::MAX)));
        budget.look_at(1).unwrap();
        Budget::unlimited().read(u64::MAX).unwrap();
    }

    #[test]
    fn partitions_are_bounded_together() {
        let disk = Budget::of_disk(4 * MIB);
        let mut done = 0;
        let refused = (0..1024).find(|_| {
            let part = disk.part(4096);
            (0..16).any(|_| is_refused(part.read(64 << 10).inspect(|()| done += 64 << 10)))
        });
        assert_eq!((refused, done), (Some(9), 9 * MIB));
        assert_eq!(disk.spent().bytes, 9 * MIB);
    }
}
