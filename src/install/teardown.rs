//! The end of a disk that could not be made, the same for every way of making one: nothing more is written to it, the kernel
//! lets go of it, and it is wiped, unless the administrator wants to look at it.

use std::path::Path;

use anyhow::{Error, Result};

use crate::disk::{self, Disk, LoopDevice};
use crate::guest::Root;
use crate::plan::OnFailure;
use crate::report;
use crate::sys::signals::{self, Interrupted};

/// Unmounts a root and detaches its device. A disk that is kept gets all that was written; of one that is to be wiped nothing
/// more is written, and where somebody still holds the root its superblock is wiped below him.
pub fn let_go(mut root: Root, root_device: &Path, device: LoopDevice, then: OnFailure) {
    let unmounted = match then {
        OnFailure::Keep => root.finish(),
        OnFailure::Wipe => root.give_up(),
    };
    if unmounted.is_err() && then == OnFailure::Wipe {
        warn(disk::wipe_held(root_device));
    }
    warn(unmounted);
    warn(device.finish());
}

/// The last step of a failed run, when the kernel has let go of the disk: `wipe` leaves nothing on it that could be taken for
/// anything. Returns the error, with what is known of its reason.
pub fn give_up(disk: &Disk, then: OnFailure, error: Error, wipe: impl FnOnce() -> Result<()>) -> Error {
    let error = full_backing(signals::check().err().unwrap_or(error), disk);
    if then == OnFailure::Keep {
        report::warning("keep_failed is set: the disk stays as it is, and is not fit for use");
        return error;
    }
    match wipe() {
        Ok(()) => report::line(&format!("{:>10}  the disk is wiped: nothing is installed on it", "")),
        Err(error) => report::warning(&format!("the disk could not be wiped: {error:#}")),
    }
    error
}

fn warn(result: Result<()>) {
    if let Err(error) = result {
        report::warning(&report::sentence(&error));
    }
}

/// A sparse file on a full filesystem shows as errors of input and output: the cause is given instead.
fn full_backing(error: Error, disk: &Disk) -> Error {
    if !disk.backing_is_full() || report::cause::<Interrupted>(&error).is_some() {
        return error;
    }
    let dir = disk.path.parent().unwrap_or(&disk.path).display();
    // The hint of the error before would not help.
    let full = anyhow::anyhow!(report::sentence(&error)).context(format!("the filesystem of {dir} is full"));
    report::with_hint(full, format!("make room in {dir}"))
}
