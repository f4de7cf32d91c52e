//! create, export, wipe, import with the few variables of the interface's version 10 and nothing else in the environment:
//! what the predecessor was tested with. The node's settings are files of this test's own. Needs root and loop devices.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{BlockDevice, GIB, Mounted, Node, SUITE, fsck, log_of, root_offset, tool};

/// What a guest's owner does between the two: files, a link, an owner, a mode, a hole, an attribute.
const LIFE: &str = r#"
mkdir -p srv/added/deep && head -c 5M /dev/urandom > srv/added/random && ln srv/added/random srv/added/deep/hard
ln -s ../random srv/added/deep/soft && truncate -s 3M srv/added/hole && printf end >> srv/added/hole
chown 1234:4321 srv/added/random && chmod 4750 srv/added/random && setfattr -n user.note -v mine srv/added/hole
rm usr/share/doc/dpkg/copyright && echo changed >> etc/motd
"#;

/// Runs a verb by its link, with these variables alone.
fn run(node: &Node, verb: &str, variables: &[(&str, &str)], streams: impl FnOnce(&mut Command)) -> Output {
    let mut command = node.verb(verb, &Default::default());
    command
        .env("OS_API_VERSION", "10")
        .env("INSTANCE_NAME", "foo.example.com")
        .env("HYPERVISOR", "dont-care");
    command.env("DISK_COUNT", "1").envs(variables.iter().copied());
    command.env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin");
    streams(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{verb}: {}", log_of(&output));
    output
}

/// The whole cycle on a file or a block device.
fn cycle(node: &Node, disk: &Path, wipe: &str) {
    let (path, stream) = (disk.to_str().unwrap(), node.path().join("stream"));
    run(node, "create", &[("DISK_0_PATH", path)], |_| ());
    let offset = root_offset(disk);
    {
        let root = Mounted::with(disk, &format!("loop,offset={offset}"));
        tool("bash", &["-euc", &format!("cd {} && {LIFE}", root.path().display())]);
    }
    let original = node.path().join("original");
    tool("cp", &["--sparse=always", path, original.to_str().unwrap()]);

    let variables =
        [("DISK_0_PATH", path), ("EXPORT_DISK_PATH", path), ("EXPORT_DEVICE", path), ("EXPORT_INDEX", "0")];
    run(node, "export", &variables, |command| {
        command.stdout(File::create(&stream).unwrap());
    });
    fill(disk, wipe);
    let variables =
        [("DISK_0_PATH", path), ("IMPORT_DISK_PATH", path), ("IMPORT_DEVICE", path), ("IMPORT_INDEX", "0")];
    let output = run(node, "import", &variables, |command| {
        command.stdin(File::open(&stream).unwrap());
    });
    assert!(output.stdout.is_empty(), "stdout is not the log's");

    fsck(disk, offset, "ext4");
    let (was, is) = (Mounted::at(&original, offset), Mounted::at(disk, offset));
    let slash = |root: &Mounted| format!("{}/", root.path().display());
    let different = tool("rsync", &["-naAXHi", "--checksum", "--delete", &slash(&was), &slash(&is)]);
    assert_eq!(different, "");
    assert_eq!(fs::read_link(is.path().join("srv/added/deep/soft")).unwrap(), PathBuf::from("../random"));
    assert!(is.read("etc/motd").ends_with("changed\n"));
    assert!(!is.path().join("usr/share/doc/dpkg/copyright").exists());
}

fn fill(path: &Path, from: &str) {
    let mut disk = File::options().write(true).open(path).unwrap();
    let bytes = disk.seek(SeekFrom::End(0)).unwrap();
    disk.rewind().unwrap();
    std::io::copy(&mut File::open(from).unwrap().take(bytes), &mut disk).unwrap();
    disk.sync_all().unwrap();
}

#[test]
fn a_guest_comes_back_to_a_wiped_file_and_to_a_wiped_block_device() {
    let node = Node::bootable(SUITE);
    cycle(&node, &node.disk("disk", GIB), "/dev/zero");
    node.assert_nothing_left();

    let device = BlockDevice::over(&node.disk("disk", GIB), &[]);
    cycle(&node, &device.0, "/dev/urandom");
    drop(device);
    node.assert_nothing_left();
}
