//! Little-endian fields at an offset of a disk, checksums, and numbers that look random and are the same each time.

use std::fs::File;
use std::os::unix::fs::FileExt;

pub fn read<const N: usize>(disk: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    disk.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

pub fn write(disk: &File, at: u64, bytes: &[u8]) {
    disk.write_all_at(bytes, at).unwrap();
}

/// Inverts bits of one byte.
pub fn flip(disk: &File, at: u64, bits: u8) {
    let [byte] = read(disk, at);
    write(disk, at, &[byte ^ bits]);
}

/// As ext4, xfs and btrfs use it (Castagnoli), without the last inversion.
pub fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// xorshift64.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
