//! Backups that Debian's dump(8) made of real filesystems, restored, and compared by rsync and find; and
//! the same backups cut and damaged at many places. Needs root, loop devices, and the tools of the
//! packages acl, attr, dump, libcap2-bin, rsync, xz-utils, zstd.

use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{BlockDevice, tool};
use anyhow::Result;
use ganeti_instance_debootstrap::backup::dump::Stats;
use ganeti_instance_debootstrap::backup::{self, Source};
use ganeti_instance_debootstrap::reader::Budget;
use ganeti_instance_debootstrap::rootdir::RootDir;

/// Links that need blocks of 4 KiB.
const LONG_LINKS: &str = r#"
for length in 1024 1025 4095; do ln -s "$(printf "%0${length}d" 1)" "target-$length"; done && touch -d @777 .
"#;

/// Everything that a filesystem can hold, and inodes that were freed in between.
const TREE: &str = r#"
mkdir -p plain/a/b/c empty closed "spaces and
newline" sticky setgid gone/below
for number in $(seq 1 300); do printf "$number" > "gone/$number"; done
printf hello > plain/a/hello
: > plain/a/nothing
head -c 1024 /dev/urandom > plain/a/b/record
head -c 4097 /dev/urandom > plain/a/b/block
head -c 3000001 /dev/urandom > plain/a/b/c/large
printf x > "spaces and
newline/-dash"
chmod 1777 sticky
chmod 2775 setgid && chgrp 50 setgid
printf suid > setgid/suid && chown 7:42 setgid/suid && chmod 6755 setgid/suid
printf none > closed/none && chmod 0000 closed/none && chown 1000:1000 closed/none
printf far > closed/far && chown 4000000000:3000000 closed/far
printf old > plain/old && touch -d @-2 plain/old
printf old > plain/oldest && touch -d '1902-01-01' plain/oldest
printf nano > plain/nano && touch -m -d '2021-05-04 03:02:01.123456789' plain/nano
printf zero > plain/zero && touch -d @0 plain/zero
printf read > plain/read && touch -a -d '2001-02-03 04:05:06' plain/read

ln plain/a/hello plain/hard-link
ln plain/a/hello setgid/hard-link
ln -s /nowhere/at/all dangling
ln -s ../../.. plain/a/up
ln dangling plain/hard-symlink
chown -h 33:33 dangling && touch -h -d @1000000000 dangling
for length in 1 59 60 61 150 1023; do ln -s "$(printf "%0${length}d" 1)" "target-$length"; done

for length in 99 100 253 254; do printf "$length" > "$(printf "%0${length}d" 7)"; done
deep=deep; for level in $(seq 1 15); do deep="$deep/$(printf "%0240d" $level)"; done
mkdir -p "$deep" && printf deep > "$deep/file" && ln "$deep/file" deep/hard
mkdir "$(printf 'dir\377')" && printf latin > "$(printf 'dir\377/caf\351')" && printf umlaut > "$(printf 'caf\303\251')"

mkfifo -m 0620 fifo && chown 5:6 fifo && ln fifo plain/fifo
mknod -m 0666 null c 1 3 && mknod -m 0660 disk b 7 1048575 && mknod far c 4095 255 && chgrp 6 disk
perl -MSocket -e 'socket(my $s, AF_UNIX, SOCK_STREAM, 0); bind($s, pack_sockaddr_un("socket"))' && chmod 0711 socket
touch -d @1234567890 fifo null disk socket

mkdir holes
truncate -s 3M holes/all
truncate -s 5M holes/middle && printf data | dd of=holes/middle bs=1 seek=2000000 conv=notrunc status=none
truncate -s 2M holes/tail && printf head | dd of=holes/tail bs=1 conv=notrunc status=none
truncate -s 1M holes/end && printf end >> holes/end
for at in $(seq 1 40); do printf "$at" | dd of=holes/many bs=1 seek=$((at * 200000)) conv=notrunc status=none; done

