//! Templates in the cache: made once, as many as are wanted, never of another tree; and guests of one template are
//! strangers to each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::bench::{Bench, By, Guest, Shape};
use crate::common::running::{Family, Running};
use crate::common::tiny_mirror::tiny;
use crate::common::trees::pack;
use crate::common::{GIB, Node, SUITE, log_of, partition_offset, text, tool};

/// A shape of another size.
fn of_gib(count: u64) -> Shape {
    Shape { bytes: count * GIB, ..Shape::SMALL }
}

fn at_once(bench: &Bench, shapes: &[Shape]) -> Vec<Guest> {
    let runs: Vec<(PathBuf, Shape, Running)> = shapes
        .iter()
        .enumerate()
        .map(|(number, shape)| {
            let disk = bench.node.disk(&format!("disk{number}"), shape.bytes);
            let run = Running::start(bench.command(&disk, *shape, ""));
            (disk, *shape, run)
        })
        .collect();
    let ended: Vec<_> =
        runs.into_iter().map(|(disk, shape, run)| (disk, shape, run.end(Family::default()))).collect();
    ended
        .into_iter()
        .map(|(disk, shape, ended)| {
            assert!(ended.status.success(), "{}", ended.log);
            let guest = Guest::new(disk, shape, ended.log);
            assert!(guest.is_copy(), "{}", guest.log);
            guest.check();
            guest
        })
        .collect()
}

#[test]
fn creates_at_once_that_want_one_template_make_it_once() {
    let bench = Bench::new();
    for count in [2, 5] {
        let guests = at_once(&bench, &vec![Shape::SMALL; count]);
        let logs = |part: &str| guests.iter().filter(|guest| guest.log.contains(part)).count();
        assert_eq!(logs("...  making a template"), 1, "{}", guests[0].log);
        assert!(logs("waiting for process") > 0, "{}", guests[0].log);
        for guest in &guests[1..] {
            bench.assert_equal(&guests[0], guest, "made at once");
        }
        fs::remove_file(bench.template()).unwrap();
    }
    // Of several sizes: each is made once, and all are there.
    let guests = at_once(&bench, &[of_gib(1), of_gib(2), of_gib(1), of_gib(3), of_gib(2)]);
    let made = guests.iter().filter(|guest| guest.log.contains("...  making a template")).count();
    assert_eq!((made, bench.templates().len()), (3, 3));
    bench.node.assert_nothing_left();
}

#[test]
fn as_many_are_kept_as_are_wanted_and_those_that_were_used_last() {
    let bench = Bench::new();
    let create = |gib: u64, templates: &str| {
        let (disk, shape) = (bench.node.disk("disk", gib * GIB), of_gib(gib));
        bench.run(bench.command(&disk, shape, templates), &disk, shape)
    };
    let name = |gib: u64| {
        let mib = format!("-{}M-", gib << 10);
        bench.templates().into_iter().find(|path| path.to_str().unwrap().contains(&mib))
    };
    let two = "templates = 2\n";
    assert!(create(1, two).is_copy() && create(2, two).is_copy());
    assert_eq!(bench.templates().len(), 2);
    let again = create(1, two);
    assert!(again.is_copy() && !again.log.contains("making a template"), "{}", again.log);
    assert!(create(3, two).is_copy());
    assert!(name(1).is_some() && name(2).is_none() && name(3).is_some(), "{:?}", bench.templates());
    // None at all: those that are there are not used.
    assert!(!create(1, "templates = 0\n").is_copy());
    // Where a cache may not be made, what is there is used.
    let no_cache = "generate_cache = false\n";
    assert!(create(1, no_cache).is_copy() && !create(2, no_cache).is_copy());
    assert_eq!(bench.templates().len(), 2);
    // By default four.
    for gib in 4..8 {
        create(gib, "");
    }
    assert_eq!(bench.templates().len(), 4, "{:?}", bench.templates());
    // Fewer are wanted by now: a prune heeds whoever wants most.
    fs::write(bench.node.etc().join("variants.list"), "default\nfrugal\n").unwrap();
    bench.node.variant("frugal.toml", "templates = 0\n");
    for (left, templates) in [(2, two), (0, "templates = 0\n")] {
        bench.node.config(templates);
        bench.cache(&["prune"]);
        assert_eq!(bench.templates().len(), left, "{:?}", bench.templates());
        assert!(left == 0 || (name(6).is_some() && name(7).is_some()), "{:?}", bench.templates());
    }
    bench.node.assert_nothing_left();
}

