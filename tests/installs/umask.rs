//! The umask belongs to the whole process: this test is alone in its own. Needs root.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use ganeti_instance_debootstrap::reader::Budget;
use ganeti_instance_debootstrap::rootdir::RootDir;
use ganeti_instance_debootstrap::tar;
use rustix::fs::Mode;

#[test]
fn modes_do_not_depend_on_the_umask() {
    rustix::process::umask(Mode::from_bits_truncate(0o077));
    let dir = tempfile::tempdir_in(crate::common::scratch()).unwrap();
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&copy).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    let root = RootDir::open(&source).unwrap();
    root.create_dir_all("/a/b/c", 0o755).unwrap();
    root.write("/a/b/c/suid", b"x", 0o4755).unwrap();
    root.write("/a/b/c/open", b"x", 0o666).unwrap();
    let mut archive = Vec::new();
    tar::pack(&root, &mut archive, &mut |_, _| {}, &|| Ok(())).unwrap();
    tar::unpack(&mut Cursor::new(archive), &RootDir::open(&copy).unwrap(), &Budget::unlimited()).unwrap();
    let expected = [
        ("", 0o755),
        ("a", 0o755),
        ("a/b", 0o755),
        ("a/b/c", 0o755),
        ("a/b/c/suid", 0o4755),
        ("a/b/c/open", 0o666),
    ];
    for tree in [source, copy] {
        for (path, mode) in expected {
            assert_eq!(fs::metadata(tree.join(path)).unwrap().mode() & 0o7777, mode, "{tree:?} {path}");
        }
    }
}
