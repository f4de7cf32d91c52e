//! These need root, and a tempdir on a filesystem where root may make devices.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{Kind, RootDir};

/// A guest's tree beside a directory that stands for the node, whose file `secret` nobody must
/// touch.
struct Guest {
    _dir: tempfile::TempDir,
    tree: PathBuf,
    secret: PathBuf,
    root: RootDir,
}

impl Guest {
    fn new() -> Guest {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (tree, secret) = (dir.path().join("guest"), dir.path().join("node/secret"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(dir.path().join("node")).unwrap();
        fs::write(&secret, "the node's").unwrap();
        let root = RootDir::open(&tree).unwrap();
        Guest { _dir: dir, tree, secret, root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.tree.join(path)
    }

    fn node(&self, path: &str, kind: FileType) {
        mknodat(CWD, self.at(path), kind, Mode::RUSR | Mode::WUSR, makedev(1, 3)).unwrap();
    }

    /// Links to the node's secret in all ways that a guest has, by name.
    fn ways_out(&self) -> Vec<&'static str> {
        fs::create_dir_all(self.at("deep/er")).unwrap();
        symlink(&self.secret, self.at("absolute")).unwrap();
        symlink("../../../../../../../../../../../../../../etc/passwd", self.at("deep/er/upward")).unwrap();
        symlink("../node/secret", self.at("sibling")).unwrap();
        symlink("loop-b", self.at("loop-a")).unwrap();
        symlink("loop-a", self.at("loop-b")).unwrap();
        vec!["absolute", "deep/er/upward", "sibling"]
    }

    fn assert_node_untouched(&self) {
        assert_eq!(fs::read(&self.secret).unwrap(), b"the node's");
        assert_eq!(fs::read_dir(self.secret.parent().unwrap()).unwrap().count(), 1);
    }

    fn assert_no_temp_files(&self, dir: &str) {
        let names = self.root.list(dir, 1000).unwrap();
        assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".tmp-")), "{names:?}");
    }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn told(result: anyhow::Result<impl std::fmt::Debug>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn a_link_out_of_the_tree_is_resolved_in_the_tree() {
    let guest = Guest::new();
    for link in guest.ways_out() {
        assert_eq!(guest.root.read(link, 100).unwrap(), None, "{link}");
        assert_eq!(guest.root.kind(link).unwrap(), Some(Kind::Symlink), "{link}");
        assert!(!guest.root.is_file(link).unwrap(), "{link}");
    }
    fs::create_dir(guest.at("etc")).unwrap();
    fs::write(guest.at("etc/passwd"), "the guest's").unwrap();
    assert_eq!(guest.root.read("/deep/er/upward", 100).unwrap().unwrap(), b"the guest's");
    assert!(guest.root.is_file("/deep/er/upward").unwrap());
    assert_eq!(guest.root.read("../../etc/passwd", 100).unwrap().unwrap(), b"the guest's");
    assert!(told(guest.root.read("loop-a", 100)).starts_with("reading /loop-a: Too many levels"));
}

#[test]
fn a_magic_link_of_proc_is_refused() {
    let root = RootDir::open(Path::new("/")).unwrap();
    assert!(told(root.read("/proc/self/exe", u64::MAX)).contains("Too many levels"));
    assert!(told(root.read("/proc/self/root/etc/passwd", u64::MAX)).contains("Too many levels"));
    assert!(told(root.list("/proc/self/cwd", 10)).contains("Too many levels"));
}

#[test]
fn read_refuses_what_is_no_regular_file_and_does_not_hang() {
    let guest = Guest::new();
    guest.node("fifo", FileType::Fifo);
    guest.node("null", FileType::CharacterDevice);
    guest.node("disk", FileType::BlockDevice);
    fs::create_dir(guest.at("dir")).unwrap();
    symlink("fifo", guest.at("link")).unwrap();
    let cases = [
        ("fifo", "reading /fifo: it is a FIFO, expected a regular file"),
        ("/link", "reading /link: it is a FIFO, expected a regular file"),
        ("null", "reading /null: it is a character device, expected a regular file"),
        ("disk", "reading /disk: it is a block device, expected a regular file"),
        ("dir", "reading /dir: it is a directory, expected a regular file"),
        ("", "reading /: it is a directory, expected a regular file"),
    ];
    for (path, expected) in cases {
        assert_eq!(told(guest.root.read(path, 100)), expected);
    }
}

#[test]
fn read_gives_up_to_the_bound_and_refuses_more() {
    let guest = Guest::new();
    fs::write(guest.at("five"), "12345").unwrap();
    assert_eq!(guest.root.read("five", 5).unwrap().unwrap(), b"12345");
    assert_eq!(told(guest.root.read("five", 4)), "reading /five: it is larger than 4 bytes");
    assert_eq!(guest.root.read("five/below", 5).unwrap(), None);
    assert_eq!(guest.root.read("nothing/here", 5).unwrap(), None);
}

#[test]
fn write_replaces_links_and_nodes_and_does_not_follow_them() {
    let guest = Guest::new();
    let mut names = guest.ways_out();
    guest.node("fifo", FileType::Fifo);
    guest.node("null", FileType::CharacterDevice);
    fs::write(guest.at("file"), "old").unwrap();
    names.extend(["fifo", "null", "file", "loop-a", "deep/new"]);
    for name in names {
        guest.root.write(name, b"new", 0o640).unwrap();
        assert_eq!(guest.root.kind(name).unwrap(), Some(Kind::File), "{name}");
        assert_eq!(guest.root.read(name, 10).unwrap().unwrap(), b"new", "{name}");
        assert_eq!(mode(guest.at(name)), 0o640, "{name}");
    }
    guest.assert_node_untouched();
    guest.assert_no_temp_files("/");
}

#[test]
fn write_into_a_linked_directory_stays_in_the_tree() {
    let guest = Guest::new();
    symlink(guest.secret.parent().unwrap(), guest.at("etc")).unwrap();
    assert!(told(guest.root.write("etc/secret", b"x", 0o600)).contains("opening the directory /etc"));
    symlink("/../../real", guest.at("var")).unwrap();
    fs::create_dir(guest.at("real")).unwrap();
    guest.root.write("/var/file", b"x", 0o600).unwrap();
    assert_eq!(fs::read(guest.at("real/file")).unwrap(), b"x");
    guest.assert_node_untouched();
}

#[test]
fn write_refuses_a_directory_a_missing_parent_and_a_path_without_a_name() {
    let guest = Guest::new();
    fs::create_dir(guest.at("dir")).unwrap();
    assert_eq!(told(guest.root.write("dir", b"x", 0o600)), "writing /dir: it is a directory");
    assert!(
        told(guest.root.write("no/file", b"x", 0o600))
            .starts_with("writing /no/file: opening the directory /no:")
    );
    for path in ["", "/", "..", "dir/.."] {
        assert!(told(guest.root.write(path, b"x", 0o600)).contains("does not end in a name"), "{path}");
    }
    guest.assert_no_temp_files("/");
}

#[test]
fn rewrite_keeps_owner_group_and_mode_and_wants_a_regular_file() {
    let guest = Guest::new();
    guest.root.write("shadow", b"old", 0o4640).unwrap();
    std::os::unix::fs::chown(guest.at("shadow"), Some(7), Some(42)).unwrap();
    fs::set_permissions(guest.at("shadow"), std::os::unix::fs::PermissionsExt::from_mode(0o2640)).unwrap();
    guest.root.rewrite("/shadow", b"new").unwrap();
    let found = fs::metadata(guest.at("shadow")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (7, 42, 0o2640));
    assert_eq!(fs::read(guest.at("shadow")).unwrap(), b"new");
    symlink(&guest.secret, guest.at("link")).unwrap();
    assert_eq!(
        told(guest.root.rewrite("link", b"x")),
        "rewriting /link: it is a symbolic link, expected a regular file"
    );
    assert!(told(guest.root.rewrite("missing", b"x")).starts_with("rewriting /missing: "));
    guest.assert_node_untouched();
}

#[test]
fn create_dir_all_follows_links_inside_and_stops_at_files_and_dangling_links() {
    let guest = Guest::new();
    fs::create_dir_all(guest.at("usr/lib")).unwrap();
    fs::set_permissions(guest.at("usr"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    symlink("/usr/lib", guest.at("lib")).unwrap();
    guest.root.create_dir_all("lib/systemd/system", 0o750).unwrap();
    assert_eq!(mode(guest.at("usr/lib/systemd/system")), 0o750);
    assert_eq!(mode(guest.at("usr")), 0o700);
    guest.root.create_dir_all("/", 0o750).unwrap();
    symlink(guest.secret.parent().unwrap().join("made"), guest.at("out")).unwrap();
    assert!(told(guest.root.create_dir_all("out/below", 0o755)).contains("making /out a directory"));
    fs::write(guest.at("file"), "").unwrap();
    assert!(told(guest.root.create_dir_all("file/below", 0o755)).contains("making /file a directory"));
    guest.assert_node_untouched();
}

#[test]
fn symlink_and_remove_act_on_the_name_itself() {
    let guest = Guest::new();
    for name in guest.ways_out() {
        guest.root.symlink("../target", name).unwrap();
        assert_eq!(fs::read_link(guest.at(name)).unwrap(), Path::new("../target"));
        assert!(guest.root.remove(name).unwrap());
        assert!(!guest.root.remove(name).unwrap());
    }
    assert!(!guest.root.remove("no/such").unwrap());
    fs::create_dir(guest.at("dir")).unwrap();
    assert_eq!(told(guest.root.symlink("x", "dir")), "linking /dir to x: it is a directory");
    assert!(told(guest.root.remove("dir")).starts_with("removing /dir: Is a directory"));
    guest.assert_node_untouched();
    guest.assert_no_temp_files("/");
}

#[test]
fn list_is_sorted_bounded_and_empty_for_what_is_absent() {
    let guest = Guest::new();
    for name in ["b", "a", ".c"] {
        fs::write(guest.at(name), "").unwrap();
    }
    assert_eq!(guest.root.list("/", 3).unwrap(), [".c", "a", "b"]);
    assert_eq!(told(guest.root.list("/", 2)), "listing /: it has more than 2 entries");
    assert!(guest.root.list("absent", 2).unwrap().is_empty());
    assert!(told(guest.root.list("a", 2)).starts_with("listing /a: Not a directory"));
}

#[test]
fn remove_files_takes_matching_regular_files_only() {
    let guest = Guest::new();
    fs::create_dir(guest.at("key.d")).unwrap();
    guest.node("key.fifo", FileType::Fifo);
    symlink(&guest.secret, guest.at("key.link")).unwrap();
    for name in ["key.a", "key.b", "other"] {
        fs::write(guest.at(name), "").unwrap();
    }
    let keys = |name: &OsStr| Ok(name.to_string_lossy().starts_with("key."));
    let few = guest.root.remove_files("/", 5, |_| Ok(false)).unwrap_err();
    assert!(few.to_string().contains("more than 5 entries"), "{few:#}");
    let stopped = guest.root.remove_files("/", 6, |_| anyhow::bail!("stop")).unwrap_err();
    assert!(format!("{stopped:#}").ends_with("stop"), "{stopped:#}");
    assert_eq!(guest.root.remove_files("/", 6, keys).unwrap(), 2);
    assert_eq!(guest.root.list("/", 9).unwrap(), ["key.d", "key.fifo", "key.link", "other"]);
    assert_eq!(guest.root.remove_files("absent", 6, keys).unwrap(), 0);
    guest.assert_node_untouched();
}

#[test]
fn clear_dir_removes_all_below_and_follows_nothing() {
    let guest = Guest::new();
    guest.ways_out();
    symlink(guest.secret.parent().unwrap(), guest.at("deep/node")).unwrap();
    guest.node("deep/fifo", FileType::Fifo);
    for number in 0..3000 {
        fs::write(guest.at(&format!("deep/er/{number}")), "").unwrap();
    }
    guest.root.clear_dir("deep", || Ok(())).unwrap();
    assert!(guest.root.list("deep", 9).unwrap().is_empty());
    guest.root.clear_dir("absent", || Ok(())).unwrap();
    guest.root.clear_dir("", || Ok(())).unwrap();
    assert!(guest.root.list("", 9).unwrap().is_empty());
    guest.assert_node_untouched();
}

#[test]
fn clear_dir_copes_with_a_tree_deeper_than_any_path() {
    let guest = Guest::new();
    let name = "d".repeat(100);
    let mut dir = fs::File::open(&guest.tree).unwrap();
    for _ in 0..300 {
        rustix::fs::mkdirat(&dir, name.as_str(), Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, name.as_str(), super::READ_DIR, Mode::empty()).unwrap().into();
    }
    guest.root.clear_dir("/", || Ok(())).unwrap();
    assert!(guest.root.list("/", 9).unwrap().is_empty());
}

#[test]
fn clear_dir_stops_at_a_mount_point_even_of_the_same_filesystem() {
    let guest = Guest::new();
    fs::create_dir_all(guest.at("a/mnt")).unwrap();
    let run =
        |program: &str, args: &[&Path]| assert!(Command::new(program).args(args).status().unwrap().success());
    run("mount", &[Path::new("--bind"), guest.secret.parent().unwrap(), &guest.at("a/mnt")]);
    let answer = guest.root.clear_dir("a", || Ok(()));
    run("umount", &[&guest.at("a/mnt")]);
    assert_eq!(told(answer), "clearing /a: removing the directory /a/mnt: it is a mount point");
    guest.assert_node_untouched();
}
