//! What the version before this one wrote is read: its backups, and its cache. `tests/data/before` was made by that version:
//! `UPDATE_DATA=1 cargo test --test backups before`, as root, in a checkout of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::backup::{export, imported};
use crate::common::{Mounted, Node, fsck, project, root_offset, tool};

const GIB: u64 = 1 << 30;
/// Layout and filesystem of each backup.
const DISKS: [(&str, &str); 4] = [("gpt", "ext4"), ("msdos", "xfs"), ("msdos", "btrfs"), ("none", "ext3")];

fn data() -> PathBuf {
    project().join("tests/data/before")
}

fn updates() -> bool {
    std::env::var_os("UPDATE_DATA").is_some()
}

/// Every file of a tree: kind, mode, owner, size, target and content.
fn listing(root: &Path) -> String {
    let script = "find . -path ./lost+found -prune -o -printf '%y %m %U %G %p %l\\n' | LC_ALL=C sort; \
                  find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    tool("sh", &["-ec", &format!("cd {}; {script}", root.display())])
}

/// Makes the data anew, with the program of this checkout.
fn update(node: &Node, style: &str, filesystem: &str) {
    let disk = node.disk("original", GIB);
    node.config(&format!("defaults = \"1\"\npartition_style = \"{style}\"\nfilesystem = \"{filesystem}\"\n"));
    node.create_on(&disk);
    let (name, stream) = (format!("{style}-{filesystem}"), node.path().join("stream"));
    export(node, &disk, &stream);
    let to = data().join(format!("{name}.backup.zst"));
    tool("zstd", &["-q", "-f", "-19", "-o", to.to_str().unwrap(), stream.to_str().unwrap()]);
    let listed = listing(Mounted::at(&disk, root_offset_of(&disk, style)).path());
    fs::write(data().join(format!("{name}.listing")), listed).unwrap();
}

fn root_offset_of(disk: &Path, style: &str) -> u64 {
    if style == "none" { 0 } else { root_offset(disk) }
}

#[test]
fn backups_of_the_version_before_come_back() {
    let node = Node::new();
    for (style, filesystem) in DISKS {
        if updates() {
            fs::create_dir_all(data()).unwrap();
            update(&node, style, filesystem);
        }
        let name = format!("{style}-{filesystem}");
        let disk = node.disk("restored", GIB);
        let log = imported(&node, &disk, &data().join(format!("{name}.backup.zst")));
        let offset = root_offset_of(&disk, style);
        fsck(&disk, offset, filesystem);
        let expected = fs::read_to_string(data().join(format!("{name}.listing"))).unwrap();
        assert_eq!(listing(Mounted::at(&disk, offset).path()), expected, "{name}: {log}");
    }
    node.assert_nothing_left();
}

#[test]
fn the_cache_of_the_version_before_is_used() {
    let archive = data().join("cache.tar.zst");
    if updates() {
        let node = Node::new();
        node.create_on(&node.disk("d", GIB));
        let pack = "ls | grep -v -e fetched -e '-2047M-' -e '-3071M-' | tar -cS -T - | zstd -q -f -19 -o";
        let script = format!("cd {}; {pack} {}", node.cache().display(), archive.display());
        tool("sh", &["-ec", &script]);
    }
    let node = Node::bare();
    // However old it is by now.
    node.config("clean_cache = \"\"\n");
    tool("tar", &["-xf", archive.to_str().unwrap(), "-C", node.cache().to_str().unwrap()]);
    let before = files(&node);
    assert!(before.iter().any(|name| name.starts_with("template-")), "{before:?}");
    let log = node.create_on(&node.disk("d", GIB));
    assert!(log.contains("copying"), "the template serves: {log}");
    for template in before.iter().filter(|name| name.starts_with("template-")) {
        fs::remove_file(node.cache().join(template)).unwrap();
    }
    node.config("clean_cache = \"\"\ntemplates = 0\n");
    let log = node.create_on(&node.disk("d", GIB));
    assert!(log.contains("unpacking"), "the tree serves: {log}");
    assert!(!log.contains("bootstrapping"), "{log}");
    let listed = String::from_utf8(node.command(&["cache", "list"]).output().unwrap().stdout).unwrap();
    assert!(listed.contains("unknown"), "{listed}");
}

fn files(node: &Node) -> Vec<String> {
    let names = fs::read_dir(node.cache()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}