/// Packs a system with one file that tells it from others.
fn pack_system(bench: &Bench, tar: &Path, mark: &str) {
    let tree = tempfile::tempdir_in(bench.node.path()).unwrap();
    crate::common::small_guest::plant(tree.path(), crate::common::small_guest::Flavour::Ifupdown);
    fs::write(tree.path().join("etc/mark"), mark).unwrap();
    pack(tree.path(), tar);
}

#[test]
fn a_disk_that_is_small_or_of_another_kind_gets_none() {
    let bench = Bench::of(Node::bare());
    pack_system(&bench, &bench.tar(), "small");
    for (bytes, filesystem) in [(511 << 20, "ext4"), (GIB, "xfs"), (GIB, "btrfs")] {
        let guest = bench.guest("guest", Shape { bytes, filesystem, style: "none" }, By::Template);
        assert!(!guest.is_copy() && !guest.log.contains("warning: no template"), "{}", guest.log);
        assert!(bench.templates().is_empty(), "{:?}", bench.templates());
    }
    bench.node.assert_nothing_left();
}

#[test]
fn a_tree_that_was_replaced_is_in_no_new_guest() {
    let bench = Bench::of(Node::bare());
    let mark = |what: &str| {
        let guest = bench.guest("guest", Shape::SMALL, By::Template);
        assert!(guest.is_copy(), "{what}: {}", guest.log);
        guest.mount("ro").read("etc/mark")
    };
    pack_system(&bench, &bench.tar(), "one");
    assert_eq!((mark("one"), mark("one again")), ("one".into(), "one".into()));
    // Written over in place.
    let next = bench.node.path().join("next.tar");
    pack_system(&bench, &next, "two");
    fs::copy(&next, bench.tar()).unwrap();
    assert_eq!(mark("written over"), "two");
    // Another file of the same name.
    pack_system(&bench, &next, "six");
    fs::rename(&next, bench.tar()).unwrap();
    assert_eq!(mark("another file"), "six");
    // With the time of the one before, as rsync and cp -p leave it, and of the same length.
    let (before, old) = (bench.node.path().join("before.tar"), bench.tar());
    fs::copy(&old, &before).unwrap();
    tool("touch", &["-r", old.to_str().unwrap(), before.to_str().unwrap()]);
    pack_system(&bench, &next, "ten");
    assert_eq!(fs::metadata(&next).unwrap().len(), fs::metadata(&before).unwrap().len());
    tool("touch", &["-r", before.to_str().unwrap(), next.to_str().unwrap()]);
    fs::rename(&next, bench.tar()).unwrap();
    assert_eq!(mark("another file of the same time and length"), "ten");
    // Those of trees that are gone are removed, that of this one is not.
    assert!(bench.templates().len() > 1, "{:?}", bench.templates());
    bench.cache(&["prune"]);
    assert_eq!(bench.templates().len(), 1, "{:?}", bench.templates());
    assert_eq!(mark("after a prune"), "ten");
    fs::remove_file(bench.tar()).unwrap();
    bench.cache(&["prune"]);
    assert_eq!(bench.templates(), Vec::<PathBuf>::new());
    bench.node.assert_nothing_left();
}

