//! Round trips of small disks: every layout with every filesystem, and all else that a disk may hold, exported and
//! imported on equal and on larger disks; each compared by tools that know nothing of the program.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::backup::{assert_same_trees, dirty, export, import, imported};
use crate::common::{BlockDevice, GIB, Mounted, Node, assert_same_content, tool};
use ganeti_instance_debootstrap::backup::disk_archive::Image;
use ganeti_instance_debootstrap::reader::Budget;
use nix::fcntl::FallocateFlags;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Where the root lies on a disk with a table, and where the swap area before it begins.
const ROOT_AT: u64 = 16 * MIB;
const SWAP_AT: u64 = 4 * MIB;

/// Bytes that look random and are the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tree of all that a filesystem can tell apart.
fn plant(tree: &Path) {
    let file = |name: &str, bytes: &[u8]| {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    for number in 0..600 {
        file(&format!("many/{number:040}"), &noise(number, (number * number % 3000) as usize));
    }
    file("large", &noise(7, 3 << 20));
    file("text", "compresses well\n".repeat(60_000).as_bytes());
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(&noise(8, 70_000), 4 * MIB).unwrap();
    sparse.set_len(6 * MIB).unwrap();
    let one = file("sub/one", b"one");
    fs::hard_link(&one, tree.join("sub/other")).unwrap();
    symlink("a/long/target/".repeat(60), tree.join("sub/link")).unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"sub/new\nline\xff")), "odd").unwrap();
    let path = |name: &str| tree.join(name).to_str().unwrap().to_owned();
    tool("mkfifo", &[&path("fifo")]);
    tool("mknod", &[&path("null"), "c", "1", "3"]);
    let program = file("sub/program", b"#!/bin/sh\n");
    chown(&program, Some(1000), Some(70_000)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    tool("setcap", &["cap_net_raw+ep", &path("sub/other")]);
    tool("setfattr", &["-n", "user.note", "-v", &"v".repeat(90), &path("text")]);
    tool("setfacl", &["-m", "u:1000:r", &path("large")]);
    tool("setfacl", &["-d", "-m", "g:70000:rx", &path("sub")]);
    tool("touch", &["-h", "-d", "1999-12-31 23:59:59", &path("sub/link"), &path("text")]);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Gpt,
    Msdos,
    None,
}

/// A disk with a filesystem, and where that lies.
struct Made {
    disk: PathBuf,
    style: Style,
    filesystem: &'static str,
    root_at: u64,
    root_bytes: u64,
}

impl Made {
    /// With the tree in it, and old content where nothing is in use.
    fn new(node: &Node, style: Style, filesystem: &'static str, options: &[&str], tree: &Path) -> Made {
        let (mkfs, ours, root_mib): (&str, &[&str], u64) = match filesystem {
            "xfs" => ("mkfs.xfs", &["-q", "-f"], 300),
            "btrfs" if options.ends_with(&["dup"]) => ("mkfs.btrfs", &["-q", "-f"], 256),
            "btrfs" => ("mkfs.btrfs", &["-q", "-f"], 128),
            _ => ("mke2fs", &["-q", "-F", "-t", filesystem], 64),
        };
        let root_at = if style == Style::None { 0 } else { ROOT_AT };
        let root_bytes = root_mib * MIB;
        let end = if style == Style::Gpt { MIB } else { 0 };
        let disk = node.disk("source", root_at + root_bytes + end);
        let root_sectors = root_bytes / 512;
        match style {
            Style::Gpt => divide(
                &disk,
                &format!(
                    "label: gpt\n1: start=32768, size={root_sectors}\n2: start=8192, size=16384, type=swap\n\
                     14: start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649\n"
                ),
            ),
            Style::Msdos => divide(
                &disk,
                &format!(
                    "label: dos\n1: start=32768, size={root_sectors}, type=83, bootable\n\
                     2: start=8192, size=16384, type=82\n"
                ),
            ),
            Style::None => {}
        }
        let made = Made { disk, style, filesystem, root_at, root_bytes };
        if style != Style::None {
            let file = File::options().write(true).open(&made.disk).unwrap();
            file.write_all_at(&noise(1, 3 << 20), MIB).unwrap();
            file.write_all_at(&noise(2, 8 << 20), SWAP_AT).unwrap();
            let area = BlockDevice::over(&made.disk, &["-o", &SWAP_AT.to_string(), "--sizelimit", "8388608"]);
            tool("mkswap", &["-q", "-L", "pages", area.0.to_str().unwrap()]);
        }
        let device = made.device();
        tool(mkfs, &[ours, options, &[device.0.to_str().unwrap()]].concat());
        drop(device);
        let mounted = made.mount("noatime");
        let passing = mounted.path().join("passing");
        fs::write(&passing, noise(3, 20 << 20)).unwrap();
        tool("sync", &["-f", passing.to_str().unwrap()]);
        let (from, to) = (format!("{}/", tree.display()), mounted.path().to_str().unwrap());
        tool("rsync", &["-aAXHS", &from, to]);
        fs::remove_file(&passing).unwrap();
        // The root's time.
        tool("touch", &["-r", tree.to_str().unwrap(), to]);
        drop(mounted);
        made
    }

