//! One disk on its way through the verbs, from a tree of a handful of files: whether anything works at all.

mod as_root {
    use crate::common::backup::{export, imported};
    use crate::common::small_guest::plant_bootstrapped;
    use crate::common::trees::pack;
    use crate::common::{GIB, Mounted, Node, fsck, root_offset, scratch, tool};

    #[test]
    fn a_disk_is_made_exported_imported_and_renamed() {
        let node = Node::bare();
        let tree = tempfile::tempdir_in(scratch()).unwrap();
        plant_bootstrapped(tree.path());
        let arch = tool("dpkg", &["--print-architecture"]);
        pack(tree.path(), &node.cache().join(format!("cache-trixie-{}.tar", arch.trim())));

        let disk = node.disk("made", GIB);
        node.create_on(&disk);
        let stream = node.path().join("stream");
        export(&node, &disk, &stream);
        let copy = node.disk("copy", GIB + (64 << 20));
        imported(&node, &copy, &stream);
        let renamed = node.verb("rename", &node.recorded("rename", &copy)).output().unwrap();
        assert!(renamed.status.success(), "{}", crate::common::log_of(&renamed));

        for (disk, name) in [(&disk, "lg1.example.com"), (&copy, "lg1new.example.com")] {
            fsck(disk, root_offset(disk), "ext4");
            let root = Mounted::at(disk, root_offset(disk));
            assert_eq!(root.read("etc/hostname"), format!("{name}\n"));
        }
        node.assert_nothing_left();
    }
}
