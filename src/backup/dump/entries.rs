//! Owns the data of a directory in a dump: entries of 4.2BSD (struct direct), in blocks that none
//! crosses. Must not know what the inodes are.

use anyhow::{Context, Result, ensure};

use crate::reader::integers::{le16, le32};

/// DIRBLKSIZ.
pub(super) const BLOCK_BYTES: usize = 512;

/// d_ino, d_reclen, d_type, d_namlen.
const HEAD_BYTES: usize = 8;

/// A name as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// One that a file can have, or `.` or `..`.
    Whole(&'a [u8]),
    /// dump(8) 0.4b47 leaves no room for names of 255 bytes, and writes the next entry over them.
    Lost,
}

/// The longest name; only this one is ever lost.
const NAME_BYTES_MAX: usize = 255;

/// Calls `take` with inode number and name of each entry of a block.
pub(super) fn each(block: &[u8], take: &mut dyn FnMut(u32, Name<'_>) -> Result<()>) -> Result<()> {
    let mut rest = block;
    while !rest.is_empty() {
        ensure!(rest.len() >= HEAD_BYTES, "its data are damaged: an entry is cut short");
        let length = usize::from(le16(rest, 4));
        let name_length = usize::from(rest[7]);
        let is_lost = name_length == NAME_BYTES_MAX && length <= HEAD_BYTES + name_length;
        let least = if is_lost { HEAD_BYTES } else { HEAD_BYTES + name_length + 1 };
        ensure!(
            length % 4 == 0 && (least..=rest.len()).contains(&length),
            "its data are damaged: an entry of {length} bytes has a name of {name_length}, and {} are left",
            rest.len()
        );
        let inode_number = le32(rest, 0);
        if inode_number != 0 && is_lost {
            take(inode_number, Name::Lost)?;
        } else if inode_number != 0 {
            let name = &rest[HEAD_BYTES..HEAD_BYTES + name_length];
            let shown = name.escape_ascii();
            ensure!(is_name(name), "the name \"{shown}\" is none that a file can have");
            take(inode_number, Name::Whole(name))
                .with_context(|| format!("reading the entry \"{shown}\""))?;
        }
        rest = &rest[length..];
    }
    Ok(())
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&0) && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::{Name, each};

    fn entry(inode: u32, length: u16, name: &[u8]) -> Vec<u8> {
        let mut entry = inode.to_le_bytes().to_vec();
        entry.extend(length.to_le_bytes());
        entry.extend([0, name.len() as u8]);
        entry.extend(name);
        entry.resize(usize::from(length).max(8), 0);
        entry
    }

    #[test]
    fn entries_are_read_and_what_lies_is_refused() {
        let block = [
            entry(2, 12, b"."),
            entry(0, 16, b"gone"),
            entry(7, 476, b"a \xff"),
            entry(8, 8, &[b'n'; 255])[..8].to_vec(),
        ]
        .concat();
        let mut found = Vec::new();
        each(&block, &mut |inode, name| {
            found.push(match name {
                Name::Whole(name) => (inode, name.to_vec()),
                Name::Lost => (inode, b"lost".to_vec()),
            });
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [(2, b".".to_vec()), (7, b"a \xff".to_vec()), (8, b"lost".to_vec())]);
        let bad = [
            entry(1, 0, b""),
            entry(1, 8, b""),
            entry(1, 12, b""),
            entry(1, 12, b"a/b"),
            entry(1, 12, b"a\0b"),
            entry(1, 13, b"a"),
            entry(1, 12, b"long"),
            [entry(1, 12, b"abc"), vec![1, 2, 3]].concat(),
            entry(1, 16, b"a")[..12].to_vec(),
        ];
        for block in bad {
            assert!(each(&block, &mut |_, _| Ok(())).is_err(), "{block:?}");
        }
    }
}
