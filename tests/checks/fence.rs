//! Which rooms of the house may import which; no modules import each other in a circle. Read from the sources: no import
//! can hide from it, as long as it is formatted by rustfmt.
//!
//! A room is a module of src/. The table is shown in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::project;

/// A room, what it owns, and what it imports. From the entry down; docs compare ARCHITECTURE.md with it.
#[rustfmt::skip]
const ROOMS: &[(&str, &str, &[&str])] = &[
    ("main", "the entry: finds the verb, sets up the process, prints the error; alone chooses the exit status",
        &["cli", "command", "report", "request", "sys", "verbs"]),
    ("cli", "what can be typed: clap's types",
        &["settings"]),
    ("verbs", "create, import, export, rename, verify, image, cache, config: each one story",
        &["admin_file", "allocation", "backup", "bootstrap", "cache", "cli", "command", "disk", "filesystem", "guest", "install", "plan", "probe", "report", "request", "restore", "settings", "sys"]),
    ("plan", "decides everything from request, settings and facts; touches nothing; its Display is the dry run",
        &["bootstrap", "cache", "command", "debian", "disk", "filesystem", "guest", "partition_table", "report", "request", "settings"]),
    ("settings", "the layers of settings and their one table; each value remembers where it comes from",
        &["admin_file", "bootstrap", "cache", "command", "debian", "filesystem", "guest", "presence", "report", "request"]),
    ("install", "a blank disk becomes one with a tree that may boot: template or unpacking, loader, table, teardown",
        &["allocation", "bootstrap", "cache", "command", "disk", "filesystem", "guest", "hooks", "partition_table", "plan", "probe", "reader", "report", "rootdir", "sys", "tar"]),
    ("restore", "a disk from a stream or an image of its blocks; its growth and its new identity",
        &["admin_file", "backup", "cache", "command", "disk", "filesystem", "guest", "hooks", "install", "partition_table", "plan", "probe", "reader", "report", "request", "rootdir", "sys", "tar"]),
    ("hooks", "which hooks run, in which order, and what their failure means",
        &["admin_file", "command", "guest", "plan", "report", "rootdir"]),
    ("cache", "base tars and templates as files: key, lock, manifest, expiry, atomic publication",
        &["admin_file", "backup", "bootstrap", "reader", "report", "sys"]),
    ("bootstrap", "a root tree by debootstrap or mmdebstrap, with updates, kernel and loader; knows no cache and no disk",
        &["command", "debian", "filesystem", "guest", "presence", "report", "rootdir", "sys"]),
    ("guest", "mounts, and everything that is written inside a guest: names, network, access, boot configuration",
        &["allocation", "command", "disk", "filesystem", "partition_table", "probe", "reader", "report", "request", "rootdir", "sys"]),
    ("allocation", "what is in use in a partition, by the maps of ext, xfs and btrfs themselves",
        &["disk", "filesystem", "probe", "reader"]),
    ("probe", "what a stranger's disk holds: its table's partitions and their superblocks",
        &["filesystem", "partition_table", "reader"]),
    ("partition_table", "all that is known of GPT and MBR: layout, reading, writing, growing, new identifiers",
        &["filesystem", "reader", "report"]),
    ("disk", "the file or device that Ganeti gives, the loop device over it, mkfs, boot code, ways to write",
        &["command", "filesystem", "partition_table", "probe", "reader", "report", "sys"]),
    ("backup", "backup streams of every kind: disk archives, dumps, tars, compression, qcow2",
        &["probe", "reader", "report", "rootdir", "sys", "tar"]),
    ("tar", "a root tree as a tar: packed and unpacked, trusting nothing",
        &["reader", "report", "rootdir"]),
    ("rootdir", "the one way to a path inside a guest (openat2, RESOLVE_IN_ROOT)",
        &["report"]),
    ("request", "Ganeti's environment as typed values; alone reads the environment",
        &["report"]),
    ("reader", "the bytes of a stranger's disk, within a budget of work, and the integers and checksums that formats share",
        &["filesystem", "report", "sys"]),
    ("command", "alone spawns processes; the init of their PID namespace",
        &["report", "sys"]),
    ("admin_file", "files that the administrator vouches for: who can write them, and their digests",
        &["report", "sys"]),
    ("debian", "what is known of releases and architectures by their names",
        &["filesystem"]),
    ("filesystem", "the words for filesystems and layouts",
        &[]),
    ("presence", "whether something is there on the node: alone tells what is absent from what could not be looked at",
        &[]),
    ("report", "what the program says; alone writes to stderr",
        &["sys"]),
    ("sys", "what only the kernel does: ioctls, signals, locks, files without a name; alone has unsafe code and nix",
        &[]),
];

/// Path of a module from the root of its crate.
type Module = Vec<String>;