mkdir attributes && printf a > attributes/file
setfattr -n user.simple -v value attributes/file
setfattr -n user.binary -v 0x00ff0a3d00 attributes/file
printf l > attributes/long && setfattr -n user.long -v "$(printf '%0900d' 5)" attributes/long
setfattr -n trusted.mark -v root attributes attributes/file
setfattr -n user.empty attributes/file
printf cap > attributes/cap && chmod 755 attributes/cap && setcap cap_net_raw+ep attributes/cap
setfattr -h -n trusted.link -v l dangling && setfattr -n trusted.node -v n null && setfattr -n trusted.fifo -v f fifo

mkdir acl acl/inherits acl/both
printf a > acl/file && setfacl -m u:1000:rw,u:4000000:r,g:4:-,m:rwx acl/file
setfacl -d -m u:1000:rwx,g:4:rx acl/inherits
setfacl -m g:4:rx -m d:u:1:r acl/both
printf i > acl/inherits/child && mkdir acl/inherits/below && printf b > acl/both/child && setfacl -b acl/both/child

mkdir many && (cd many && seq -f 'a-name-that-is-a-little-longer-%05.0f' 1 20000 | xargs touch)
rm -rf gone/1* gone/below
mkdir flags flags/dir && printf i > flags/immutable && ln flags/immutable flags/dir/too && printf a > flags/append
chattr +i flags/immutable && chattr +a flags/append && chattr +dA flags/dir
touch -d '2001-02-03 04:05:06' plain/a/b plain acl/inherits sticky && chmod 0555 closed && touch -d @777 closed .
"#;

