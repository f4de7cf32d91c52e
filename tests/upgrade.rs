//! A node that ran the shell scripts of 0.16 (or 0.17) yesterday gets this package today.
//!
//! A real Debian tree is the node: the predecessor is installed in it from Debian's archive and
//! tuned, runs `create` with the environment that noded sends, and is then replaced by the package
//! that `make deb` builds. What hooks were given and what stands on the disk is compared side by
//! side; going back, going forward again and purging follow.
//!
//! Needs root (loop devices, chroot, namespaces) and, the first time, Debian's archive: the tree is
//! kept in target/test-cache. `UPGRADE_TEST_DEB` names a package to test instead of building one.
//!
//! Everything on the node runs in mount and PID namespaces of its own (tests/upgrade/enter.sh).
//! Nothing here may mount or attach anything outside of them.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test drives the program from outside: it starts processes and reads its own environment"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use walkdir::WalkDir;

const PACKAGE: &str = "ganeti-instance-debootstrap";
const OS_DIR: &str = "/usr/share/ganeti/os/debootstrap";
const LEGACY: &str = "/etc/default/ganeti-instance-debootstrap";
const ETC: &str = "/etc/ganeti/instance-debootstrap";
const CACHE: &str = "/var/cache/ganeti-instance-debootstrap";
const DISK: &str = "/srv/disk.img";
const DISK_BYTES: u64 = 1 << 30;

/// What the predecessor ships as conffiles, with an unmodified one among them.
const CONFFILES: [&str; 3] = [
    LEGACY,
    "/etc/ganeti/instance-debootstrap/variants.list",
    "/etc/ganeti/instance-debootstrap/variants/default.conf",
];

/// Variables of a hook's environment that may differ between the two programs, and why.
const ENVIRONMENT_DIFFERS: [(&str, &str); 6] = [
    ("TARGET", "a directory made for this run"),
    ("BLOCKDEV", "a loop device attached for this run"),
    ("FSYSDEV", "a loop device attached for this run"),
    ("ARCH", "never empty any more; checked by itself"),
    ("SHLVL", "counts the predecessor's own shell"),
    ("_", "bash's last command"),
];

/// Shell's own variables: the predecessor's bash exports them to hooks, a program has none.
const SHELL_OWN: [&str; 2] = ["PWD", "OLDPWD"];

/// What PROXY becomes in a hook's environment.
const PROXIES: [&str; 2] = ["http_proxy", "https_proxy"];

/// Files of the guest that may differ in size or mode, and why.
const GUEST_DIFFERS: [(&str, &str); 10] = [
    ("etc/fstab", "other words; the line of the root is compared by itself"),
    ("etc/hostname", "0644, whatever stood in the cache; the name is compared by itself"),
    ("etc/hosts", "the guest's own, not the node's"),
    ("etc/machine-id", "empty, so that the guest makes its own"),
    ("etc/mailname", "0644, whatever noded's umask"),
    ("etc/network/interfaces", "other words"),
    ("etc/resolv.conf", "the guest's own, not the node's"),
    ("etc/shadow-", "passwd(1) in the guest made it"),
    ("root/hook.env", "compared by itself"),
    ("root/hook.vars", "compared by itself"),
];

#[test]
fn an_upgrade_keeps_settings_hooks_and_caches_and_can_be_undone() -> Result<()> {
    upgrade_and_back(&Suite::of_this_machine())
}

/// 0.17 differs from 0.16 in what it gives to hooks and in kpartx's names.
#[test]
fn an_upgrade_from_0_17_keeps_them_as_well() -> Result<()> {
    let suite = Suite::of_this_machine();
    // Where this machine's own release has 0.17, the test above has done it.
    if suite.version.starts_with("0.17") { Ok(()) } else { upgrade_and_back(&Suite::trixie()) }
}