    fn device(&self) -> BlockDevice {
        let (at, bytes) = (self.root_at.to_string(), self.root_bytes.to_string());
        BlockDevice::over(&self.disk, &["-o", &at, "--sizelimit", &bytes])
    }

    fn mount(&self, option: &str) -> Mounted {
        let window = format!("loop,offset={},sizelimit={}", self.root_at, self.root_bytes);
        Mounted::with(&self.disk, &format!("{option},{window}"))
    }

    fn size_bytes(&self) -> u64 {
        fs::metadata(&self.disk).unwrap().len()
    }

    /// Wants the tree on a disk that came from this one, and what lies before it. The filesystem's size.
    fn assert_came_back(&self, copy: &Path, tree: &Path, what: &str) -> u64 {
        if self.style != Style::None {
            let area = |disk: &Path| {
                let at = SWAP_AT.to_string();
                tool("blkid", &["-p", "-O", &at, "-o", "export", disk.to_str().unwrap()])
                    .replace(disk.to_str().unwrap(), "")
            };
            let found = area(copy);
            assert!(found.contains("LABEL=pages") && found.contains("TYPE=swap"), "{what}: {found}");
            assert_eq!(found, area(&self.disk), "{what}");
            tool(
                "cmp",
                &["-i", "1048576", "-n", "3145728", self.disk.to_str().unwrap(), copy.to_str().unwrap()],
            );
        }
        if self.style == Style::Gpt {
            let verified = tool("sfdisk", &["--verify", copy.to_str().unwrap()]);
            assert!(verified.contains("No errors detected"), "{what}: {verified}");
        }
        let at = self.root_at.to_string();
        let bytes = match self.style {
            Style::None => fs::metadata(copy).unwrap().len(),
            _ => partition_bytes(copy, 1),
        };
        // As a kernel would show it.
        let device = BlockDevice::over(copy, &["-r", "-o", &at, "--sizelimit", &bytes.to_string()]);
        let path = device.0.to_str().unwrap();
        match self.filesystem {
            "xfs" => drop(tool("xfs_repair", &["-n", path])),
            "btrfs" => drop(tool("btrfs", &["check", "--readonly", "--check-data-csum", path])),
            _ => drop(tool("e2fsck", &["-fn", path])),
        }
        let mounted = Mounted::with(&device.0, "ro");
        assert_same_trees(tree, mounted.path(), what);
        let size = tool("stat", &["-f", "-c", "%b %S", mounted.path().to_str().unwrap()]);
        size.trim().split(' ').map(|n| n.parse::<u64>().unwrap()).product()
    }
}

/// Writes a partition table.
fn divide(disk: &Path, script: &str) {
    let input = disk.with_extension("sfdisk");
    fs::write(&input, script).unwrap();
    tool("sh", &["-c", &format!("sfdisk -q --no-reread {} < {}", disk.display(), input.display())]);
    fs::remove_file(input).unwrap();
}

fn partition_bytes(disk: &Path, number: u32) -> u64 {
    let dump = tool("sfdisk", &["--dump", disk.to_str().unwrap()]);
    let begin = format!("{}{number} :", disk.display());
    let line = dump.lines().find(|line| line.starts_with(&begin)).unwrap();
    let size = line.split("size=").nth(1).unwrap().split(',').next().unwrap();
    size.trim().parse::<u64>().unwrap() * 512
}

