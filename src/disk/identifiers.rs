//! New identifiers for a disk that is a copy: its table's, its partitions', its swap's and its FAT's, in place; and what a
//! text that names one has to say instead. Filesystems get theirs by their own tools.
//!
//! A new identifier follows from the old one and the copy's name alone: what one disk of an instance says of another
//! (fstab of a data disk) comes out right although each is restored by a run of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use uuid::Uuid;

use crate::filesystem::SECTOR_BYTES;
use crate::partition_table::{self, TableKind};
use crate::probe::{Content, Fat, Part, Survey};
use crate::sys::signals;

/// mkswap(8): the UUID stands behind the boot bits and four numbers.
const SWAP_UUID_AT: u64 = 1036;
/// An EFI system partition may be larger, but then what names the root in it is the owner's business.
const FAT_SCANNED_MAX_BYTES: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;
/// Short names that texts are searched for: a disk that is used has a handful.
const WORDS_MAX: usize = 64;
/// Where such a name has its dash, and how long it is: `1234abcd-01` and `00AB-12CD`.
const WORD_SHAPES: [(usize, usize); 2] = [(8, 11), (4, 9)];
/// `b5a70c8f-0000-4000-8000-0123456789ab`
const UUID_BYTES: usize = 36;
const UUID_DASHES: [usize; 4] = [8, 13, 18, 23];

/// The identifiers of a disk, and those of its copy.
#[derive(Debug)]
pub struct Reidentify {
    key: [u8; 32],
    /// UUIDs of the disk.
    known: BTreeSet<Uuid>,
    /// What else names a part of it in texts, in small letters, with what takes its place: of the same length.
    words: BTreeMap<Vec<u8>, String>,
    /// A UUID that is not of this disk may be of another one of the instance.
    many_disks: bool,
}

impl Reidentify {
    /// For a copy called `name`, which no other copy is.
    pub fn new(name: &str, many_disks: bool) -> Reidentify {
        let key =
            blake3::derive_key("ganeti-instance-debootstrap, identifiers of a copied disk", name.as_bytes());
        Reidentify { key, known: BTreeSet::new(), words: BTreeMap::new(), many_disks }
    }

