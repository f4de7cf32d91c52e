//! export and import of whole disks: what comes back is what was there, on an equal and on a larger disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::backup::{self, assert_same_trees, dirty, env_of, export};
use crate::common::{
    GIB, Mounted, Node, assert_same_content, fsck, log_of, partition_offset, root_offset, text, tool,
};

const MIB: u64 = 1 << 20;

fn import(node: &Node, disk: &Path, stream: &Path) -> (bool, String) {
    backup::import(node, disk, File::open(stream).unwrap())
}

/// A guest's disk made with OS parameters.
fn guest(node: &Node, name: &str, params: &[(&str, &str)]) -> PathBuf {
    let disk = node.disk(name, 2 * GIB);
    let mut env = node.recorded("create", &disk);
    env.extend(params.iter().map(|(key, value)| (format!("OSP_{}", key.to_uppercase()), (*value).into())));
    node.create(&env);
    disk
}

/// The two disks' roots at their offsets hold the same; both filesystems are clean.
fn assert_same_root(one: &Path, other: &Path, offset: u64, filesystem: &str) {
    fsck(other, offset, filesystem);
    // Never two btrfs of one UUID at once.
    let copy = tempfile::tempdir().unwrap();
    let copied = {
        let mounted = Mounted::with(one, &format!("ro,loop,offset={offset}"));
        tool("rsync", &["-aAXH", &format!("{}/", mounted.path().display()), copy.path().to_str().unwrap()]);
        copy.path()
    };
    let mounted = Mounted::with(other, &format!("ro,loop,offset={offset}"));
    assert_same_trees(copied, mounted.path(), filesystem);
}

/// rounds.rs has every layout with every filesystem, and small trees.
#[test]
fn a_debian_comes_back_on_an_equal_disk_and_on_a_larger_one() {
    let node = Node::new();
    for (style, filesystem) in [("gpt", "ext4"), ("msdos", "xfs"), ("none", "btrfs")] {
        let disk =
            guest(&node, "d", &[("partition_style", style), ("filesystem", filesystem), ("swap", "no")]);
        let offset = if style == "none" { 0 } else { root_offset(&disk) };
        let stream = node.path().join("stream");
        export(&node, &disk, &stream);

        // Equal, and not blank.
        let equal = node.path().join("disks/equal");
        dirty(&equal, 2 * GIB);
        let (done, log) = import(&node, &equal, &stream);
        assert!(done, "{style} {filesystem}\n{log}");
        assert_same_root(&disk, &equal, offset, filesystem);
        fs::remove_file(&equal).unwrap();

        let larger = node.disk("larger", 3 * GIB + 5 * MIB + 512);
        let (done, log) = import(&node, &larger, &stream);
        assert!(done, "{style} {filesystem}\n{log}");
        assert_same_root(&disk, &larger, offset, filesystem);
        let size = {
            let mounted = Mounted::with(&larger, &format!("ro,loop,offset={offset}"));
            let size = tool("stat", &["-f", "-c", "%b %S", mounted.path().to_str().unwrap()]);
            size.trim().split(' ').map(|n| n.parse::<u64>().unwrap()).product::<u64>()
        };
        assert!(size > 5 * GIB / 2, "{style} {filesystem} did not grow: {size}\n{log}");
        if style == "gpt" {
            let verified = tool("sfdisk", &["--verify", larger.to_str().unwrap()]);
            assert!(verified.contains("No errors detected"), "{verified}");
        }
        fs::remove_file(&larger).unwrap();
        fs::remove_file(&disk).unwrap();
        node.assert_nothing_left();
    }
}

#[test]
fn other_tools_read_the_stream() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    let stream = node.path().join("stream");
    export(&node, &disk, &stream);
    for tar in ["tar", "bsdtar"] {
        let dir = tempfile::tempdir_in(node.path()).unwrap();
        tool(tar, &["-xf", stream.to_str().unwrap(), "-C", dir.path().to_str().unwrap()]);
        let raw = dir.path().join("disk.img");
        fsck(&raw, root_offset(&raw), "ext4");
        let root = Mounted::at(&raw, root_offset(&raw));
        assert!(root.read("etc/hostname").contains("example.com"));
        let facts: toml::Table =
            toml::from_str(&fs::read_to_string(dir.path().join("instance.toml")).unwrap()).unwrap();
        assert_eq!(facts["disk"]["size_bytes"].as_integer(), Some(2 * GIB as i64));
        assert_eq!(facts["partition"][0]["content"].as_str(), Some("ext4"));
        drop(root);
        // A raw disk is a backup, too.
        let copy = node.disk("copy", 2 * GIB);
        let (done, log) = import(&node, &copy, &raw);
        assert!(done, "{log}");
        assert_same_content(&raw, &copy);
        let _ = partition_offset(&copy, 15);
    }
    node.assert_nothing_left();
}