/// What a stream carries, as data or as zeros.
fn carried(stream: &Path) -> Vec<Range<u64>> {
    let mut file = File::open(stream).unwrap();
    let budget = Budget::unlimited();
    let image = Image::open(&mut file, &budget).unwrap();
    let mut all: Vec<(u64, u64)> = image.runs().chain(image.manifest.disk.zero.iter().copied()).collect();
    all.sort_unstable();
    let mut joined: Vec<Range<u64>> = Vec::new();
    for (start, length) in all {
        match joined.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(start + length),
            _ => joined.push(start..start + length),
        }
    }
    joined
}

/// Wants all that another tool calls used to be in a stream.
fn assert_carries_all_that_is_used(made: &Made, stream: &Path) {
    let carried = carried(stream);
    let used = if made.filesystem == "btrfs" { used_by_btrfs(made) } else { used_by_partclone(made) };
    let mut used_bytes = 0;
    for range in used {
        let (start, end) = (made.root_at + range.start, made.root_at + range.end);
        let covered = carried.iter().any(|run| run.start <= start && end <= run.end);
        assert!(covered, "{:?} {}: {start}..{end}", made.style, made.filesystem);
        used_bytes += end - start;
    }
    assert!(used_bytes > 4 * MIB, "{:?} {}: {used_bytes}", made.style, made.filesystem);
}

fn used_by_partclone(made: &Made) -> Vec<Range<u64>> {
    let (domain, log) = (made.disk.with_extension("domain"), made.disk.with_extension("log"));
    let kind = if made.filesystem.starts_with("ext") { "extfs" } else { made.filesystem };
    let device = made.device();
    let (from, to) = (device.0.to_str().unwrap(), domain.to_str().unwrap());
    let args = ["-D", "-q", "-C", "-s", from, "-O", to, "-L", log.to_str().unwrap()];
    tool(&format!("partclone.{kind}"), &args);
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    let used = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [start, length, "+"] = fields[..] else { return None };
        // Its last block may be one more than there is.
        Some(number(start)..(number(start) + number(length)).min(made.root_bytes))
    };
    fs::read_to_string(&domain).unwrap().lines().filter_map(used).collect()
}

/// All copies of the extents of its extent tree. (partclone takes btrfs's addresses for places on the disk, too.)
fn used_by_btrfs(made: &Made) -> Vec<Range<u64>> {
    let device = made.device();
    let dump = |tree: &str| {
        tool("btrfs", &["inspect-internal", "dump-tree", "-t", tree, device.0.to_str().unwrap()])
    };
    let number = |text: &str| text.trim_matches(['(', ')']).parse::<u64>().unwrap();
    // Address, length, and where its copies are.
    let mut chunks: Vec<(u64, u64, Vec<u64>)> = Vec::new();
    for line in dump("chunk").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["item", _, "key", _, "CHUNK_ITEM", at, ..] => chunks.push((number(at), 0, Vec::new())),
            ["length", length, "owner", ..] => chunks.last_mut().unwrap().1 = number(length),
            ["stripe", _, "devid", _, "offset", at] => chunks.last_mut().unwrap().2.push(number(at)),
            _ => {}
        }
    }
    let (mut node_bytes, mut used) = (0, Vec::new());
    for line in tool("btrfs", &["inspect-internal", "dump-super", device.0.to_str().unwrap()]).lines() {
        if let ["nodesize", bytes] = line.split_whitespace().collect::<Vec<_>>()[..] {
            node_bytes = number(bytes);
        }
    }
    for line in dump("extent").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (at, length) = match words[..] {
            ["item", _, "key", at, "EXTENT_ITEM", length, ..] => (number(at), number(length)),
            ["item", _, "key", at, "METADATA_ITEM", ..] => (number(at), node_bytes),
            _ => continue,
        };
        let (start, _, copies) =
            chunks.iter().find(|(start, bytes, _)| (*start..start + bytes).contains(&at)).unwrap();
        used.extend(copies.iter().map(|copy| copy + at - start..copy + at - start + length));
    }
    used
}

