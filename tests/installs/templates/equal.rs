//! Equality: of what is copied and what is unpacked.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::bench::{Bench, By, Guest, MIB, Shape};
use crate::common::{BlockDevice, GIB, Node, tool};

/// 7.3 GiB in whole sectors, and in no larger unit.
const ODD_BYTES: u64 = 7_838_315_008;

/// Wants the journal to hold nothing of what was on the disk before: zeros, but for the little that the create itself has
/// logged, wherever the kernel went on in it.
fn assert_journal_is_empty(guest: &Guest) {
    let file = File::open(&guest.disk).unwrap();
    let places = guest.rest_of_journal();
    let holds_something = |at: &&u64| {
        let mut block = [1; 4096];
        file.read_exact_at(&mut block, **at).unwrap();
        block != [0; 4096]
    };
    let written = places.iter().filter(holds_something).count();
    assert!(
        written <= places.len() / 4,
        "{written} of {} blocks of the log of {:?}",
        places.len(),
        guest.shape
    );
}

/// What is on a disk before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Noise,
    /// Of a block device.
    NoiseOfDevice,
}

/// A disk of zeros and others, made by a template and compared with one that was unpacked; those that held noise then live
/// a little.
fn assert_copies_are_equal(bench: &Bench, shape: Shape, others: &[Before]) {
    let unpacked = bench.guest("unpacked", shape, By::Tar);
    assert!(!unpacked.is_copy() && bench.templates().is_empty(), "{}", unpacked.log);
    unpacked.check();
    let first = bench.guest("first", shape, By::Template);
    assert!(first.is_copy() && first.log.contains("making a template"), "{}", first.log);
    first.check();
    bench.assert_equal(&unpacked, &first, &format!("{shape:?} on zeros"));
    for before in others {
        let disk = unpacked.noise(bench, "other");
        let other = match before {
            Before::Noise => bench.install(&disk, shape, By::Template),
            Before::NoiseOfDevice => {
                let device = BlockDevice::over(&disk, &[]);
                let log = bench.install(&device.0, shape, By::Template).log;
                Guest::new(disk, shape, log)
            }
        };
        assert!(other.is_copy() && !other.log.contains("making a template"), "{}", other.log);
        other.check();
        assert_journal_is_empty(&other);
        bench.assert_equal(&unpacked, &other, &format!("{shape:?} on {before:?}"));
        other.live();
        std::fs::remove_file(other.disk).unwrap();
    }
    for path in [unpacked.disk, first.disk, bench.template()] {
        std::fs::remove_file(path).unwrap();
    }
    bench.node.assert_nothing_left();
}

#[test]
fn copies_equal_what_is_unpacked_in_every_style() {
    let bench = Bench::new();
    for (bytes, filesystem, style, other) in [
        (GIB, "ext4", "none", Before::Noise),
        (2 * GIB, "ext2", "msdos", Before::NoiseOfDevice),
        (ODD_BYTES, "ext3", "gpt", Before::Noise),
        (20 * GIB, "ext4", "gpt", Before::NoiseOfDevice),
        (1000 * GIB, "ext4", "msdos", Before::Noise),
    ] {
        assert_copies_are_equal(&bench, Shape { bytes, filesystem, style }, &[other]);
    }
}

/// All that the one above leaves out.
#[test]
#[ignore = "run by make test-full"]
fn copies_equal_what_is_unpacked_whatever_the_disk() {
    let bench = Bench::new();
    for bytes in [GIB, 2 * GIB, ODD_BYTES, 20 * GIB, 1000 * GIB] {
        for filesystem in ["ext2", "ext3", "ext4"] {
            for style in ["none", "msdos", "gpt"] {
                // Their inode tables are written, all of them, by whoever makes them.
                if bytes < 1000 * GIB || filesystem == "ext4" {
                    let shape = Shape { bytes, filesystem, style };
                    assert_copies_are_equal(&bench, shape, &[Before::Noise, Before::NoiseOfDevice]);
                }
            }
        }
    }
}

