//! Trees packed and unpacked by us, GNU tar, bsdtar and busybox, in all pairs that involve us,
//! compared by rsync and `tar --compare`. Needs root, a filesystem under /var/tmp with devices,
//! ACLs and holes (ext4), and the tools of the packages acl, attr, libcap2-bin, libarchive-tools,
//! rsync.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use ganeti_instance_debootstrap::reader::Budget;
use ganeti_instance_debootstrap::rootdir::RootDir;
use ganeti_instance_debootstrap::tar::{self, PackStats, UnpackStats};

/// A tree of everything that each of the tars can carry.
const COMMON: &str = r#"
mkdir -p plain/a/b/c empty closed "spaces and
newline" sticky setgid
printf hello > plain/a/hello
: > plain/a/nothing
head -c 512 /dev/urandom > plain/a/b/block
head -c 700001 /dev/urandom > plain/a/b/c/large
printf x > "spaces and
newline/-dash"
chmod 1777 sticky
chmod 2775 setgid && chgrp 50 setgid
printf suid > setgid/suid && chown 7:42 setgid/suid && chmod 6755 setgid/suid
printf none > closed/none && chmod 0000 closed/none && chown 1000:1000 closed/none
printf far > closed/far && chown 4000000000:3000000 closed/far
printf old > plain/old && touch -d @-2 plain/old
printf nano > plain/nano && touch -d '2021-05-04 03:02:01.123456789' plain/nano
printf zero > plain/zero && touch -d @0 plain/zero

ln plain/a/hello plain/hard-link
ln plain/a/hello setgid/hard-link
ln -s /nowhere/at/all dangling
ln -s ../../.. plain/a/up
ln dangling plain/hard-symlink
chown -h 33:33 dangling && touch -h -d @1000000000.5 dangling
ln -s "$(printf '%0150d' 1)" long-target

for length in 99 100 101 155 156 254 255; do printf "$length" > "$(printf "%0${length}d" 7)"; done
deep=deep; for level in 1 2 3 4 5; do deep="$deep/$(printf "%080d" $level)"; done
mkdir -p "$deep" && printf deep > "$deep/file" && ln -s "$deep" deep-link && ln "$deep/file" "$deep/hard"
printf umlaut > "$(printf 'caf\303\251')"

mkfifo -m 0620 fifo && chown 5:6 fifo
mknod -m 0666 null c 1 3 && mknod -m 0660 disk b 7 1048575 && chgrp 6 disk
touch -d @1234567890.25 fifo null disk

mkdir holes
truncate -s 3M holes/all
truncate -s 5M holes/middle && printf data | dd of=holes/middle bs=1 seek=2000000 conv=notrunc status=none
truncate -s 2M holes/tail && printf head | dd of=holes/tail bs=1 conv=notrunc status=none
truncate -s 1M holes/end && printf end >> holes/end
truncate -s 8M holes/many
for at in $(seq 1 40); do printf "$at" | dd of=holes/many bs=1 seek=$((at * 200000)) conv=notrunc status=none; done

mkdir attributes && printf a > attributes/file
setfattr -n user.simple -v value attributes/file
setfattr -n user.binary -v 0x00ff0a3d00 attributes/file
setfattr -n user.long -v "$(printf '%03000d' 5)" attributes/file
setfattr -n trusted.mark -v root attributes attributes/file
printf cap > attributes/cap && chmod 755 attributes/cap && setcap cap_net_raw+ep attributes/cap

mkdir acl acl/inherits acl/both
printf a > acl/file && setfacl -m u:1000:rw,u:4000000:r,g:4:-,m:rwx acl/file
printf n > acl/named && setfacl -m u:daemon:rw,g:adm:r acl/named
setfacl -d -m u:1000:rwx,g:4:rx acl/inherits
setfacl -m g:4:rx -m d:u:daemon:r acl/both
printf i > acl/inherits/child && mkdir acl/inherits/below && printf b > acl/both/child && setfacl -b acl/both/child

touch -d '2001-02-03 04:05:06.789' plain/a/b plain acl/inherits sticky && chmod 0555 closed && touch -d @777 closed .
"#;

/// What others cannot pack: GNU tar knows no hard links of FIFOs, bsdtar no fractions of seconds
/// before 1970.
const OURS: &str = r#"
ln fifo fifo-link && ln null null-link
printf old > older && touch -d @-1.5 older
printf old > oldest && touch -d '1902-01-01 00:00:00.000000001' oldest
touch -d @777 .
"#;