#[test]
fn every_layout_with_every_filesystem_comes_back_on_equal_and_on_larger_disks() {
    let node = Node::bare();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    for style in [Style::Gpt, Style::Msdos, Style::None] {
        for filesystem in ["ext2", "ext3", "ext4", "xfs", "btrfs"] {
            // An inode table that nobody wrote is used to partclone, and not to us.
            let eager: &[&str] =
                if filesystem.starts_with("ext") { &["-E", "lazy_itable_init=0"] } else { &[] };
            let made = Made::new(&node, style, filesystem, eager, &tree);
            let (stream, size_bytes) = (node.path().join("stream"), made.size_bytes());
            export(&node, &made.disk, &stream);
            let length = fs::metadata(&stream).unwrap().len();
            assert!(length < size_bytes * 3 / 4, "{style:?} {filesystem}: {length}");
            if style == Style::Msdos {
                assert_carries_all_that_is_used(&made, &stream);
            }
            let before = made.assert_came_back(&made.disk, &tree, "the source");
            // Less than a GPT takes, too.
            for larger_bytes in [0, 512, 16 * KIB, 9 * size_bytes] {
                if larger_bytes == 16 * KIB && style != Style::Gpt {
                    continue;
                }
                let what = format!("{style:?} {filesystem}, larger by {larger_bytes}");
                let copy = node.path().join("disks/copy");
                match larger_bytes {
                    0 => dirty(&copy, size_bytes),
                    _ => drop(node.disk("copy", size_bytes + larger_bytes)),
                }
                let log = imported(&node, &copy, &stream);
                let after = made.assert_came_back(&copy, &tree, &what);
                match larger_bytes > MIB {
                    true => assert!(after > before * 8, "{what}: {before}, {after}\n{log}"),
                    false => assert!(after.abs_diff(before) < 64 * KIB, "{what}: {before}, {after}\n{log}"),
                }
                // The kernel refuses any size for a btrfs of less than 256 MiB, also the one that it has.
                let refused = filesystem == "btrfs" && style == Style::None && larger_bytes == 512;
                assert_eq!(log.contains("warning"), refused, "{what}: {log}");
                fs::remove_file(&copy).unwrap();
            }
            fs::remove_file(&made.disk).unwrap();
            node.assert_nothing_left();
        }
    }
}

/// Wants `bytes` of two disks equal.
fn assert_same_bytes(one: &Path, other: &Path, bytes: u64) {
    tool("cmp", &["-n", &bytes.to_string(), one.to_str().unwrap(), other.to_str().unwrap()]);
}

fn blkid(disk: &Path, at: u64) -> String {
    let (at, path) = (at.to_string(), disk.to_str().unwrap());
    let answer = Command::new("blkid").args(["-p", "-O", &at, "-o", "export", path]).output().unwrap();
    crate::common::text(&answer.stdout).replace(path, "")
}

/// Runs a line of shell with `$d` for a device; inherited descriptors would be told of.
fn make(device: &Path, line: &str) {
    tool("sh", &["-e", "-c", &format!("d={}\n{line}", device.display())]);
}

