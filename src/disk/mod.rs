//! Bytes to a formatted device: the file or device that Ganeti gives, the loop device over it, the
//! filesystem, the boot code. Must not know Debian, a guest or the cache.

mod background_writer;
pub mod boot_code;
mod device;
mod direct;
pub mod esp;
mod format;
mod holders;
mod identifiers;
mod loop_device;
mod page_buffer;
mod staged_write;
mod udev;
mod wipe;

pub use device::{Disk, Medium};
pub use direct::{AlignedBuffer, DirectDisk};
pub use format::{Format, make_filesystem, make_swap, maker_of_ext, mkfs_of};
pub use identifiers::Reidentify;
pub use loop_device::LoopDevice;
pub use staged_write::StagedWrite;
pub use wipe::{wipe_ends, wipe_held, wipe_partitions, wipe_root, zero_range};
