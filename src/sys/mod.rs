//! What only the kernel can do for us: ioctls, signals, locks, files without a name. Knows nothing of disks' contents; imports
//! no other room.

mod calls;
mod filter;
mod ioctl;
pub mod lock;
pub mod signals;
pub mod tmpfile;

pub use calls::{clear_signal_mask, give_pages, has_record_lock, new_mount_namespace, new_names};
pub use ioctl::{
    Blkpg, Isolation, LoopInfo64, LoopSetup, MountedBtrfs, adopt_fd, blkpg, block_size_bytes,
    cloexec_inherited, clone_range, drop_block_cache, filter_package_calls, fs_label, inherited_fd,
    loop_configure, loop_flags, loop_get_free, loop_status, mounted_btrfs, set_fs_label, shut_down_fs, spawn,
    xfs_uuid,
};