#[test]
fn what_is_not_read_here_travels_whole_and_comes_back_byte_by_byte() {
    const SIZE: u64 = 64 * MIB;
    let node = Node::bare();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    let squash = format!("mksquashfs {} $d -noappend -quiet -no-progress > $d.log", tree.display());
    let unknown = "nothing that is known";
    // What export says of it, and how it is made over a disk full of old content.
    let kinds: [(&str, &str); 25] = [
        (unknown, "true"),
        ("FAT", "mkfs.vfat -F 16 $d > /dev/null"),
        ("FAT", "mkfs.vfat -F 32 -n ROOM $d > /dev/null"),
        ("exFAT", "mkfs.exfat $d > /dev/null"),
        ("NTFS", "mkntfs -F -q -L ROOM $d"),
        ("f2fs", "mkfs.f2fs -f -q $d > /dev/null"),
        (unknown, "mkfs.minix -3 $d > /dev/null"),
        (unknown, "mkfs.bfs $d > /dev/null"),
        ("squashfs", &squash),
        ("LUKS", "printf pw | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $d -"),
        ("LUKS", "printf pw | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 $d -"),
        ("LVM", "l=$(losetup -f --show $d); pvcreate -ff -y $l > /dev/null 2>&1; losetup -d $l"),
        ("multiple mount protection", "mke2fs -q -F -t ext4 -O mmp $d"),
        ("journal on another device", "mke2fs -q -F -O journal_dev $d"),
        (
            "journal on another device",
            "mke2fs -q -F -t ext4 $d; debugfs -w -R 'set_super_value journal_dev 7' $d 2> $d.log",
        ),
        ("ext4; ", "mke2fs -q -F -t ext4 $d; debugfs -w -R 'set_super_value state 3' $d 2> $d.log"),
        ("ext2; ", "mke2fs -q -F -t ext2 -r 0 $d 2> $d.log"),
        // Pages of 64 KiB: the mark of the area lies elsewhere.
        (unknown, "mkswap -q -p 65536 $d 2> $d.log"),
        (
            "its log on another device",
            "truncate -s 300M $d; truncate -s 64M $d.log; mkfs.xfs -q -f -l logdev=$d.log $d",
        ),
        (
            "btrfs on 2 devices",
            "truncate -s 200M $d $d.log; mkfs.btrfs -q -f -m raid1 -d raid1 $d $d.log 2> /dev/null",
        ),
        // The least that is needed to take it for another: what was there before lies where nothing was written since.
        (
            "ext4 over a btrfs",
            "truncate -s 200M $d; mkfs.btrfs -q -f $d; mke2fs -q -F -t ext4 -O ^resize_inode -E nodiscard $d",
        ),
        ("NTFS over a btrfs", "truncate -s 200M $d; mkfs.btrfs -q -f $d; mkntfs -F -Q -q $d"),
        (
            "swap over a btrfs",
            "truncate -s 200M $d; mkfs.btrfs -q -f $d; cp $d $d.log; mkswap -q $d 2> /dev/null; \
          dd if=$d.log of=$d bs=4096 skip=16 seek=16 count=1 conv=notrunc status=none",
        ),
        // A table that contradicts itself.
        (
            "all of the disk is carried",
            "printf 'label: dos\\n1: start=2048, size=4096\\n2: start=8192, size=4096\\n' | sfdisk -q $d; \
          printf '\\000\\010\\000\\000' | dd of=$d bs=1 seek=470 conv=notrunc status=none",
        ),
        (
            "all of the disk is carried",
            "printf 'label: gpt\\n1: start=2048\\n' | sfdisk -q $d; \
          dd if=/dev/urandom of=$d bs=512 seek=1 count=1 conv=notrunc status=none; truncate -s 63M $d",
        ),
    ];
    let (disk, stream, copy) =
        (node.path().join("disks/d"), node.path().join("stream"), node.path().join("disks/copy"));
    for (number, (word, line)) in kinds.into_iter().enumerate() {
        dirty(&disk, SIZE);
        make(&disk, line);
        let (before, found) = (crate::common::digest(&disk), blkid(&disk, 0));
        let log = export(&node, &disk, &stream);
        assert!(log.contains(word) && log.contains(", whole: "), "{line}: {log}");
        assert_eq!(crate::common::digest(&disk), before, "{line}: export only reads");
        let size_bytes = fs::metadata(&disk).unwrap().len();
        dirty(&copy, size_bytes);
        imported(&node, &copy, &stream);
        assert_same_content(&disk, &copy);
        let larger_bytes = if number % 3 == 0 { 512 } else { 9 * size_bytes };
        let copy = node.disk("copy", size_bytes + larger_bytes);
        imported(&node, &copy, &stream);
        if word.starts_with("ext") && word.ends_with("; ") {
            // Known, only not mapped: it was mended, and has grown.
            tool("e2fsck", &["-fn", copy.to_str().unwrap()]);
            continue;
        }
        assert_same_bytes(&disk, &copy, size_bytes);
        // A copy of a GPT tells when it is not at the end.
        if word != "all of the disk is carried" {
            assert_eq!(blkid(&copy, 0), found, "{line}");
        }
        if line.contains("luksFormat") {
            make(&copy, "printf pw | cryptsetup open --test-passphrase --key-file - $d");
        }
    }
    node.assert_nothing_left();
}

#[test]
fn an_empty_disk_and_one_of_an_odd_size_come_back() {
    let node = Node::bare();
    let stream = node.path().join("stream");
    for (size_bytes, content) in [(64 * MIB, 0), (64 * MIB - 512, 5), (MIB, 5), (64 * KIB + 512, 5), (512, 5)]
    {
        let disk = node.disk("d", size_bytes);
        if content != 0 {
            dirty(&disk, size_bytes);
        }
        export(&node, &disk, &stream);
        let length = fs::metadata(&stream).unwrap().len();
        assert!(content != 0 || length < 64 * KIB, "{length} bytes for nothing");
        let copy = node.path().join("disks/copy");
        for larger_bytes in [0, 512, 9 * size_bytes] {
            dirty(&copy, size_bytes + larger_bytes);
            imported(&node, &copy, &stream);
            assert_same_bytes(&disk, &copy, size_bytes);
        }
    }
    // Less than a sector.
    let (disk, copy) = (node.disk("d", 100), node.path().join("disks/copy"));
    dirty(&disk, 100);
    export(&node, &disk, &stream);
    dirty(&copy, MIB);
    imported(&node, &copy, &stream);
    assert_same_bytes(&disk, &copy, 100);
    node.assert_nothing_left();
}

