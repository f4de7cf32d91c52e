//! Disks of running instances that were stopped dead, exported and imported: what comes back is a filesystem whose
//! replay and check are clean, with every file that was fsynced.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::backup::{dirty, export, imported};
use crate::common::live::{Dice, Promises, assert_kept, write_until, write_until_shut_down};
use crate::common::{Mounted, Node, fsck, tool};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 320 * MIB;

/// How each is made, and mounted.
const EXT4: [(&str, &str); 5] = [
    ("mke2fs -q -F -t ext4", "loop"),
    ("mke2fs -q -F -t ext4 -b 1024 -J size=4", "loop"),
    ("mke2fs -q -F -t ext3 -J size=4", "loop"),
    ("mke2fs -q -F -t ext4 -O ^flex_bg,^metadata_csum,^uninit_bg -g 4096 -J size=4", "loop"),
    ("mke2fs -q -F -t ext4 -J size=8", "loop,data=journal"),
];
const XFS: [(&str, &str); 3] = [
    ("mkfs.xfs -q -f", "loop,nouuid"),
    ("mkfs.xfs -q -f -m rmapbt=1,reflink=1", "loop,nouuid,logbsize=256k"),
    (
        "mkfs.xfs -q -f --unsupported -b size=1024 -d agcount=9 -l size=10m -m reflink=0",
        "loop,nouuid,logbsize=32k",
    ),
];
const BTRFS: [(&str, &str); 3] = [
    ("mkfs.btrfs -q -f", "loop,commit=300"),
    ("mkfs.btrfs -q -f --mixed -n 4096", "loop,commit=300,compress-force=zstd"),
    ("mkfs.btrfs -q -f -m single -d dup", "loop,commit=300,nodatacow"),
];

/// Makes a filesystem, writes to it, and copies it as it lies when it was stopped.
fn stopped(node: &Node, disk: &Path, (making, mounting): (&str, &str), seed: u64) -> Promises {
    let original = node.disk("original", SIZE_BYTES);
    tool("sh", &["-c", &format!("{making} {}", original.display())]);
    let mounted = Mounted::with(&original, mounting);
    let (mut dice, after) = (Dice(1000 + seed), Duration::from_millis(250 + 30 * (seed % 10)));
    let promises = match making.contains("btrfs") {
        // The kernel commits nothing meanwhile, and cannot shut one down.
        true => write_until(mounted.path(), &mut dice, Instant::now() + after),
        false => write_until_shut_down(mounted.path(), &mut dice, after),
    };
    tool("cp", &["--sparse=always", original.to_str().unwrap(), disk.to_str().unwrap()]);
    drop(mounted);
    std::fs::remove_file(original).unwrap();
    assert!(promises.len() > 10, "{making}: {} files", promises.len());
    promises
}

/// How many of the disks did not travel whole.
fn rounds(filesystem: &str, kinds: &[(&str, &str)], rounds: Range<usize>) -> usize {
    let node = Node::bare();
    let (disk, stream) = (node.path().join("disks/stopped"), node.path().join("stream"));
    let copy = node.path().join("disks/copy");
    let mut parts = 0;
    for round in rounds {
        let kind = kinds[round % kinds.len()];
        let promises = stopped(&node, &disk, kind, round as u64);
        let log = export(&node, &disk, &stream);
        parts += usize::from(!log.contains(", whole: "));
        dirty(&copy, SIZE_BYTES);
        let larger = round % 3 == 1;
        if larger {
            let file = std::fs::File::options().write(true).open(&copy).unwrap();
            file.set_len(3 * SIZE_BYTES).unwrap();
        }
        let log = format!("round {round}, {kind:?}\n{log}{}", imported(&node, &copy, &stream));
        // What the writer was promised holds of what was stopped; never two btrfs of one UUID at once.
        assert_kept(Mounted::with(&disk, kind.1).path(), &promises, &format!("before the export: {log}"));
        let mounted = Mounted::with(&copy, kind.1);
        assert_kept(mounted.path(), &promises, &log);
        let blocks = tool("stat", &["-f", "-c", "%b %S", mounted.path().to_str().unwrap()]);
        let size_bytes: u64 = blocks.trim().split(' ').map(|n| n.parse::<u64>().unwrap()).product();
        assert_eq!(size_bytes > SIZE_BYTES * 5 / 4, larger, "{size_bytes} bytes, {log}");
        // Closed by the kernel; what is left is to find nothing wrong.
        drop(mounted);
        node.wait_until_detached();
        fsck(&copy, 0, filesystem);
    }
    node.assert_nothing_left();
    parts
}

#[test]
fn disks_that_were_stopped_dead_come_back_with_all_that_was_synced() {
    rounds("ext4", &EXT4, 0..2);
    rounds("xfs", &XFS, 0..2);
    rounds("btrfs", &BTRFS, 0..2);
}

#[test]
#[ignore = "run by make test-full"]
fn twenty_disks_of_each_filesystem_come_back_with_all_that_was_synced() {
    assert_eq!(rounds("ext4", &EXT4, 0..20), 20);
    // Of an xfs whose log's last writes were under way, all travels.
    let parts = rounds("xfs", &XFS, 0..20);
    assert!(parts >= 10, "only {parts} of 20 logs could be read");
    assert_eq!(rounds("btrfs", &BTRFS, 0..20), 20);
}
