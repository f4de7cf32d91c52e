//! The log as a ring of records: where it ends (its head), whether what it holds has been written to its places, and
//! the records that have not. It knows nothing of what they hold.
//!
//! Every 512 bytes of the ring begin with the number of the ring's turn (the cycle) in which they were written. Only a
//! ring that changes it in one place is read: several writes can have been under way at once when the disk was taken,
//! and where one of them is missing behind another, a replay has rules of its own.

use super::geometry::Geometry;
use crate::reader::checksum::Crc32c;
use crate::reader::integers::{be32, be64, le32};
use crate::reader::{Parsed, Region, give_up};

/// The unit of the log, whatever the disk's sectors are.
pub const UNIT_BYTES: u64 = 512;
const RECORD_MAGIC: u32 = 0xfeed_babe;
/// Of the data of a record, by the format.
const RECORD_MAX_BYTES: u64 = 256 << 10;
/// As many bytes of a record share one unit of header; the first 64 units' first words are kept there.
const BYTES_PER_HEADER: u64 = 32 << 10;
const UNITS_PER_HEADER: usize = 64;
/// What the checksum covers of the first unit of the header, and of each further one.
const HEADER_BYTES: usize = 328;
const FURTHER_HEADER_BYTES: usize = 260;
const CHECKSUM_AT: usize = 32;
/// Words as a little-endian machine kept them in memory.
const FORMAT_LITTLE_ENDIAN: u32 = 1;
/// The flag of an operation that says: unmounted.
const UNMOUNT: u8 = 0x20;
/// The cycles are looked at in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// What has to happen before the disk is what its users saw.
pub enum Log {
    /// Nothing: the last record says that it was unmounted.
    Clean,
    /// The records' replay.
    Dirty(Span),
}

/// Where in the log the records lie that count.
pub struct Span {
    ring: Ring,
    tail: u64,
}

/// One record, as it was before it was written.
pub struct Record {
    /// Cycle and place, which order all records.
    pub lsn: u64,
    pub operations: u32,
    pub data: Vec<u8>,
}

struct Ring {
    start_bytes: u64,
    /// In units, as all below.
    length: u64,
    /// Where the next record would be written.
    head: u64,
    /// Of what lies before the head.
    cycle: u32,
}

/// The numbers of a record's header that are used here.
struct Header {
    at: u64,
    lsn: u64,
    tail_lsn: u64,
    checksum: u32,
    operations: u32,
    data_bytes: u64,
    header_units: u64,
}

/// Finds the log's end, and what its last record says.
pub fn find(region: &Region<'_>, geometry: &Geometry) -> Parsed<Log> {
    let mut ring = Ring::read(region, geometry)?;
    let Some(mut last) = ring.last_header(region, geometry)? else {
        return give_up("the end of the log has no record");
    };
    if last.end() != ring.distance(last.at, ring.head) {
        // The newest record is not whole: the log ends before it, as it does for a replay.
        if last.end() < ring.distance(last.at, ring.head) {
            return give_up("the log's end is not that of a record");
        }
        if last.at > ring.head {
            ring.cycle = ring.cycle.saturating_sub(1);
        }
        ring.head = last.at;
        match ring.last_header(region, geometry)? {
            Some(whole) if whole.end() == ring.distance(whole.at, ring.head) => last = whole,
            _ => return give_up("the log's end is not that of a record"),
        }
    }
    if last.operations == 1 {
        let first = ring.read_units(region, last.at + last.header_units, 1)?;
        if first[9] & UNMOUNT != 0 {
            return Ok(Log::Clean);
        }
    }
    let (tail_cycle, tail) = ((last.tail_lsn >> 32) as u32, last.tail_lsn & 0xffff_ffff);
    if tail >= ring.length || tail == ring.head || tail_cycle != ring.cycle_at(tail) {
        return give_up("the log's tail is not in it");
    }
    Ok(Log::Dirty(Span { ring, tail }))
}

impl Span {
    /// All records from the oldest on.
    pub fn for_each(
        &self,
        region: &Region<'_>,
        geometry: &Geometry,
        mut take: impl FnMut(Record) -> Parsed<()>,
    ) -> Parsed<()> {
        let ring = &self.ring;
        let mut at = self.tail;
        while at != ring.head {
            let unit = ring.read_units(region, at, 1)?;
            let header = Header::parse(&unit, at, geometry).filter(|header| {
                (header.lsn >> 32) as u32 == ring.cycle_at(at) && header.end() <= ring.distance(at, ring.head)
            });
            let Some(header) = header else {
                return give_up("the log has something else where a record is due");
            };
            let end = (at + header.end()) % ring.length;
            take(ring.record(region, geometry, &header)?)?;
            at = end;
        }
        Ok(())
    }
}

impl Ring {
    fn read(region: &Region<'_>, geometry: &Geometry) -> Parsed<Ring> {
        let log = &geometry.log;
        let mut cycle = None;
        let mut head = None;
        let mut at = log.start;
        while at < log.end {
            let piece = region.read(at, PIECE_BYTES.min(log.end - at) as usize)?;
            for (index, unit) in piece.chunks_exact(UNIT_BYTES as usize).enumerate() {
                let found = match be32(unit, 0) {
                    RECORD_MAGIC => be32(unit, 4),
                    cycle => cycle,
                };
                let first = *cycle.get_or_insert(found);
                let place = (at - log.start) / UNIT_BYTES + index as u64;
                if found == first && head.is_none() {
                    continue;
                }
                if first == 0 || found != first - 1 {
                    return give_up("the log's newest records are not in one piece");
                }
                head.get_or_insert(place);
            }
            at += piece.len() as u64;
        }
        match cycle {
            Some(cycle) if cycle != 0 => Ok(Ring {
                start_bytes: log.start,
                length: (log.end - log.start) / UNIT_BYTES,
                head: head.unwrap_or(0),
                // Without a change the ring is full, and its next turn has not begun.
                cycle: if head.is_some() { cycle } else { cycle.saturating_add(1) },
            }),
            _ => give_up("the log is blank"),
        }
    }