#[test]
fn of_a_swap_disk_only_what_identifies_it_travels() {
    let node = Node::bare();
    let disk = node.path().join("disks/d");
    let stream = node.path().join("stream");
    dirty(&disk, 256 * MIB);
    make(&disk, "mkswap -q -L pages $d 2> /dev/null");
    let found = blkid(&disk, 0);
    assert!(found.contains("LABEL=pages") && found.contains("TYPE=swap"), "{found}");
    export(&node, &disk, &stream);
    let length = fs::metadata(&stream).unwrap().len();
    assert!(length < 128 * KIB, "{length} bytes");
    for larger_bytes in [0, 512, 9 * 256 * MIB] {
        let copy = node.path().join("disks/copy");
        dirty(&copy, 256 * MIB);
        File::options().write(true).open(&copy).unwrap().set_len(256 * MIB + larger_bytes).unwrap();
        imported(&node, &copy, &stream);
        assert_eq!(blkid(&copy, 0), found);
        assert_same_bytes(&disk, &copy, 4096);
        tool("swaplabel", &[copy.to_str().unwrap()]);
    }
    // Pages of a system that sleeps are in use.
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(b"S1SUSPEND\0", 4086).unwrap();
    drop(file);
    export(&node, &disk, &stream);
    let copy = node.path().join("disks/copy");
    dirty(&copy, 256 * MIB);
    imported(&node, &copy, &stream);
    assert_same_content(&disk, &copy);
    node.assert_nothing_left();
}