fn upgrade_and_back(suite: &Suite) -> Result<()> {
    let deb = our_deb()?;
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree()?)?;
    let step = Steps::new();

    node.apt_install(&suite.predecessor())?;
    tune(&node, suite)?;
    let old_cache = node.path(&suite.cache_tar());
    step.done("predecessor installed and tuned");

    let requests = ["create.env", "create-kvm.env"];
    let mut old = BTreeMap::new();
    for request in requests {
        let request_env = noded_environment(request, "web")?;
        old.insert(request, node.create(&request_env, &format!("predecessor, {request}"))?);
        step.done(&format!("predecessor's create with {request}"));
    }

    // The upgrade: no terminal, no DEBIAN_FRONTEND, no --force-conf*.
    let tuned = settings_files(&node)?;
    assert_eq!(tuned.len(), 8, "settings, variants and hooks: {:?}", tuned.keys());
    node.install_file(&deb)?;
    step.done("upgraded");
    assert_unchanged(
        &tuned,
        &settings_files(&node)?,
        "the upgrade changed, added or removed a settings file",
    );
    assert!(!node.path(&format!("{ETC}/config.toml")).exists(), "config.toml would flip the defaults");
    assert_obsolete_conffiles(&node, &CONFFILES)?;
    assert_os_directory_is_whole(&node)?;
    assert_kept_by_autoremove(&node, &["kpartx", "dump"])?;

    explains_each_tuned_value(&node, suite, "create.env")?;
    step.done("config show");

    let cache_before = fs::metadata(&old_cache)?;
    for request in requests {
        let request_env = noded_environment(request, "web")?;
        let node_before = node.listing()?;
        let new = node.create(&request_env, &format!("ours, {request}"))?;
        step.done(&format!("our create with {request}"));
        assert_same_effects(&old[request], &new, suite, request);
        assert!(new.log.contains("0.17"), "the log says whose defaults hold:\n{}", new.log);
        assert_unchanged(
            &node_before,
            &node.listing()?,
            &format!("{request}: create changed the node itself"),
        );
    }
    let cache_after = fs::metadata(&old_cache).context("the predecessor's cache is still there")?;
    assert_eq!(
        (cache_after.ino(), cache_after.len(), cache_after.mtime()),
        (cache_before.ino(), cache_before.len(), cache_before.mtime()),
        "the predecessor's cache was rewritten"
    );

    // Over itself: nothing changes, and dpkg still knows the old conffiles.
    node.install_file(&deb)?;
    assert_unchanged(&tuned, &settings_files(&node)?, "a reinstall changed a settings file");
    assert_obsolete_conffiles(&node, &CONFFILES)?;

    // Back to the predecessor, whose package is still in apt's cache.
    node.install_file(&node.cached_deb(suite)?)?;
    assert_unchanged(&tuned, &settings_files(&node)?, "the downgrade changed a settings file");
    assert_os_directory_is_the_predecessors(&node)?;
    assert_obsolete_conffiles(&node, &[])?;
    let again = node.create(&noded_environment("create.env", "web")?, "predecessor again")?;
    assert_unchanged(&old["create.env"].settings, &again.settings, "the predecessor after the downgrade");
    step.done("downgraded, predecessor's create again");

    // Forward again, then away.
    node.install_file(&deb)?;
    assert_unchanged(&tuned, &settings_files(&node)?, "the second upgrade changed a settings file");
    assert_os_directory_is_whole(&node)?;
    fs::write(node.path(&format!("{CACHE}/base-0123456789abcdef.tar")), "ours")?;
    fs::write(node.path(&format!("{CACHE}/base-0123456789abcdef.toml")), "ours")?;
    node.purge()?;
    let left = node.files_under(&[ETC, LEGACY, CACHE, OS_DIR, "/usr/sbin/ganeti-instance-debootstrap"])?;
    let cache_name = suite.cache_tar();
    let admins_own: BTreeSet<&str> = [
        "/etc/ganeti/instance-debootstrap/hooks/10-record",
        "/etc/ganeti/instance-debootstrap/hooks/20_second",
        "/etc/ganeti/instance-debootstrap/hooks/30-ignored.sh",
        "/etc/ganeti/instance-debootstrap/hooks/confdata/motd",
        "/etc/ganeti/instance-debootstrap/variants/web.conf",
        cache_name.as_str(),
    ]
    .into();
    assert_eq!(left.iter().map(String::as_str).collect::<BTreeSet<_>>(), admins_own, "left after purge");
    step.done("second upgrade and purge");

    before.nothing_new_is_left_by(&node)
}

