//! The same trees as a backup that dump(8) made of them, restored by import.

use std::fs::{self, File};
use std::process::Command;

use super::bench::Bench;
use super::traps::{Kind, LINKS, NODES, Place, Trap};
use super::tree::{self, Tree};
use crate::common::small_guest::{Answer, Flavour, ROOT_AT, SmallDisk};
use crate::common::stepping::{GuestMount, step};
use crate::common::{GIB, Mounted, fsck, text, tool};

/// What an import repairs, and what lies above it.
const PLACES: [Place; 4] = [
    Place { path: "etc", kind: Kind::Dir, flavour: Flavour::Ifupdown, concerned: true },
    Place { path: "etc/fstab", kind: Kind::File, flavour: Flavour::Ifupdown, concerned: true },
    Place { path: "boot", kind: Kind::Dir, flavour: Flavour::Ifupdown, concerned: true },
    Place { path: "boot/grub/grub.cfg", kind: Kind::File, flavour: Flavour::Ifupdown, concerned: true },
];

/// Of those in [`super::traps`]: a dump keeps no flags, and 200 GiB of holes are as many records.
const CONTENTS: [Trap; 7] =
    [Trap::ManyNames, Trap::LongLine, Trap::ManyLines, Trap::Nuls, Trap::NotUtf8, Trap::Absent, Trap::NoMode];

impl Bench {
    /// An import of what dump(8) reads from the disk's filesystem, to a new disk.
    fn import_command(&self, disk: &SmallDisk) -> (Command, SmallDisk) {
        let dump = self.node.path().join("dump");
        let device = disk.attach();
        let args = ["-0", "-q", "-f", dump.to_str().unwrap(), device.0.to_str().unwrap()];
        tool("dump", &args);
        drop(device);
        self.node.wait_until_detached();
        let path = self.node.disk("imported", GIB);
        let mut env = self.node.recorded("import", &path);
        for name in ["IMPORT_DEVICE", "IMPORT_DISK_PATH"] {
            env.insert(name.into(), path.display().to_string());
        }
        for (name, value) in
            [("BOOT", "no"), ("SWAP", "no"), ("FILESYSTEM", "ext4"), ("PARTITION_STYLE", "gpt")]
        {
            env.insert(format!("OSP_{name}"), value.into());
        }
        let mut command = self.node.verb("import", &env);
        command.stdin(File::open(dump).unwrap());
        // The layout is that of every disk that this program makes; to its end is near enough.
        let root_bytes = GIB - ROOT_AT - (1 << 20);
        (command, SmallDisk { path, filesystem: "ext4", root_at: ROOT_AT, root_bytes })
    }

    fn import_all(&self, traps: &[Trap]) {
        for trap in traps {
            for place in PLACES.iter().filter(|place| trap.fits(place.kind)) {
                self.import(*trap, place);
            }
        }
    }

    fn import(&self, trap: Trap, place: &Place) {
        let disk = self.disk(place.flavour);
        let before = {
            let mounted = disk.mount_writable();
            let grub = mounted.path().join("boot/grub");
            fs::create_dir_all(&grub).unwrap();
            fs::write(grub.join("grub.cfg"), "linux /vmlinuz root=/dev/sda1 ro\n").unwrap();
            trap.set(mounted.path(), place, &self.canary);
            Tree::of(mounted.path())
        };
        let look = self.canary.look();
        let (command, imported) = self.import_command(&disk);
        let answer = Answer::of(command);
        let log = format!("{trap:?} at {}\n{}", place.path, answer.log);
        self.canary.assert_untouched(&look, &log);
        self.node.assert_nothing_left();
        if answer.done {
            fsck(&imported.path, ROOT_AT, "ext4");
            let root = Mounted::at(&imported.path, ROOT_AT);
            Tree::of(root.path()).assert_restored(&before, &["fstab", "grub.cfg"], &log);
            let uuid = tool(
                "blkid",
                &[
                    "-p",
                    "-O",
                    &ROOT_AT.to_string(),
                    "-o",
                    "value",
                    "-s",
                    "UUID",
                    imported.path.to_str().unwrap(),
                ],
            );
            let fstab =
                tree::read_inside(root.path(), "etc/fstab").map(|bytes| text(&bytes)).unwrap_or_default();
            let has_etc = tree::read_inside(root.path(), "etc/passwd").is_some();
            assert!(!has_etc || fstab.contains(&format!("UUID={} / ext4", uuid.trim())), "{fstab}\n{log}");
        } else {
            assert!(answer.last_lines().contains(&format!("/{}", place.path)), "{log}");
            let found = Command::new("blkid").arg("-p").arg(&imported.path).output().unwrap();
            assert_eq!(found.status.code(), Some(2), "{}\n{log}", text(&found.stdout));
        }
        let harmless =
            [Trap::InnerLink, Trap::NoMode, Trap::ManyNames, Trap::Absent, Trap::Nuls, Trap::NotUtf8];
        assert!(answer.done || !harmless.contains(&trap), "{log}");
        fs::remove_file(&disk.path).unwrap();
    }
}

#[test]
fn import_follows_no_link_out_of_the_guest() {
    Bench::new().import_all(&LINKS);
}

#[test]
fn import_opens_no_pipe_device_or_socket_of_a_guest() {
    Bench::new().import_all(&NODES);
}

#[test]
fn import_is_bounded_whatever_the_guests_files_hold() {
    Bench::new().import_all(&CONTENTS);
}

#[test]
fn no_program_or_device_of_an_imported_guest_counts() {
    let bench = Bench::new();
    let (command, _) = bench.import_command(&bench.disk(Flavour::Ifupdown));
    let mut lines = Vec::new();
    let stepped = step(command, |GuestMount { line, .. }, _| {
        if !lines.contains(line) {
            lines.push(line.clone());
        }
    });
    assert_eq!(stepped.status, Some(0), "{}", stepped.log);
    assert!(!lines.is_empty(), "{}", stepped.log);
    for line in lines {
        let has = |option: &str| line.split([' ', ',']).any(|word| word == option);
        assert!(has("nosuid") && has("nodev") && has("noexec"), "{line}");
    }
}