#[test]
fn filesystems_of_every_kind_come_back_and_grow_where_they_can() {
    let node = Node::bare();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    let kinds: [(&'static str, &[&str]); 18] = [
        ("ext4", &["-b", "1024"]),
        ("ext4", &["-b", "1024", "-O", "^64bit,^flex_bg,^metadata_csum,uninit_bg"]),
        ("ext4", &["-O", "bigalloc", "-C", "16384"]),
        ("ext4", &["-O", "inline_data,ea_inode,large_dir", "-I", "512"]),
        ("ext4", &["-O", "encrypt,verity,stable_inodes"]),
        ("ext4", &["-O", "meta_bg,^resize_inode"]),
        ("ext4", &["-O", "^resize_inode"]),
        ("ext4", &["-O", "sparse_super2,^resize_inode"]),
        ("ext4", &["-O", "^has_journal"]),
        ("ext4", &["-O", "fast_commit"]),
        ("ext3", &["-b", "1024", "-O", "^resize_inode"]),
        ("ext2", &["-b", "4096", "-I", "128"]),
        ("xfs", &["-m", "rmapbt=1,reflink=1", "-b", "size=1024"]),
        ("xfs", &["--unsupported", "-m", "reflink=0", "-d", "agcount=9", "-l", "size=10m"]),
        ("xfs", &["-s", "size=4096"]),
        ("btrfs", &["-m", "dup", "-d", "dup"]),
        ("btrfs", &["--mixed", "-n", "4096"]),
        ("btrfs", &["-m", "single", "--csum", "xxhash"]),
    ];
    let stream = node.path().join("stream");
    for (number, (filesystem, options)) in kinds.into_iter().enumerate() {
        let style = [Style::None, Style::Gpt, Style::Msdos][number % 3];
        let made = Made::new(&node, style, filesystem, options, &tree);
        let size_bytes = made.size_bytes();
        let log = export(&node, &made.disk, &stream);
        let root = log.lines().find(|line| line.contains(&format!(": {filesystem}"))).unwrap();
        assert!(!root.contains(", whole: "), "{options:?}: {log}");
        let before = made.assert_came_back(&made.disk, &tree, &format!("{options:?}"));
        let copy = node.disk("copy", 5 * size_bytes);
        let log = imported(&node, &copy, &stream);
        let after = made.assert_came_back(&copy, &tree, &format!("{options:?}, larger\n{log}"));
        let kept = log.contains("keeps its size");
        assert!(kept || after > 4 * before, "{options:?}: {before}, {after}\n{log}");
        fs::remove_file(&made.disk).unwrap();
    }
    node.assert_nothing_left();
}

/// Partitions of many contents, a primary one last or a logical one, and room that belongs to none.
#[test]
fn a_disk_of_many_partitions_comes_back_and_grows_only_at_its_end() {
    let node = Node::bare();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    const SIZE: u64 = 100 * MIB;
    // Start and length in MiB.
    let places: [(u64, u64); 6] = [(1, 8), (10, 16), (27, 16), (44, 8), (53, 8), (62, 37)];
    let contents =
        ["mkfs.vfat $d > /dev/null", "mke2fs -q -F -O mmp $d", "true", "mkswap -q -L pages $d 2> /dev/null"];
    let gpt = places.iter().map(|(at, size)| format!("start={}, size={}\n", at * 2048, size * 2048));
    let gpt = format!("label: gpt\n{}", gpt.collect::<String>());
    // Logical ones from the third on, up to the end.
    let dos = places[2..].iter().map(|(at, size)| format!("start={}, size={}\n", at * 2048, size * 2048));
    let logical = format!(
        "label: dos\nstart=2048, size=16384\nstart=20480, size=32768\nstart=53248, size=149504, type=5\n\n{}",
        dos.collect::<String>()
    );
    // The filesystem is last of all, but for an extended partition that was never divided.
    let empty = "label: dos\nstart=2048, size=16384\nstart=20480, size=34816\nstart=126976, size=75776\n\
                 start=202752, size=2048, type=5\n";
    for (script, last, grows) in [(gpt.as_str(), 6, true), (&logical, 8, false), (empty, 3, false)] {
        let disk = node.path().join("disks/d");
        dirty(&disk, SIZE);
        divide(&disk, script);
        let window = |(at, size): (u64, u64)| {
            let (at, size) = ((at * MIB).to_string(), (size * MIB).to_string());
            BlockDevice::over(&disk, &["-o", &at, "--sizelimit", &size])
        };
        for (place, line) in places.into_iter().zip(contents) {
            make(&window(place).0, line);
        }
        let device = window(places[5]);
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap(), device.0.to_str().unwrap()]);
        let mounted = Mounted::with(&device.0, "noatime");
        tool("touch", &["-r", tree.to_str().unwrap(), mounted.path().to_str().unwrap()]);
        drop(mounted);
        drop(device);
        let stream = node.path().join("stream");
        let log = export(&node, &disk, &stream);
        for larger_bytes in [0, 512, 9 * SIZE] {
            let what = format!("partition {last}, larger by {larger_bytes}\n{log}");
            let copy = node.path().join("disks/copy");
            dirty(&copy, SIZE);
            File::options().write(true).open(&copy).unwrap().set_len(SIZE + larger_bytes).unwrap();
            let log = imported(&node, &copy, &stream);
            // What lies before the last partition, but for a table's first sectors, and for free pages of swap.
            let swap = places[3].0 * MIB;
            for range in [MIB..swap + 4096, swap + 8 * MIB..places[5].0 * MIB] {
                let (at, length) = (range.start.to_string(), (range.end - range.start).to_string());
                let (one, other) = (disk.to_str().unwrap(), copy.to_str().unwrap());
                if last == 3 || range.start == MIB {
                    tool("cmp", &["-i", &at, "-n", &length, one, other]);
                }
            }
            assert!(blkid(&copy, places[0].0 * MIB).contains("vfat"));
            let verified = tool("sfdisk", &["--verify", copy.to_str().unwrap()]);
            assert!(verified.contains("No errors detected"), "{what}: {verified}");
            let grown = partition_bytes(&copy, last) > 37 * MIB;
            assert_eq!(grown, grows && larger_bytes > MIB, "{what}\n{log}");
            fsck_and_compare(&copy, places[5].0 * MIB, partition_bytes(&copy, last), &tree, &what);
        }
    }
    node.assert_nothing_left();
}