/// The modules of a crate, what each imports, and what each hands on under its own name.
struct Crate {
    imports: BTreeMap<Module, BTreeSet<Module>>,
}

impl Crate {
    /// Reads all that is below a directory, but for tests.
    fn read(dir: &Path, own_name: &str) -> Crate {
        let mut sources = BTreeMap::new();
        for entry in walkdir::WalkDir::new(dir) {
            let path = entry.unwrap().into_path();
            let is_source = path.extension().is_some_and(|extension| extension == "rs");
            if is_source && path.file_stem().is_some_and(|stem| stem != "tests" && stem != "tests_as_root") {
                sources.insert(module_of(dir, &path), code_of(&path));
            }
        }
        let paths: BTreeMap<&Module, Vec<Import>> = sources
            .iter()
            .map(|(module, code)| {
                (module, paths_in(&code.replace(&format!("{own_name}::"), "crate::"), module))
            })
            .collect();
        // What a module hands on is its maker's.
        let mut handed_on = BTreeMap::new();
        for (module, paths) in &paths {
            for path in paths.iter().filter(|path| path.is_handed_on) {
                handed_on.insert(child(module, &path.name), path.segments.clone());
            }
        }
        let resolve = |segments: &[String]| -> Module {
            let mut segments = segments.to_vec();
            for _ in 0..8 {
                let Some((length, to)) = (1..=segments.len())
                    .find_map(|length| handed_on.get(&segments[..length]).map(|to| (length, to)))
                else {
                    break;
                };
                segments = [&to[..], &segments[length..]].concat();
            }
            while !segments.is_empty() && !sources.contains_key(&segments) {
                segments.pop();
            }
            segments
        };
        let imports = paths
            .iter()
            .map(|(module, paths)| {
                ((*module).clone(), paths.iter().map(|path| resolve(&path.segments)).collect())
            })
            .collect();
        Crate { imports }
    }

    /// What each module of a directory imports of the others; each stands for all that is in it.
    fn between(&self, dir: &[String]) -> BTreeMap<String, BTreeSet<String>> {
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let inside =
            |module: &Module| module.starts_with(dir).then(|| module.get(dir.len()).cloned()).flatten();
        for (module, imports) in &self.imports {
            let Some(from) = inside(module) else { continue };
            let to = imports.iter().filter_map(inside).filter(|to| *to != from);
            edges.entry(from.clone()).or_default().extend(to);
        }
        edges
    }

    /// Directories, the root first.
    fn dirs(&self) -> BTreeSet<Module> {
        self.imports
            .keys()
            .flat_map(|module| (0..module.len()).map(|depth| module[..depth].to_vec()))
            .collect()
    }

    /// Groups of modules that reach each other.
    fn circles(&self) -> BTreeSet<(String, Vec<String>)> {
        let mut circles = BTreeSet::new();
        for dir in self.dirs() {
            let edges = self.between(&dir);
            let reach = |from: &String| {
                let mut seen = BTreeSet::new();
                let mut next = vec![from];
                while let Some(module) = next.pop() {
                    next.extend(
                        edges.get(module).into_iter().flatten().filter(|to| seen.insert((*to).clone())),
                    );
                }
                seen
            };
            let reached: BTreeMap<&String, BTreeSet<String>> =
                edges.keys().map(|from| (from, reach(from))).collect();
            for (from, seen) in &reached {
                let group: Vec<String> = seen
                    .iter()
                    .filter(|to| reached.get(to).is_some_and(|back| back.contains(*from)))
                    .cloned()
                    .collect();
                if group.len() > 1 {
                    circles.insert((dir.join("/"), group));
                }
            }
        }
        circles
    }
}

/// A path in a source.
#[derive(Debug)]
struct Import {
    /// From the root of the crate.
    segments: Module,
    /// What it is called here.
    name: String,
    /// By `pub use`.
    is_handed_on: bool,
}

fn child(module: &[String], name: &str) -> Module {
    [module, &[name.to_owned()]].concat()
}

/// `disk/esp/mod.rs` and `disk/esp.rs` are disk::esp; lib.rs and main.rs of a binary are the root.
fn module_of(dir: &Path, file: &Path) -> Module {
    let mut module: Module = file
        .strip_prefix(dir)
        .unwrap()
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_str().unwrap().to_owned())
        .collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// A source without comments, without what stands in quotes, and without its tests.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut code = String::new();
    for line in text.lines() {
        let mut in_quotes = false;
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if in_quotes => drop(characters.next()),
                '"' => in_quotes = !in_quotes,
                '/' if !in_quotes && characters.peek() == Some(&'/') => break,
                other if !in_quotes => code.push(other),
                _ => {}
            }
        }
        code.push('\n');
    }
    code
}