/// The comparison itself: what it must find, it finds.
#[test]
fn a_difference_is_found() {
    let bench = Bench::new();
    let one = bench.guest("one", Shape::SMALL, By::Tar);
    let other = &bench.guest("other", Shape::SMALL, By::Tar);
    bench.assert_equal(&one, other, "before");
    for harm in [
        "touch -d 2001-01-01 large",
        "printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc && touch -r large sparse",
        "chmod 4711 usr/bin/program",
        "setfattr -x user.note large",
        "setfacl -b large",
        "rm many/7-*",
        "cp -p many/1-* x && cat x > many/1-*; touch -r x many/1-*; ln x many/y",
        "fallocate -l 60M sparse",
        "echo UUID=00000000-0000-0000-0000-000000000000 / ext4 x 0 1 > etc/fstab",
    ] {
        let disk = bench.node.path().join("disks/harmed");
        tool("cp", &["--sparse=always", other.disk.to_str().unwrap(), disk.to_str().unwrap()]);
        let other = Guest::new(disk, other.shape, String::new());
        let mounted = other.mount("rw,noatime");
        let script = format!("set -e; touch -r many /tmp/$$; {harm}; touch -r /tmp/$$ many . ; rm /tmp/$$");
        let done =
            std::process::Command::new("sh").args(["-c", &script]).current_dir(mounted.path()).output();
        assert!(done.as_ref().unwrap().status.success(), "{harm}: {done:?}");
        drop(mounted);
        let compare = || bench.assert_equal(&one, &other, harm);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compare));
        assert!(found.is_err(), "{harm} is not found");
    }
}

/// Debian's own tree, with directories of thousands of names.
#[test]
fn a_real_tree_is_copied_whole_and_costs_what_is_in_use() {
    let bench = Bench::of(Node::debian_without_templates());
    let (small, large) = (20 * GIB, 1000 * GIB);
    let shape = |bytes| Shape { bytes, filesystem: "ext4", style: "gpt" };
    let unpacked = bench.guest("unpacked", shape(small), By::Tar);
    let copy = bench.guest("copy", shape(small), By::Template);
    assert!(copy.is_copy(), "{}", copy.log);
    copy.check();
    assert!(bench.tree(&copy).len() > 5000);
    bench.assert_equal(&unpacked, &copy, "a real tree");

    let terabyte = bench.guest("terabyte", shape(large), By::Template);
    assert!(terabyte.is_copy(), "{}", terabyte.log);
    terabyte.check();
    let (cost, least) = (allocated(&terabyte), allocated(&copy));
    assert!(cost * 2 <= least * 3, "{cost} bytes for a terabyte, {least} for 20 GiB");
    assert!(least <= allocated(&unpacked) * 11 / 10, "{least} bytes copied, {}", allocated(&unpacked));

    // What a device is given that is full of noise, besides the journal: that is zeros, a part of a disk's size.
    let written = [(&copy, shape(small)), (&terabyte, shape(large))].map(|(like, shape)| {
        let disk = like.noise(&bench, "device");
        let device = BlockDevice::over(&disk, &[]);
        let before = sectors_written(&device);
        let guest = bench.install(&device.0, shape, By::Template);
        assert!(guest.is_copy(), "{}", guest.log);
        let journal = like.journal().expect("a journal");
        sectors_written(&device) - before - (journal.end - journal.start) / 512
    });
    assert!(written[0] > 150 * MIB / 512, "{written:?} sectors");
    assert!(written[1] * 2 <= written[0] * 3, "{written:?} sectors for 20 GiB and for a terabyte");
    bench.node.assert_nothing_left();
}

fn allocated(guest: &Guest) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(&guest.disk).unwrap().blocks() * 512
}

/// Of 512 bytes, since the device is there.
fn sectors_written(device: &BlockDevice) -> u64 {
    let name = device.0.file_name().unwrap().to_str().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    stat.split_ascii_whitespace().nth(6).unwrap().parse().unwrap()
}
