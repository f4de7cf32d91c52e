//! A filesystem of the ext family as its own tools show it: what must be equal in all disks of one kind, and what no two
//! guests may share.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::{BlockDevice, tool};

/// How many blocks directories may differ by: where one is divided is up to the seed of its hashes.
const DIRECTORY_BLOCKS: u64 = 200;

/// What tells one guest's filesystem from another's, and what its history is; all else is its kind's.
const OWN: [&str; 17] = [
    "Filesystem UUID",
    "Directory Hash Seed",
    "Filesystem created",
    "Last mounted on",
    "Last mount time",
    "Last write time",
    "Last checked",
    "Mount count",
    "Lifetime writes",
    "Checksum",
    "Checksum seed",
    "Journal sequence",
    "Journal start",
    "Journal checksum",
    "Journal superblock size",
    "Next check after",
    "Free blocks",
];

/// The root's filesystem on a disk.
pub struct Superblock {
    lines: BTreeMap<String, String>,
    /// The UUID in the journal's own superblock, where there is a journal.
    pub journal_uuid: Option<String>,
    pub block_bytes: u64,
}

impl Superblock {
    pub fn read(disk: &Path, root_at: u64) -> Superblock {
        let device = BlockDevice::over(disk, &["-r", "-o", &root_at.to_string()]);
        let path = device.0.to_str().unwrap();
        let mut lines = BTreeMap::new();
        for line in tool("dumpe2fs", &["-h", path]).lines() {
            if let Some((name, value)) = line.split_once(':') {
                lines.insert(name.to_owned(), value.trim().to_owned());
            }
        }
        let block_bytes = lines["Block size"].parse().unwrap();
        let has_journal = lines["Filesystem features"].split(' ').any(|word| word == "has_journal");
        let journal_uuid = has_journal.then(|| {
            // struct journal_superblock_s: its magic, and s_uuid behind 48 bytes.
            let first = tool("debugfs", &["-R", "bmap <8> 0", path]);
            let at = root_at + first.trim().parse::<u64>().unwrap() * block_bytes;
            let mut head = [0; 64];
            File::open(disk).unwrap().read_exact_at(&mut head, at).unwrap();
            assert_eq!(head[..4], [0xc0, 0x3b, 0x39, 0x98], "the journal begins with its superblock");
            let hex: String = head[48..].iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        });
        Superblock { lines, journal_uuid, block_bytes }
    }

    pub fn uuid(&self) -> &str {
        &self.lines["Filesystem UUID"]
    }

    /// Wants the same filesystem for another guest.
    pub fn assert_same_kind(&self, other: &Superblock, what: &str) {
        let names = self.lines.keys().chain(other.lines.keys());
        for name in names.filter(|name| !OWN.contains(&name.as_str())) {
            assert_eq!(self.lines.get(name), other.lines.get(name), "{what}: {name}");
        }
        for name in ["Inode count", "Block count", "Reserved block count", "Default mount options"] {
            assert!(self.lines.contains_key(name), "{name}: {:?}", self.lines);
        }
        let free = |of: &Superblock| of.lines["Free blocks"].parse::<u64>().unwrap();
        assert!(
            free(self).abs_diff(free(other)) < DIRECTORY_BLOCKS,
            "{what}: {} and {}",
            free(self),
            free(other)
        );
        assert_ne!(self.uuid(), other.uuid(), "{what}");
        assert_eq!(self.journal_uuid.is_some(), other.journal_uuid.is_some(), "{what}");
        let own = |of: &Superblock| of.journal_uuid.as_deref() == Some(of.uuid());
        assert_eq!(own(self), own(other), "{what}: the journal's UUID");
    }
}
