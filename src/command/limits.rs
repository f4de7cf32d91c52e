//! What the processes of a job may do, beside where they are: one table of who runs with what.

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

use super::root::JobRoot;
use crate::sys;

/// What bootstrappers and packages' scripts need: what container engines leave to root, without the network's. A capability that
/// is not named is gone, also one that a later kernel has.
const PACKAGES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    // sys::filter_package_calls leaves of it what is no disk.
    .union(CapabilitySet::MKNOD)
    // Without it PAM refuses root, so that scripts could not use su or runuser.
    .union(CapabilitySet::AUDIT_WRITE);

/// The capabilities of a job; None where nothing is taken from it.
fn capabilities(root: &JobRoot) -> Option<CapabilitySet> {
    match root {
        // Hooks are the administrator's: they mount, and speak to the node's udev by its semaphores.
        JobRoot::Node => None,
        // Tools of the node, which mount or change the filesystem of a disk.
        JobRoot::NodeWithOne(_) => None,
        JobRoot::Tree { .. } | JobRoot::Made(_) => Some(PACKAGES),
    }
}

/// Takes from the calling process, and all that it will start, what a job in this root has no use for. Nothing can be mounted
/// afterwards.
pub fn apply(root: &JobRoot) -> Result<()> {
    let Some(kept) = capabilities(root) else { return Ok(()) };
    sys::new_names().context("making UTS and IPC namespaces")?;
    sys::filter_package_calls().context("filtering system calls")?;
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(one) {
            match remove_capability_from_bounding_set(one) {
                // The kernel has none of that number.
                Err(Errno::INVAL) => break,
                done => done.context("dropping capabilities")?,
            }
        }
    }
    clear_ambient_capability_set().context("dropping capabilities")?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("dropping capabilities")?;
    // Our own program and libraries are files of the node. Only a process with CAP_SYS_PTRACE reaches them by /proc/1.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("hiding this process")
}
