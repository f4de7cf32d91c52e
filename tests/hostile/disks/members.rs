//! Halves of mirrors, and encrypted volumes with what looks like a filesystem in them: not written, whoever asks.

use std::fs::{self, File};

use super::MIB;
use crate::common::backup::env_of;
use crate::common::bytes::{read, write};
use crate::common::small_guest::{Answer, Flavour, SmallDisk, Table};
use crate::common::{Node, digest};

/// Number and major version of md's superblocks (include/uapi/linux/raid/md_p.h).
const MD_0: &[u8] = b"\xfc\x4e\x2b\xa9\0\0\0\0";
const MD_1: &[u8] = b"\xfc\x4e\x2b\xa9\x01\0\0\0";

/// Where metadata 1.0 and 0.90 are, by mdadm's super1.c and super0.c.
fn ends(bytes: u64) -> [(u64, &'static [u8]); 2] {
    [((bytes / 512 - 16) / 8 * 8 * 512, MD_1), ((bytes & !0xffff) - 0x1_0000, MD_0)]
}

#[test]
fn half_of_a_mirror_is_neither_renamed_nor_grown() {
    let node = Node::bare();
    for table in [Table::None, Table::Msdos, Table::Gpt] {
        let honest = SmallDisk::make_with(&node, "honest", Flavour::Ifupdown, table, "ext4");
        let bytes = fs::metadata(&honest.path).unwrap().len();
        let of_disk = ends(bytes);
        let of_root = ends(honest.root_bytes).map(|(at, mark)| (honest.root_at + at, mark));
        let whole = [true, false].into_iter().filter(|whole| *whole || table != Table::None);
        for (is_whole, (at, mark)) in
            whole.flat_map(|whole| (if whole { of_disk } else { of_root }).map(|mark| (whole, mark)))
        {
            if is_whole && table == Table::Gpt && mark == MD_1 {
                // There lies the table's copy: no array has both.
                continue;
            }
            let disk = honest.copy("half");
            write(&File::options().write(true).open(&disk.path).unwrap(), at, mark);
            let before = digest(&disk.path);
            let what = format!("{table:?}, {mark:?} at {at}");
            let answer = disk.rename(&node);
            assert!(!answer.done, "{what}: {}", answer.log);
            assert!(answer.log.contains("a member of an md array"), "{what}: {}", answer.log);
            assert_eq!(digest(&disk.path), before, "{what}: {}", answer.log);

            for identity in ["keep", "new"] {
                let larger = node.disk("larger", bytes + 64 * MIB);
                let mut env = env_of(&node, "import", &larger);
                env.insert("OSP_IMPORT_IDENTITY".into(), identity.into());
                let mut command = node.verb("import", &env);
                command.stdin(File::open(&disk.path).unwrap());
                let answer = Answer::of(command);
                assert!(answer.done, "{what}, {identity}: {}", answer.log);
                let file = File::open(&larger).unwrap();
                assert_eq!(read::<8>(&file, at), mark, "{what}, {identity}: {}", answer.log);
                let superblock = honest.root_at + 1024;
                let of_honest = File::open(&disk.path).unwrap();
                let (now, then) = (read::<1024>(&file, superblock), read::<1024>(&of_honest, superblock));
                assert_eq!(now, then, "{what}, {identity}: {}", answer.log);
            }
        }
    }
    node.assert_nothing_left();
}

#[test]
fn an_encrypted_volume_is_no_filesystem_whatever_lies_in_it() {
    let node = Node::bare();
    let honest = SmallDisk::make_with(&node, "honest", Flavour::Ifupdown, Table::None, "ext4");
    for (at, mark, what) in [
        (0, &b"LUKS\xba\xbe\0\x02"[..], "an encrypted volume (LUKS)"),
        (0x018, b"LVM2 001", "a physical volume of LVM"),
        (0, b"integrt\0", "a volume of dm-integrity"),
    ] {
        let disk = honest.copy("layered");
        write(&File::options().write(true).open(&disk.path).unwrap(), at, mark);
        let before = digest(&disk.path);
        let answer = disk.rename(&node);
        assert!(!answer.done && answer.log.contains(what), "{}", answer.log);
        assert_eq!(digest(&disk.path), before, "{}", answer.log);
    }
    node.assert_nothing_left();
}