#[test]
fn a_root_tar_becomes_a_guest_and_packed_streams_are_unpacked() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    let tar = node.path().join("root.tar");
    {
        let root = Mounted::at(&disk, root_offset(&disk));
        tool(
            "tar",
            &[
                "--xattrs",
                "--acls",
                "--numeric-owner",
                "-cf",
                tar.to_str().unwrap(),
                "-C",
                root.path().to_str().unwrap(),
                ".",
            ],
        );
    }
    let packed = node.path().join("root.tar.zst");
    tool("sh", &["-c", &format!("zstd -q -3 < {} > {}", tar.display(), packed.display())]);
    for stream in [&tar, &packed] {
        let copy = node.disk("copy", 3 * GIB);
        let (done, log) = import(&node, &copy, stream);
        assert!(done, "{log}");
        let offset = root_offset(&copy);
        fsck(&copy, offset, "ext4");
        let root = Mounted::at(&copy, offset);
        let uuid = tool(
            "blkid",
            &["-p", "-s", "UUID", "-o", "value", "-O", &offset.to_string(), copy.to_str().unwrap()],
        );
        assert!(root.read("etc/fstab").contains(&format!("UUID={} / ext4", uuid.trim())));
        drop(root);
        fs::remove_file(&copy).unwrap();
    }
    node.assert_nothing_left();
}

#[test]
fn a_smaller_disk_is_refused_untouched_and_a_damaged_stream_leaves_nothing() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    let stream = node.path().join("stream");
    export(&node, &disk, &stream);
    let small = node.path().join("disks/small");
    dirty(&small, 256 * MIB);
    let before = crate::common::digest(&small);
    let (done, log) = import(&node, &small, &stream);
    assert!(!done && log.contains("256 MiB") && log.contains("2 GiB"), "{log}");
    assert_eq!(crate::common::digest(&small), before);

    let bytes = fs::read(&stream).unwrap();
    let damaged = node.path().join("damaged");
    let copy = node.disk("copy", 2 * GIB);
    let data_at = 64 << 10;
    for at in [0, 600, 2000, data_at, bytes.len() / 2, bytes.len() - 3000, bytes.len() - 1500] {
        for cut in [true, false] {
            let mut wrong = bytes.clone();
            match cut {
                true => wrong.truncate(at),
                false => wrong[at] ^= 0x10,
            }
            fs::write(&damaged, wrong).unwrap();
            let (done, log) = import(&node, &copy, &damaged);
            assert!(!done, "cut {cut} at {at}\n{log}");
            let found = Command::new("blkid").arg("-p").arg(&copy).output().unwrap();
            assert_eq!(found.status.code(), Some(2), "cut {cut} at {at}: {found:?}\n{log}");
        }
    }
    File::options().append(true).open(&damaged).unwrap().set_len(0).unwrap();
    fs::write(&damaged, &bytes).unwrap();
    File::options().append(true).open(&damaged).unwrap().write_all(b"more").unwrap();
    let (done, log) = import(&node, &copy, &damaged);
    assert!(!done && log.contains("more behind the digest"), "{log}");
    node.assert_nothing_left();
}

/// How a verb ends, and the last lines of its log.
fn ends(mut command: Command, count: usize) -> (Option<i32>, String) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let log = text(&output.stderr);
    let lines: Vec<&str> = log.lines().collect();
    (output.status.code(), lines[lines.len().saturating_sub(count)..].join("\n"))
}

#[test]
fn an_export_that_cannot_be_written_says_whose_business_it_is() {
    let node = Node::bare();
    let disk = node.path().join("disks/d");
    dirty(&disk, 64 * MIB);
    let env = env_of(&node, "export", &disk);
    let (what, name) = ("error: exporting disk 0 of", &env["INSTANCE_NAME"]);

    let mut full = node.verb("export", &env);
    full.stdout(File::options().write(true).open("/dev/full").unwrap());
    let expected = format!(
        "{what} {name}\n  writing the backup\n  No space left on device (os error 28)\n\
         hint: make room where the backup goes"
    );
    assert_eq!(ends(full, 4), (Some(1), expected));

    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    drop(reader);
    let mut broken = node.verb("export", &env);
    broken.stdout(writer);
    let expected = format!(
        "{what} {name}\n  writing the backup\n  Broken pipe (os error 32)\n\
         hint: whoever was to read the backup ended first; its log says why"
    );
    assert_eq!(ends(broken, 4), (Some(1), expected));

    let terminal = node.path().join("typescript");
    let line = format!("exec {}/os/export", node.path().display());
    for (verb, expected) in [
        (
            "export",
            "error: standard output is a terminal, and a backup is no text\r\nhint: export > FILE\r\n",
        ),
        (
            "import",
            "error: standard input is a terminal, and no backup comes from there\r\nhint: import < FILE\r\n",
        ),
    ] {
        let env = if verb == "export" { env.clone() } else { env_of(&node, "import", &disk) };
        let mut command = node.verb(verb, &env);
        let before = crate::common::digest(&disk);
        let output = on_a_terminal(&mut command, &line.replace("export", verb), &terminal);
        assert_eq!(output, expected);
        assert_eq!(crate::common::digest(&disk), before);
    }
    let (status, log) = ends_into_null(node.verb("export", &env));
    assert_eq!(status, Some(0), "{log}");
    assert!(
        log.contains("warning: standard output is closed or /dev/null: nobody keeps this backup\n"),
        "{log}"
    );
    node.assert_nothing_left();
}