#[test]
fn a_list_shows_templates_and_a_refresh_makes_them_again() {
    let bench = Bench::of(Node::bare());
    let both = |gib: u64, variant: &str| {
        let shape = of_gib(gib);
        let disk = bench.node.disk("disk", shape.bytes);
        let mut env = bench.node.recorded("create", &disk);
        env.insert("OSP_PARTITION_STYLE".into(), "none".into());
        env.insert("OS_VARIANT".into(), variant.into());
        env.insert("DEBUG_LEVEL".into(), "1".into());
        let guest = bench.run(bench.node.verb("create", &env), &disk, shape);
        assert!(guest.is_copy(), "{}", guest.log);
        guest
    };
    // Two variants with two templates each, as many as are kept; those of the one that is refreshed first are younger.
    fs::write(bench.node.etc().join("variants.list"), "one\ntwo\n").unwrap();
    bench.node.config("");
    bench.node.variant("one.toml", &tiny());
    bench.node.variant("two.toml", &format!("{}extra_pkgs = [\"tiny\"]\n", tiny()));
    for (gib, variant) in [(1, "two"), (2, "two"), (1, "one"), (2, "one")] {
        both(gib, variant);
    }
    let before = bench.templates();
    assert_eq!(before.len(), 4, "{before:?}");

    let output = bench.node.command(&["cache", "list", "--json"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown = |list: &serde_json::Value| -> BTreeSet<(String, u64)> {
        let all = list.as_array().unwrap().iter().filter(|entry| entry["kind"] == "template");
        all.map(|entry| {
            let tree = bench.node.cache().join(entry["tree"].as_str().unwrap());
            assert!(tree.is_file() && entry["state"] == "ready" && entry["suite"] == "tiny", "{entry}");
            assert!(Path::new(entry["file"].as_str().unwrap()).is_file(), "{entry}");
            let key = tree.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();
            (key, entry["root_bytes"].as_u64().unwrap())
        })
        .collect()
    };
    let kinds = shown(&list);
    assert_eq!(kinds.len(), 4, "{list}");
    let list = text(&bench.node.command(&["cache", "list"]).output().unwrap().stdout);
    assert_eq!(list.matches("  template-tiny-").count(), 4, "{list}");
    assert_eq!(bench.cache(&["verify"]).matches("  good").count(), 6);

    bench.cache(&["refresh"]);
    let output = bench.node.command(&["cache", "list", "--json"]).output().unwrap();
    bench.cache(&["prune"]);
    assert!(bench.templates().iter().all(|path| !before.contains(path)), "{:?}", bench.templates());
    assert_eq!(bench.templates().len(), 4, "{}", log_of(&output));
    let output = bench.node.command(&["cache", "list", "--json"]).output().unwrap();
    assert_eq!(shown(&serde_json::from_slice(&output.stdout).unwrap()), kinds);
    let warm = both(2, "two");
    assert!(!warm.log.contains("making a template"), "{}", warm.log);
    bench.node.assert_nothing_left();
}

/// The same command on a node whose mke2fs refuses to make an ext3.
fn without_ext3(bench: &Bench, command: &Command) -> Command {
    let defaults = fs::read_to_string("/etc/mke2fs.conf").unwrap();
    assert!(defaults.contains("ext3 = {"), "{defaults}");
    let file = bench.node.path().join("mke2fs.conf");
    fs::write(&file, defaults.replace("ext3 = {", "ext3 = {\n\t\tfeatures = nonsense")).unwrap();
    let mut wrapped = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/mke2fs.conf && exec \"$@\"";
    wrapped.args(["--mount", "--propagation", "slave", "sh", "-c", script]).arg(file);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped
}

#[test]
fn a_refresh_without_its_templates_is_a_refresh_and_those_used_last_stay_so() {
    let bench = Bench::of(Node::bare());
    fs::write(bench.node.etc().join("variants.list"), "one\ntwo\n").unwrap();
    bench.node.config("");
    bench.node.variant("one.toml", &tiny());
    bench.node.variant("two.toml", &tiny());
    for (gib, filesystem) in [(1, "ext3"), (3, "ext4"), (2, "ext4")] {
        let shape = Shape { filesystem, ..of_gib(gib) };
        let disk = bench.node.disk("disk", shape.bytes);
        let mut env = bench.node.recorded("create", &disk);
        env.insert("OSP_PARTITION_STYLE".into(), "none".into());
        env.insert("OSP_FILESYSTEM".into(), filesystem.into());
        env.insert("OS_VARIANT".into(), "one".into());
        env.insert("DEBUG_LEVEL".into(), "1".into());
        assert!(bench.run(bench.node.verb("create", &env), &disk, shape).is_copy());
    }
    let output = without_ext3(&bench, &bench.node.command(&["cache", "refresh"])).output().unwrap();
    let log = log_of(&output);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("warning: no template, ext3 of 1 GiB: formatting "), "{log}");
    // Both variants are of one tree.
    assert_eq!(log.matches(" s  publishing it in the cache").count(), 1, "{log}");
    let list = text(&bench.node.command(&["cache", "list"]).output().unwrap().stdout);
    let at = |what: &str| list.find(what).unwrap_or_else(|| panic!("{what}: {list}"));
    assert!(at("-ext4-2048M-") < at("-ext4-3072M-") && !list.contains("ext3"), "{list}");
    bench.node.assert_nothing_left();
}

#[test]
fn a_template_that_was_asked_for_and_cannot_be_is_an_error() {
    let bench = Bench::of(Node::bare());
    bench.node.config("");
    bench.node.variant("one.toml", &format!("{}filesystem = \"ext3\"\n", tiny()));
    let build = |size: &str| bench.node.command(&["cache", "build", "one", "--size", size]);
    let output = build("100M").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", log_of(&output));
    // It is known before anything is made.
    assert_eq!(fs::read_dir(bench.node.cache()).map_or(0, Iterator::count), 0, "{}", log_of(&output));
    let output = without_ext3(&bench, &build("2G")).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("error: ") && !log.contains("unpacked"), "{log}");
    assert!(bench.templates().is_empty(), "{log}");
    let output = build("2G").output().unwrap();
    assert!(output.status.success() && bench.templates().len() == 1, "{}", log_of(&output));
    bench.node.assert_nothing_left();
}

