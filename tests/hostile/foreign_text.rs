//! What a stranger wrote, a name above all, is printed as one word of one line: it is no line of the log, and no command for a
//! terminal.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::common::backup::import;
use crate::common::small_guest::{Answer, Flavour, SmallDisk};
use crate::common::tiny_mirror::small;
use crate::common::{GIB, Node, log_of, text, tool};

/// What somebody would like to stand in the log.
const FORGED: &str = "error: the node is broken\nhint: ask mallory\x1b[2J\x07";

/// Wants a log in which nobody else than the program speaks, although it names what was refused.
fn assert_own_words(log: &str, what: &str) {
    let own = |line: &str| !line.starts_with("error: the node") && !line.starts_with("hint: ask");
    assert!(log.lines().all(own), "{what}: {log}");
    assert!(log.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{what}: {log:?}");
    assert!(log.contains("ask mallory\\x1b[2J\\x07"), "{what}: {log}");
}

/// A tar with entries that cannot be restored, each for another reason, named like that.
fn tars(node: &Node) -> Vec<std::path::PathBuf> {
    let name = format!("etc/a\n{FORGED}");
    let header = |kind, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        header
    };
    let headers = [
        ("a hard link to nothing", header(tar::EntryType::Link, Some("etc/absent"))),
        ("a kind that nobody knows", header(tar::EntryType::new(b'Z'), None)),
    ];
    headers
        .into_iter()
        .map(|(what, header)| {
            let path = node.path().join(what);
            let mut builder = tar::Builder::new(File::create(&path).unwrap());
            for dir in ["./", "etc/"] {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                header.set_path(dir).unwrap();
                header.set_cksum();
                builder.append(&header, &[][..]).unwrap();
            }
            builder.append(&header, &[][..]).unwrap();
            builder.finish().unwrap();
            path
        })
        .collect()
}

#[test]
fn a_name_in_an_archive_is_one_word() {
    let node = Node::bare();
    for stream in tars(&node) {
        let (done, log) = import(&node, &node.disk("d", GIB), File::open(&stream).unwrap());
        assert!(!done, "{log}");
        assert_own_words(&log, &stream.display().to_string());
    }
    node.assert_nothing_left();
}

#[test]
fn a_name_in_a_guest_is_one_word() {
    let node = Node::bare();
    let disk = SmallDisk::make(&node, "d", Flavour::Ifupdown);
    {
        let root = disk.mount_writable();
        fs::write(root.path().join("etc/hostname"), format!("{FORGED}\n")).unwrap();
    }
    let answer = disk.rename(&node);
    assert!(!answer.done, "{}", answer.log);
    let own = |line: &str| !line.starts_with("error: the node") && !line.starts_with("hint: ask");
    assert!(answer.log.lines().all(own) && !answer.log.contains('\x1b'), "{}", answer.log);
}

#[test]
fn the_name_of_a_process_is_one_word() {
    let node = Node::new();
    let disk = node.disk("d", GIB);
    let program = node.path().join("x\nhint: ask");
    fs::copy("/usr/bin/flock", &program).unwrap();
    let mut holder =
        Command::new(&program).arg("-x").arg(&disk).args(["sleep", "60"]).process_group(0).spawn().unwrap();
    wait_for_lock(&disk);
    let answer = Answer::of(node.verb("create", &node.recorded("create", &disk)));
    assert!(!answer.done && answer.log.contains("x\\nhint: ask"), "{}", answer.log);
    assert!(answer.log.lines().all(|line| !line.starts_with("hint: ask")), "{}", answer.log);
    let group = nix::unistd::Pid::from_raw(holder.id() as i32);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    holder.wait().unwrap();
}

fn wait_for_lock(disk: &Path) {
    for _ in 0..500 {
        let free = Command::new("flock").args(["-n", "-x"]).arg(disk).arg("true").status().unwrap().success();
        let comm = tool("sh", &["-c", "cat /proc/[0-9]*/comm 2>/dev/null || true"]);
        if !free && comm.contains("x\nhint: ask") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("nobody locks it");
}

#[test]
fn what_a_manifest_and_a_files_name_say_is_one_word_of_a_list() {
    let node = Node::new();
    let cache = node.cache();
    let names = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let manifest = names.into_iter().find(|path| path.extension().is_some_and(|e| e == "toml")).unwrap();
    let forged = "x\\nFORGED line\\u001B[2J\\u009b";
    let mut said = fs::read_to_string(&manifest).unwrap();
    for key in ["suite", "arch", "boot"] {
        let line = said.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap().to_owned();
        said = said.replace(&line, &format!("{key} = \"{forged}\""));
    }
    fs::write(&manifest, said).unwrap();
    for name in
        ["cache-\x1b[31m-amd64.tar", "cache-x\nFORGED name-amd64.tar", "template-\x1b[31m\nFORGED.img"]
    {
        File::create(cache.join(name)).unwrap();
    }
    fs::write(cache.join("base-broken.toml"), "FORGED \x1b[2J\nFORGED = \n").unwrap();
    for args in
        [&["cache", "list"][..], &["cache", "list", "--json"], &["cache", "verify"], &["cache", "prune"]]
    {
        let output = node.command(args).output().unwrap();
        let (answer, log) = (text(&output.stdout), log_of(&output));
        assert!(answer.chars().chain(log.chars()).all(|c| c == '\n' || (' '..='~').contains(&c)), "{log:?}");
        assert!(log.lines().all(|line| !line.starts_with("FORGED")), "{args:?}: {log}");
        match args.last() {
            Some(&"--json") => {
                let trees: serde_json::Value = serde_json::from_str(&answer).unwrap();
                let suites = trees.as_array().unwrap().iter().map(|tree| tree["suite"].as_str());
                assert!(suites.flatten().any(|suite| suite == "x\nFORGED line\x1b[2J\u{9b}"), "{answer}");
            }
            Some(&"list") => assert!(answer.contains("x\\nFORGED line\\x1b[2J\\xc2\\x9b"), "{answer}"),
            _ => {}
        }
    }
}

#[test]
fn a_line_of_the_log_is_bounded() {
    let node = Node::bare();
    let settings = small(&node.path().join("mirror"), "marker");
    node.config(&format!("{settings}extra_pkgs = [\"{}\"]\n", "y".repeat(100_000)));
    let mut env = node.recorded("create", &node.disk("d", GIB));
    env.insert("DEBUG_LEVEL".into(), "1".into());
    let output = node.verb("create", &env).output().unwrap();
    let log = text(&output.stderr);
    assert!(!output.status.success() && log.contains(" characters) ... "), "{log:.9000}");
    assert!(log.contains("+ debootstrap --arch"), "{log:.9000}");
    let longest = log.lines().map(str::len).max().unwrap();
    assert!(longest <= 2000, "{longest}");
}