    /// What is expected there.
    fn cycle_at(&self, at: u64) -> u32 {
        if at < self.head { self.cycle } else { self.cycle.saturating_sub(1) }
    }

    fn distance(&self, from: u64, to: u64) -> u64 {
        if from < to { to - from } else { to + self.length - from }
    }

    fn read_units(&self, region: &Region<'_>, at: u64, count: u64) -> Parsed<Vec<u8>> {
        let at = at % self.length;
        let before_end = count.min(self.length - at);
        let byte = |unit: u64| self.start_bytes + unit * UNIT_BYTES;
        let mut bytes = region.read(byte(at), (before_end * UNIT_BYTES) as usize)?;
        if before_end < count {
            let rest = (count - before_end).min(self.length);
            bytes.extend(region.read(byte(0), (rest * UNIT_BYTES) as usize)?);
        }
        Ok(bytes)
    }

    /// The nearest header before the head.
    fn last_header(&self, region: &Region<'_>, geometry: &Geometry) -> Parsed<Option<Header>> {
        let reach = (RECORD_MAX_BYTES + RECORD_MAX_BYTES / UNITS_PER_HEADER as u64) / UNIT_BYTES;
        let reach = reach.min(self.length);
        let start = (self.head + self.length - reach) % self.length;
        let bytes = self.read_units(region, start, reach)?;
        let units = bytes.chunks_exact(UNIT_BYTES as usize).enumerate();
        let header = |(index, unit)| {
            let at = (start + index as u64) % self.length;
            Header::parse(unit, at, geometry).filter(|header| (header.lsn >> 32) as u32 == self.cycle_at(at))
        };
        Ok(units.rev().find_map(header))
    }

    /// With the first words of its units put back from the header, where the cycle stands in their place.
    fn record(&self, region: &Region<'_>, geometry: &Geometry, header: &Header) -> Parsed<Record> {
        let headers = self.read_units(region, header.at, header.header_units)?;
        let data_at = header.at + header.header_units;
        let mut data = self.read_units(region, data_at, header.data_bytes.div_ceil(UNIT_BYTES))?;
        if geometry.checksums && header.checksum != record_checksum(&headers, &data, header.data_bytes) {
            return give_up("a record of the log is damaged");
        }
        for (index, unit) in data.chunks_exact_mut(UNIT_BYTES as usize).enumerate() {
            let words_at = match index / UNITS_PER_HEADER {
                0 => 44,
                further => further * UNIT_BYTES as usize + 4,
            };
            let word_at = words_at + index % UNITS_PER_HEADER * 4;
            let Some(word) = headers.get(word_at..word_at + 4) else {
                return give_up("a record of the log has too small a header");
            };
            unit[..4].copy_from_slice(word);
        }
        data.truncate(header.data_bytes as usize);
        Ok(Record { lsn: header.lsn, operations: header.operations, data })
    }
}

impl Header {
    fn parse(unit: &[u8], at: u64, geometry: &Geometry) -> Option<Header> {
        if be32(unit, 0) != RECORD_MAGIC {
            return None;
        }
        let (cycle, version, data_bytes) = (be32(unit, 4), be32(unit, 8), u64::from(be32(unit, 12)));
        let (lsn, buffer_bytes) = (be64(unit, 16), u64::from(be32(unit, 320)));
        let header_units = if version == 2 { buffer_bytes.div_ceil(BYTES_PER_HEADER).max(1) } else { 1 };
        let holds = (1..=2).contains(&version)
            && (1..=RECORD_MAX_BYTES).contains(&data_bytes)
            && (version == 1 || buffer_bytes <= RECORD_MAX_BYTES)
            && cycle > 0
            && lsn == u64::from(cycle) << 32 | at
            && be32(unit, 300) == FORMAT_LITTLE_ENDIAN
            && unit[304..320] == geometry.uuid;
        holds.then(|| Header {
            at,
            lsn,
            tail_lsn: be64(unit, 24),
            checksum: le32(unit, CHECKSUM_AT),
            operations: be32(unit, 40),
            data_bytes,
            header_units,
        })
    }

    /// In units, from its beginning.
    fn end(&self) -> u64 {
        self.header_units + self.data_bytes.div_ceil(UNIT_BYTES)
    }
}

/// Over the header's units, each as far as it is one, and the data as they lie there.
fn record_checksum(headers: &[u8], data: &[u8], data_bytes: u64) -> u32 {
    let mut sum = Crc32c::start().and_without(&headers[..HEADER_BYTES], CHECKSUM_AT..CHECKSUM_AT + 4);
    let further = data_bytes.div_ceil(BYTES_PER_HEADER) as usize;
    for unit in headers.chunks_exact(UNIT_BYTES as usize).take(further).skip(1) {
        sum = sum.and(&unit[..FURTHER_HEADER_BYTES]);
    }
    sum.and(&data[..data_bytes as usize]).finished()
}