/// A table whose field for its copy's place was never right: nothing of a partition is taken for that copy.
#[test]
fn a_gpt_that_has_its_copy_inside_a_partition_grows_without_harm() {
    const CRC32: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let node = Node::bare();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    let made = Made::new(&node, Style::Gpt, "ext4", &[], &tree);
    let (stream, copy) = (node.path().join("stream"), node.path().join("disks/copy"));
    let bytes = fs::read(&made.disk).unwrap();
    // In the middle of a file.
    let part = &noise(7, 3 << 20)[MIB as usize..][..512];
    let at = (0..bytes.len()).step_by(512).find(|at| bytes[*at..].starts_with(part)).unwrap();
    let mut header = bytes[512..604].to_vec();
    header[32..40].copy_from_slice(&(at as u64 / 512).to_le_bytes());
    header[16..20].fill(0);
    let sum = CRC32.checksum(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    File::options().write(true).open(&made.disk).unwrap().write_all_at(&header, 512).unwrap();
    export(&node, &made.disk, &stream);
    imported(&node, &node.disk("copy", 2 * made.size_bytes()), &stream);
    made.assert_came_back(&copy, &tree, "the larger disk");
}

fn fsck_and_compare(disk: &Path, at: u64, bytes: u64, tree: &Path, what: &str) {
    let (at, bytes) = (at.to_string(), bytes.to_string());
    let device = BlockDevice::over(disk, &["-r", "-o", &at, "--sizelimit", &bytes]);
    tool("e2fsck", &["-fn", device.0.to_str().unwrap()]);
    assert_same_trees(tree, Mounted::with(&device.0, "ro").path(), what);
}

// Of these, what counts is the memory of both verbs, at which `crate::common::running` looks.

const TIB: u64 = 1 << 40;
/// Nearly as many as a backup may have.
const PIECES: u64 = 32_700;

#[test]
fn a_terabyte_takes_little_memory() {
    let node = Node::bare();
    let tree = node.path().join("tree");
    fs::create_dir(&tree).unwrap();
    plant(&tree);
    let (stream, copy) = (node.path().join("stream"), node.path().join("disks/copy"));
    let disk = node.disk("d", TIB);
    make(&disk, &format!("mke2fs -q -F -t ext4 -J size=16 -E nodiscard -d {} $d", tree.display()));
    export(&node, &disk, &stream);
    imported(&node, &node.disk("copy", TIB), &stream);
    tool("e2fsck", &["-fn", copy.to_str().unwrap()]);
    {
        let (one, other) = (tree.join("large"), Mounted::with(&copy, "ro,loop"));
        assert!(fs::read(one).unwrap() == fs::read(other.path().join("large")).unwrap());
    }

    // The beginning of a raw disk.
    let disk = node.disk("d", TIB);
    divide(&disk, "label: gpt\nstart=2048\n");
    let mut head = Command::new("head").args(["-c", "1G"]).arg(&disk).stdout(Stdio::piped()).spawn().unwrap();
    let (done, log) = import(&node, &node.disk("copy", TIB), head.stdout.take().unwrap());
    assert!(head.wait().unwrap().success());
    assert!(!done && log.contains("the image ends at byte 1073741824"), "{log}");
    assert_eq!(blkid(&copy, 0), "");
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn a_file_of_as_many_pieces_as_a_backup_may_have_takes_little_memory() {
    let node = Node::bare();
    let (stream, copy) = (node.path().join("stream"), node.path().join("disks/copy"));
    let disk = node.disk("d", PIECES * 128 * KIB);
    let file = File::options().write(true).open(&disk).unwrap();
    for piece in 0..PIECES {
        file.write_all_at(&[7; 100], piece * 128 * KIB).unwrap();
    }
    export(&node, &disk, &stream);
    imported(&node, &node.disk("copy", PIECES * 128 * KIB), &stream);
    assert_same_content(&disk, &copy);
    node.assert_nothing_left();
}

#[test]
fn free_space_of_as_many_pieces_as_a_backup_may_have_takes_little_memory() {
    let node = Node::bare();
    let (stream, copy) = (node.path().join("stream"), node.path().join("disks/copy"));
    let disk = node.disk("d", PIECES * 256 * KIB + GIB);
    make(&disk, "mke2fs -q -F -t ext4 $d");
    let mounted = Mounted::with(&disk, "loop");
    let file = File::create(mounted.path().join("pieces")).unwrap();
    let reserve = |flags, at: u64, bytes: u64| {
        nix::fcntl::fallocate(&file, flags, at as i64, bytes as i64).unwrap();
    };
    reserve(FallocateFlags::empty(), 0, PIECES * 256 * KIB);
    for piece in 0..PIECES {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        reserve(hole, piece * 256 * KIB, 192 * KIB);
    }
    drop((file, mounted));
    node.wait_until_detached();
    let log = export(&node, &disk, &stream);
    let pieces = carried(&stream).len();
    assert!(pieces > 30_000, "{pieces}\n{log}");
    imported(&node, &node.disk("copy", PIECES * 256 * KIB + GIB), &stream);
    tool("e2fsck", &["-fn", copy.to_str().unwrap()]);
    node.assert_nothing_left();
}
