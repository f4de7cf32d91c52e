//! Owns POSIX ACLs in their two forms: the text that tar archives carry in `SCHILY.acl.access` and
//! `SCHILY.acl.default` (acl(5), "long text form"), and the binary value of the kernel's attributes
//! (linux/posix_acl_xattr.h). Must not set or read any.

use crate::reader::integers::{le16, le32};
use anyhow::{Context, Result, bail, ensure};

/// The attribute of the ACL that a file is accessed by.
pub(crate) const ACCESS: &str = "system.posix_acl_access";

/// The attribute of the ACL that new files in a directory inherit.
pub(crate) const DEFAULT: &str = "system.posix_acl_default";

/// POSIX_ACL_XATTR_VERSION: a little-endian u32, then entries of tag (u16), permissions (u16) and
/// id (u32).
const VERSION: u32 = 2;

/// Bytes of one entry.
const ENTRY_BYTES: usize = 8;

/// More entries than these do not fit into the 64 KiB that an attribute may have.
const ENTRIES_MAX: usize = 64 * 1024 / ENTRY_BYTES;

/// The id of an entry that has none.
const NO_ID: u32 = u32::MAX;

/// Tags, in the order that the kernel wants (linux/posix_acl.h).
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An ACL as it was found in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Acl {
    /// The kernel's own value.
    Raw(Vec<u8>),
    /// Text, whose named entries may still be names.
    Text(Vec<Entry>),
}

/// One line of the text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    tag: u16,
    permissions: u16,
    who: Who,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Owner,
    Id(u32),
    Name(String),
}

/// Whose name a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// In passwd.
    Users,
    /// In group.
    Groups,
}

impl Acl {
    /// Reads the text form: entries between commas or line ends, comments behind `#`, and star's
    /// numeric id as a fourth field.
    pub(super) fn parse(text: &[u8]) -> Result<Acl> {
        let text = std::str::from_utf8(text).context("the ACL is not valid UTF-8")?;
        let mut entries = Vec::new();
        for line in text.split('\n') {
            let line = line.split('#').next().unwrap_or_default();
            for entry in line.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
                ensure!(entries.len() < ENTRIES_MAX, "the ACL has more than {ENTRIES_MAX} entries");
                entries.push(parse_entry(entry).with_context(|| format!("reading the ACL entry {entry:?}"))?);
            }
        }
        Ok(Acl::Text(entries))
    }

    /// Memory in use, roughly.
    pub(super) fn bytes(&self) -> usize {
        let name = |entry: &Entry| match &entry.who {
            Who::Name(name) => name.len(),
            _ => 0,
        };
        match self {
            Acl::Raw(value) => value.len(),
            Acl::Text(entries) => entries.iter().map(|entry| size_of::<Entry>() + name(entry)).sum(),
        }
    }

    /// Whether an entry names someone whose number is still to be found.
    pub(super) fn has_names(&self) -> bool {
        match self {
            Acl::Raw(_) => false,
            Acl::Text(entries) => entries.iter().any(|entry| matches!(entry.who, Who::Name(_))),
        }
    }

    /// The value of the kernel's attribute; `id_of` finds the number to a name.
    pub(super) fn to_xattr(&self, id_of: &mut dyn FnMut(Names, &str) -> Result<u32>) -> Result<Vec<u8>> {
        let entries = match self {
            Acl::Raw(value) => return Ok(value.clone()),
            Acl::Text(entries) => entries,
        };
        let mut numbered = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = match &entry.who {
                Who::Owner => NO_ID,
                Who::Id(id) => *id,
                Who::Name(name) if entry.tag == USER => id_of(Names::Users, name)?,
                Who::Name(name) => id_of(Names::Groups, name)?,
            };
            numbered.push((entry.tag, id, entry.permissions));
        }
        numbered.sort_unstable();
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, id, permissions) in numbered {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        Ok(value)
    }
}