#[test]
fn a_fresh_install_starts_with_the_new_defaults_and_purges_clean() -> Result<()> {
    let suite = Suite::of_this_machine();
    let deb = our_deb()?;
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree()?)?;
    let step = Steps::new();
    let config = node.path(&format!("{ETC}/config.toml"));
    let list = node.path(&format!("{ETC}/variants.list"));
    let legacy = node.path(LEGACY);

    // apt resolves the dependencies and gets no hint of a predecessor.
    fs::copy(&deb, node.path("/srv/new.deb"))?;
    node.apt_install("/srv/new.deb")?;
    step.done("installed by apt");
    let text = fs::read_to_string(&config)?;
    assert_eq!(active_lines(&text), [r#"defaults = "1""#], "all of config.toml but one key is comment");
    let listed = fs::read_to_string(&list)?;
    assert!(listed.lines().any(|line| line == "default"), "variants.list:\n{listed}");
    assert!(listed.lines().count() > 1, "variants.list names the current suites:\n{listed}");
    for path in [&config, &list] {
        assert_eq!(fs::metadata(path)?.mode() & 0o7777, 0o644, "{}", path.display());
    }
    assert!(!legacy.exists(), "the predecessor's settings file is not shipped anew");
    assert_os_directory_is_whole(&node)?;
    let shown = node.run(&[PACKAGE, "config", "show", "--origin"])?.expect_success()?;
    assert!(
        shown.lines().any(|line| line.contains("defaults") && line.contains(&format!("{ETC}/config.toml:"))),
        "config show says where defaults comes from:\n{shown}"
    );
    let checked = node.run(&[PACKAGE, "config", "check"])?;
    assert!(checked.status.success(), "a fresh install passes its own check:\n{}", checked.log);

    // What the admin changes or deletes stays changed or deleted.
    fs::write(&config, "defaults = \"1\"\nsuite = \"sid\"\n")?;
    fs::remove_file(&list)?;
    node.install_file(&deb)?;
    assert_eq!(fs::read_to_string(&config)?, "defaults = \"1\"\nsuite = \"sid\"\n");
    assert!(!list.exists(), "a deleted variants.list came back");
    node.run(&["dpkg", "--remove", PACKAGE])?.expect_success()?;
    assert!(config.exists(), "remove is not purge");
    node.install_file(&deb)?;
    assert_eq!(fs::read_to_string(&config)?, "defaults = \"1\"\nsuite = \"sid\"\n");
    node.purge()?;
    assert!(!node.path("/etc/ganeti").exists(), "left: {:?}", node.files_under(&["/etc/ganeti"])?);
    assert!(!node.path(CACHE).exists(), "left: {:?}", node.files_under(&[CACHE])?);
    step.done("reinstalled and purged");

    // A node that began with this package goes back without a question: 0.16 brings a conffile of
    // the same name as our variants.list.
    node.install_file(&deb)?;
    node.apt_install(&suite.predecessor())?;
    assert_os_directory_is_the_predecessors(&node)?;
    assert_eq!(fs::read_to_string(&list)?, "default\n");
    assert!(legacy.exists());
    assert!(!node.path(&format!("{ETC}/variants.list.dpkg-bak")).exists());
    node.install_file(&deb)?;
    assert_eq!(active_lines(&fs::read_to_string(&config)?), [r#"defaults = "1""#], "the key still decides");
    node.purge()?;
    assert!(!legacy.exists() && !list.exists() && !config.exists());
    step.done("began with ours, went back, came again");

    // The predecessor ran without its settings file; a node that lacks it must not pass for new.
    node.apt_install(&suite.predecessor())?;
    fs::remove_file(&legacy)?;
    node.install_file(&deb)?;
    assert_eq!(active_lines(&fs::read_to_string(&config)?), [r#"defaults = "0.17""#]);
    assert_eq!(fs::read_to_string(&list)?, "default\n");
    node.purge()?;

    // Never edited, and removed but not purged: its settings are still there, and so are their
    // defaults.
    node.apt_install(&suite.predecessor())?;
    let unmodified = settings_files(&node)?;
    assert_eq!(unmodified.len(), CONFFILES.len());
    node.run(&["dpkg", "--remove", PACKAGE])?.expect_success()?;
    node.install_file(&deb)?;
    assert_unchanged(&unmodified, &settings_files(&node)?, "an upgrade by way of remove");
    assert_obsolete_conffiles(&node, &CONFFILES)?;
    node.purge()?;
    assert_eq!(settings_files(&node)?, BTreeMap::new(), "left after purge");

    // Settings put in place ahead of the package, by configuration management.
    fs::write(&legacy, "SUITE=sid\n")?;
    node.install_file(&deb)?;
    assert!(!config.exists(), "settings that were there first got the new defaults");
    assert!(list.exists());
    assert_eq!(fs::read_to_string(&legacy)?, "SUITE=sid\n");
    node.purge()?;
    assert_eq!(fs::read_to_string(&legacy)?, "SUITE=sid\n", "never ours, not even to purge");
    step.done("odd beginnings");

    before.nothing_new_is_left_by(&node)
}

// What is compared

/// A finished `create`, seen from the guest it made.
struct Created {
    log: String,
    environment: BTreeMap<String, String>,
    /// The settings as a hook sees them that sources common.sh.
    settings: BTreeMap<String, String>,
    hook_cwd: String,
    hook_facts: String,
    hook_functions: String,
    files: BTreeMap<String, String>,
    /// Path to type, mode, owner, size and target of everything in the guest.
    listing: BTreeMap<String, String>,
    /// `blkid -p` on the disk, without its UUID.
    probed: BTreeMap<String, String>,
}

fn assert_same_effects(old: &Created, new: &Created, suite: &Suite, request: &str) {
    let mut differences = Vec::new();
    let mut differs = |what: &str, name: &str, old: Option<&String>, new: Option<&String>| {
        differences.push(format!("{what} {name}: {old:?} became {new:?}"));
    };

    let excused: BTreeSet<&str> =
        ENVIRONMENT_DIFFERS.iter().map(|(name, _)| *name).chain(SHELL_OWN).collect();
    for name in keys_of(&old.environment, &new.environment) {
        let (before, after) = (old.environment.get(name), new.environment.get(name));
        if before != after && !excused.contains(name) && !PROXIES.contains(&name) {
            differs("environment", name, before, after);
        }
    }
    // 0.16 exported them only when it bootstrapped; 0.17 always does, and so do we.
    for name in PROXIES {
        if new.environment.get(name) != old.settings.get("PROXY") {
            differs("environment", name, old.settings.get("PROXY"), new.environment.get(name));
        }
    }
    if new.environment.get("ARCH") != Some(&suite.arch) {
        differs("environment", "ARCH", Some(&suite.arch), new.environment.get("ARCH"));
    }
    for name in ["TARGET", "BLOCKDEV", "FSYSDEV"] {
        if new.environment.get(name).is_none_or(|value| !value.starts_with('/')) {
            differs("environment", name, old.environment.get(name), new.environment.get(name));
        }
    }
    for name in keys_of(&old.settings, &new.settings) {
        let (before, after) = (old.settings.get(name), new.settings.get(name));
        if name == "ARCH" {
            if after != Some(&suite.arch) {
                differs("setting", name, Some(&suite.arch), after);
            }
        } else if before != after {
            differs("setting", name, before, after);
        }
    }
    for (what, before, after) in [
        ("cwd", &old.hook_cwd, &new.hook_cwd),
        ("facts", &old.hook_facts, &new.hook_facts),
        ("functions of common.sh", &old.hook_functions, &new.hook_functions),
    ] {
        if before != after {
            differs("hook's", what, Some(before), Some(after));
        }
    }
    for name in keys_of(&old.files, &new.files) {
        if old.files.get(name) != new.files.get(name) {
            differs("file", name, old.files.get(name), new.files.get(name));
        }
    }
    for name in keys_of(&old.listing, &new.listing) {
        let excused = GUEST_DIFFERS.iter().any(|(path, _)| *path == name);
        if old.listing.get(name) != new.listing.get(name) && !excused {
            differs("guest's", name, old.listing.get(name), new.listing.get(name));
        }
    }
    if old.probed != new.probed {
        differences.push(format!("disk: {:?} became {:?}", old.probed, new.probed));
    }
    assert!(
        differences.is_empty(),
        "{request}: the two programs differ\n  {}\npredecessor's log:\n{}\nour log:\n{}",
        differences.join("\n  "),
        old.log,
        new.log
    );
}

fn assert_unchanged<K: Ord + Debug, V: PartialEq + Debug>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    what: &str,
) {
    let keys: BTreeSet<&K> = before.keys().chain(after.keys()).collect();
    let changed: Vec<String> = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| format!("{key:?}: {:?} became {:?}", before.get(key), after.get(key)))
        .collect();
    assert!(changed.is_empty(), "{what}:\n  {}", changed.join("\n  "));
}

fn keys_of<'a>(one: &'a BTreeMap<String, String>, other: &'a BTreeMap<String, String>) -> BTreeSet<&'a str> {
    one.keys().chain(other.keys()).map(String::as_str).collect()
}

/// `config show --origin` gives every value that was tuned with the file and line that set it.
fn explains_each_tuned_value(node: &Node, suite: &Suite, request: &str) -> Result<()> {
    let web = format!("{ETC}/variants/web.conf");
    let expected = [
        ("suite", suite.name.as_str(), LEGACY, "SUITE="),
        ("mirror", "file:///srv/mirror", LEGACY, "MIRROR="),
        ("proxy", "http://proxy.example.com:3128/", LEGACY, "PROXY="),
        ("clean_cache", "30", LEGACY, "CLEAN_CACHE="),
        ("partition_style", "none", LEGACY, "PARTITION_STYLE="),
        ("components", "main,contrib", web.as_str(), "COMPONENTS="),
        (
            "extra_pkgs",
            "less,vim-tiny,nginx-light,netcat-openbsd",
            web.as_str(),
            "        EXTRA_PKGS=\"$EXTRA_PKGS,netcat",
        ),
    ];
    // With noded's environment: `case $HYPERVISOR` takes the branch it takes in create.
    let environment = noded_environment(request, "web")?;
    let shown = node
        .run_with(&environment, 0o022, "/root", &[PACKAGE, "config", "show", "--variant", "web", "--origin"])?
        .expect_success()?;
    let mut missing = Vec::new();
    for (key, value, file, setting) in expected {
        let text = fs::read_to_string(node.path(file))?;
        let line = 1 + text.lines().position(|line| line.starts_with(setting)).context(setting)?;
        let origin = format!("{file}:{line}");
        let named = shown.lines().any(|shown| {
            // A list is shown as config.toml takes it: ["a", "b"].
            let shown = shown.replace("\", \"", ",");
            let words: Vec<_> = shown.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
            words.contains(&key)
                && shown.contains(value)
                && shown.split_whitespace().any(|word| word.trim_matches(['(', ')', ',']) == origin)
        });
        if !named {
            missing.push(format!("{key} = {value} from {origin}"));
        }
    }
    ensure!(missing.is_empty(), "not explained: {missing:#?}\n{shown}");
    ensure!(
        shown.lines().any(|line| line.contains("defaults") && line.contains("0.17")),
        "config show does not say whose defaults hold:\n{shown}"
    );
    Ok(())
}

/// Exactly these are marked obsolete in dpkg's records.
fn assert_obsolete_conffiles(node: &Node, expected: &[&str]) -> Result<()> {
    let listed = node.run(&["dpkg-query", "-W", "-f", "${Conffiles}\n", PACKAGE])?.expect_success()?;
    let obsolete: BTreeSet<&str> = listed
        .lines()
        .filter(|line| line.ends_with(" obsolete"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(obsolete, expected.iter().copied().collect(), "Conffiles:\n{listed}");
    Ok(())
}

/// What the predecessor depended on stays on an upgraded node: hooks and a way back want it.
fn assert_kept_by_autoremove(node: &Node, packages: &[&str]) -> Result<()> {
    let plan = node.run(&["apt-get", "--simulate", "autoremove"])?.expect_success()?;
    for package in packages {
        let removal = format!("Remv {package} ");
        assert!(!plan.contains(&removal), "autoremove takes {package} away:\n{plan}");
    }
    Ok(())
}

/// Ganeti's view: the files it asks for, by the one program, and never create_untrusted.
fn assert_os_directory_is_whole(node: &Node) -> Result<()> {
    let directory = node.path(OS_DIR);
    for verb in ["create", "import", "export", "rename", "verify"] {
        let target =
            fs::read_link(directory.join(verb)).with_context(|| format!("reading the link {verb}"))?;
        assert_eq!(target, Path::new("../../../../sbin").join(PACKAGE), "{verb}");
    }
    assert_eq!(fs::read_link(directory.join("variants.list"))?, Path::new(ETC).join("variants.list"));
    for file in ["ganeti_api_version", "parameters.list", "common.sh"] {
        assert!(fs::symlink_metadata(directory.join(file))?.is_file(), "{file}");
    }
    assert!(!directory.join("create_untrusted").exists());
    Ok(())
}

fn assert_os_directory_is_the_predecessors(node: &Node) -> Result<()> {
    for verb in ["create", "import", "export", "rename", "verify"] {
        let path = node.path(OS_DIR).join(verb);
        let found = fs::symlink_metadata(&path)?;
        assert!(found.is_file() && found.mode() & 0o111 == 0o111, "{verb} is a script again");
        assert!(fs::read(&path)?.starts_with(b"#!/bin/bash"), "{verb} is a script again");
    }
    assert!(!node.path("/usr/sbin").join(PACKAGE).exists());
    Ok(())
}

/// Everything an admin may have written, byte by byte.
fn settings_files(node: &Node) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for path in node.files_under(&[ETC, LEGACY])? {
        let text = fs::read_to_string(node.path(&path))?;
        found.insert(path, text);
    }
    Ok(found)
}

fn active_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).collect()
}

/// The settings, variants, hooks and cache of a node that has been in use for years.
fn tune(node: &Node, suite: &Suite) -> Result<()> {
    let data = data_dir();
    let default = fs::read_to_string(data.join("default.in"))?.replace("@SUITE@", &suite.name);
    fs::write(node.path(LEGACY), default)?;
    fs::copy(data.join("web.conf"), node.path(&format!("{ETC}/variants/web.conf")))?;
    fs::copy(data.join("variants.list"), node.path(&format!("{ETC}/variants.list")))?;
    for entry in WalkDir::new(data.join("hooks")).min_depth(1) {
        let entry = entry?;
        let target = node.path(ETC).join("hooks").join(entry.path().strip_prefix(data.join("hooks"))?);
        if entry.file_type().is_dir() {
            fs::create_dir(&target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    // The predecessor copies both into the guest.
    fs::write(node.path("/etc/hosts"), "127.0.0.1 localhost\n192.0.2.1 node1.example.com node1\n")?;
    fs::write(node.path("/etc/resolv.conf"), "nameserver 192.0.2.53\n")?;
    // The automatic cache: what `create` would have made of this suite a week ago.
    let cache = node.path(&suite.cache_tar());
    fs::copy(suite.guest_tree()?, &cache)?;
    let week_ago = SystemTime::now() - Duration::from_secs(7 * 24 * 3600);
    File::options().write(true).open(&cache)?.set_modified(week_ago)?;
    Ok(())
}

/// The environment that noded sends, verbatim but for the disks and the variant.
fn noded_environment(file: &str, variant: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ganeti-env").join(file);
    let bytes = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let separator = if bytes.contains('\0') { '\0' } else { '\n' };
    let mut adjusted = Vec::new();
    for pair in bytes.split(separator).filter(|pair| !pair.is_empty()) {
        let (name, _) = pair.split_once('=').with_context(|| format!("no = in {pair:?}"))?;
        adjusted.push(match name {
            "DISK_0_PATH" => format!("DISK_0_PATH={DISK}"),
            "DISK_1_PATH" => format!("DISK_1_PATH={DISK}.1"),
            "OS_VARIANT" => format!("OS_VARIANT={variant}"),
            "INSTANCE_OS" => format!("INSTANCE_OS=debootstrap+{variant}"),
            _ => pair.to_owned(),
        });
    }
    Ok(adjusted)
}

fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade")
}

/// The package of this checkout, built once for all tests of this file.
fn our_deb() -> Result<PathBuf> {
    static DEB: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let deb = DEB.get_or_init(|| match std::env::var_os("UPGRADE_TEST_DEB") {
        Some(named) => fs::canonicalize(named).map_err(|error| format!("UPGRADE_TEST_DEB: {error}")),
        None => make_deb().map_err(|error| format!("{error:#}")),
    });
    deb.clone().map_err(anyhow::Error::msg)
}

fn make_deb() -> Result<PathBuf> {
    run(Command::new("make").arg("deb").current_dir(env!("CARGO_MANIFEST_DIR")))?;
    let mut debs = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../deb"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{PACKAGE}_")) && name.ends_with(".deb") {
            debs.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    debs.sort();
    Ok(debs.pop().context("make deb left no package")?.1)
}

// The node

/// A Debian release to be the node's, and the guests'.
struct Suite {
    name: String,
    /// The version of the predecessor that this release carries.
    version: &'static str,
    arch: String,
}

impl Suite {
    /// The release this machine runs where it carries a predecessor: a package built here needs
    /// no newer libraries than it has.
    fn of_this_machine() -> Suite {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if release.lines().any(|line| line == "VERSION_CODENAME=trixie") {
            Suite::trixie()
        } else {
            Suite::new("bookworm", "0.16-8")
        }
    }

    fn trixie() -> Suite {
        Suite::new("trixie", "0.17-1")
    }

    fn new(name: &str, version: &'static str) -> Suite {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Suite { name: name.to_owned(), version, arch: arch.to_owned() }
    }

    fn predecessor(&self) -> String {
        format!("{PACKAGE}={}", self.version)
    }

    fn cache_tar(&self) -> String {
        format!("{CACHE}/cache-{}-{}.tar", self.name, self.arch)
    }

    /// A bare system with apt's lists and the predecessor's packages downloaded.
    fn node_tree(&self) -> Result<PathBuf> {
        self.trees().map(|(node, _)| node)
    }

    /// The same bare system as the predecessor would have cached it.
    fn guest_tree(&self) -> Result<PathBuf> {
        self.trees().map(|(_, guest)| guest)
    }

    fn trees(&self) -> Result<(PathBuf, PathBuf)> {
        let directory = test_cache()?;
        let node = directory.join(format!("upgrade-{}.tar", self.name));
        let guest = directory.join(format!("upgrade-{}-guest.tar", self.name));
        let _lock = lock(&self.name)?;
        if !node.exists() || !guest.exists() {
            let scratch = scratch_dir()?;
            self.make_trees(&scratch, &node, &guest)?;
            remove_tree(scratch)?;
        }
        Ok((node, guest))
    }

    /// About a minute, and the only part that needs a network.
    fn make_trees(&self, scratch: &TempDir, node: &Path, guest: &Path) -> Result<()> {
        let root = scratch.path().join("root");
        run(Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["debootstrap", "--variant=minbase", "--include=ifupdown", &self.name])
            .arg(&root))?;
        let archives = root.join("var/cache/apt/archives");
        for entry in fs::read_dir(&archives)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                fs::remove_file(entry.path())?;
            }
        }
        fs::write(root.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(root.join("usr/sbin/policy-rc.d"), Permissions::from_mode(0o755))?;
        let guest_part = guest.with_extension("part");
        run(Command::new("tar").arg("--create").arg("--file").arg(&guest_part).arg("-C").arg(&root).args([
            "--acls",
            "--xattrs",
            "--xattrs-include=*",
            "--exclude=./var/lib/apt/lists/*",
            "--exclude=./usr/sbin/policy-rc.d",
            ".",
        ]))?;

        // debootstrap left the lists of its mirror and the sources that name it.
        let resolver = root.join("etc/resolv.conf");
        fs::copy("/etc/resolv.conf", &resolver)?;
        let inside = Node { dir: None, root: root.clone() };
        inside
            .run(&[
                "apt-get",
                "-y",
                "--no-install-recommends",
                "--download-only",
                "install",
                &self.predecessor(),
            ])?
            .expect_success()?;
        fs::write(&resolver, "")?;
        let node_part = node.with_extension("part");
        run(Command::new("tar").arg("--create").arg("--file").arg(&node_part).arg("-C").arg(&root).arg("."))?;
        fs::rename(guest_part, guest)?;
        fs::rename(node_part, node)?;
        Ok(())
    }
}

/// A tree that is entered as if it were a machine.
struct Node {
    /// None where another owns the directory.
    dir: Option<TempDir>,
    root: PathBuf,
}

struct Ran {
    status: ExitStatus,
    what: String,
    log: String,
}

impl Ran {
    fn expect_success(self) -> Result<String> {
        ensure!(self.status.success(), "{}: {}\n{}", self.what, self.status, self.log);
        Ok(self.log)
    }
}

impl Node {
    fn unpack(tree: &Path) -> Result<Node> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test needs root: it enters a tree and attaches loop devices"
        );
        let dir = scratch_dir()?;
        let root = dir.path().join("root");
        fs::create_dir(&root)?;
        run(Command::new("tar").arg("--extract").arg("--file").arg(tree).arg("-C").arg(&root))?;
        Ok(Node { dir: Some(dir), root })
    }

    /// Where an absolute path of the node lies.
    fn path(&self, on_node: &str) -> PathBuf {
        self.root.join(on_node.trim_start_matches('/'))
    }

    /// As root at a shell without a terminal.
    fn run(&self, argv: &[&str]) -> Result<Ran> {
        self.run_with(&admins_environment(), 0o022, "/root", argv)
    }

    fn run_with(&self, environment: &[String], umask: u32, directory: &str, argv: &[&str]) -> Result<Ran> {
        // One file for both, as noded's log is.
        let mut log = tempfile::tempfile()?;
        let status = Command::new("timeout")
            .args(["--kill-after=5", "300"])
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
            .arg("sh")
            .arg(data_dir().join("enter.sh"))
            .arg(&self.root)
            .arg(format!("{umask:04o}"))
            .arg(directory)
            .args(environment)
            .args(argv)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .status()?;
        let mut bytes = Vec::new();
        log.seek(SeekFrom::Start(0))?;
        log.read_to_end(&mut bytes)?;
        Ok(Ran { status, what: argv.join(" "), log: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// From apt's lists and archives as they lie in the tree: there is no resolver to find more.
    fn apt_install(&self, what: &str) -> Result<()> {
        let log = self
            .run(&["apt-get", "-y", "--no-install-recommends", "--allow-downgrades", "install", what])?
            .expect_success()?;
        assert_nothing_asked(&log);
        Ok(())
    }

    /// `dpkg -i`, with nobody there to answer.
    fn install_file(&self, deb: &Path) -> Result<()> {
        fs::copy(deb, self.path("/srv/install.deb"))?;
        let log = self.run(&["dpkg", "-i", "/srv/install.deb"])?.expect_success()?;
        assert_nothing_asked(&log);
        Ok(())
    }

    fn purge(&self) -> Result<()> {
        self.run(&["dpkg", "--purge", PACKAGE])?.expect_success()?;
        Ok(())
    }

    fn cached_deb(&self, suite: &Suite) -> Result<PathBuf> {
        let path = self.path(&format!("/var/cache/apt/archives/{PACKAGE}_{}_all.deb", suite.version));
        ensure!(path.exists(), "{} is missing", path.display());
        Ok(path)
    }

    /// Runs the installed `create` as noded does, on new disks, and reads the guest.
    fn create(&self, environment: &[String], what: &str) -> Result<Created> {
        for disk in [DISK.to_owned(), format!("{DISK}.1")] {
            let path = self.path(&disk);
            if path.exists() {
                fs::remove_file(&path)?;
            }
            File::create(&path)?.set_len(DISK_BYTES)?;
        }
        let ran = self.run_with(environment, 0o077, OS_DIR, &[&format!("{OS_DIR}/create")])?;
        ensure!(ran.status.success(), "{what}: {}\n{}", ran.status, ran.log);
        self.detached(DISK)?;

        // Read inside the namespaces: what is mounted there ends there.
        let out = self.path("/srv/out");
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        fs::create_dir(&out)?;
        self.run(&[
            "sh",
            "-ec",
            "blkid -p -o export \"$0\" > /srv/out/probed
             mount -o ro,loop \"$0\" /mnt
             mkdir /srv/out/hook /srv/out/etc
             cp /mnt/root/hook.* /srv/out/hook/
             cp /mnt/etc/hostname /mnt/etc/mailname /mnt/etc/motd /mnt/etc/fstab /mnt/etc/shadow /srv/out/etc/
             cd /mnt && find . -xdev -type d -printf '%P\\t%y %m %U:%G\\n' \\
                 -o -printf '%P\\t%y %m %U:%G %s bytes %l\\n' > /srv/out/listing
             cd / && umount /mnt",
            DISK,
        ])?
        .expect_success()
        .with_context(|| format!("reading what {what} made; its log:\n{}", ran.log))?;
        let made = Created::read(&out, ran.log)?;
        fs::remove_dir_all(&out)?;
        Ok(made)
    }

    /// The kernel lets go of a loop device's backing shortly after the last close.
    fn detached(&self, disk: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let attached = loops_over(&self.path(disk))?;
            if attached.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still attached: {attached:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Files and links (not directories) at or under these paths, as the node names them.
    fn files_under(&self, paths: &[&str]) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for path in paths {
            let start = self.path(path);
            if fs::symlink_metadata(&start).is_err() {
                continue;
            }
            for entry in WalkDir::new(start) {
                let entry = entry?;
                if !entry.file_type().is_dir() {
                    found.insert(format!("/{}", entry.path().strip_prefix(&self.root)?.display()));
                }
            }
        }
        Ok(found)
    }

    /// Everything on the node that a create has no business to touch.
    fn listing(&self) -> Result<BTreeMap<PathBuf, (u64, i64, u32)>> {
        let ours = [self.path(CACHE), self.path("/srv")];
        let mut found = BTreeMap::new();
        for entry in
            WalkDir::new(&self.root).into_iter().filter_entry(|entry| !ours.iter().any(|p| p == entry.path()))
        {
            let entry = entry?;
            let status = entry.metadata()?;
            // A directory's time changes with what comes and goes in it, as in /tmp.
            let time = if status.is_dir() { 0 } else { status.mtime() };
            let size = if status.is_dir() { 0 } else { status.len() };
            found.insert(entry.path().strip_prefix(&self.root)?.to_owned(), (size, time, status.mode()));
        }
        Ok(found)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A loop device of ours that a failed run left: by its file, which nobody else has.
        for disk in [DISK.to_owned(), format!("{DISK}.1")] {
            for device in loops_over(&self.path(&disk)).unwrap_or_default() {
                eprintln!("detaching {device}, left by a failed run");
                let _ = Command::new("losetup").args(["--detach", &device]).status();
            }
        }
        if let Some(Err(error)) = self.dir.take().map(remove_tree) {
            eprintln!("{error:#}");
        }
    }
}

impl Created {
    fn read(out: &Path, log: String) -> Result<Created> {
        let hook = out.join("hook");
        let text = |path: PathBuf| {
            fs::read_to_string(&path).with_context(|| format!("reading {} (log:\n{log})", path.display()))
        };
        let mut files = BTreeMap::new();
        for name in ["hostname", "mailname", "motd"] {
            files.insert(format!("/etc/{name}"), text(out.join("etc").join(name))?);
        }
        let fstab = text(out.join("etc/fstab"))?;
        let root = fstab
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|f| f.get(1) == Some(&"/"));
        let root = root.context("no root in fstab")?;
        let by_uuid = root[0].starts_with("UUID=");
        files.insert("root of /etc/fstab".into(), format!("by UUID: {by_uuid}, type {}", root[2]));
        let shadow = text(out.join("etc/shadow"))?;
        let password =
            shadow.lines().find_map(|line| line.strip_prefix("root:")).and_then(|l| l.split(':').next());
        files.insert("root's password".into(), format!("{password:?}"));
        for name in ["hook.cleaned-up", "hook.second"] {
            files.insert(name.to_owned(), text(hook.join(name))?);
        }
        if hook.join("hook.must-not-exist").exists() {
            bail!("a hook ran that run-parts passes over");
        }
        let listing = text(out.join("listing"))?;
        Ok(Created {
            environment: pairs(&text(hook.join("hook.env"))?, '\0', '='),
            settings: pairs(&text(hook.join("hook.vars"))?, '\0', '='),
            hook_cwd: text(hook.join("hook.cwd"))?,
            hook_facts: text(hook.join("hook.facts"))?,
            hook_functions: text(hook.join("hook.functions"))?,
            files,
            listing: pairs(&listing, '\n', '\t'),
            probed: pairs(&text(out.join("probed"))?, '\n', '=')
                .into_iter()
                .filter(|(name, _)| ["TYPE", "PTTYPE", "USAGE"].contains(&name.as_str()))
                .collect(),
            log,
        })
    }
}

fn pairs(text: &str, end: char, separator: char) -> BTreeMap<String, String> {
    text.split(end)
        .filter_map(|pair| pair.split_once(separator))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn assert_nothing_asked(log: &str) {
    for sign in ["Configuration file '", "==> ", "*** ", "conffile prompt"] {
        assert!(!log.contains(sign), "dpkg asked about a conffile:\n{log}");
    }
}

fn admins_environment() -> Vec<String> {
    [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
        "TERM=dumb",
    ]
    .map(str::to_owned)
    .into()
}

// What this machine holds

/// The mounts of this machine's own namespace before a test.
struct Held {
    mounts: BTreeSet<String>,
    loops: BTreeSet<String>,
}

impl Held {
    fn now() -> Result<Held> {
        Ok(Held { mounts: mounts()?, loops: loops()? })
    }

    /// Others may be at work on this machine: only what is new and the node's counts.
    fn nothing_new_is_left_by(&self, node: &Node) -> Result<()> {
        let root = node.root.to_str().context("a path in UTF-8")?;
        let mut left: Vec<String> =
            mounts()?.difference(&self.mounts).filter(|m| m.contains(root)).cloned().collect();
        for disk in [DISK.to_owned(), format!("{DISK}.1")] {
            node.detached(&disk)?;
        }
        left.extend(loops()?.difference(&self.loops).filter(|l| l.contains(root)).cloned());
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            for link in ["root", "cwd", "exe"] {
                // Gone by now, or a kernel thread: no link to read.
                let Ok(target) = fs::read_link(entry.path().join(link)) else { continue };
                if target.starts_with(&node.root) {
                    left.push(format!("process {pid}: {link} is {}", target.display()));
                }
            }
        }
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }
}

fn mounts() -> Result<BTreeSet<String>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().map(str::to_owned).collect())
}

