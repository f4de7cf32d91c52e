//! Which bytes of a partition are worth carrying: a bit per granule, so that its size depends on the partition alone,
//! and the order in which it is marked on nothing.

use std::ops::Range;

/// Smaller gaps cost more as entries of a map than as data.
const GRANULE_BYTES: u64 = 64 << 10;
/// A map takes at most half as many bits again: 8 MiB of memory.
const GRANULES_MAX: u64 = 1 << 26;

/// A map of used bytes. What is marked is rounded outwards to granules, what is cleared inwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocationMap {
    size_bytes: u64,
    granule_bytes: u64,
    bits: Vec<u64>,
}

impl AllocationMap {
    /// Of `size_bytes`, with nothing in use.
    pub fn empty(size_bytes: u64) -> AllocationMap {
        let mut granule_bytes = GRANULE_BYTES;
        while size_bytes.div_ceil(granule_bytes) > GRANULES_MAX {
            granule_bytes *= 2;
        }
        let granules = size_bytes.div_ceil(granule_bytes);
        let bits = vec![0; usize::try_from(granules.div_ceil(64)).unwrap_or(usize::MAX)];
        AllocationMap { size_bytes, granule_bytes, bits }
    }

    /// Of `size_bytes`, all in use.
    pub fn full(size_bytes: u64) -> AllocationMap {
        let mut map = AllocationMap::empty(size_bytes);
        map.mark(0, size_bytes);
        map
    }

    /// What it is a map of.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where the granule ends that a byte is in.
    pub fn granule_end(&self, at: u64) -> u64 {
        (at / self.granule_bytes + 1).saturating_mul(self.granule_bytes)
    }

    /// `length_bytes` at `start_bytes` are in use; what lies beyond the end is nothing.
    pub fn mark(&mut self, start_bytes: u64, length_bytes: u64) {
        let end = start_bytes.saturating_add(length_bytes).min(self.size_bytes);
        if start_bytes < end {
            self.set(start_bytes / self.granule_bytes..end.div_ceil(self.granule_bytes), true);
        }
    }

    /// `length_bytes` at `start_bytes` are free.
    pub fn clear(&mut self, start_bytes: u64, length_bytes: u64) {
        let end = start_bytes.saturating_add(length_bytes).min(self.size_bytes);
        let start = start_bytes.min(self.size_bytes).div_ceil(self.granule_bytes);
        // The last granule may be a part of one.
        let end =
            if end == self.size_bytes { end.div_ceil(self.granule_bytes) } else { end / self.granule_bytes };
        if start < end {
            self.set(start..end, false);
        }
    }

    fn set(&mut self, granules: Range<u64>, used: bool) {
        let mut at = granules.start;
        while at < granules.end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let count = (64 - bit).min(granules.end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            if used {
                self.bits[word] |= mask;
            } else {
                self.bits[word] &= !mask;
            }
            at += count;
        }
    }

    /// What is in use, ascending, each with at least one free granule before the next: start and end in bytes.
    pub fn extents(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let granules = self.size_bytes.div_ceil(self.granule_bytes);
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, granules, true);
            let end = self.next(start, granules, false);
            at = end;
            (start < granules)
                .then(|| start * self.granule_bytes..(end * self.granule_bytes).min(self.size_bytes))
        })
    }

    /// The first granule from `at` on that is `used`, else `granules`.
    fn next(&self, at: u64, granules: u64, used: bool) -> u64 {
        let mut at = at;
        while at < granules {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let bits = if used { self.bits[word] } else { !self.bits[word] } >> bit;
            if bits != 0 {
                return (at + u64::from(bits.trailing_zeros())).min(granules);
            }
            at += 64 - bit;
        }
        granules
    }

    /// The same or coarser, with at most `runs_max` runs.
    pub fn with_at_most(self, runs_max: usize) -> AllocationMap {
        let mut map = self;
        while map.extents().count() > runs_max {
            let mut coarser = AllocationMap { granule_bytes: map.granule_bytes * 2, ..map.clone() };
            coarser.bits.fill(0);
            for extent in map.extents() {
                coarser.mark(extent.start, extent.end - extent.start);
            }
            map = coarser;
        }
        map
    }

    /// How much is in use.
    pub fn used_bytes(&self) -> u64 {
        self.extents().map(|extent| extent.end - extent.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GRANULE_BYTES;

    fn extents(map: &AllocationMap) -> Vec<(u64, u64)> {
        map.extents().map(|extent| (extent.start, extent.end)).collect()
    }

    #[test]
    fn marks_round_outwards_and_merge() {
        let mut map = AllocationMap::empty(1000 * G + 17);
        assert_eq!(extents(&map), []);
        map.mark(5 * G + 1, 1);
        map.mark(6 * G, 1);
        map.mark(900 * G, u64::MAX);
        map.mark(u64::MAX, 9);
        map.mark(60 * G, 10 * G);
        assert_eq!(extents(&map), [(5 * G, 7 * G), (60 * G, 70 * G), (900 * G, 1000 * G + 17)]);
        assert_eq!(map.used_bytes(), 112 * G + 17);
    }

    #[test]
    fn what_is_cleared_rounds_inwards() {
        let mut map = AllocationMap::full(200 * G + 1);
        assert_eq!(extents(&map), [(0, 200 * G + 1)]);
        map.clear(G + 1, 2 * G - 2);
        assert_eq!(extents(&map), [(0, 200 * G + 1)], "not one whole granule");
        map.clear(10 * G - 1, 130 * G + 1);
        map.clear(199 * G, u64::MAX);
        assert_eq!(extents(&map), [(0, 10 * G), (140 * G, 199 * G)]);
        map.clear(0, u64::MAX);
        assert_eq!(extents(&map), []);
        assert_eq!(extents(&AllocationMap::full(0)), []);
    }

    #[test]
    fn runs_that_lie_close_are_joined_where_there_are_too_many() {
        let mut map = AllocationMap::empty(1000 * G);
        for at in (0..1000).step_by(2) {
            map.mark(at * G, 1);
        }
        assert_eq!(map.extents().count(), 500);
        let joined = map.clone().with_at_most(499);
        assert_eq!(extents(&joined), [(0, 1000 * G)]);
        assert_eq!(map.clone().with_at_most(500), map);
    }

    #[test]
    fn its_size_is_bounded() {
        let map = AllocationMap::full(1 << 50);
        assert!(map.bits.len() <= (GRANULES_MAX / 64) as usize);
        assert_eq!(extents(&map), [(0, 1 << 50)]);
    }
}
