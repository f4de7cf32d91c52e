//! A tmpfs of its own for each input, in a mount namespace of this process, so that nothing stays, whatever the tree holds.
//! Needs root.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ganeti_instance_debootstrap::rootdir::RootDir;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// The size of the tmpfs.
#[allow(dead_code)]
pub const SIZE_BYTES: u64 = 16 << 20;

/// Does something with an empty tree, and wants that nothing is made beside it.
pub fn with_tree(work: impl FnOnce(&RootDir)) {
    let tree = tree();
    let options = Some("size=16m,nr_inodes=20000,mode=0755");
    mount(Some("fuzz"), tree, Some("tmpfs"), MsFlags::MS_NODEV, options).expect("a tmpfs");
    let root = RootDir::open(tree).expect("its root");
    work(&root);
    drop(root);
    umount2(tree, MntFlags::MNT_DETACH).expect("an unmounted tmpfs");
    let outside = std::fs::read_dir(tree.parent().expect("a directory")).expect("its names").count();
    assert_eq!(outside, 1, "something was made beside the tree");
}

/// The mount point.
fn tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: run as root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("a private one");
        let tree = std::env::temp_dir().join(format!("fuzz-tree-{}", std::process::id())).join("tree");
        std::fs::create_dir_all(&tree).expect("a mount point");
        tree
    })
}