fn loops() -> Result<BTreeSet<String>> {
    let listed = Command::new("losetup").arg("--all").output().context("running losetup --all")?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect())
}

/// Compared by inode: the path the kernel shows was seen from another namespace.
fn loops_over(file: &Path) -> Result<Vec<String>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let listed = Command::new("losetup").arg("--associated").arg(file).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(listed.lines().filter_map(|line| line.split(':').next()).map(str::to_owned).collect())
}

/// Removes a tree, but never through a mount: it might be this machine's /dev.
fn remove_tree(dir: TempDir) -> Result<()> {
    let path = fs::canonicalize(dir.path())?;
    let inside = mounts()?.into_iter().find(|line| line.contains(path.to_str().unwrap_or("/")));
    if let Some(mount) = inside {
        let kept = dir.keep();
        bail!("{} is kept, something is mounted in it: {mount}", kept.display());
    }
    dir.close().with_context(|| format!("removing {}", path.display()))
}

fn scratch_dir() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("upgrade-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// Trees that are made once: beside CARGO_TARGET_TMPDIR, so `cargo clean` knows them.
fn test_cache() -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-cache");
    fs::create_dir_all(&directory)?;
    Ok(fs::canonicalize(directory)?)
}

fn lock(name: &str) -> Result<Flock<File>> {
    let file = File::create(test_cache()?.join(format!("upgrade-{name}.lock")))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for the other test")
}

fn run(command: &mut Command) -> Result<()> {
    let ran = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        ran.status.success(),
        "{command:?}: {}\n{}{}",
        ran.status,
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}

/// Where the time goes, for `--nocapture`.
struct Steps(std::cell::Cell<Instant>);

impl Steps {
    fn new() -> Steps {
        Steps(std::cell::Cell::new(Instant::now()))
    }

    fn done(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.0.replace(Instant::now()).elapsed().as_secs_f64());
    }
}