/// All such paths in a module's code; those in braces each by itself.
fn paths_in(code: &str, module: &[String]) -> Vec<Import> {
    let mut paths = Vec::new();
    for head in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(head) {
            let before = &code[..at];
            let is_inside =
                before.ends_with("::") || before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if is_inside {
                continue;
            }
            let (base, rest) = base_of(&code[at..], module);
            let statement = before.rsplit([';', '}']).next().unwrap_or_default();
            let is_handed_on = statement.contains("use ") && statement.trim_start().starts_with("pub");
            tree(rest, &base, &mut |segments, name| paths.push(Import { segments, name, is_handed_on }));
        }
    }
    // `pub use child::Name` of a module of a directory.
    for (at, _) in code.match_indices("use ") {
        let statement = code[..at].rsplit([';', '}']).next().unwrap_or_default().trim_start();
        let rest = &code[at + 4..];
        let is_relative = !["crate::", "super::", "self::"].iter().any(|head| rest.starts_with(head));
        if statement.starts_with("pub") && is_relative {
            tree(rest, module, &mut |segments, name| {
                paths.push(Import { segments, name, is_handed_on: true })
            });
        }
    }
    paths
}

/// Where a path begins, and what follows.
fn base_of<'c>(mut code: &'c str, module: &[String]) -> (Module, &'c str) {
    if let Some(rest) = code.strip_prefix("crate::") {
        return (Vec::new(), rest);
    }
    if let Some(rest) = code.strip_prefix("self::") {
        return (module.to_vec(), rest);
    }
    let mut base = module.to_vec();
    while let Some(rest) = code.strip_prefix("super::") {
        base.pop();
        code = rest;
    }
    (base, code)
}

/// Hands out the paths of a tree of imports (`a::{b, c::d as e}`) below `base`, and their names; what follows it.
fn tree<'c>(code: &'c str, base: &[String], found: &mut dyn FnMut(Module, String)) -> &'c str {
    let mut segments = base.to_vec();
    let mut rest = code;
    loop {
        rest = rest.trim_start();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                rest = rest.trim_start();
                if let Some(after) = rest.strip_prefix('}') {
                    return after;
                }
                let before = rest.len();
                rest = tree(rest, &segments, found).trim_start();
                rest = rest.strip_prefix(',').unwrap_or(rest);
                assert!(rest.len() < before, "a tree of imports that is none: {rest:.60}");
            }
        }
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        match &rest[..length] {
            "" | "self" => {}
            name => segments.push(name.to_owned()),
        }
        rest = &rest[length..];
        let Some(after) = rest.strip_prefix("::") else { break };
        // `::<Type>`, and what is no path any more.
        if !after.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '{') {
            break;
        }
        rest = after;
    }
    let mut name = segments.last().cloned().unwrap_or_default();
    if let Some(after) = rest.strip_prefix(" as ") {
        rest = after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        name = after[..after.len() - rest.len()].to_owned();
    }
    found(segments, name);
    rest.strip_prefix('*').unwrap_or(rest)
}

/// Compares a table with what was found, a row for each pair.
fn compare(
    table: &[(&str, &str, &[&str])],
    found: impl IntoIterator<Item = (String, Vec<String>)>,
    rule: &str,
) {
    let pairs = |from: String, to: Vec<String>| to.into_iter().map(move |to| format!("{from} -> {to}"));
    let found: BTreeSet<String> = found.into_iter().flat_map(|(from, to)| pairs(from, to)).collect();
    let listed: BTreeSet<String> = table
        .iter()
        .flat_map(|(from, _, to)| pairs((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect()))
        .collect();
    let new: Vec<&String> = found.difference(&listed).collect();
    assert!(new.is_empty(), "{rule}: {new:#?}");
    let gone: Vec<&String> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "take these out of the table, and they stay out: {gone:#?}");
}

#[test]
fn a_room_imports_only_what_it_may() {
    let all = Crate::read(&project().join("src"), "ganeti_instance_debootstrap");
    let found = all.between(&[]).into_iter().map(|(from, to)| (from, to.into_iter().collect()));
    compare(ROOMS, found, "a room may not import this");
}

#[test]
fn every_room_is_in_the_table_and_in_the_documents() {
    let src = project().join("src");
    let mut rooms: Vec<String> = fs::read_dir(&src)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|room| room != "lib")
        .collect();
    rooms.sort();
    let mut listed: Vec<&str> = ROOMS.iter().map(|(room, ..)| *room).collect();
    listed.sort();
    assert_eq!(rooms, listed);
    let mut table = String::from("| room | owns | imports |\n|---|---|---|\n");
    for (room, owns, imports) in ROOMS {
        table += &format!("| {room} | {owns} | {} |\n", imports.join(", "));
    }
    crate::docs::compare_part("ARCHITECTURE.md", "rooms", &table);
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    for root in ["src", "benches/speed"] {
        let all = Crate::read(&project().join(root), "ganeti_instance_debootstrap");
        let circles = all.circles();
        assert!(
            circles.is_empty(),
            "below {root} these import each other, directly or by way of others: {circles:#?}"
        );
    }
}

