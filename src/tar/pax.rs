//! Owns pax extended headers: records of `LENGTH KEYWORD=VALUE\n` (POSIX pax(1), "pax Header
//! Block"), which keywords have a meaning here, and how times are written in them. Must not know
//! where the values end up.

use anyhow::{Context, Result, ensure};

use super::acl::Acl;
use super::pax_record::{decimal, nonempty, push, split_record};
use super::sparse::SparseRecords;

/// GNU tar, star and libarchive write extended attributes under this prefix.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// A point in time as the kernel keeps it: nanoseconds count forward from the second, before 1970
/// too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// An extended attribute: its full name and value.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// The records of one extended header that have a meaning here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) attributes: Vec<Attribute>,
    pub(super) acl_access: Option<Acl>,
    pub(super) acl_default: Option<Acl>,
    pub(super) sparse: SparseRecords,
}

impl Records {
    /// The records in `bytes`. Keywords without a meaning here are passed over, as POSIX wants it.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Records> {
        let mut records = Records::default();
        while !bytes.is_empty() {
            let (keyword, value, rest) = split_record(bytes)?;
            records.take(keyword, value).with_context(|| format!("reading {}", keyword.escape_ascii()))?;
            bytes = rest;
        }
        Ok(records)
    }

    fn take(&mut self, keyword: &[u8], value: &[u8]) -> Result<()> {
        if let Some(name) = keyword.strip_prefix(XATTR) {
            return self.take_attribute(decoded(name), value.to_vec());
        }
        match keyword {
            b"path" => self.path = nonempty(value),
            b"linkpath" => self.link = nonempty(value),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(u32::try_from(decimal(value)?)?),
            b"gid" => self.gid = Some(u32::try_from(decimal(value)?)?),
            b"mtime" => self.mtime = Some(Time::parse(value)?),
            b"SCHILY.acl.access" => self.acl_access = Some(Acl::parse(value)?),
            b"SCHILY.acl.default" => self.acl_default = Some(Acl::parse(value)?),
            // GNU tar stores the label without the NUL that the attribute has.
            b"RHT.security.selinux" => {
                self.take_attribute(b"security.selinux".to_vec(), [value, b"\0"].concat())?
            }
            _ => {
                if let Some(name) = keyword.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn take_attribute(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<()> {
        match name.as_slice() {
            b"system.posix_acl_access" => self.acl_access = Some(Acl::Raw(value)),
            b"system.posix_acl_default" => self.acl_default = Some(Acl::Raw(value)),
            // Those of other namespaces belong to the filesystem that they were read from
            // (btrfs.compression).
            _ if kept(&name) => {
                ensure!(!name.contains(&0), "the name of the attribute contains a NUL");
                self.attributes.push((name, value));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Time {
    fn parse(value: &[u8]) -> Result<Time> {
        let (negative, value) = match value.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, value),
        };
        let mut parts = value.splitn(2, |&byte| byte == b'.');
        let whole = i64::try_from(decimal(parts.next().unwrap_or_default())?)?;
        let nanoseconds = parts.next().map_or(Ok(0), fraction)?;
        Ok(match (negative, nanoseconds) {
            (false, _) => Time { seconds: whole, nanoseconds },
            (true, 0) => Time { seconds: -whole, nanoseconds },
            (true, _) => Time { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }

    fn text(self) -> String {
        let (sign, seconds, nanoseconds) = match self.nanoseconds {
            nanoseconds if self.seconds >= 0 => ("", self.seconds.unsigned_abs(), nanoseconds),
            0 => ("-", self.seconds.unsigned_abs(), 0),
            nanoseconds => ("-", self.seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
        };
        match nanoseconds {
            0 => format!("{sign}{seconds}"),
            _ => format!("{sign}{seconds}.{nanoseconds:09}").trim_end_matches('0').to_owned(),
        }
    }
}

/// Appends the modification time.
pub(super) fn push_mtime(records: &mut Vec<u8>, time: Time) {
    push(records, b"mtime", time.text().as_bytes());
}

/// Appends an extended attribute.
pub(super) fn push_attribute(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    push(records, &[XATTR, &encoded(name)].concat(), value);
}

/// Whether an attribute means the same on every filesystem, and so is kept.
pub(super) fn kept(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."].iter().any(|namespace| name.starts_with(namespace))
}

/// GNU tar writes `%` and `=` in the name of an attribute as `%25` and `%3D` (its `xheader.c`).
fn encoded(name: &[u8]) -> Vec<u8> {
    let mut keyword = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'%' => keyword.extend_from_slice(b"%25"),
            b'=' => keyword.extend_from_slice(b"%3D"),
            _ => keyword.push(byte),
        }
    }
    keyword
}

fn decoded(mut keyword: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(keyword.len());
    while let Some((&first, rest)) = keyword.split_first() {
        (keyword, name) = match (rest.strip_prefix(b"25"), rest.strip_prefix(b"3D")) {
            (Some(rest), _) if first == b'%' => (rest, appended(name, b'%')),
            (_, Some(rest)) if first == b'%' => (rest, appended(name, b'=')),
            _ => (rest, appended(name, first)),
        };
    }
    name
}

fn appended(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

/// The digits behind the point of a time: nanoseconds, finer ones cut off.
fn fraction(digits: &[u8]) -> Result<u32> {
    ensure!(digits.iter().all(u8::is_ascii_digit), "it has a fraction that is no number");
    let nine = digits.iter().map(|digit| u32::from(digit - b'0')).chain(std::iter::repeat(0)).take(9);
    Ok(nine.fold(0, |value, digit| value * 10 + digit))
}

#[cfg(test)]
mod tests {
    use super::{Acl, Records, Time, push, push_attribute, push_mtime};

    #[test]
    fn times_are_written_and_read_on_both_sides_of_1970() {
        let cases = [
            (0, 0, "0"),
            (1_700_000_000, 123_456_789, "1700000000.123456789"),
            (5, 500_000_000, "5.5"),
            (-1, 500_000_000, "-0.5"),
            (-2, 0, "-2"),
            (-2, 999_999_999, "-1.000000001"),
        ];
        for (seconds, nanoseconds, text) in cases {
            let time = Time { seconds, nanoseconds };
            assert_eq!(time.text(), text);
            assert_eq!(Time::parse(text.as_bytes()).unwrap(), time);
        }
        for wrong in ["", "-", "x", "1.x", "1,5", "99999999999999999999"] {
            assert!(Time::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn records_of_every_length_are_read_as_they_were_written() {
        for length in 0..1100 {
            let mut bytes = Vec::new();
            let value = vec![b'v'; length];
            push(&mut bytes, b"linkpath", &value);
            push_attribute(&mut bytes, b"user.a=b%3Dc", b"\0\n=");
            push_mtime(&mut bytes, Time { seconds: 7, nanoseconds: 0 });
            let records = Records::parse(&bytes).unwrap();
            assert_eq!(records.link.unwrap_or_default(), value);
            assert_eq!(records.attributes, [(b"user.a=b%3Dc".to_vec(), b"\0\n=".to_vec())]);
            assert_eq!(records.mtime.unwrap().seconds, 7);
        }
    }

    #[test]
    fn attributes_and_acls_are_read_from_all_keywords_that_carry_them() {
        let mut bytes = Vec::new();
        push(&mut bytes, b"RHT.security.selinux", b"system_u:object_r:etc_t:s0");
        push(&mut bytes, b"SCHILY.xattr.system.posix_acl_access", b"raw");
        push(&mut bytes, b"SCHILY.xattr.btrfs.compression", b"zstd");
        push(&mut bytes, b"LIBARCHIVE.xattr.user.a", b"Yg");
        let records = Records::parse(&bytes).unwrap();
        let label = b"system_u:object_r:etc_t:s0\0".to_vec();
        assert_eq!(records.attributes, [(b"security.selinux".to_vec(), label)]);
        assert_eq!(records.acl_access, Some(Acl::Raw(b"raw".to_vec())));
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases: [&[u8]; 9] = [
            b"x",
            b"11 path=abc",
            b"99 path=abc\n",
            b"3 \n",
            b"0 path=a\n",
            b"10 pathabc\n",
            b"10 size=-1\n",
            b"99999999999999999999999 path=a\n",
            b"25 GNU.sparse.map=1,2,3\n\0",
        ];
        for case in cases {
            assert!(Records::parse(case).is_err(), "{}", case.escape_ascii());
        }
    }
}
