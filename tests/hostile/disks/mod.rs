//! Disks that mean harm, or were damaged: partition tables that contradict themselves, superblocks with absurd fields,
//! bits that have changed. Whatever is on a disk, the program ends soon and with little memory, says why it refuses or
//! does its work on a sound filesystem, writes nothing else, and leaves nothing held. Needs root.

mod case;
mod devices;
mod journals;
mod members;
mod superblocks;
mod tables;

use std::fs::File;

use crate::common::bytes::{Numbers, flip, write};
use crate::common::small_guest::{ROOT_AT, Table};
use case::{Bench, Expected};
use tables::{
    Copy, ENTRIES_LBA, ENTRY_BYTES, ENTRY_COUNT, FIRST_LBA, FIRST_USABLE, Field, Gpt, HEADER_BYTES, LAST_LBA,
    MbrEntry, OTHER_LBA, OWN_LBA, SECTOR, SIGNATURE, write_mbr,
};

const MIB: u64 = 1 << 20;

const COPIES: [Copy; 2] = [Copy::Primary, Copy::Backup];

#[test]
fn a_gpt_header_that_contradicts_itself_is_not_believed() {
    let bench = Bench::new(Table::Gpt, "ext4");
    let last = Gpt::of(&File::open(&bench.honest.path).unwrap()).last_sector();
    let fields: [(Field, &[u64]); 6] = [
        (SIGNATURE, &[0, u64::MAX]),
        (HEADER_BYTES, &[0, 16, 91, 513, 1 << 20, u64::MAX]),
        (OWN_LBA, &[0, 2, last + 1, u64::MAX]),
        (ENTRIES_LBA, &[0, 1, last, last + 1, 1 << 32, 1 << 55, u64::MAX]),
        (ENTRY_COUNT, &[1 << 20, 1 << 31, u64::MAX]),
        (ENTRY_BYTES, &[0, 1, 64, 127, 129, 192, 1 << 20, 1 << 31, u64::MAX]),
    ];
    for (field, value) in fields.iter().flat_map(|(field, values)| values.iter().map(move |v| (*field, *v))) {
        let what = format!("{field:?} = {value:#x}");
        let set = |disk: &File, copies: &[Copy]| {
            for copy in copies {
                // The backup's own header stands where the value may point to: each contradicts itself.
                let value = if *copy == Copy::Backup && field.0 == ENTRIES_LBA.0 && value == 1 {
                    last
                } else {
                    value
                };
                Gpt::of(disk).set(*copy, field, value);
                Gpt::of(disk).seal_entries(*copy);
                Gpt::of(disk).seal(*copy);
            }
        };
        bench.rename(&format!("{what} in both"), Expected::Refused, |disk| set(disk, &COPIES));
        bench.rename(&format!("{what} in the primary"), Expected::Done, |disk| set(disk, &COPIES[..1]));
    }
}

#[test]
fn a_gpt_is_read_whatever_nobody_needs_of_it_says() {
    let bench = Bench::new(Table::Gpt, "ext4");
    for (field, value) in
        [(OTHER_LBA, 0), (OTHER_LBA, 1), (OTHER_LBA, u64::MAX), (ENTRY_COUNT, 3), (FIRST_USABLE, 0)]
    {
        bench.rename(&format!("{field:?} = {value:#x}"), Expected::Done, |disk| {
            for copy in COPIES {
                Gpt::of(disk).set(copy, field, value);
                Gpt::of(disk).seal_entries(copy);
                Gpt::of(disk).seal(copy);
            }
        });
    }
}

#[test]
fn a_gpt_with_a_wrong_checksum_is_not_believed() {
    let bench = Bench::new(Table::Gpt, "ext4");
    for (copies, expected) in
        [(&COPIES[..1], Expected::Done), (&COPIES[1..], Expected::Done), (&COPIES, Expected::Refused)]
    {
        bench.rename(&format!("a header's checksum in {copies:?}"), expected, |disk| {
            copies.iter().for_each(|copy| Gpt::of(disk).set(*copy, OTHER_LBA, 77));
        });
        bench.rename(&format!("the entries' checksum in {copies:?}"), expected, |disk| {
            copies.iter().for_each(|copy| Gpt::of(disk).set_entry(*copy, 2, FIRST_LBA, 2049));
        });
    }
}

