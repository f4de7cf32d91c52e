//! The cache: one bootstrap, published whole, noticed when broken.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::common::tiny_mirror::{serve, tiny};
use crate::common::{GIB, Mounted, Node, log_of, root_offset, text, tool};

const DISK_BYTES: u64 = GIB;

/// What debootstrap itself would install from.
fn default_mirror() -> String {
    let script = fs::read_to_string("/usr/sbin/debootstrap").unwrap();
    let value = script.lines().find_map(|line| line.strip_prefix("DEF_MIRROR=")).unwrap();
    value.trim_matches('"').to_owned()
}

/// A site's own archive with one package, `site-tools`, signed by a key of its own.
const SITE_ARCHIVE: &str = r#"set -e
export GNUPGHOME="$PWD/gnupg"
mkdir -m 700 gnupg
mkdir -p root/DEBIAN root/usr/share/site archive
printf 'Package: site-tools\nVersion: 1\nArchitecture: all\nMaintainer: A Test <test@example.com>\nDescription: ours\n' \
  > root/DEBIAN/control
echo ours > root/usr/share/site/tools
dpkg-deb --build root archive/site-tools.deb >/dev/null
cd archive
size () { stat -c %s "$1"; }
sum () { sha256sum < "$1" | cut -c -64; }
{ cat ../root/DEBIAN/control; printf 'Filename: ./site-tools.deb\nSize: %s\nSHA256: %s\n' \
  "$(size site-tools.deb)" "$(sum site-tools.deb)"; } > Packages
printf 'Origin: site\nSuite: site\nDate: %s\nSHA256:\n %s %s Packages\n' \
  "$(LC_ALL=C date -Ru)" "$(sum Packages)" "$(size Packages)" > Release
gpg --quiet --batch --passphrase '' --quick-gen-key site@example.com ed25519 sign never
gpg --quiet --armor --export > ../site.asc
gpg --quiet --clearsign --output InRelease Release
gpgconf --kill all
"#;

/// apt_dir for a node: the archive's source, and the key that signs it.
fn apt_dir(node: &Node) -> std::path::PathBuf {
    let dir = node.path().join("site");
    fs::create_dir(&dir).unwrap();
    let made =
        std::process::Command::new("sh").args(["-c", SITE_ARCHIVE]).current_dir(&dir).output().unwrap();
    assert!(made.status.success(), "{}", log_of(&made));
    let apt = node.path().join("apt");
    fs::create_dir(&apt).unwrap();
    fs::rename(dir.join("site.asc"), apt.join("site.asc")).unwrap();
    let port = serve(dir.join("archive"));
    let source = format!("deb [signed-by=/etc/apt/keyrings/site.asc] http://127.0.0.1:{port}/ ./\n");
    fs::write(apt.join("site.list"), source).unwrap();
    fs::write(apt.join("README"), "not for the guest").unwrap();
    apt
}

fn files(node: &Node, ending: &str) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(node.cache()).unwrap().flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths
}

#[test]
fn the_manifest_tells_what_a_file_is() {
    let node = Node::debian();
    let manifest: toml::Table =
        toml::from_str(&fs::read_to_string(&files(&node, ".toml")[0]).unwrap()).unwrap();
    assert_eq!(manifest["suite"].as_str(), Some("trixie"));
    assert_eq!(manifest["codename"].as_str(), Some("trixie"));
    assert_eq!(manifest["bootstrapper"].as_str(), Some("mmdebstrap"));
    let tar = node.cache().join(manifest["file"].as_str().unwrap());
    let digest = tool("sha256sum", &[tar.to_str().unwrap()]);
    assert_eq!(manifest["digest"].as_str().unwrap(), format!("sha256:{}", &digest[..64]));
    let packages = manifest["packages"].as_table().unwrap();
    assert!(packages.contains_key("apt") && packages.contains_key("systemd"), "{packages:?}");

    // The tar is one that an admin's own tools read, and that the tar crate lists too.
    let listed = tool("tar", &["-tf", tar.to_str().unwrap()]);
    assert!(listed.lines().any(|name| name == "./etc/debian_version"));
    let mut archive = tar::Archive::new(fs::File::open(&tar).unwrap());
    assert_eq!(archive.entries().unwrap().filter(|entry| entry.is_ok()).count(), listed.lines().count());
}