/// The text form, with numeric ids, of the kernel's `value`.
pub(super) fn to_text(value: &[u8]) -> Result<String> {
    let (version, entries) = value.split_at_checked(4).context("the ACL is cut short")?;
    ensure!(version == VERSION.to_le_bytes(), "the ACL has version {version:?}, expected {VERSION}");
    ensure!(entries.len() % ENTRY_BYTES == 0, "the ACL ends within an entry");
    let mut text = String::new();
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let (tag, permissions, id) = (le16(entry, 0), le16(entry, 2), le32(entry, 4));
        let who = match tag {
            USER_OBJ => "user:".to_owned(),
            USER => format!("user:{id}"),
            GROUP_OBJ => "group:".to_owned(),
            GROUP => format!("group:{id}"),
            MASK => "mask:".to_owned(),
            OTHER => "other:".to_owned(),
            _ => bail!("the ACL has an entry of the unknown kind {tag:#x}"),
        };
        let flag = |bit: u16, letter: char| if permissions & bit == 0 { '-' } else { letter };
        let separator = if text.is_empty() { "" } else { "," };
        text += &format!("{separator}{who}:{}{}{}", flag(4, 'r'), flag(2, 'w'), flag(1, 'x'));
    }
    Ok(text)
}

fn parse_entry(text: &str) -> Result<Entry> {
    let text = text.strip_prefix("default:").unwrap_or(text);
    let fields: Vec<&str> = text.split(':').map(str::trim).collect();
    let (kind, name, permissions, id) = match fields[..] {
        // "other:r--" and "mask:r--" also go without the empty field.
        [kind @ ("other" | "o" | "mask" | "m"), permissions] => (kind, "", permissions, None),
        [kind, name, permissions] => (kind, name, permissions, None),
        [kind, name, permissions, id] => (kind, name, permissions, Some(id)),
        _ => bail!("it has {} fields, expected 3 or 4", fields.len()),
    };
    let tag = match (kind, name.is_empty()) {
        ("user" | "u", true) => USER_OBJ,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OBJ,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => bail!("{kind:?} is no kind of entry"),
    };
    let who = match id.unwrap_or(name).parse::<u32>() {
        _ if name.is_empty() => Who::Owner,
        Ok(NO_ID) => bail!("{NO_ID} is no id"),
        Ok(id) => Who::Id(id),
        Err(_) => Who::Name(name.to_owned()),
    };
    Ok(Entry { tag, permissions: parse_permissions(permissions)?, who })
}

fn parse_permissions(text: &str) -> Result<u16> {
    text.chars().try_fold(0, |permissions, letter| {
        Ok(permissions
            | match letter {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => bail!("{text:?} are no permissions"),
            })
    })
}

#[cfg(test)]
mod tests {
    use super::{Acl, Names, to_text};
    use anyhow::{Result, bail};

    fn id_of(names: Names, name: &str) -> Result<u32> {
        match (names, name) {
            (Names::Users, "daemon") => Ok(1),
            (Names::Groups, "adm") => Ok(4),
            _ => bail!("no {name}"),
        }
    }

    #[test]
    fn the_text_forms_of_gnu_tar_bsdtar_and_star_become_the_same_acl() {
        let expected = "user::rw-,user:1:rwx,user:1000:r--,group::r-x,group:4:---,mask::rwx,other::r--";
        let forms = [
            expected,
            "other::r--\nmask::rwx\ngroup:adm:---\ngroup::r-x\t#effective:r--\nuser:1000:r--\nuser:daemon:rwx\nuser::rw-\n",
            "user::rw-,group::r-x,other::r--,user:daemon:rwx:1,user:nobody:r--:1000,group:x:---:4,mask::rwx",
            "u::rw,u:daemon:rwx,u:1000:r,g::rx,g:adm:,m:rwx,o:r",
        ];
        for form in forms {
            let value = Acl::parse(form.as_bytes()).unwrap().to_xattr(&mut id_of).unwrap();
            assert_eq!(to_text(&value).unwrap(), expected, "{form}");
        }
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for text in ["user", "user::rwz", "nobody::rwx", "mask:1:rwx", "user:4294967295:rwx", "a:b:c:d:e"] {
            assert!(Acl::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Acl::parse(b"user:\xff:rwx").is_err());
        assert!(Acl::parse(b"user:stranger:rwx").unwrap().to_xattr(&mut id_of).is_err());
        for value in [
            &b""[..],
            b"\x02\0\0",
            b"\x03\0\0\0",
            b"\x02\0\0\0\x01\0\x07\0",
            b"\x02\0\0\0\x03\0\x07\0\0\0\0\0",
        ] {
            assert!(to_text(value).is_err(), "{value:?}");
        }
    }
}