/// A place to work in; what is mounted there goes with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir_in(crate::common::scratch()).unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a shell script here.
    fn sh(&self, script: &str) -> String {
        let mut bash = Command::new("bash");
        let output = bash.args(["-euo", "pipefail", "-c", script]).env("LC_ALL", "C.UTF-8");
        let output = output.current_dir(self.0.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {}\n{errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A fresh filesystem `name`.img, mounted at `name`; a name is used once, for mount(8) would take the
    /// loop device that is about to go, with what it has cached.
    fn filesystem(&self, name: &str, size: &str, mkfs: &str) -> Mount {
        self.sh(&format!("truncate -s {size} {name}.img && {mkfs} -q {name}.img && mkdir -p {name}"));
        self.mount(name, "noatime")
    }

    fn mount(&self, name: &str, options: &str) -> Mount {
        self.sh(&format!("mount -o loop,{options} {name}.img {name}"));
        Mount(self.at(name))
    }

    /// `name`.img in a file `dump`.
    fn dump(&self, name: &str, options: &str, dump: &str) {
        let device = BlockDevice::over(&self.at(&format!("{name}.img")), &["-r"]);
        self.sh(&format!("dump -0 {options} -f - {} > {dump} 2> {dump}.log", device.0.display()));
    }

    fn restore(&self, dump: &str, target: &Mount) -> Result<Stats> {
        restore(fs::File::open(self.at(dump)).unwrap(), &target.0)
    }

    /// Fails unless both trees are the same but for fractions of seconds, which a dump does not have.
    fn assert_same(&self, original_name: &str, copy: &str) {
        let rsync = "rsync -ncaHAXi --numeric-ids --delete";
        let differences = self.sh(&format!("{rsync} {original_name}/ {copy}/"));
        assert!(differences.is_empty(), "{copy}:\n{differences}");
        // What rsync does not look at: seconds of both times, of links too; devices; all flags but the
        // filesystem's own, extents (e) and hashed directories (I).
        let script = r#"find . -printf '%P %y %m %U:%G %n %T@ %A@ %l\0' | sed -z -E 's/(-?[0-9]+)\.[0-9]+/\1/g' | LC_ALL=C sort -z
            find . \( -type b -o -type c \) -exec stat -c '%n %t %T' {} + | LC_ALL=C sort
            lsattr -aR . 2>/dev/null | awk '{ gsub(/[eI]/, "-", $1); print }' | LC_ALL=C sort"#;
        let list = |tree: &str| self.sh(&format!("cd {tree} && {script}"));
        let (original, copied) = (list(original_name), list(copy));
        for (a, b) in original.split(['\0', '\n']).zip(copied.split(['\0', '\n'])) {
            assert_eq!(a, b, "{copy}");
        }
        assert_eq!(original.len(), copied.len(), "{copy}");
        for name in ["all", "middle", "tail", "end", "many"] {
            let blocks = |tree: &str| fs::metadata(self.at(tree).join("holes").join(name)).unwrap().blocks();
            // Blocks may be larger here: four KiB for each of forty pieces.
            assert!(blocks(copy) <= blocks(original_name) + 40 * 8, "{copy}: {name}");
        }
    }
}

/// Unmounted, with its loop device, when it is let go.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn restore(backup: impl Read + 'static, target: &Path) -> Result<Stats> {
    let Source::Dump(mut dump) = backup::open(Box::new(backup))? else {
        anyhow::bail!("it is taken for something else than a dump");
    };
    backup::dump::restore(&mut dump, &RootDir::open(target).unwrap(), &Budget::of_stream(1 << 30))
}

#[test]
fn a_dump_of_each_filesystem_comes_back_the_same() {
    let place = Place::new();
    for (number, filesystem) in ["ext4 -b 4096", "ext3", "ext2", "ext4 -b 1024 -I 128"].iter().enumerate() {
        let (name, copy_name, dump) =
            (format!("original-{number}"), format!("copy-{number}"), format!("dump-{number}"));
        let original = place.filesystem(&name, "300M", &format!("mkfs.{filesystem}"));
        // One large directory is enough.
        let tree = if number == 0 { TREE.to_owned() + LONG_LINKS } else { TREE.replace("20000", "500") };
        place.sh(&format!("cd {name} && {tree}"));
        drop(original);
        place.dump(&name, "", &dump);
        let copy = place.filesystem(&copy_name, "300M", "mkfs.ext4 -b 4096");
        let stats = place.restore(&dump, &copy).unwrap_or_else(|error| panic!("{filesystem}: {error:#}"));
        let left_out = Stats { directories: 0, files: 0, links: 0, bytes: 0, ..stats };
        assert_eq!(left_out, Stats::default(), "{filesystem}");
        let _original = place.mount(&name, "ro,noatime");
        place.assert_same(&name, &copy_name);
        drop(copy);
        tool("e2fsck", &["-fn", place.at(&format!("{copy_name}.img")).to_str().unwrap()]);
    }
}

/// What compresses a dump, twice in a row, as in backups that were joined.
const COMPRESSORS: [&str; 3] = ["gzip -1", "zstd -q", "xz -0"];

#[test]
fn a_compressed_dump_comes_back_the_same() {
    let place = Place::new();
    let original = place.filesystem("original", "300M", "mkfs.ext4");
    place.sh(&format!("cd original && {}", TREE.replace("20000", "2000")));
    drop(original);
    place.dump("original", "", "dump");
    place.dump("original", "-z -b 64", "dump-z");
    let _original = place.mount("original", "ro,noatime");
    let mut dumps = vec!["dump-z".to_owned()];
    for compressor in COMPRESSORS {
        let name = compressor.replace(' ', "");
        let half = "$(($(stat -c %s dump) / 2))";
        place.sh(&format!(
            "(head -c {half} dump | {compressor}; tail -c +$(({half} + 1)) dump | {compressor}) > {name}"
        ));
        dumps.push(name);
    }
    for dump in dumps {
        let copy_name = format!("copy-{dump}");
        let copy = place.filesystem(&copy_name, "300M", "mkfs.ext4");
        place.restore(&dump, &copy).unwrap_or_else(|error| panic!("{dump}: {error:#}"));
        place.assert_same("original", &copy_name);
    }
}

/// A tree of a few hundred KiB.
const SMALL: &str = r#"
mkdir -p etc var/empty && for number in $(seq 1 30); do printf "$number" > "etc/$number"; done
head -c 100000 /dev/urandom > var/data && ln var/data etc/data && ln -s data etc/link && mkfifo fifo
truncate -s 300K var/hole && printf a > var/attribute && setfattr -n user.name -v value var/attribute
find . -exec touch -h -d @1000000000 {} +
"#;

/// Restores `dump` to a directory beside a file that stands for the node, and lists what came out.
fn outcome(place: &Place, dump: Vec<u8>) -> Option<String> {
    let beside = tempfile::tempdir_in(place.0.path()).unwrap();
    let (guest, node) = (beside.path().join("guest"), beside.path().join("node"));
    fs::create_dir(&guest).unwrap();
    fs::write(&node, "node").unwrap();
    let restored = restore(Cursor::new(dump), &guest);
    assert_eq!(fs::read_dir(beside.path()).unwrap().count(), 2);
    assert_eq!(fs::read(&node).unwrap(), b"node");
    restored.ok().map(|_| {
        let script =
            "find . -printf '%P %y %m %U:%G %n %T@ %s %l\\n' -type f -exec sha256sum {} + | LC_ALL=C sort";
        place.sh(&format!("cd {} && {script}", guest.display()))
    })
}

/// Which records of a dump are headers.
fn headers(dump: &[u8]) -> Vec<usize> {
    let word = |at: usize| u32::from_le_bytes(dump[at..at + 4].try_into().unwrap()) as usize;
    let mut found = Vec::new();
    let mut at = 0;
    while at < dump.len() {
        found.push(at / 1024);
        let count = word(at + 160);
        let data = match word(at) {
            2 | 4 => dump[at + 164..at + 164 + count].iter().filter(|&&address| address != 0).count(),
            3 | 6 => count,
            _ => 0,
        };
        at += (1 + data) * 1024;
    }
    found
}

#[test]
fn a_cut_or_damaged_dump_is_an_error_or_does_no_harm() {
    let place = Place::new();
    let original = place.filesystem("original", "20M", "mkfs.ext4 -N 1000");
    place.sh(&format!("cd original && {SMALL}"));
    drop(original);
    place.dump("original", "", "dump");
    place.sh("gzip -k dump && zstd -qk --check dump && xz -k dump");
    let plain = fs::read(place.at("dump")).unwrap();
    let whole = outcome(&place, plain.clone()).unwrap();
    assert!(whole.contains("etc/30"), "{whole}");
    let headers = headers(&plain);

    for suffix in ["", ".gz", ".zst", ".xz"] {
        let dump = fs::read(place.at(&format!("dump{suffix}"))).unwrap();
        let (cuts, flips) = if suffix.is_empty() { (50, 200) } else { (5, 15) };
        for cut in 0..cuts {
            // Of the plain one half at the borders of records.
            let at = dump.len() * cut / cuts;
            let at = if suffix.is_empty() && cut % 2 == 0 { at / 1024 * 1024 } else { at };
            let got = outcome(&place, dump[..at].to_vec());
            assert!(got.is_none_or(|tree| tree == whole), "{suffix}: cut at {at} of {}", dump.len());
        }
        for flip in 0..flips {
            let at = (flip * 7_919_777 + 12_345) % dump.len();
            let mut flipped = dump.clone();
            flipped[at] ^= 1 << (flip % 8);
            let got = outcome(&place, flipped);
            // Data have no checksum in a dump: what they say is what comes out.
            let is_checked = !suffix.is_empty() || headers.contains(&(at / 1024));
            assert!(!is_checked || got.is_none_or(|tree| tree == whole), "{suffix}: bit {flip} at {at}");
        }
        let mut longer = dump;
        longer.extend(b"something else");
        assert!(outcome(&place, longer).is_none(), "{suffix}: something else behind it");
    }
}

#[test]
fn windows_of_gigabytes_are_refused() {
    let place = Place::new();
    place.sh("head -c 2M /dev/zero > zeros");
    place.sh("xz -k --lzma2=preset=0,dict=1GiB zeros; cat zeros | zstd -q --ultra -20 --long=30 > zeros.zst");
    for suffix in ["xz", "zst"] {
        let input = fs::File::open(place.at(&format!("zeros.{suffix}"))).unwrap();
        let error = format!("{:#}", backup::open(Box::new(input)).err().unwrap());
        assert!(error.contains("larger than 32 MiB"), "{error}");
    }
    // What usual options make is read.
    place.sh("rm zeros.*; xz -8 -k zeros; cat zeros | zstd -q -19 > zeros.zst");
    for suffix in ["xz", "zst"] {
        let input = fs::File::open(place.at(&format!("zeros.{suffix}"))).unwrap();
        let error = format!("{:#}", backup::open(Box::new(input)).err().unwrap());
        assert!(error.contains("no known format"), "{error}");
    }
}

#[test]
fn huge_holes_take_neither_time_nor_space() {
    let place = Place::new();
    let original = place.filesystem("original", "50M", "mkfs.ext4");
    place.sh("cd original && truncate -s 10G all && truncate -s 10G middle && printf x | dd of=middle bs=1 seek=5G conv=notrunc status=none");
    drop(original);
    place.dump("original", "", "dump");
    let copy = place.filesystem("copy", "50M", "mkfs.ext4");
    let stats = place.restore("dump", &copy).unwrap();
    assert!(stats.bytes <= 4096, "{stats:?}");
    for name in ["all", "middle"] {
        let file = fs::metadata(copy.0.join(name)).unwrap();
        assert!(file.len() == 10 << 30 && file.blocks() <= 16, "{name}: {} blocks", file.blocks());
    }
    assert_eq!(place.sh("dd if=copy/middle bs=1 skip=5G count=1 status=none"), "x");
}

#[test]
fn millions_of_inodes_have_a_map_of_many_records() {
    let place = Place::new();
    let original = place.filesystem("original", "3G", "mkfs.ext4 -O ^has_journal -N 6000000");
    place.sh("mkdir original/dir && printf x > original/dir/file && ln -s file original/dir/link");
    drop(original);
    place.dump("original", "", "dump");
    let dump = fs::read(place.at("dump")).unwrap();
    let records = u32::from_le_bytes(dump[1024 + 160..1024 + 164].try_into().unwrap());
    assert!(records > 512, "{records}");
    let copy = place.filesystem("copy", "50M", "mkfs.ext4");
    assert_eq!(place.restore("dump", &copy).unwrap().directories, 3);
    assert_eq!(place.sh("cat copy/dir/link"), "x");
}

#[test]
fn names_that_dump_loses_are_replaced() {
    let place = Place::new();
    let original = place.filesystem("original", "50M", "mkfs.ext4");
    place.sh(r#"cd original && for name in a b; do long="$(printf '%0255d' 7)"; mkdir $name && printf $name > "$name/$long"; printf z > $name/z; done
        mkdir "$(printf '%0255d' 8)" && printf below > "$(printf '%0255d' 8)/file"; printf z > z"#);
    drop(original);
    place.dump("original", "", "dump");
    let copy = place.filesystem("copy", "50M", "mkfs.ext4");
    let stats = place.restore("dump", &copy).unwrap();
    assert_eq!((stats.names_lost, stats.files), (3, 6), "{stats:?}");
    assert_eq!(place.sh("cd copy && cat a/#* b/#* '#'*/file a/z b/z z"), "abbelowzzz");
}

#[test]
fn a_partition_and_a_whole_device_give_the_same() {
    let place = Place::new();
    let original = place.filesystem("original", "20M", "mkfs.ext4");
    place.sh(&format!("cd original && {SMALL}"));
    drop(original);
    place.dump("original", "", "whole");
    // A partition, as the program sees it: a part of a disk.
    place.sh(
        "truncate -s 30M disk.img && dd if=original.img of=disk.img bs=1M seek=1 conv=notrunc status=none",
    );
    let partition = BlockDevice::over(&place.at("disk.img"), &["-r", "-o", "1M", "--sizelimit", "20M"]);
    place.sh(&format!("dump -0 -f part {} 2> log", partition.0.display()));
    let restored = ["whole", "part"].map(|dump| outcome(&place, fs::read(place.at(dump)).unwrap()).unwrap());
    assert!(restored[0].contains("etc/30") && restored[0] == restored[1]);
}