#[test]
fn list_shows_text_and_json() {
    let node = Node::debian();
    let list = text(&node.command(&["cache", "list"]).output().unwrap().stdout);
    assert!(list.contains("trixie") && list.contains("ready") && list.contains("base-trixie-"), "{list}");
    let json = node.command(&["cache", "list", "--json"]).output().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json[0]["codename"], "trixie");
    assert!(json[0]["packages"].as_u64().unwrap() > 100);
    let bare = Node::bare();
    let output = bare.command(&["cache", "list"]).output().unwrap();
    assert!(output.status.success() && text(&output.stderr).contains("is empty"));
}

#[test]
fn a_damaged_file_is_noticed_and_verify_finds_it() {
    let node = Node::new();
    assert!(node.command(&["cache", "verify"]).status().unwrap().success());
    let tar = files(&node, ".tar").remove(0);
    let copy = tar.with_extension("copy");
    fs::copy(&tar, &copy).unwrap();
    let file = fs::File::options().read(true).write(true).open(&copy).unwrap();
    let mut byte = [0u8; 1];
    let middle = file.metadata().unwrap().len() / 2;
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    fs::rename(&copy, &tar).unwrap();

    let disk = node.disk("d", DISK_BYTES);
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("is damaged"), "{log}");
    assert!(log.lines().last().unwrap().starts_with("hint: rm "), "{log}");
    node.assert_nothing_left();
    let verify = node.command(&["cache", "verify"]).output().unwrap();
    assert_eq!(verify.status.code(), Some(1));
    assert!(text(&verify.stdout).contains("DAMAGED"));
    let probe = std::process::Command::new("blkid").arg("-p").arg(&disk).output().unwrap();
    assert_eq!(
        (probe.status.code(), fs::metadata(&disk).unwrap().blocks()),
        (Some(2), 0),
        "nothing was written"
    );
}

#[test]
fn prune_removes_what_expired_and_what_belongs_to_nothing_and_spares_what_is_sealed() {
    let node = Node::new();
    let old = SystemTime::now() - Duration::from_secs(40 * 24 * 3600);
    let age = |path: &std::path::Path| {
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    };
    let make = |name: &str| {
        let path = node.cache().join(name);
        fs::write(&path, vec![0u8; 1024]).unwrap();
        age(&path);
        path
    };
    let (expired, sealed) = (make("cache-jessie-amd64.tar"), make("cache-sid-amd64.tar"));
    let orphan = make("base-wheezy-amd64-0123456789abcdef.deadbeef.tar");
    let seal = node.command(&["cache", "seal"]).arg(&sealed).output().unwrap();
    assert!(seal.status.success(), "{}", log_of(&seal));
    let bare = node.command(&["cache", "seal", "cache-sid-amd64.tar"]).output().unwrap();
    assert!(bare.status.success(), "a bare name is one of the cache: {}", log_of(&bare));
    let gone = make("cache-buster-amd64.tar");
    assert!(node.command(&["cache", "seal"]).arg(&gone).status().unwrap().success());
    fs::remove_file(&gone).unwrap();
    fs::write(node.cache().join("base-old-amd64-0123456789abcdef.lock"), "").unwrap();
    let bad = node.command(&["cache", "seal", "/etc/passwd"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(1), "only a cache file can be sealed");
    let prune = node.command(&["cache", "prune"]).output().unwrap();
    assert!(prune.status.success(), "{}", log_of(&prune));
    assert!(!expired.exists() && !orphan.exists() && sealed.exists());
    assert!(!gone.with_extension("toml").exists(), "a seal without its file belongs to nothing");
    // Locks of earlier versions go, and the one that others may hold stays.
    assert!(!node.cache().join("base-old-amd64-0123456789abcdef.lock").exists());
    assert!(node.cache().join(".lock").exists());

    // What one variant keeps for ever has not expired; with settings that cannot be read nothing is removed.
    let kept = make("cache-jessie-amd64.tar");
    node.variant("old.toml", "suite = \"jessie\"\nclean_cache = \"\"\n");
    assert!(node.command(&["cache", "prune"]).status().unwrap().success());
    assert!(kept.exists());
    node.variant("old.toml", "suite = \n");
    assert_eq!(node.command(&["cache", "prune"]).status().unwrap().code(), Some(1));
    fs::remove_file(node.etc().join("variants/old.toml")).unwrap();
    assert!(node.command(&["cache", "prune"]).status().unwrap().success());
    assert_eq!(files(&node, ".tar").len(), 2, "the fresh one and the sealed one");
    let list = text(&node.command(&["cache", "list"]).output().unwrap().stdout);
    assert!(list.lines().any(|line| line.contains("sid") && line.contains("sealed")), "{list}");
}

/// Two creates at once want one tree that is not there; their logs.
fn two_creates_bootstrap_once(node: &Node, suite: &str) -> [PathBuf; 2] {
    let disks = [node.disk("a", DISK_BYTES), node.disk("b", DISK_BYTES)];
    let children = disks.each_ref().map(|disk| {
        let mut command = node.verb("create", &node.recorded("create", disk));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    });
    let logs = children.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
        log_of(&output)
    });
    let bootstrapping = format!("bootstrapping {suite}");
    assert_eq!(logs.iter().filter(|log| log.contains(&bootstrapping)).count(), 1, "{logs:?}");
    let waited = logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("waiting for process"));
    assert_eq!(
        waited.filter(|line| line.ends_with("which makes a tree for the cache")).count(),
        1,
        "{logs:?}"
    );
    for disk in &disks {
        let root = Mounted::at(disk, root_offset(disk));
        assert_eq!(root.read("etc/hostname"), "lg1.example.com\n");
    }
    assert_eq!(files(node, ".tar").len(), 1);
    disks
}