fn ends_into_null(mut command: Command) -> (Option<i32>, String) {
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// Runs a shell's line with the environment of a command on a terminal of its own; what it showed.
fn on_a_terminal(command: &mut Command, line: &str, typescript: &Path) -> String {
    let mut script = Command::new("script");
    script.args(["-qec", line, typescript.to_str().unwrap()]).env_clear().stdin(Stdio::null());
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = script.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stdout)
}

#[test]
fn an_export_says_first_what_it_does_and_then_what_travels() {
    let node = Node::new();
    let disk = guest(&node, "d", &[]);
    let env = env_of(&node, "export", &disk);
    let mut dry = node.verb("export", &env);
    let output = dry.arg("--dry-run").output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", log_of(&output));
    let log = text(&output.stderr);
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].contains(": disk 0 of ") && lines[0].ends_with(" (2 GiB), to a backup"), "{log}");
    assert!(lines[1].ends_with(" s  finding out what is in use"), "{log}");
    assert_eq!(lines[2].trim(), "partition 1: ext4", "{log}");
    assert!(lines[lines.len() - 1].contains(" in use, a backup of "), "{log}");
    let esp = partition_offset(&disk, 15);
    // What a FAT's boot sector says it is.
    File::options().write(true).open(&disk).unwrap().write_all_at(b"FAT16   ", esp + 0x36).unwrap();
    let log = export(&node, &disk, &node.path().join("stream"));
    assert!(log.contains("\n            partition 15, whole: FAT\n"), "{log}");
    node.assert_nothing_left();
}

#[test]
fn an_index_beyond_the_disks_is_refused_and_a_size_never_goes_into_the_backup() {
    let node = Node::bare();
    let disk = node.path().join("disks/d");
    dirty(&disk, 64 * MIB);
    for (verb, mut env) in
        [("export", env_of(&node, "export", &disk)), ("import", env_of(&node, "import", &disk))]
    {
        let variable = format!("{}_INDEX", verb.to_uppercase());
        env.insert(variable.clone(), "1".into());
        let expected = format!(
            "error: reading the request for {verb}\n  {variable} is 1; expected a number below DISK_COUNT, 1\n\
             hint: these come from Ganeti's environment; see ganeti-os-interface(7)"
        );
        assert_eq!(ends(node.verb(verb, &env), 3), (Some(1), expected));
    }
    let mut env = env_of(&node, "export", &disk);
    env.insert("EXP_SIZE_FD".into(), "1".into());
    let output = node.verb("export", &env).output().unwrap();
    let log = text(&output.stderr);
    assert!(output.status.success() && output.stdout.starts_with(b"instance.toml\0"), "{log}");
    assert!(
        log.contains("warning: EXP_SIZE_FD is 1, which is for the backup and its log: no size is told\n"),
        "{log}"
    );
    node.assert_nothing_left();
}

#[test]
fn a_disk_that_a_running_guest_has_open_is_exported_and_not_written() {
    let node = Node::bare();
    let disk = node.path().join("disks/d");
    dirty(&disk, 64 * MIB);
    let stream = node.path().join("stream");
    export(&node, &disk, &stream);
    let before = crate::common::digest(&disk);
    let drive = format!("file={},format=raw,if=virtio", disk.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-display", "none", "-S", "-monitor", "stdio", "-drive", &drive]);
    let mut qemu = crate::common::killed_with_us(&mut qemu)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its monitor's prompt: by then the disk is open.
    std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut [0; 4]).unwrap();
    export(&node, &disk, &stream);
    let (done, log) = import(&node, &disk, &stream);
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(!done, "{log}");
    let end = format!(
        "error: the disk {} is in use by process {} (qemu-system-x86)\n\
         hint: an instance may be running on it; shut it down first\n",
        disk.display(),
        qemu.id()
    );
    assert!(log.ends_with(&end), "{log}\nexpected {end}");
    assert_eq!(crate::common::digest(&disk), before);
    node.assert_nothing_left();
}
