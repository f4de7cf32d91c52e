//! Owns extended attributes as ext2 and its successors keep them, in a block of their own or behind
//! the inode (linux/fs/ext4/xattr.h), and what the kernel takes instead: full names, and ACLs in the
//! form of its attributes (linux/fs/ext4/acl.h, linux/posix_acl_xattr.h). Must not set any.

use anyhow::{Context, Result, bail, ensure};

use crate::reader::integers::{le16, le32};
use crate::tar::{ACL_ACCESS, ACL_DEFAULT};

/// What is behind the inode, and one block.
pub(super) const BLOCKS_MAX: usize = 2;

/// The largest block of a filesystem.
pub(super) const BLOCK_BYTES_MAX: u64 = 64 * 1024;

/// h_magic of a block of its own: then come 28 bytes that mean nothing here.
const BLOCK_MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER_BYTES: usize = 32;

/// What dump(8) writes instead for those behind the inode: then offsets count from after it.
const INODE_MAGIC: u32 = 0xea02_0001;
const INODE_HEADER_BYTES: usize = 4;

/// struct ext4_xattr_entry without the name.
const ENTRY_BYTES: usize = 16;

/// Version of ACLs on disk, and of the kernel's attributes.
const ACL_DISK_VERSION: u32 = 1;
const ACL_VERSION: u32 = 2;

/// Tags of ACL entries that name somebody.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Full name and value.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// The attributes in what a dump has of a block.
pub(super) fn parse(block: &[u8]) -> Result<Vec<Attribute>> {
    ensure!(block.len() >= INODE_HEADER_BYTES, "a block of attributes has {} bytes", block.len());
    let (values, first) = match le32(block, 0) {
        BLOCK_MAGIC => (block, BLOCK_HEADER_BYTES),
        INODE_MAGIC => (&block[INODE_HEADER_BYTES..], 0),
        magic => bail!("a block of attributes has the magic number {magic:#x}, which is not known"),
    };
    let (mut attributes, mut taken_bytes) = (Vec::new(), 0);
    let mut rest = values.get(first..).context("a block of attributes is cut short")?;
    // Four zero bytes end the list; each round takes an entry's bytes.
    while rest.len() >= 4 && le32(rest, 0) != 0 {
        let (attribute, after) = entry(rest, values)?;
        // Each has bytes of its own, and an ACL becomes up to twice as long. Thousands that share their bytes would be
        // copied, and set, thousands of times.
        taken_bytes += attribute.1.len();
        ensure!(taken_bytes <= 2 * block.len(), "the attributes share their values");
        attributes.push(attribute);
        rest = after;
    }
    Ok(attributes)
}

/// The first entry of `entries`, and the entries after it.
fn entry<'a>(entries: &'a [u8], values: &[u8]) -> Result<(Attribute, &'a [u8])> {
    ensure!(entries.len() >= ENTRY_BYTES, "an attribute's entry is cut short");
    let (name_length, index) = (usize::from(entries[0]), entries[1]);
    let offset = usize::from(le16(entries, 2));
    let (foreign_inode, size) = (le32(entries, 4), le32(entries, 8) as usize);
    let name =
        entries.get(ENTRY_BYTES..ENTRY_BYTES + name_length).context("an attribute's name is cut short")?;
    ensure!(!name.contains(&0), "the attribute's name {:?} has a NUL", name.escape_ascii().to_string());
    let full = full_name(index, name)?;
    let shown = full.escape_ascii().to_string();
    ensure!(foreign_inode == 0, "the value of {shown} is in inode {foreign_inode}, which is not supported");
    let value = offset.checked_add(size).and_then(|end| values.get(offset..end));
    let value = value.with_context(|| format!("the value of {shown} lies outside of its block"))?;
    let value = match index {
        2 | 3 => acl(value).with_context(|| format!("reading {shown}"))?,
        _ => value.to_vec(),
    };
    let after = (ENTRY_BYTES + name_length).next_multiple_of(4);
    Ok(((full, value), entries.get(after..).unwrap_or_default()))
}

/// e_name_index stands for the begin of a name, or a whole one.
fn full_name(index: u8, name: &[u8]) -> Result<Vec<u8>> {
    let prefix = match (index, name.is_empty()) {
        (1, false) => "user.",
        (2, true) => ACL_ACCESS,
        (3, true) => ACL_DEFAULT,
        (4, false) => "trusted.",
        (6, false) => "security.",
        (7, false) if name == b"data" => {
            bail!("its data are in its inode (inline_data), which is not supported")
        }
        _ => bail!(
            "an attribute {:?} is of the kind {index}, which is not supported",
            name.escape_ascii().to_string()
        ),
    };
    Ok([prefix.as_bytes(), name].concat())
}

/// An ACL on disk has no id where there is nobody to name; the kernel's attribute always has one.
fn acl(disk: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        disk.len() >= 4 && le32(disk, 0) == ACL_DISK_VERSION,
        "it is no ACL of version {ACL_DISK_VERSION}"
    );
    let mut value = ACL_VERSION.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let (short, after) = rest.split_at_checked(4).context("the ACL ends within an entry")?;
        let named = [ACL_USER, ACL_GROUP].contains(&le16(short, 0));
        let id;
        (id, rest) = match named {
            true => after.split_at_checked(4).context("the ACL ends within an entry")?,
            false => (&[0xff; 4][..], after),
        };
        value.extend_from_slice(short);
        value.extend_from_slice(id);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{INODE_MAGIC, acl, parse};

    fn block(name: &[u8], index: u8, (offset, size): (u16, u32), foreign: u32, value: &[u8]) -> Vec<u8> {
        let mut block = INODE_MAGIC.to_le_bytes().to_vec();
        block.extend([name.len() as u8, index]);
        block.extend(offset.to_le_bytes());
        [foreign, size, 0].iter().for_each(|word| block.extend(word.to_le_bytes()));
        block.extend(name);
        block.resize(64, 0);
        block.extend(value);
        block
    }

    #[test]
    fn names_and_values_are_read_and_what_lies_is_refused() {
        let good = parse(&block(b"cap", 6, (60, 5), 0, b"value")).unwrap();
        assert_eq!(good, [(b"security.cap".to_vec(), b"value".to_vec())]);
        let cases = [
            (block(b"x", 1, (60, 6), 0, b"value"), "lies outside"),
            (block(b"x", 1, (u16::MAX, u32::MAX), 0, b"value"), "lies outside"),
            (block(b"x", 1, (0, 0), 12, b""), "inode 12"),
            (block(b"x\0y", 1, (0, 0), 0, b""), "has a NUL"),
            (block(b"", 1, (0, 0), 0, b""), "not supported"),
            (block(b"x", 99, (0, 0), 0, b""), "not supported"),
            (block(b"data", 7, (0, 0), 0, b""), "inline_data"),
            (block(&[b'n'; 255], 1, (0, 0), 0, b"")[..40].to_vec(), "cut short"),
            (vec![1, 2, 3, 4], "magic"),
            (vec![1], "1 bytes"),
        ];
        for (block, expected) in cases {
            let error = format!("{:#}", parse(&block).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_acl_gets_ids_where_it_names_nobody() {
        let disk = [&1_u32.to_le_bytes()[..], &[1, 0, 6, 0], &[2, 0, 4, 0, 0xe8, 3, 0, 0]].concat();
        let expected =
            [&2_u32.to_le_bytes()[..], &[1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0]].concat();
        assert_eq!(acl(&disk).unwrap(), expected);
        for bad in [&disk[..3], &disk[..6], &disk[..10], &[9, 0, 0, 0]] {
            assert!(acl(bad).is_err());
        }
    }
}
