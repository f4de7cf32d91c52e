//! A root that a stranger's archive is restored to, beside a directory that stands for the node.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use ganeti_instance_debootstrap::rootdir::RootDir;

pub struct Guest {
    _dir: tempfile::TempDir,
    pub tree: PathBuf,
    pub node: PathBuf,
}

impl Guest {
    pub fn new() -> Guest {
        let dir = tempfile::tempdir_in(super::scratch()).unwrap();
        let (tree, node) = (dir.path().join("guest"), dir.path().join("node"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&node).unwrap();
        fs::write(node.join("secret"), "the node's").unwrap();
        Guest { _dir: dir, tree, node }
    }

    /// Does something to the root, which must change nothing of the node.
    pub fn beside_the_node<T>(&self, work: impl FnOnce(&RootDir) -> T) -> T {
        let before = self.node_state();
        let result = work(&RootDir::open(&self.tree).unwrap());
        assert_eq!(self.node_state(), before, "the node was changed");
        result
    }

    fn node_state(&self) -> impl PartialEq + std::fmt::Debug {
        let state = |path: &PathBuf| {
            let stat = fs::symlink_metadata(path).unwrap();
            (stat.mode(), stat.uid(), stat.nlink(), stat.mtime_nsec(), stat.ctime_nsec(), stat.len())
        };
        let beside = fs::read_dir(self.node.parent().unwrap()).unwrap().count();
        (state(&self.node), state(&self.node.join("secret")), beside)
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.tree.join(path)).unwrap()
    }
}
