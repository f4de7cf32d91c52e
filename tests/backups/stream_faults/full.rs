//! What cannot be written, and what cannot be read: full filesystems below either side, and a source with read errors.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::archive::{Member, archive};
use super::bench::{Bench, MIB, assert_nothing_at, assert_told, noise};
use crate::common::running::{Ended, Family, Running, SOON};
use crate::common::{BlockDevice, tool};

/// A filesystem in memory, seen by the thread that mounted it and its children alone.
struct Small(PathBuf);

impl Small {
    fn new(bench: &Bench, bytes: u64) -> Small {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = bench.node.path().join("small");
        fs::create_dir_all(&dir).unwrap();
        let options = format!("size={bytes}");
        mount(Some("small"), &dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Small(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn an_import_says_that_there_is_no_room_below_the_disk() {
    let bench = Bench::bare();
    let divided = Bench::divided();
    let mut raw = noise(5, 16 << 20);
    raw[..512].fill(0);
    raw[510..512].copy_from_slice(&[0x55, 0xaa]);
    let tree = archive(&[Member::new("./a", &noise(6, 16 << 20))]);
    for (what, stream, why) in [
        ("a backup", &bench.stream, "No space left on device"),
        ("a disk of several parts", &divided.stream, "No space left on device"),
        ("a raw disk", &raw, "No space left on device"),
        ("a tree", &tree, "is full"),
    ] {
        for room in [64 << 10, 2 * MIB, 5 * MIB] {
            let small = Small::new(&bench, room);
            let target = small.0.join("target");
            File::create(&target).unwrap().set_len(80 * MIB).unwrap();
            let ended = bench.import(&target, bench.feed(stream));
            bench.assert_failed(&format!("{what}, room for {room} bytes"), &ended, &target, why);
        }
    }
}

fn export_to(bench: &Bench, disk: &Path, to: &Path) -> Ended {
    let file = File::options().write(true).create(true).truncate(false).open(to).unwrap();
    Running::writing(bench.export_command(disk), file.into()).end_within(SOON, Family::default())
}

#[test]
fn an_export_says_that_there_is_no_room_for_it() {
    let bench = Bench::bare();
    let why = "writing the backup\n  No space left on device";
    for room in [4096, 64 << 10, MIB, 5 * MIB] {
        let small = Small::new(&bench, room);
        let stream = small.0.join("stream");
        let ended = export_to(&bench, &bench.disk, &stream);
        assert_told(&format!("room for {room} bytes"), &ended, why);
        bench.assert_refused(&format!("{room} bytes of a stream"), &fs::read(&stream).unwrap(), "error: ");
    }
    let ended = export_to(&bench, &bench.disk, Path::new("/dev/full"));
    assert_told("/dev/full", &ended, why);
    bench.node.assert_nothing_left();
}

#[test]
fn what_cannot_be_read_is_named_and_never_carried_as_zeros() {
    for bench in [Bench::bare(), Bench::divided()] {
        let size = fs::metadata(&bench.disk).unwrap().len();
        let runs = bench.backup().runs;
        let last = runs.last().unwrap();
        // A block device whose file ends early: from there on each read is an error. In the middle of data, in a table or
        // superblock, in what says what is in use.
        for readable in [4096, 64 << 10, runs[1].0, 3 * MIB, (last.0 + last.1 / 2) / 4096 * 4096] {
            let what = format!("{readable} bytes of {size}");
            let copy = bench.node.path().join("disks/damaged");
            tool("cp", &["--sparse=always", bench.disk.to_str().unwrap(), copy.to_str().unwrap()]);
            let device = BlockDevice::over(&copy, &[]);
            File::options().write(true).open(&copy).unwrap().set_len(readable).unwrap();
            let stream = bench.node.path().join("cut");
            let _ = fs::remove_file(&stream);
            let ended = export_to(&bench, &device.0, &stream);
            drop(device);
            assert_told(&what, &ended, "Input/output error");
            let (_, error) = ended.log.split_once("error: exporting disk 0 of ").unwrap_or_else(|| {
                panic!("{what}: {}", ended.log);
            });
            let (doing, named) = error.rsplit_once(" at byte ").unwrap();
            let named: u64 = named.lines().next().unwrap().parse().unwrap();
            let of_disk = doing.ends_with("  reading the disk");
            // A filesystem counts from its own beginning. The kernel's page cache fails a folio at a time.
            assert!(named + MIB > readable || !of_disk, "{what}: {named}");
            // Nothing stands for what was not read.
            let written = fs::read(&stream).unwrap();
            assert!(written.len() as u64 <= readable + MIB, "{what}: {} bytes", written.len());
            // A table that could not be followed is not known to the import: what was in the partitions may stand there.
            let target = bench.target();
            let ended = bench.import(&target, bench.feed(&written));
            assert_told(&what, &ended, "error: ");
            assert_nothing_at(&what, &target, 0);
            bench.node.assert_nothing_left();
        }
    }
}
