//! Owns the 512 bytes of a tar header: which field lies where, how numbers and the checksum are
//! written in it (POSIX pax(1), "ustar Interchange Format"; GNU tar's `tar.h` for base-256 and the
//! old sparse header). Must not know what becomes of the fields.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use super::BLOCK;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

/// Magic and version of POSIX; the first six bytes alone tell that the prefix field is one.
const USTAR: &[u8; 8] = b"ustar\x0000";

/// One header block.
pub(super) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    /// An empty POSIX header of the type `kind`.
    pub(super) fn new(kind: u8) -> Header {
        let mut block = [0; BLOCK];
        block[MAGIC].copy_from_slice(USTAR);
        block[KIND] = kind;
        Header { block }
    }

    /// The header in `block`, its checksum compared.
    pub(super) fn from_block(block: [u8; BLOCK]) -> Result<Header> {
        let stored = number(&block[CHECKSUM]).context("reading the header's checksum")?;
        let (unsigned, signed) = checksums(&block);
        // Some old writers summed signed bytes; POSIX asks readers to take both.
        ensure!(
            stored == i64::from(unsigned) || stored == i64::from(signed),
            "the header's checksum is wrong: it says {stored}, its bytes give {unsigned}"
        );
        Ok(Header { block })
    }

    /// The block as it goes into an archive.
    pub(super) fn finish(mut self) -> [u8; BLOCK] {
        let (sum, _) = checksums(&self.block);
        self.block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.block
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[KIND]
    }

    /// The name, with its prefix where the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let mut name = Vec::new();
        let prefix = text(&self.block[PREFIX]);
        if &self.block[MAGIC][..6] == b"ustar\0" && !prefix.is_empty() {
            name.extend_from_slice(prefix);
            name.push(b'/');
        }
        name.extend_from_slice(text(&self.block[NAME]));
        name
    }

    pub(super) fn link(&self) -> &[u8] {
        text(&self.block[LINK])
    }

    /// Permission bits with setuid, setgid and sticky.
    pub(super) fn mode(&self) -> Result<u32> {
        Ok((number(&self.block[MODE]).context("reading the mode")? & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u32> {
        unsigned(&self.block[UID]).context("reading the owner")
    }

    pub(super) fn gid(&self) -> Result<u32> {
        unsigned(&self.block[GID]).context("reading the group")
    }

    pub(super) fn size(&self) -> Result<u64> {
        unsigned(&self.block[SIZE]).context("reading the size")
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Result<i64> {
        number(&self.block[MTIME]).context("reading the modification time")
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Result<(u32, u32)> {
        let part = |field: Range<usize>| unsigned(&self.block[field]).context("reading the device number");
        Ok((part(MAJOR)?, part(MINOR)?))
    }

    /// The bytes `at` some place, for the old GNU sparse header that reuses the prefix field.
    pub(super) fn raw(&self, at: Range<usize>) -> &[u8] {
        &self.block[at]
    }

    /// Stores `path` in the name field, or in prefix and name; where it does not fit, its beginning
    /// and `false`.
    pub(super) fn set_name(&mut self, path: &[u8]) -> bool {
        if path.len() <= NAME.len() {
            self.block[NAME][..path.len()].copy_from_slice(path);
            return true;
        }
        let first = path.len() - NAME.len() - 1;
        let split = (first..path.len() - 1).find(|&at| path[at] == b'/');
        match split.filter(|&at| at > 0 && at <= PREFIX.len()) {
            Some(at) => {
                self.block[PREFIX][..at].copy_from_slice(&path[..at]);
                self.block[NAME][..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
                true
            }
            None => {
                self.block[NAME].copy_from_slice(&path[..NAME.len()]);
                false
            }
        }
    }

    /// Stores `target` as the link name; where it does not fit, its beginning and `false`.
    pub(super) fn set_link(&mut self, target: &[u8]) -> bool {
        let stored = target.len().min(LINK.len());
        self.block[LINK][..stored].copy_from_slice(&target[..stored]);
        stored == target.len()
    }

    pub(super) fn set_mode(&mut self, mode: u32) {
        set_octal(&mut self.block[MODE], u64::from(mode & 0o7777));
    }

    /// `false`, and 0 stored, where it does not fit: above 2097151.
    pub(super) fn set_uid(&mut self, uid: u32) -> bool {
        set_octal(&mut self.block[UID], u64::from(uid))
    }

    /// As [`Header::set_uid`].
    pub(super) fn set_gid(&mut self, gid: u32) -> bool {
        set_octal(&mut self.block[GID], u64::from(gid))
    }

    /// `false`, and 0 stored, where it does not fit: from 8 GiB on.
    pub(super) fn set_size(&mut self, size_bytes: u64) -> bool {
        set_octal(&mut self.block[SIZE], size_bytes)
    }

    /// `false`, and 0 stored, where it does not fit: before 1970 and after 2242.
    pub(super) fn set_mtime(&mut self, seconds: i64) -> bool {
        set_octal(&mut self.block[MTIME], u64::try_from(seconds).unwrap_or(u64::MAX))
    }

    /// Linux has 12 bits for major and 20 for minor numbers: both fit.
    pub(super) fn set_device(&mut self, major: u32, minor: u32) {
        set_octal(&mut self.block[MAJOR], u64::from(major));
        set_octal(&mut self.block[MINOR], u64::from(minor));
    }
}

/// A numeric field: octal digits between spaces and NULs, or base-256 (the top bit of the first
/// byte set, then a two's-complement number). An empty field is 0.
pub(super) fn number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return base_256(field);
    }
    let digits = text(field).trim_ascii();
    let mut value: i64 = 0;
    for &digit in digits {
        ensure!(
            (b'0'..=b'7').contains(&digit),
            "the field holds {:?}, expected octal digits",
            field.escape_ascii()
        );
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .context("the number does not fit into 63 bits")?;
    }
    Ok(value)
}

/// A numeric field that cannot be negative.
pub(super) fn unsigned<T: TryFrom<i64>>(field: &[u8]) -> Result<T> {
    let value = number(field)?;
    T::try_from(value).ok().with_context(|| format!("the number {value} is out of range"))
}

fn base_256(field: &[u8]) -> Result<i64> {
    // Bit 6 of the first byte is the sign; the marker above it is no part of the number.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value: i128 = if negative { -1 } else { 0 };
    for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
        value = (value << 8) | i128::from(byte);
    }
    match i64::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => bail!("the number does not fit into 63 bits"),
    }
}

/// What stands in `field` before its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Zero-padded digits and a NUL; 0 and `false` if there are too many.
fn set_octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    let fits = value >> (3 * digits) == 0;
    let mut value = if fits { value } else { 0 };
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    fits
}

