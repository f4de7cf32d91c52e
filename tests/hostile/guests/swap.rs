//! A guest's tree that changes while the program works in it: two names of it exchange what they stand for.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::Pid;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::common::stepping::GuestMount;

/// Exchanges two names of a tree; false where there is no such tree any more. Holds nothing afterwards: the program
/// must be able to unmount.
pub fn exchange(tree: &Path, one: &str, other: &str) -> bool {
    renameat_with(CWD, tree.join(one), CWD, tree.join(other), RenameFlags::EXCHANGE).is_ok()
}

/// Exchanges two names in the tree of a running program until told to stop; returns how often.
pub fn keep_exchanging(pid: Pid, one: &str, other: &str, over: &AtomicBool) -> usize {
    let mut exchanged = 0;
    while !over.load(Ordering::Relaxed) {
        let Some(GuestMount { tree, .. }) = GuestMount::of(pid) else { continue };
        while exchange(&tree, one, other) {
            exchanged += 1;
        }
    }
    exchanged
}
