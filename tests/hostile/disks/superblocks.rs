//! Superblocks with absurd fields, checksums right, so that whoever mounts them has to judge what they say.

use std::fs::File;

use super::case::{Bench, Expected};
use crate::common::bytes::{Numbers, crc32c, flip, read, write};
use crate::common::small_guest::{NEW_NAME, SmallDisk, Table};
use crate::common::stepping::{GuestMount, step};

/// Where a superblock is, how much of it has fields, and what its checksum covers and where it stands.
struct Shape {
    filesystem: &'static str,
    at: u64,
    fields: u64,
    covered: std::ops::Range<u64>,
    /// None: it has none.
    checksum_at: Option<u64>,
}

const SHAPES: [Shape; 5] = [
    Shape { filesystem: "ext2", at: 1024, fields: 0x180, covered: 0..0, checksum_at: None },
    Shape { filesystem: "ext3", at: 1024, fields: 0x180, covered: 0..0, checksum_at: None },
    Shape { filesystem: "ext4", at: 1024, fields: 0x280, covered: 0..0x3fc, checksum_at: Some(0x3fc) },
    // Its checksum is computed with zeros in its own place.
    Shape { filesystem: "xfs", at: 0, fields: 0x100, covered: 0..0x200, checksum_at: Some(0xe0) },
    Shape { filesystem: "btrfs", at: 0x10000, fields: 0x100, covered: 0x20..0x1000, checksum_at: Some(0) },
];

/// What its fields are set to.
const EXTREMES: [u32; 3] = [0, 0x8000_0001, u32::MAX];

impl Shape {
    /// Makes the checksum right.
    fn seal(&self, disk: &File) {
        let Some(checksum_at) = self.checksum_at else { return };
        let mut block: [u8; 4096] = read(disk, self.at);
        block[checksum_at as usize..checksum_at as usize + 4].fill(0);
        let crc = crc32c(&block[self.covered.start as usize..self.covered.end as usize]);
        // ext4 alone does without the last inversion.
        let crc = if self.filesystem == "ext4" { crc } else { !crc };
        write(disk, self.at + checksum_at, &crc.to_le_bytes());
    }

    fn bench(&self) -> Bench {
        let bench = Bench::new(Table::None, self.filesystem);
        // The seal is that of the tools: what is tested is not the checksum.
        let disk = File::options().read(true).write(true).open(&bench.honest.path).unwrap();
        let before: [u8; 4096] = read(&disk, self.at);
        self.seal(&disk);
        assert_eq!(read::<4096>(&disk, self.at), before, "the checksum of {}", self.filesystem);
        bench
    }

    /// Sets every so-many-th field in turn.
    fn set_fields(&self, bench: &Bench, every: u64) {
        for at in (0..self.fields).step_by(4 * every as usize).filter(|at| self.checksum_at != Some(*at)) {
            // One value for each field, another for the next.
            let value = EXTREMES[(at / 4 % 3) as usize];
            bench.rename(
                &format!("{value:#x} at {at:#x} of {}", self.filesystem),
                Expected::Either,
                |disk| {
                    write(disk, self.at + at, &value.to_le_bytes());
                    self.seal(disk);
                },
            );
        }
    }

    /// Changes several bits at once, so many times.
    fn change_bits(&self, bench: &Bench, rounds: usize) {
        let mut numbers = Numbers(0x5eed);
        for round in 0..rounds {
            let bits: Vec<(u64, u8)> =
                (0..3).map(|_| (numbers.below(self.fields), 1 << numbers.below(8))).collect();
            for sealed in [true, false] {
                let what = format!("bits {bits:x?} of {}, round {round}, sealed: {sealed}", self.filesystem);
                bench.rename(&what, Expected::Either, |disk| {
                    bits.iter().for_each(|(at, bit)| flip(disk, self.at + at, *bit));
                    if sealed {
                        self.seal(disk);
                    }
                });
            }
        }
    }
}

#[test]
fn rename_survives_some_absurd_fields_of_every_superblock() {
    for shape in &SHAPES {
        shape.set_fields(&shape.bench(), 9);
    }
}

#[test]
#[ignore = "run by make test-full"]
fn rename_survives_an_absurd_field_anywhere_in_a_superblock() {
    for shape in &SHAPES {
        shape.set_fields(&shape.bench(), 1);
    }
}

#[test]
#[ignore = "run by make test-full"]
fn rename_survives_changed_bits_in_superblocks() {
    for shape in &SHAPES {
        shape.change_bits(&shape.bench(), 15);
    }
}

#[test]
fn an_xfs_whose_log_cannot_be_closed_again_is_not_mounted() {
    let shape = &SHAPES[3];
    let bench = shape.bench();
    for (features, expected) in
        [(0x2_u32, Expected::Refused), (1 << 31, Expected::Refused), (0, Expected::Done)]
    {
        bench.rename(&format!("features {features:#x} of the log"), expected, |disk| {
            write(disk, 0xdc, &features.to_be_bytes());
            shape.seal(disk);
        });
    }
}

/// How a filesystem wants errors to be answered (ext4's documentation of s_errors, s_mount_opts).
const ERRORS_AT: u64 = 1024 + 0x3c;
const MOUNT_OPTIONS_AT: u64 = 1024 + 0x200;
const PANIC: u8 = 3;

/// The options of the guest's mount, as the kernel has them while a rename works.
fn mount_options(bench: &Bench, disk: &SmallDisk) -> Vec<String> {
    let mut seen = Vec::new();
    let stepped = step(disk.rename_command(&bench.node), |GuestMount { line, .. }, _| {
        if !seen.contains(line) {
            seen.push(line.clone());
        }
    });
    assert_eq!(stepped.status, Some(0), "{}", stepped.log);
    assert!(!seen.is_empty(), "{}", stepped.log);
    seen
}

#[test]
fn no_guest_decides_what_the_node_does_on_errors() {
    let bench = SHAPES[2].bench();
    let ask_for_panic = |disk: &File| {
        write(disk, ERRORS_AT, &[PANIC, 0]);
        write(disk, MOUNT_OPTIONS_AT, b"errors=panic\0");
        SHAPES[2].seal(disk);
    };
    let disk = bench.honest.copy("panic");
    ask_for_panic(&File::options().read(true).write(true).open(&disk.path).unwrap());
    for line in mount_options(&bench, &disk) {
        let has = |option: &str| line.split([' ', ',']).any(|word| word == option);
        assert!(has("errors=remount-ro") && !has("errors=panic"), "{line}");
        assert!(has("nosuid") && has("nodev") && has("noexec"), "{line}");
    }
    bench.rename(&format!("{NEW_NAME} where errors are asked to be panics"), Expected::Done, ask_for_panic);
}