#[test]
fn gpt_partitions_that_cannot_be_are_not_mounted() {
    let bench = Bench::new(Table::Gpt, "ext4");
    let last = Gpt::of(&File::open(&bench.honest.path).unwrap()).last_sector();
    let root = ROOT_AT / SECTOR;
    type Damage<'a> = &'a dyn Fn(&Gpt<'_>, Copy);
    let cases: [(&str, Expected, Damage<'_>); 16] = [
        ("the root begins at 0", Expected::Refused, &|gpt, copy| gpt.set_entry(copy, 1, FIRST_LBA, 0)),
        ("the root covers the table", Expected::Refused, &|gpt, copy| gpt.set_entry(copy, 1, FIRST_LBA, 1)),
        ("a partition covers the entries", Expected::Either, &|gpt, copy| {
            gpt.set_entry(copy, 2, FIRST_LBA, 33);
        }),
        ("a partition covers the backup", Expected::Either, &|gpt, copy| {
            gpt.set_entry(copy, 1, LAST_LBA, gpt.last_sector());
        }),
        ("the root ends behind the disk", Expected::Refused, &|gpt, copy| {
            gpt.set_entry(copy, 1, LAST_LBA, last + 1);
        }),
        ("the root ends nowhere", Expected::Refused, &|gpt, copy| gpt.set_entry(copy, 1, LAST_LBA, u64::MAX)),
        ("the root begins nowhere", Expected::Refused, &|gpt, copy| {
            gpt.set_entry(copy, 1, FIRST_LBA, u64::MAX);
            gpt.set_entry(copy, 1, LAST_LBA, u64::MAX);
        }),
        ("sectors that overflow bytes", Expected::Refused, &|gpt, copy| {
            gpt.set_entry(copy, 1, FIRST_LBA, 1 << 55);
            gpt.set_entry(copy, 1, LAST_LBA, (1 << 55) + 1);
        }),
        ("no sectors", Expected::Refused, &|gpt, copy| gpt.set_entry(copy, 1, LAST_LBA, root - 1)),
        ("the whole range, backwards", Expected::Refused, &|gpt, copy| {
            gpt.set_entry(copy, 1, FIRST_LBA, u64::MAX);
            gpt.set_entry(copy, 1, LAST_LBA, 0);
        }),
        ("one sector", Expected::Refused, &|gpt, copy| gpt.set_entry(copy, 1, LAST_LBA, root)),
        ("another partition of one sector", Expected::Done, &|gpt, copy| {
            gpt.set_entry(copy, 2, LAST_LBA, 2048);
        }),
        ("an overlap", Expected::Refused, &|gpt, copy| gpt.set_entry(copy, 3, LAST_LBA, root)),
        ("the root inside another", Expected::Refused, &|gpt, copy| {
            gpt.set_entry(copy, 3, LAST_LBA, last - 40)
        }),
        ("128 times the root", Expected::Refused, &|gpt, copy| {
            (2..=128).for_each(|number| gpt.copy_entry(copy, 1, number));
        }),
        ("no root", Expected::Refused, &|gpt, copy| gpt.clear_entry(copy, 1)),
    ];
    for (what, expected, damage) in cases {
        bench.rename(what, expected, |disk| {
            let gpt = Gpt::of(disk);
            for copy in COPIES {
                damage(&gpt, copy);
                gpt.seal_entries(copy);
                gpt.seal(copy);
            }
        });
    }
}

#[test]
fn what_stands_in_the_first_sector_beside_a_gpt_is_judged() {
    let bench = Bench::new(Table::Gpt, "ext4");
    let root = MbrEntry { kind: 0x83, start: (ROOT_AT / SECTOR) as u32, sectors: 32768, active: 0 };
    let protective = MbrEntry { kind: 0xee, start: 1, sectors: u32::MAX, active: 0 };
    let headers = |disk: &File| COPIES.iter().for_each(|copy| Gpt::of(disk).set(*copy, SIGNATURE, 0));
    bench.rename("a protective MBR without a GPT", Expected::Refused, headers);
    bench.rename("a protective MBR without a GPT, and a partition", Expected::Refused, |disk| {
        headers(disk);
        write_mbr(disk, 0, &[protective, root]);
    });
    bench.rename("a hybrid", Expected::Done, |disk| write_mbr(disk, 0, &[root, protective]));
    bench.rename("a protective MBR at the end", Expected::Done, |disk| {
        write_mbr(disk, 0, &[MbrEntry::default(), MbrEntry::default(), MbrEntry::default(), protective]);
    });
    bench.rename("an absurd protective entry", Expected::Either, |disk| {
        write_mbr(disk, 0, &[MbrEntry { start: u32::MAX, active: 0x80, ..protective }]);
    });
    bench.rename("no signature", Expected::Refused, |disk| write(disk, 510, &[0, 0]));
    bench.rename("nothing at all", Expected::Refused, |disk| write(disk, 0, &[0; 34 * 512]));
    bench.rename("noise", Expected::Refused, |disk| {
        let mut numbers = Numbers(7);
        (0..4096).for_each(|at| write(disk, at * 8, &numbers.next().to_le_bytes()));
    });
}

#[test]
fn an_msdos_table_that_contradicts_itself_is_not_believed() {
    let bench = Bench::new(Table::Msdos, "ext4");
    let start = (ROOT_AT / SECTOR) as u32;
    let root = MbrEntry { kind: 0x83, start, sectors: bench.honest.root_bytes as u32 / 512, active: 0 };
    let none = MbrEntry::default();
    let small = MbrEntry { kind: 0x83, start: 2048, sectors: 2048, active: 0 };
    for (what, expected, entries) in [
        ("the root alone", Expected::Done, [none, none, none, root]),
        ("the root begins at 0", Expected::Refused, [MbrEntry { start: 0, ..root }, none, none, none]),
        ("no sectors", Expected::Refused, [MbrEntry { sectors: 0, ..root }, none, none, none]),
        ("one sector", Expected::Refused, [MbrEntry { sectors: 1, ..root }, none, none, none]),
        ("behind the disk", Expected::Refused, [MbrEntry { start: 0x7fff_ffff, ..root }, none, none, none]),
        ("beyond the disk", Expected::Refused, [MbrEntry { sectors: u32::MAX, ..root }, none, none, none]),
        (
            "32 bits and more",
            Expected::Refused,
            [MbrEntry { start: u32::MAX, sectors: u32::MAX, ..root }, none, none, none],
        ),
        ("an overlap", Expected::Refused, [root, MbrEntry { sectors: start, ..small }, none, none]),
        ("four times the root", Expected::Refused, [root; 4]),
        (
            "all are active",
            Expected::Done,
            [MbrEntry { active: 0x80, ..root }, MbrEntry { active: 0x80, ..small }, none, none],
        ),
        ("absurd flags", Expected::Either, [MbrEntry { active: 0x55, ..root }, none, none, none]),
        ("only a small one", Expected::Refused, [small, none, none, none]),
    ] {
        bench.rename(what, expected, |disk| write_mbr(disk, 0, &entries));
    }
}

#[test]
fn a_chain_of_logical_partitions_ends() {
    let bench = Bench::new(Table::Msdos, "ext4");
    let start = (ROOT_AT / SECTOR) as u32;
    let root = MbrEntry { kind: 0x83, start, sectors: bench.honest.root_bytes as u32 / 512, active: 0 };
    // 64 MiB of room before the root.
    let extended = MbrEntry { kind: 0x05, start: 2048, sectors: 131_072, active: 0 };
    let logical = MbrEntry { kind: 0x83, start: 1, sectors: 1, active: 0 };
    let link = |to: u32| MbrEntry { kind: 0x05, start: to, sectors: 2, active: 0 };
    let primary = [root, extended];
    let chain = |what: &str, expected, tables: &[(u64, [MbrEntry; 2])]| {
        bench.rename(what, expected, |disk| {
            write_mbr(disk, 0, &primary);
            tables.iter().for_each(|(at, entries)| write_mbr(disk, 2048 + at, entries));
        });
    };
    chain("never divided", Expected::Done, &[]);
    chain("one", Expected::Done, &[(0, [logical, MbrEntry::default()])]);
    chain(
        "three",
        Expected::Done,
        &[(0, [logical, link(2)]), (2, [logical, link(4)]), (4, [logical, MbrEntry::default()])],
    );
    chain("points at itself", Expected::Refused, &[(0, [logical, link(0)])]);
    chain(
        "points at itself, further on",
        Expected::Refused,
        &[(0, [logical, link(2)]), (2, [logical, link(2)])],
    );
    chain("a loop of two", Expected::Refused, &[(0, [logical, link(2)]), (2, [logical, link(0)])]);
    chain("leads out of it", Expected::Refused, &[(0, [logical, link(131_072)])]);
    chain("leads behind the disk", Expected::Refused, &[(0, [logical, link(u32::MAX)])]);
    chain("breaks off", Expected::Refused, &[(0, [logical, link(2)])]);
    chain(
        "a logical one that is the root",
        Expected::Refused,
        &[(0, [MbrEntry { start: start - 2048, sectors: 8, ..logical }, MbrEntry::default()])],
    );
    chain(
        "a logical one at its own table",
        Expected::Refused,
        &[(0, [MbrEntry { start: 0, ..logical }, MbrEntry::default()])],
    );
    chain(
        "a logical one without an end",
        Expected::Refused,
        &[(0, [MbrEntry { sectors: u32::MAX, ..logical }, MbrEntry::default()])],
    );
    let long: Vec<_> = (0..5000).map(|at| (at * 2, [logical, link(at as u32 * 2 + 2)])).collect();
    chain("5000 of them", Expected::Refused, &long);
    bench.rename("two extended ones", Expected::Refused, |disk| {
        write_mbr(disk, 0, &[root, extended, MbrEntry { start: 200_000, sectors: 100, ..extended }]);
    });
    bench.rename("an extended one that has all of the disk", Expected::Refused, |disk| {
        write_mbr(disk, 0, &[MbrEntry { start: 1, sectors: start, ..extended }, root]);
        write_mbr(disk, 1, &[link(0), link(0)]);
    });
    bench.rename("the root as a logical one", Expected::Done, |disk| {
        write_mbr(disk, 0, &[MbrEntry { sectors: start - 2048 + root.sectors, ..extended }]);
        write_mbr(disk, 2048, &[MbrEntry { start: start - 2048, ..root }]);
    });
}

/// How many bits are changed: in what a table takes, and behind it.
type Samples = (usize, usize);

/// Renames guests on disks with one changed bit in the first MiB, the same ones each time.
fn change_bits(table: Table, filesystem: &'static str, (dense, others): Samples) {
    // A table reaches to sector 34; where there is none, superblocks and what they lead to are behind it.
    const DENSE_END: u64 = 34 * SECTOR;
    let bench = Bench::new(table, filesystem);
    let mut numbers = Numbers(0x5eed);
    for sample in 0..dense + others {
        let (start, end) = if sample < dense { (0, DENSE_END) } else { (DENSE_END, 1 << 20) };
        let (at, bit) = (start + numbers.below(end - start), 1 << numbers.below(8));
        let what = format!("bit {bit:#x} of byte {at:#x}, {table:?} {filesystem}");
        bench.rename(&what, Expected::Either, |disk| flip(disk, at, bit));
    }
}

#[test]
fn every_kind_of_disk_survives_some_changed_bits_in_its_first_mebibyte() {
    change_bits(Table::Gpt, "ext4", (40, 4));
    change_bits(Table::Msdos, "ext4", (10, 2));
    change_bits(Table::None, "ext4", (10, 10));
    change_bits(Table::None, "xfs", (4, 4));
    change_bits(Table::None, "btrfs", (2, 6));
}

#[test]
#[ignore = "run by make test-full"]
fn every_kind_of_disk_survives_a_changed_bit_anywhere_in_its_first_mebibyte() {
    change_bits(Table::Gpt, "ext4", (200, 20));
    change_bits(Table::Msdos, "ext4", (40, 10));
    change_bits(Table::None, "ext4", (40, 60));
    change_bits(Table::None, "xfs", (25, 25));
    change_bits(Table::None, "btrfs", (5, 40));
}