/// rustix is the way to the kernel. What it has no safe form of is in one room.
#[test]
fn nix_is_used_in_one_room() {
    let src = project().join("src");
    for entry in walkdir::WalkDir::new(&src) {
        let path = entry.unwrap().into_path();
        if path.extension().is_some_and(|extension| extension == "rs") && !path.starts_with(src.join("sys")) {
            let code = code_of(&path);
            let uses = code.match_indices("nix::").any(|(at, _)| {
                !code[..at]
                    .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
            });
            assert!(!uses, "{} uses nix", path.display());
        }
    }
}

/// What is written inside a guest is reached through RootDir alone. mount.rs and one_device.rs have devices and mount points,
/// resolver.rs reads the node's own file.
#[test]
fn the_files_of_a_guest_are_reached_through_its_root_directory() {
    let src = project().join("src/guest");
    for entry in walkdir::WalkDir::new(&src) {
        let path = entry.unwrap().into_path();
        let is_source = path.extension().is_some_and(|extension| extension == "rs");
        let is_other =
            ["mount.rs", "one_device.rs", "resolver.rs", "tests.rs"].iter().any(|name| path.ends_with(name));
        if is_source && !is_other {
            let code = code_of(&path);
            for word in ["std::fs", "File::open", "File::create", "fs::read", "fs::write", "CWD"] {
                assert!(!code.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

/// An answer goes through `answer` or `answer_json`, which print nothing but ASCII: what stands in it may be a stranger's. A backup
/// is bytes; help has nothing that was typed.
#[test]
fn only_answers_and_backups_go_to_standard_output() {
    let src = project().join("src");
    let ways = ["print!(", "println!(", "stdout()", "STDOUT", ".print()"];
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(&src) {
        let path = entry.unwrap().into_path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let code = code_of(&path);
            let name = path.strip_prefix(&src).unwrap().display().to_string();
            found.extend(ways.iter().flat_map(|way| code.matches(way).map(|way| format!("{name} {way}"))));
        }
    }
    found.sort();
    found.dedup();
    assert_eq!(found, ["main.rs .print()", "verbs/export.rs stdout()", "verbs/mod.rs stdout()"]);
    let verbs = code_of(&src.join("verbs/mod.rs"));
    let printing: Vec<&str> = verbs.lines().filter(|line| line.contains(" print(")).map(str::trim).collect();
    assert_eq!(
        printing,
        [
            "print(&report::printable(text))",
            "print(&json_ascii(&serde_json::to_string_pretty(value)?))",
            "fn print(text: &str) -> Result<()> {"
        ]
    );
}

/// Sources of a crate that is made up.
fn made_up(files: &[(&str, &str)]) -> (tempfile::TempDir, Crate) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path: PathBuf = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let read = Crate::read(dir.path(), "own_name");
    (dir, read)
}

#[test]
fn the_fence_sees_every_form_of_an_import() {
    let (_dir, all) = made_up(&[
        ("lib.rs", "pub mod a;\npub mod b;\nmod c;\nmod d;\n"),
        ("main.rs", "use own_name::{a, b::One};\n"),
        (
            "a/mod.rs",
            "mod x;\nmod y;\npub use y::{Why, Zed as Other};\nuse crate::b::{One, two::{Three, Four}};\n",
        ),
        ("a/x.rs", "use super::Why;\nfn f() { crate::c::g(\"crate::d\"); } // crate::d\n"),
        ("a/y.rs", "fn f() -> super::x::X { todo!() }\n"),
        ("b.rs", "#[cfg(test)]\nmod tests {\n    use crate::d;\n}\n"),
        ("c.rs", "bail!(\"{}\", crate::d::<u8>());\n"),
        ("d.rs", "pub use crate::c::Thing;\n"),
    ]);
    let edges = |dir: &[&str]| {
        let dir: Module = dir.iter().map(|name| (*name).to_owned()).collect();
        let between = all.between(&dir).into_iter().filter(|(_, to)| !to.is_empty());
        between
            .map(|(from, to)| format!("{from} {}", to.into_iter().collect::<Vec<_>>().join(" ")))
            .collect::<Vec<_>>()
    };
    assert_eq!(edges(&[]), ["a b c", "c d", "d c", "main a b"]);
    assert_eq!(edges(&["a"]), ["x y", "y x"]);
    let circles: Vec<String> =
        all.circles().iter().map(|(dir, group)| format!("{dir}: {}", group.join(" "))).collect();
    assert_eq!(circles, [": c d", "a: x y"]);
}