/// What bsdtar cannot carry: it takes names in pax headers for UTF-8, and attribute names as they
/// are.
const PECULIAR: &str = r#"
printf latin > "$(printf 'caf\351')" && ln -s "$(printf 'caf\351')" latin-link
mkdir "$(printf 'dir\377')" && printf x > "$(printf 'dir\377')/$(printf '%0200d' 1)"
ln "$(printf 'dir\377')/$(printf '%0200d' 1)" latin-hard
printf e > equals && setfattr -n user.a=b%3Dc -v v equals
printf e > empty-value && setfattr -n user.empty empty-value
setfattr -h -n trusted.link -v l dangling && setfattr -n trusted.node -v n null && setfattr -n trusted.fifo -v f fifo
setfacl -m u:1000:rw fifo
touch -d @777 .
"#;

fn nothing() -> Result<()> {
    Ok(())
}

/// A place to work in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir_in(crate::common::scratch()).unwrap())
    }

    /// With a tree `source` made by `scripts`.
    fn with(scripts: &[&str]) -> Place {
        let place = Place::new();
        let source = place.dir("source");
        for script in scripts {
            run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(&source));
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dir(&self, name: &str) -> PathBuf {
        fs::create_dir(self.at(name)).unwrap();
        self.at(name)
    }

    /// Runs a shell script here.
    fn sh(&self, script: &str) -> String {
        run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(self.0.path()))
    }

    fn pack(&self, tree: &str, archive: &str) -> PackStats {
        let mut skipped = Vec::new();
        let mut out = fs::File::create(self.at(archive)).unwrap();
        let root = RootDir::open(&self.at(tree)).unwrap();
        let mut on_skip = |path: &Path, reason: &str| skipped.push(format!("{}: {reason}", path.display()));
        let stats = tar::pack(&root, &mut out, &mut on_skip, &nothing).unwrap();
        assert!(skipped.is_empty(), "{skipped:?}");
        stats
    }

    fn unpack(&self, archive: &str, tree: &str) -> UnpackStats {
        let root = RootDir::open(&self.dir(tree)).unwrap();
        let mut input = fs::File::open(self.at(archive)).unwrap();
        tar::unpack(&mut input, &root, &Budget::of_stream(1 << 30))
            .unwrap_or_else(|error| panic!("{archive}: {error:#}"))
    }

    /// Fails unless rsync sees no difference: contents, owners, modes, nanoseconds, hard links,
    /// devices, ACLs, attributes.
    fn assert_same(&self, copy: &str) {
        let script = "rsync -ncaHAXi --modify-window=-1 --numeric-ids --delete source/ \"$copy\"/";
        let differences = self.sh(&format!("copy={copy}; {script}"));
        assert!(differences.is_empty(), "{copy}:\n{differences}");
    }

    fn assert_holes_are_kept(&self, copy: &str) {
        for name in ["all", "middle", "tail", "end", "many"] {
            let blocks = |tree: &str| fs::metadata(self.at(tree).join("holes").join(name)).unwrap().blocks();
            assert!(blocks(copy) <= blocks("source"), "{copy}: {name}");
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_we_pack_we_unpack_the_same() {
    let place = Place::with(&[COMMON, PECULIAR, OURS]);
    let packed = place.pack("source", "ours.tar");
    let unpacked = place.unpack("ours.tar", "copy");
    assert_eq!(packed.entries, unpacked.entries);
    assert_eq!(packed.bytes, fs::metadata(place.at("ours.tar")).unwrap().len());
    place.assert_same("copy");
    place.assert_holes_are_kept("copy");
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let place = Place::with(&[COMMON, PECULIAR, OURS]);
    place.pack("source", "first.tar");
    place.unpack("first.tar", "copy");
    place.pack("copy", "second.tar");
    place.sh("cmp first.tar second.tar");
}

#[test]
fn gnu_tar_compares_and_unpacks_what_we_pack() {
    let place = Place::with(&[COMMON, PECULIAR, OURS]);
    place.pack("source", "ours.tar");
    place.sh("tar --compare --numeric-owner -f ours.tar -C source");
    place.dir("copy");
    place.sh("tar -C copy -xpf ours.tar --numeric-owner --acls --xattrs --xattrs-include='*'");
    place.assert_same("copy");
    place.assert_holes_are_kept("copy");
}

#[test]
fn bsdtar_unpacks_what_we_pack() {
    let place = Place::with(&[COMMON]);
    place.pack("source", "ours.tar");
    place.dir("copy");
    place.sh("bsdtar -C copy -xpf ours.tar --numeric-owner --acls --xattrs");
    // It leaves the time of the top alone, whoever packed it.
    place.sh("touch -d @777 copy");
    place.assert_same("copy");
}

#[test]
fn we_unpack_what_gnu_tar_packs() {
    let place = Place::with(&[COMMON, PECULIAR]);
    let all = "--acls --xattrs --xattrs-include='*' --selinux";
    let formats = [
        ("pax", format!("--format=pax {all}")),
        ("pax-numeric", format!("--format=pax --numeric-owner {all}")),
        ("sparse-1.0", format!("--format=pax -S --sparse-version=1.0 {all}")),
        ("sparse-0.1", format!("--format=pax -S --sparse-version=0.1 {all}")),
        ("sparse-0.0", format!("--format=pax -S --sparse-version=0.0 {all}")),
    ];
    for (name, options) in formats {
        place.sh(&format!("tar -C source {options} -cf {name}.tar ."));
        place.unpack(&format!("{name}.tar"), name);
        place.assert_same(name);
        if options.contains("-S") {
            place.assert_holes_are_kept(name);
        }
    }
}

/// The formats before pax lose attributes, ACLs and fractions of seconds: the copy is compared to
/// what GNU tar itself makes of the same archive.
#[test]
fn we_unpack_older_formats_like_gnu_tar_does() {
    let place = Place::with(&[COMMON, PECULIAR]);
    let old = "find source -name closed -prune -o -size -1000k";
    place.sh(&format!("{old} -print0 | tar --format=gnu --no-recursion -cf gnu.tar --null -T -"));
    place.sh("tar -C source --format=gnu -S -cf sparse.tar .");
    place.sh("tar -C source --format=gnu -P --transform='s,^[.]/,/,' -cf absolute.tar ./plain");
    place.sh("cd source && find plain setgid -type f | tar -T - --format=ustar --mtime=@5 -cf ../ustar.tar");
    place.sh("cd source && find plain setgid -type f | tar -T - --format=v7 --mtime=@5 -cf ../v7.tar");
    for name in ["gnu", "sparse", "absolute", "ustar", "v7"] {
        let theirs = place.dir(&format!("{name}-theirs"));
        place.sh(&format!("tar -C {name}-theirs -xpf {name}.tar --numeric-owner 2>&1"));
        place.unpack(&format!("{name}.tar"), &format!("{name}-ours"));
        assert!(fs::read_dir(theirs).unwrap().count() > 0);
        // Directories that are not in the archive get the time of unpacking.
        let difference = place.sh(&format!(
            "rsync -ncaHAXi --omit-dir-times --modify-window=-1 --numeric-ids --delete {name}-theirs/ {name}-ours/"
        ));
        assert!(difference.is_empty(), "{name}:\n{difference}");
    }
    place.assert_holes_are_kept("sparse-ours");
}

#[test]
fn we_unpack_what_bsdtar_packs() {
    let place = Place::with(&[COMMON]);
    place.sh("bsdtar -C source --format=pax --acls --xattrs -cf bsd.tar .");
    place.unpack("bsd.tar", "copy");
    place.assert_same("copy");
}

#[test]
fn sockets_and_mounts_are_left_out_with_a_word() {
    let place = Place::new();
    let source = place.dir("source");
    fs::create_dir_all(source.join("mnt/other")).unwrap();
    fs::create_dir_all(source.join("mnt/same")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::write(source.join("over"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    // On a machine whose root is shared, a mount in one of the two would be in both.
    place.sh("mount --bind source source && mount --make-private source");
    place.sh("mount -t tmpfs none source/mnt/other && mount --bind source source/mnt/same && mount --bind source/file source/over");
    let mut skipped = Vec::new();
    let mut archive = Vec::new();
    let root = RootDir::open(&source).unwrap();
    let mut on_skip = |path: &Path, reason: &str| skipped.push(format!("{}: {reason}", path.display()));
    let packed = tar::pack(&root, &mut archive, &mut on_skip, &nothing);
    place.sh("umount source/mnt/other source/mnt/same source/over");
    drop(root);
    place.sh("umount source");
    packed.unwrap();
    let expected = [
        "mnt/other: it is a mount point",
        "mnt/same: it is a mount point",
        "over: it is a mount point",
        "socket: it is a socket",
    ];
    assert_eq!(skipped, expected);
    let root = RootDir::open(&place.dir("copy")).unwrap();
    tar::unpack(&mut Cursor::new(archive), &root, &Budget::of_stream(1 << 30)).unwrap();
    assert_eq!(place.sh("cd copy && find . | LC_ALL=C sort"), ".\n./file\n./mnt\n");
}
