//! A backup by dump(8), restored to a real tree: a tmpfs of its own for each, in a mount namespace of this process, so that
//! nothing stays, whatever the tree holds. Needs root. Checksums of headers are made right first.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ganeti_instance_debootstrap::backup::dump;
use ganeti_instance_debootstrap::rootdir::RootDir;
use libfuzzer_sys::fuzz_target;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const RECORD_BYTES: usize = 1024;
const MAGIC_AT: usize = 24;
const CHECKSUM_AT: usize = 28;
const MAGIC: [u8; 4] = 60012_u32.to_le_bytes();
/// What the words of a header add up to.
const CHECKSUM: u32 = 84446;

fuzz_target!(|input: &[u8]| {
    let mut stream = input.to_vec();
    for record in stream.chunks_exact_mut(RECORD_BYTES) {
        if record[MAGIC_AT..MAGIC_AT + 4] == MAGIC {
            make_checksum_right(record);
        }
    }
    let tree = tree();
    let options = Some("size=16m,nr_inodes=20000,mode=0755");
    mount(Some("fuzz"), tree, Some("tmpfs"), MsFlags::MS_NODEV, options).expect("a tmpfs");
    let root = RootDir::open(tree).expect("its root");
    match dump::restore(&mut stream.as_slice(), &root, &|| Ok(())) {
        Ok(_) => {}
        Err(refusal) => assert!(!format!("{refusal:#}").is_empty()),
    }
    drop(root);
    umount2(tree, MntFlags::MNT_DETACH).expect("an unmounted tmpfs");
    let outside = std::fs::read_dir(tree.parent().expect("a directory")).expect("its names").count();
    assert_eq!(outside, 1, "something was made beside the tree");
});

fn make_checksum_right(record: &mut [u8]) {
    record[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let words = record.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
    let sum = words.fold(0_u32, u32::wrapping_add);
    record[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&CHECKSUM.wrapping_sub(sum).to_le_bytes());
}

/// The mount point.
fn tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: run as root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("a private one");
        let tree = std::env::temp_dir().join(format!("fuzz-dump-{}", std::process::id())).join("tree");
        std::fs::create_dir_all(&tree).expect("a mount point");
        tree
    })
}