/// All that identifies a disk and what is on it.
fn identifiers(bench: &Bench, guest: &Guest) -> BTreeSet<String> {
    let superblock = bench.superblock(guest);
    let mut found = BTreeSet::from([superblock.uuid().to_owned()]);
    assert_eq!(
        superblock.journal_uuid.as_deref(),
        Some(superblock.uuid()),
        "the journal's is its filesystem's"
    );
    let json = tool("sfdisk", &["--json", guest.disk.to_str().unwrap()]);
    let table: serde_json::Value = serde_json::from_str(&json).unwrap();
    let table = &table["partitiontable"];
    found.insert(table["id"].as_str().unwrap().into());
    for partition in table["partitions"].as_array().unwrap() {
        found.insert(partition["uuid"].as_str().unwrap().into());
        let number: String =
            partition["node"].as_str().unwrap().chars().rev().take_while(char::is_ascii_digit).collect();
        let number: u32 = number.chars().rev().collect::<String>().parse().unwrap();
        let at = partition_offset(&guest.disk, number).to_string();
        let mut probe = Command::new("blkid");
        probe.args(["-p", "-O", &at, "-o", "value", "-s", "UUID"]).arg(&guest.disk);
        found.extend(text(&probe.output().unwrap().stdout).lines().map(str::to_owned));
    }
    let root = guest.mount("ro");
    found.insert(root.read("etc/ssh/ssh_host_ed25519_key.pub"));
    found
}

#[test]
fn guests_of_one_template_share_no_identifier_and_live_side_by_side() {
    let bench = Bench::of(Node::bootable(SUITE));
    let shape = Shape { bytes: 4 * GIB, filesystem: "ext4", style: "gpt" };
    let guest = |name: &str| {
        let disk = bench.node.disk(name, shape.bytes);
        let mut env =
            bench.node.kvm(&disk, &[("swap", "256M"), ("filesystem", "ext4"), ("partition_style", "gpt")]);
        env.insert("DEBUG_LEVEL".into(), "1".into());
        bench.run(bench.node.verb("create", &env), &disk, shape)
    };
    let guests = [guest("one"), guest("two")];
    assert!(guests.iter().all(Guest::is_copy), "{}", guests[0].log);
    let made = guests.each_ref().map(|guest| guest.log.contains("making a template"));
    assert_eq!(made, [true, false], "{}", guests[1].log);
    bench.assert_equal(&guests[0], &guests[1], "of one template");
    let [one, two] = [identifiers(&bench, &guests[0]), identifiers(&bench, &guests[1])];
    // Table, four partitions, root, ESP, swap, and a key.
    assert!(one.len() >= 9, "{one:?}");
    assert_eq!(one.intersection(&two).collect::<Vec<_>>(), Vec::<&String>::new());
    let mounted = [guests[0].mount("rw"), guests[1].mount("rw")];
    for root in &mounted {
        fs::write(root.path().join("alive"), "").unwrap();
    }
    drop(mounted);
    guests.iter().for_each(Guest::check);
    bench.node.assert_nothing_left();
}

#[test]
fn a_warm_create_spawns_next_to_nothing() {
    let bench = Bench::new();
    for style in ["none", "gpt"] {
        let shape = Shape { style, ..Shape::SMALL };
        bench.guest("first", shape, By::Template);
        let disk = bench.node.disk("disk", shape.bytes);
        let command = bench.command(&disk, shape, "");
        let trace = bench.node.path().join("trace");
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", "trace=execve", "-e", "status=successful", "-o"]).arg(&trace);
        traced.arg(command.get_program()).args(command.get_args());
        traced.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        traced.current_dir(command.get_current_dir().unwrap());
        let guest = bench.run(traced, &disk, shape);
        assert!(guest.is_copy() && !guest.log.contains("making a template"), "{}", guest.log);
        let trace = fs::read_to_string(trace).unwrap();
        let programs: Vec<&str> = trace.lines().filter(|line| line.contains("execve(")).collect();
        let at = programs.iter().position(|line| line.contains("os/create")).expect("our own start");
        let spawned = &programs[at + 1..];
        let itself = |line: &&&str| line.contains("os/create");
        assert!(spawned.iter().filter(|line| !itself(line)).count() <= 2, "{programs:#?}");
    }
    bench.node.assert_nothing_left();
}
