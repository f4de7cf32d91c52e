//! Integers as formats store them. `at` is a constant offset into a buffer whose size the caller chose.

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    joined(le32(bytes, at + 4), le32(bytes, at))
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    joined(be32(bytes, at), be32(bytes, at + 4))
}

/// A number in two halves of 32 bits.
pub fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_in_both_orders() {
        let bytes = [0xff, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((le16(&bytes, 1), be16(&bytes, 1)), (0x0201, 0x0102));
        assert_eq!((le32(&bytes, 1), be32(&bytes, 1)), (0x0403_0201, 0x0102_0304));
        assert_eq!((le64(&bytes, 1), be64(&bytes, 1)), (0x0807_0605_0403_0201, 0x0102_0304_0506_0708));
    }
}