    /// What `old` becomes.
    pub fn uuid(&self, old: Uuid) -> Uuid {
        let hash = blake3::keyed_hash(&self.key, old.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    fn number(&self, old: u32) -> u32 {
        let hash = blake3::keyed_hash(&self.key, &old.to_le_bytes());
        u32::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
    }

    /// Gives the table other identifiers; all of it but `sector`, the first one, stands on `disk`.
    pub fn table(
        &mut self,
        disk: &File,
        size_bytes: u64,
        survey: &Survey,
        sector: &mut [u8; SECTOR_BYTES as usize],
    ) -> Result<()> {
        match survey.table {
            None => Ok(()),
            Some(TableKind::Gpt) => {
                self.gpt(disk, size_bytes).context("giving the partition table new identifiers")
            }
            Some(TableKind::Msdos) => {
                let (old, new) = partition_table::renew_mbr(sector, |old| self.number(old));
                let named = |signature: u32, number| format!("{signature:08x}-{number:02x}");
                let numbers = survey.parts.iter().filter_map(|part| part.number);
                self.words.extend(
                    numbers
                        .take(WORDS_MAX)
                        .map(|number| (named(old, number).into_bytes(), named(new, number))),
                );
                Ok(())
            }
        }
    }

    fn gpt(&mut self, disk: &File, size_bytes: u64) -> Result<()> {
        let mut old = Vec::new();
        partition_table::renew_gpt(disk, size_bytes, |uuid| {
            old.push(uuid);
            self.uuid(uuid)
        })?;
        self.known.extend(old);
        disk.sync_all()?;
        Ok(())
    }

    /// Gives a part without files of the guest's its new identifiers, and learns those of the others. What the EFI system
    /// partition says of the root is changed by [`Reidentify::fat_texts()`], once all are known.
    pub fn part(&mut self, disk: &File, part: &Part) -> Result<()> {
        let context = || format!("giving {part} new identifiers");
        match part.content {
            Content::Filesystem(volume) => drop(self.known.insert(volume.uuid)),
            Content::Swap(uuid) => {
                self.known.insert(uuid);
                let new = self.uuid(uuid);
                disk.write_all_at(new.as_bytes(), part.start_bytes + SWAP_UUID_AT).with_context(context)?;
            }
            Content::Fat(Fat { volume, volume_at, copy_at }) => {
                let new = self.number(volume);
                let copy = copy_at.filter(|at| at + SECTOR_BYTES <= part.size_bytes);
                for at in std::iter::once(0).chain(copy) {
                    disk.write_all_at(&new.to_le_bytes(), part.start_bytes + at + volume_at)
                        .with_context(context)?;
                }
                let named = |volume: u32| format!("{:04X}-{:04X}", volume >> 16, volume & 0xffff);
                if self.words.len() < WORDS_MAX {
                    self.words.insert(named(volume).to_ascii_lowercase().into_bytes(), named(new));
                }
            }
            Content::Other(_) | Content::Unknown => {}
        }
        Ok(())
    }

    /// Changes what the files of a FAT filesystem say of the disk's filesystems (GRUB's configuration on an EFI system
    /// partition): byte by byte in place, whatever file it is, since a UUID's text keeps its length.
    pub fn fat_texts(&self, disk: &File, part: &Part) -> Result<()> {
        let size = part.size_bytes.min(FAT_SCANNED_MAX_BYTES);
        let mut piece = vec![0; PIECE_BYTES + UUID_BYTES];
        let mut at = 0;
        while at < size {
            signals::check()?;
            let length = (size - at).min(piece.len() as u64) as usize;
            let bytes = &mut piece[..length];
            let context = || format!("changing what {part} says of the disk");
            disk.read_exact_at(bytes, part.start_bytes + at).with_context(context)?;
            if self.rewrite_uuids(bytes, |uuid| self.known.contains(&uuid)) {
                disk.write_all_at(bytes, part.start_bytes + at).with_context(context)?;
            }
            at += PIECE_BYTES as u64;
        }
        Ok(())
    }

    /// A text of the guest's root with the new identifiers. `mounts`: it says what is mounted, from other disks too.
    pub fn text(&self, old: &[u8], mounts: bool) -> Vec<u8> {
        let mut new = old.to_vec();
        self.rewrite_uuids(&mut new, |uuid| self.known.contains(&uuid) || (mounts && self.many_disks));
        self.rewrite_words(&mut new);
        new
    }

    /// Puts the new word in the place of each old one, in one pass however many there are.
    fn rewrite_words(&self, text: &mut [u8]) {
        let mut at = 0;
        while at < text.len() {
            let word = WORD_SHAPES.into_iter().find_map(|(dash, length)| {
                let found = text.get(at..at + length)?;
                let may_be_one = found[dash] == b'-' && found[0].is_ascii_hexdigit();
                may_be_one.then(|| self.words.get(&found.to_ascii_lowercase())).flatten()
            });
            if let Some(word) = word {
                text[at..at + word.len()].copy_from_slice(word.as_bytes());
            }
            at += word.map_or(1, String::len);
        }
    }

    /// Puts the new text in the place of each UUID that is one of these; says whether there was one.
    fn rewrite_uuids(&self, bytes: &mut [u8], is_one: impl Fn(Uuid) -> bool) -> bool {
        let mut changed = false;
        let mut at = 0;
        while at + UUID_BYTES <= bytes.len() {
            let word = &mut bytes[at..at + UUID_BYTES];
            let uuid = may_be_uuid(word).then(|| Uuid::try_parse_ascii(word).ok()).flatten();
            let Some(uuid) = uuid.filter(|uuid| is_one(*uuid)) else {
                at += 1;
                continue;
            };
            let upper = word.iter().any(u8::is_ascii_uppercase);
            let new = self.uuid(uuid).to_string();
            word.copy_from_slice(new.as_bytes());
            if upper {
                word.make_ascii_uppercase();
            }
            changed = true;
            at += UUID_BYTES;
        }
        changed
    }
}

/// Whether it is worth parsing. Nearly every place of a disk is no UUID, and a failed parse takes hundreds of times as long.
fn may_be_uuid(word: &[u8]) -> bool {
    UUID_DASHES.iter().all(|at| word[*at] == b'-') && word[..UUID_DASHES[0]].iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::Filesystem;
    use crate::probe::Volume;

    const OLD: &str = "b5a70c8f-0000-4000-8000-0123456789ab";
    const MBR_SIGNATURE: std::ops::Range<usize> = 440..444;
    const OTHER: &str = "c5a70c8f-0000-4000-8000-0123456789ab";

    fn part(number: u32, start_bytes: u64, content: Content) -> Part {
        Part { number: Some(number), start_bytes, size_bytes: 1 << 20, content }
    }

    fn known(many_disks: bool) -> Reidentify {
        let mut renewal = Reidentify::new("web.example.com", many_disks);
        let uuid = Uuid::try_parse(OLD).unwrap();
        let volume = Volume { filesystem: Filesystem::Ext4, uuid, metadata_uuid: None };
        let file = tempfile::tempfile().unwrap();
        renewal.part(&file, &part(1, 0, Content::Filesystem(volume))).unwrap();
        renewal
    }

    #[test]
    fn texts_name_what_the_copy_is() {
        let renewal = known(false);
        let new = renewal.uuid(Uuid::try_parse(OLD).unwrap()).to_string();
        assert_ne!(new, OLD);
        assert_ne!(new, known(false).uuid(Uuid::try_parse(OTHER).unwrap()).to_string());
        assert_ne!(
            new,
            Reidentify::new("db.example.com", false).uuid(Uuid::try_parse(OLD).unwrap()).to_string()
        );
        let text = |renewal: &Reidentify, old: &str, mounts| {
            String::from_utf8(renewal.text(old.as_bytes(), mounts)).unwrap()
        };
        let upper = OLD.to_uppercase();
        assert_eq!(
            text(&renewal, &format!("UUID={OLD} / ext4\nUUID={upper}\n{OTHER}"), true),
            format!("UUID={new} / ext4\nUUID={}\n{OTHER}", new.to_uppercase())
        );
        assert_eq!(text(&renewal, &OLD[1..], true), &OLD[1..]);
        let many = known(true);
        assert!(!text(&many, OTHER, true).contains(OTHER), "another disk of the instance");
        assert_eq!(text(&many, OTHER, false), OTHER);
    }

    #[test]
    fn an_mbr_and_a_fat_have_short_names() {
        let mut renewal = Reidentify::new("web.example.com", false);
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut sector = [0; SECTOR_BYTES as usize];
        sector[MBR_SIGNATURE].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        let fat = Fat { volume: 0x00ab_12cd, volume_at: 0x43, copy_at: Some(6 * 512) };
        let esp = part(1, 0, Content::Fat(fat));
        renewal.part(&file, &esp).unwrap();
        renewal
            .table(&file, 1 << 20, &Survey { table: Some(TableKind::Msdos), parts: vec![esp] }, &mut sector)
            .unwrap();
        let text = renewal.text(b"PARTUUID=1234ABCD-01 /\nUUID=00AB-12CD /boot/efi", true);
        let text = String::from_utf8(text).unwrap();
        let signature = u32::from_le_bytes(sector[MBR_SIGNATURE].try_into().unwrap());
        assert!(text.starts_with(&format!("PARTUUID={signature:08x}-01 /\n")), "{text}");
        let mut volume = [0; 4];
        for at in [0, 6 * 512] {
            file.read_exact_at(&mut volume, at + 0x43).unwrap();
            let volume = u32::from_le_bytes(volume);
            let name = format!("UUID={:04X}-{:04X} /boot/efi", volume >> 16, volume & 0xffff);
            assert!(text.ends_with(&name), "{text} {name}");
        }
    }

    #[test]
    fn hardly_anything_but_a_uuid_is_parsed() {
        const BYTES: usize = 37 * 1000;
        let parsed = |unit: &str| {
            let bytes: Vec<u8> = unit.bytes().cycle().take(BYTES).collect();
            bytes.windows(UUID_BYTES).filter(|word| may_be_uuid(word)).count()
        };
        for unit in ["-", "a", "a-", "aaaa-", "aaa-", "aaaaaaaa-", "aaaaaaaa-aaaa-aaaa-aaaa-"] {
            assert!(parsed(unit) <= BYTES / 20, "{unit}: {}", parsed(unit));
        }
        assert_eq!(parsed(&format!("{OLD} ")), BYTES / 37);
    }

    #[test]
    fn a_uuid_is_found_wherever_it_lies_in_a_fat() {
        let renewal = known(false);
        let file = tempfile::tempfile().unwrap();
        let size = 3 * PIECE_BYTES as u64;
        file.set_len(size).unwrap();
        let places = [0, PIECE_BYTES as u64 - 7, PIECE_BYTES as u64 + 40, size - UUID_BYTES as u64];
        for at in places {
            file.write_all_at(OLD.as_bytes(), at).unwrap();
        }
        let esp = Part { size_bytes: size, ..part(1, 0, Content::Unknown) };
        renewal.fat_texts(&file, &esp).unwrap();
        let new = renewal.uuid(Uuid::try_parse(OLD).unwrap()).to_string();
        for at in places {
            let mut word = [0; UUID_BYTES];
            file.read_exact_at(&mut word, at).unwrap();
            assert_eq!(String::from_utf8_lossy(&word), new, "{at}");
        }
    }
}
