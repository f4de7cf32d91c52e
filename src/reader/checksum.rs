//! The checksums of filesystems: CRC-32C, as it goes on (ext4 and its journal store it without the final inversion) or
//! finished (xfs, btrfs); CRC-16 (ext4's `uninit_bg`).

use crc::{Algorithm, CRC_16_MODBUS, Crc, Table};

const RAW_CRC32C: Algorithm<u32> = Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: u32::MAX,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0x1cf9_6d7c,
    residue: 0,
};
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&RAW_CRC32C);
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// A sum that goes on: of what was taken so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c(u32);

impl Crc32c {
    pub fn start() -> Crc32c {
        Crc32c(u32::MAX)
    }

    /// From a sum that stands somewhere.
    pub fn from_seed(seed: u32) -> Crc32c {
        Crc32c(seed)
    }

    pub fn and(self, bytes: &[u8]) -> Crc32c {
        // The crate takes a reflected algorithm's start unreflected.
        let mut digest = CRC32C.digest_with_initial(self.0.reverse_bits());
        digest.update(bytes);
        Crc32c(digest.finalize())
    }

    /// All of `bytes`, with the sum's own place in it taken as zeros; the place must lie within.
    pub fn and_without(self, bytes: &[u8], own: std::ops::Range<usize>) -> Crc32c {
        let zeros = [0; 4];
        self.and(&bytes[..own.start]).and(&zeros[..own.len()]).and(&bytes[own.end..])
    }

    /// The finished sum of all of `bytes`.
    pub fn of(bytes: &[u8]) -> u32 {
        Crc32c::start().and(bytes).finished()
    }

    /// Without the final inversion.
    pub fn value(self) -> u32 {
        self.0
    }

    /// With the final inversion.
    pub fn finished(self) -> u32 {
        !self.0
    }

    /// What stands where there is room for 16 bits.
    pub fn low(self) -> u16 {
        self.0 as u16
    }
}

/// The crc16 of several parts.
pub fn crc16(parts: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_those_of_the_catalogue_and_continue() {
        let whole = Crc32c::start().and(b"123456789");
        assert_eq!(whole.value(), 0xe306_9283 ^ u32::MAX);
        assert_eq!((whole.finished(), Crc32c::of(b"123456789")), (0xe306_9283, 0xe306_9283));
        assert_eq!(whole, Crc32c::start().and(b"1234").and(b"").and(b"56789"));
        assert_eq!(whole, Crc32c::from_seed(Crc32c::start().and(b"12").value()).and(b"3456789"));
        assert_eq!(
            Crc32c::start().and_without(b"12xx5", 2..4),
            Crc32c::start().and(b"12").and(&[0, 0]).and(b"5")
        );
        assert_eq!(crc16(&[b"1234", b"56789"]), 0x4b37);
    }
}