/// The sums of the bytes, unsigned and signed, the checksum's own taken as spaces.
fn checksums(block: &[u8; BLOCK]) -> (u32, i32) {
    let mut sums = (0_u32, 0_i32);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
        sums.0 += u32::from(byte);
        sums.1 += i32::from(byte as i8);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::{Header, number};

    #[test]
    fn numbers_are_read_in_octal_and_base_256() {
        let cases: [(&[u8], i64); 8] = [
            (b"0000755\0", 0o755),
            (b"   755 \0", 0o755),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777777\0", 0o77777777777),
            (b"\x80\0\0\0\0\x20\0\0", 2097152),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field).unwrap(), expected, "{}", field.escape_ascii());
        }
        let wrong: [&[u8]; 4] = [b"00x0755\0", b"0000788\0", b"-000755\0", b"\x80\0\0\0\x80\0\0\0\0\0\0\0"];
        for field in wrong {
            assert!(number(field).is_err(), "{}", field.escape_ascii());
        }
    }

    #[test]
    fn a_name_goes_into_the_name_field_or_is_split_at_a_slash_or_does_not_fit() {
        let long = |length: usize| "x".repeat(length);
        let cases = [
            ("./etc/fstab".to_owned(), true),
            (long(100), true),
            (long(101), false),
            (format!("{}/{}", long(155), long(100)), true),
            (format!("{}/{}", long(156), long(100)), false),
            (format!("{}/{}", long(50), long(101)), false),
            (format!("/{}", long(100)), false),
            (format!("{}/", long(100)), false),
        ];
        for (path, fits) in cases {
            let mut header = Header::new(b'0');
            assert_eq!(header.set_name(path.as_bytes()), fits, "{path}");
            assert_eq!(header.name() == path.as_bytes(), fits, "{path}");
        }
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_noticed() {
        let mut header = Header::new(b'0');
        assert!(header.set_name(b"./a"));
        header.set_mode(0o4755);
        let block = header.finish();
        assert_eq!(Header::from_block(block).unwrap().mode().unwrap(), 0o4755);
        for at in 0..block.len() {
            let mut broken = block;
            broken[at] ^= 4;
            // The checksum ends in a NUL and a space that carry nothing.
            assert!(Header::from_block(broken).is_err() || (154..156).contains(&at), "byte {at}");
        }
    }
}
