//! What others than root could have written is not used: it is refused, or an admin is told the command that mends it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ganeti_instance_debootstrap::cache::{Judgement, Store};
use sha2::{Digest, Sha256};

use crate::common::tiny_mirror::tiny;
use crate::common::{GIB, Node, killed_with_us, log_of, tool};

const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 12345;

/// How a file becomes another's.
#[derive(Debug, Clone, Copy)]
enum Change {
    Mode(u32),
    Owner(u32),
}

impl Change {
    fn apply(self, path: &Path) {
        match self {
            Change::Mode(mode) => {
                let old = fs::metadata(path).unwrap().permissions().mode();
                fs::set_permissions(path, fs::Permissions::from_mode(old | mode)).unwrap();
            }
            Change::Owner(owner) => chown(path, Some(owner), None).unwrap(),
        }
    }

    fn take_back(self, path: &Path) {
        match self {
            Change::Mode(_) => drop(tool("chmod", &["go-w", path.to_str().unwrap()])),
            Change::Owner(_) => chown(path, Some(0), None).unwrap(),
        }
    }
}

/// A node where every kind of file of the administrator is used by one instance, and these files.
fn node_with_all_kinds(defaults: &str) -> (Node, Vec<PathBuf>) {
    let node = Node::bare();
    let etc = node.etc();
    let apt = etc.join("apt");
    let variants = node.path().join("moved");
    for dir in [&apt, &variants, &etc.join("hooks/confdata"), &node.path().join("images")] {
        fs::create_dir_all(dir).unwrap();
    }
    let image = node.path().join("images/golden.img");
    let table = format!("truncate -s 2M {0} && echo 2048,,L | sfdisk -q {0}", image.display());
    tool("sh", &["-c", &table]);
    let digest = Sha256::digest(fs::read(&image).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    node.config(&format!(
        "defaults = \"{defaults}\"\napt_dir = \"{}\"\nkeyring = \"{}\"\nsource = \"{} sha256:{digest}\"\n",
        apt.display(),
        etc.join("site.gpg").display(),
        image.display(),
    ));
    fs::write(node.legacy_defaults(), format!("VARIANTS_DIR={}\n", variants.display())).unwrap();
    fs::write(variants.join("mine.conf"), "EXTRA_PKGS=vim\n").unwrap();
    fs::write(variants.join("mine.toml"), "").unwrap();
    fs::write(etc.join("site.gpg"), [0x98, 1]).unwrap();
    fs::write(apt.join("site.list"), "").unwrap();
    node.hook("hook", "exit 0");
    fs::write(etc.join("hooks/confdata/motd"), "").unwrap();
    let files = vec![
        etc.join("config.toml"),
        node.legacy_defaults(),
        variants.join("mine.conf"),
        variants.join("mine.toml"),
        variants,
        etc.join("site.gpg"),
        apt.join("site.list"),
        apt,
        etc.join("hooks"),
        etc.join("hooks/hook"),
        etc.join("hooks/confdata"),
        etc.join("hooks/confdata/motd"),
        image.clone(),
        image.parent().unwrap().to_owned(),
        etc,
    ];
    (node, files)
}

#[test]
fn what_others_could_have_written_is_refused_or_warned_of() {
    let changes = [
        (Change::Mode(0o002), true),
        (Change::Owner(NOBODY), true),
        (Change::Mode(0o020), false),
        (Change::Owner(SOMEBODY), false),
    ];
    for defaults in ["1", "0.17"] {
        let (node, files) = node_with_all_kinds(defaults);
        let disk = node.disk("d", GIB);
        let mut env = node.recorded("create", &disk);
        env.insert("OS_VARIANT".into(), "mine".into());
        env.insert("OSP_PARTITION_STYLE".into(), "none".into());
        let create = || node.verb("create", &env).arg("--dry-run").output().unwrap();
        let check = || node.command(&["config", "check"]).output().unwrap();
        let log = log_of(&create());
        assert!(log.contains("golden.img") && !log.contains("chmod") && !log.contains("chown"), "{log}");
        assert!(!log_of(&check()).contains("chmod"), "{}", log_of(&check()));
        for file in &files {
            for (change, always) in changes {
                change.apply(file);
                let case = format!("{defaults:?} {} {change:?}", file.display());
                let output = create();
                let log = log_of(&output);
                // Another user's config.toml does not say how strictly it is judged.
                let decides = *file == node.etc() || *file == node.etc().join("config.toml");
                let refused = always || defaults == "1" || (decides && matches!(change, Change::Owner(_)));
                assert_eq!(output.status.success(), !refused, "{case}: {log}");
                let command = match change {
                    Change::Mode(0o002) => "chmod o-w ",
                    Change::Mode(_) => "chmod g-w ",
                    Change::Owner(_) => "chown root ",
                };
                let line = log.lines().find(|line| line.contains(&format!("{command}{}", file.display())));
                let line = line.unwrap_or_else(|| panic!("{case}: {log}"));
                assert!(refused || line.starts_with("warning: "), "{case}: {log}");
                if !refused {
                    let output = check();
                    assert_eq!(output.status.code(), Some(1), "{case}: {}", log_of(&output));
                }
                change.take_back(file);
            }
        }
        let output = create();
        assert!(output.status.success(), "{}", log_of(&output));
    }
}

#[test]
fn a_shell_file_that_others_could_have_written_is_not_run() {
    let (node, _) = node_with_all_kinds("1");
    let disk = node.disk("d", GIB);
    let mut env = node.recorded("create", &disk);
    env.insert("OS_VARIANT".into(), "mine".into());
    let ran = node.path().join("ran");
    let moved = node.path().join("moved/mine.conf");
    for file in [node.legacy_defaults(), moved] {
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{before}: > {}\n", ran.display())).unwrap();
        Change::Owner(SOMEBODY).apply(&file);
        let output = node.verb("create", &env).arg("--dry-run").output().unwrap();
        assert!(log_of(&output).contains(&format!("{} is not run", file.display())), "{}", log_of(&output));
        assert!(!ran.exists(), "{}", file.display());
        Change::Owner(SOMEBODY).take_back(&file);
        fs::write(&file, before).unwrap();
    }
}

/// What a create says before it touches its disk, and whether it would go on.
fn dry_run(node: &Node) -> (bool, String) {
    let env = node.recorded("create", &node.disk("d", GIB));
    let output = node.verb("create", &env).arg("--dry-run").output().unwrap();
    (output.status.success(), log_of(&output))
}

#[test]
fn what_a_link_among_the_hooks_names_is_looked_at_and_who_could_make_it() {
    for defaults in ["1", "0.17"] {
        let node = Node::bare();
        node.config(&format!("defaults = \"{defaults}\"\n"));
        for dir in ["shared/deep", "mid"] {
            fs::create_dir_all(node.path().join(dir)).unwrap();
        }
        let setting = node.path().join("shared/deep/setting");
        fs::write(&setting, "").unwrap();
        symlink(node.path().join("shared"), node.etc().join("hooks/confdata")).unwrap();
        symlink(node.etc().join("hooks"), node.path().join("shared/deep/circle")).unwrap();
        let (done, log) = dry_run(&node);
        assert!(done, "{log}");
        Change::Mode(0o666).apply(&setting);
        let (done, log) = dry_run(&node);
        assert!(!done && log.contains("/deep/setting can be written by everybody (mode 0666)"), "{log}");
        Change::Mode(0o666).take_back(&setting);

        // Others can make what is not there yet, also where a sticky bit keeps them from what is.
        let mid = node.path().join("mid");
        symlink(mid.join("late"), node.etc().join("hooks/50-late")).unwrap();
        fs::set_permissions(&mid, fs::Permissions::from_mode(0o1777)).unwrap();
        let (done, log) = dry_run(&node);
        assert!(!done && log.contains("/mid can be written by everybody (mode 1777)"), "{log}");
    }
}

#[test]
fn where_everybody_can_add_a_file_a_sticky_bit_is_no_help() {
    for defaults in ["1", "0.17"] {
        let (node, _) = node_with_all_kinds(defaults);
        let dirs =
            ["etc", "etc/hooks", "etc/hooks/confdata", "etc/apt", "moved"].map(|dir| node.path().join(dir));
        for dir in dirs {
            let mode = fs::metadata(&dir).unwrap().permissions();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
            let (done, log) = dry_run(&node);
            let expected = format!("{} can be written by everybody (mode 1777): chmod go-w", dir.display());
            assert!(!done && log.contains(&expected), "{defaults} {}: {log}", dir.display());
            fs::set_permissions(&dir, mode).unwrap();
        }
        let (done, log) = dry_run(&node);
        assert!(done, "{log}");
    }
}

#[test]
fn a_file_of_another_user_does_not_say_how_strictly_it_is_judged() {
    let node = Node::bare();
    let hooks = node.path().join("his");
    fs::create_dir(&hooks).unwrap();
    chown(&hooks, Some(SOMEBODY), None).unwrap();
    let config = format!("defaults = \"0.17\"\ncustomize_dir = \"{}\"\n", hooks.display());
    node.config(&config);
    let (done, log) = dry_run(&node);
    assert!(done && log.contains(&format!("chown root {}", hooks.display())), "root wrote it: {log}");
    for decides in [node.etc().join("config.toml"), node.etc()] {
        Change::Owner(SOMEBODY).apply(&decides);
        let (done, log) = dry_run(&node);
        assert!(!done && log.contains(&format!("chown root {}", decides.display())), "{log}");
        Change::Owner(SOMEBODY).take_back(&decides);
    }
    // The file whose presence alone says the same.
    fs::remove_file(node.etc().join("config.toml")).unwrap();
    let ran = node.path().join("ran");
    fs::write(node.legacy_defaults(), format!(": > {}\n", ran.display())).unwrap();
    Change::Owner(SOMEBODY).apply(&node.legacy_defaults());
    let (done, log) = dry_run(&node);
    assert!(!done && log.contains("is not run") && !ran.exists(), "{log}");
}

/// A create that waits for another one's tree after its settings were judged; `change` comes while it waits.
fn create_with_a_change(node: &Node, change: impl FnOnce()) -> (bool, String) {
    let store = Store::open(&node.cache(), Judgement::Strict).unwrap();
    let held = store.lock(|_| ()).unwrap();
    let mut command = node.verb("create", &node.recorded("create", &node.disk("d", GIB)));
    let mut child = killed_with_us(&mut command).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut log = String::new();
    while !log.contains("waiting for") {
        assert!(stderr.read_line(&mut log).unwrap() > 0, "{log}");
    }
    change();
    drop(held);
    stderr.read_to_string(&mut log).unwrap();
    (child.wait().unwrap().success(), log)
}

#[test]
fn hooks_are_judged_again_right_before_they_run() {
    for (defaults, change, runs) in [
        ("1", Change::Owner(SOMEBODY), false),
        ("0.17", Change::Owner(SOMEBODY), true),
        ("0.17", Change::Mode(0o002), false),
    ] {
        let node = Node::bare();
        node.config(&format!("defaults = \"{defaults}\"\n{}", tiny()));
        let ran = node.path().join("ran");
        node.hook("hook", &format!("#!/bin/sh\n: > {}\n", ran.display()));
        let hook = node.etc().join("hooks/hook");
        let (done, log) = create_with_a_change(&node, || change.apply(&hook));
        assert_eq!((done, ran.exists()), (runs, runs), "{defaults} {change:?}: {log}");
        let told = log.lines().any(|line| {
            line.contains(&hook.display().to_string()) && (!runs || line.starts_with("warning: "))
        });
        assert!(told, "{log}");
        node.assert_nothing_left();
    }
}

/// A file of the cache that others could have written is judged like `source`.
#[test]
fn a_strangers_file_in_the_cache_is_refused_or_warned_of() {
    let changes = [
        (Change::Owner(SOMEBODY), false, "chown root "),
        (Change::Mode(0o020), false, "chmod g-w "),
        (Change::Owner(NOBODY), true, "chown root "),
        (Change::Mode(0o002), true, "chmod o-w "),
    ];
    for defaults in ["1", "0.17"] {
        for templates in [0, 1] {
            let node = Node::new();
            node.config(&format!("defaults = \"{defaults}\"\nboot = \"no\"\npartition_style = \"msdos\"\ntemplates = {templates}\n"));
            let of = |begin: &str, end: &str| {
                let files = fs::read_dir(node.cache()).unwrap().map(|entry| entry.unwrap().path());
                let mut found = files.filter(|path| {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    name.starts_with(begin) && name.ends_with(end)
                });
                found.next().unwrap()
            };
            let by_hand = node.cache().join("cache-trixie-amd64.tar");
            let tar = of("base-", ".tar");
            // One that is linked to the tests' own cache is another node's too.
            fs::copy(&tar, &by_hand).unwrap();
            fs::rename(&by_hand, &tar).unwrap();
            node.create_on(&node.disk("d", GIB));
            let mut files = vec![tar.clone(), of("base-", ".toml")];
            if templates > 0 {
                files.push(of("template-", ".img"));
            }
            let judge = |file: &Path| {
                for (change, always, command) in changes {
                    change.apply(file);
                    let refused = always || defaults == "1";
                    let output =
                        node.verb("create", &node.recorded("create", &node.disk("d", GIB))).output().unwrap();
                    let (log, case) =
                        (log_of(&output), format!("{defaults} {templates} {} {change:?}", file.display()));
                    assert_eq!(output.status.success(), !refused, "{case}: {log}");
                    let told = format!("{command}{}", file.display());
                    let line = log.lines().find(|line| line.contains(&told));
                    let line = line.unwrap_or_else(|| panic!("{case}: {log}"));
                    assert!(refused || line.starts_with("warning: "), "{case}: {log}");
                    change.take_back(file);
                }
            };
            files.iter().for_each(|file| judge(file));
            fs::copy(&tar, &by_hand).unwrap();
            judge(&by_hand);
        }
    }
}

#[test]
fn write_is_taken_from_others_before_anything_in_the_cache_is_looked_at() {
    let node = Node::new();
    node.config("defaults = \"1\"\nboot = \"no\"\ntemplates = 0\n");
    let by_hand = node.cache().join("cache-trixie-amd64.tar");
    File::create(&by_hand).unwrap();
    chown(&by_hand, Some(SOMEBODY), None).unwrap();
    let env = node.recorded("create", &node.disk("d", GIB));
    let verbs: [(&str, &[&str]); 6] = [
        ("create", &[]),
        ("", &["cache", "list"]),
        ("", &["cache", "verify"]),
        ("", &["cache", "prune"]),
        ("", &["cache", "seal", "cache-trixie-amd64.tar"]),
        ("", &["config", "check"]),
    ];
    for (verb, args) in verbs {
        fs::set_permissions(node.cache(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = if verb.is_empty() { node.command(args) } else { node.verb(verb, &env) };
        let output = command.output().unwrap();
        let log = log_of(&output);
        let mode = fs::metadata(node.cache()).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o755, "{verb}{args:?}: {log}");
        assert!(log.contains("could be written by everybody; it cannot any more"), "{verb}{args:?}: {log}");
        let goes_on = args.ends_with(&["list"]) || args.ends_with(&["prune"]);
        assert_eq!(output.status.success(), goes_on, "{verb}{args:?}: {log}");
        assert!(
            log.contains("REFUSED") || log.contains("chown root ") || args.ends_with(&["prune"]),
            "{log}"
        );
    }
}