#[test]
fn two_creates_at_once_bootstrap_once_and_what_is_damaged_is_made_anew() {
    let node = Node::bare();
    node.config(&tiny());
    two_creates_bootstrap_once(&node, "tiny");
    let tar = files(&node, ".tar").remove(0);
    fs::File::options().write(true).open(&tar).unwrap().write_all_at(b"damage", 4096).unwrap();
    let build = node.command(&["cache", "build"]).output().unwrap();
    assert!(build.status.success() && log_of(&build).contains("it is made anew"), "{}", log_of(&build));
    assert!(node.command(&["cache", "verify"]).status().unwrap().success());
    assert!(!tar.exists() && files(&node, ".tar").len() == 1, "{:?}", files(&node, ".tar"));
    node.assert_nothing_left();
}

#[test]
#[ignore = "run by make test-full"]
fn two_creates_at_once_bootstrap_a_debian_once_and_refresh_makes_it_anew() {
    let node = Node::bare();
    let disks = two_creates_bootstrap_once(&node, "trixie");

    // A published variant: an alias for a suite, a package more, gzip, and a script that rides along with the
    // mirror and writes down what it sees in the second stage.
    let script = node.path().join("script");
    let scripts = "/usr/share/debootstrap/scripts";
    let mirror = default_mirror();
    let body = format!(
        r#". {scripts}/{suite}
eval "$(sed -n '/^second_stage_install ()/,/^}}/p' {scripts}/debian-common | sed '1s/second_stage_install/theirs/')"
second_stage_install () {{
  cat $TARGET/usr/sbin/policy-rc.d > $TARGET/root/policy
  readlink /proc/self/ns/pid /proc/self/ns/mnt > $TARGET/root/namespaces
  theirs
}}
"#,
        suite = crate::common::SUITE
    );
    fs::write(&script, body).unwrap();
    fs::write(node.etc().join("variants.list"), "small\n").unwrap();
    node.variant(
        "small.toml",
        &format!(
            "suite = \"stable\"\nboot = \"no\"\nmirror = \"{mirror} {}\"\ncache_compression = \"gzip\"\n\
             extra_pkgs = [\"hello\", \"cron\", \"site-tools\"]\napt_dir = \"{}\"\n",
            script.display(),
            apt_dir(&node).display()
        ),
    );
    let refresh = node.command(&["cache", "refresh"]).output().unwrap();
    assert!(refresh.status.success(), "{}", log_of(&refresh));
    node.assert_nothing_left();
    let gzipped = files(&node, ".tar.gz");
    assert_eq!(gzipped.len(), 1, "{:?}", files(&node, ""));
    let list = node.command(&["cache", "list", "--json"]).output().unwrap().stdout;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let stable = list.as_array().unwrap().iter().find(|entry| entry["suite"] == "stable").unwrap();
    assert_eq!(stable["codename"], crate::common::SUITE, "the current stable, recorded by its code name");
    // A file of ours that is damaged is made anew by `cache build`.
    fs::File::options().write(true).open(&gzipped[0]).unwrap().write_all_at(b"damage", 4096).unwrap();
    let build = node.command(&["cache", "build", "small"]).output().unwrap();
    assert!(build.status.success() && log_of(&build).contains("it is made anew"), "{}", log_of(&build));
    assert!(node.command(&["cache", "verify"]).status().unwrap().success());
    let mut env = node.recorded("create", &disks[0]);
    env.insert("OS_VARIANT".into(), "small".into());
    let log = node.create(&env);
    assert!(log.contains(".tar.gz, made"), "it is used: {log}");
    let root = Mounted::at(&disks[0], root_offset(&disks[0]));
    assert!(root.path().join("usr/bin/hello").exists());
    assert_eq!(root.read("usr/share/site/tools"), "ours\n", "from the variant's own archive");
    assert!(root.read("etc/apt/sources.list.d/site.list").contains("signed-by"));
    assert!(root.read("etc/apt/keyrings/site.asc").contains("PUBLIC KEY"));
    assert!(!root.path().join("etc/apt/sources.list.d/README").exists());
    assert!(root.read("etc/apt/sources.list").contains(" trixie-security "), "and its guests stay with it");
    assert!(root.read("root/policy").contains("exit 101"), "no service starts while packages install");
    assert!(!root.path().join("usr/sbin/policy-rc.d").exists());
    let namespaces = root.read("root/namespaces");
    for kind in ["pid", "mnt"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        assert!(!namespaces.contains(&ours), "{kind}: {namespaces}");
    }
    drop(root);
    node.assert_nothing_left();
}

#[test]
fn without_generate_cache_nothing_is_written_and_what_is_there_is_read() {
    let node = Node::new();
    node.config("generate_cache = false\n");
    let before = files(&node, "");
    let disk = node.disk("d", DISK_BYTES);
    let log = node.create_on(&disk);
    assert!(log.contains("using "), "{log}");
    assert_eq!(files(&node, ""), before);
}

#[test]
fn a_manifest_that_is_broken_or_names_a_strangers_file_is_nothing() {
    let node = Node::new();
    let victim = node.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let manifest = fs::read_to_string(&files(&node, ".toml")[0]).unwrap();
    let old = |file: &str| {
        let mut table: toml::Table = toml::from_str(&manifest).unwrap();
        table.insert("file".into(), file.into());
        table.insert("made".into(), "2020-01-01T00:00:00Z".into());
        toml::to_string(&table).unwrap()
    };
    for (name, text) in [
        ("base-sid-amd64-0000000000000000.toml", "garbage".to_owned()),
        ("base-sid-amd64-0000000000000001.toml", String::new()),
        ("base-sid-amd64-0000000000000002.toml", old("../victim")),
        ("base-sid-amd64-0000000000000003.toml", old(victim.to_str().unwrap())),
        (
            "base-sid-amd64-0000000000000004.toml",
            old(files(&node, ".tar")[0].file_name().unwrap().to_str().unwrap()),
        ),
    ] {
        fs::write(node.cache().join(name), text).unwrap();
    }
    let ancient = node.cache().join("cache-potato-i386.tar");
    fs::write(&ancient, "x").unwrap();
    fs::File::options()
        .write(true)
        .open(&ancient)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(9))
        .unwrap();
    let list = node.command(&["cache", "list"]).output().unwrap();
    assert!(list.status.success() && text(&list.stdout).contains("1970-01-01"), "{}", log_of(&list));
    let prune = node.command(&["cache", "prune"]).output().unwrap();
    assert!(prune.status.success(), "{}", log_of(&prune));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(files(&node, ".toml").len(), 1, "{:?}", files(&node, ""));
    let log = node.create_on(&node.disk("d", DISK_BYTES));
    assert!(log.contains("using "), "{log}");
}

#[test]
fn a_tar_without_a_system_in_it_is_refused() {
    let node = Node::bare();
    let tar = node.cache().join("cache-trixie-amd64.tar");
    tool("tar", &["-cf", tar.to_str().unwrap(), "-T", "/dev/null"]);
    let disk = node.disk("d", DISK_BYTES);
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("holds no system"), "{log}");
    let probe = std::process::Command::new("blkid").arg("-p").arg(&disk).output().unwrap();
    assert_eq!(probe.status.code(), Some(2));
    node.assert_nothing_left();
}
