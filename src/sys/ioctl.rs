//! The one room that contains `unsafe`: ioctls that no crate wraps, and what a child does between fork and exec.
//!
//! It knows numbers and layouts of the kernel's interface and nothing of disks or guests: every function takes
//! file descriptors and plain values, and returns what the kernel said.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::{Errno, Result};

use super::{calls::answer, filter};

/// Flags of a loop device, from linux/loop.h.
pub mod loop_flags {
    pub const READ_ONLY: u32 = 1;
    pub const AUTOCLEAR: u32 = 4;
    pub const PARTSCAN: u32 = 8;
    pub const DIRECT_IO: u32 = 16;
}

/// `struct loop_info64`, linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopInfo64 {
    pub device: u64,
    pub inode: u64,
    rdevice: u64,
    pub offset_bytes: u64,
    pub size_limit_bytes: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`, linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// `struct blkpg_ioctl_arg`, linux/blkpg.h.
#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    data_len: i32,
    data: *mut BlkpgPartition,
}

/// `struct blkpg_partition`, linux/blkpg.h: start and length in bytes.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct file_clone_range`, linux/fs.h.
#[repr(C)]
pub struct FileCloneRange {
    source_fd: i64,
    source_offset: u64,
    source_length: u64,
    destination_offset: u64,
}

/// `struct btrfs_ioctl_fs_info_args`, linux/btrfs.h.
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// `struct btrfs_ioctl_dev_info_args`, linux/btrfs.h.
#[repr(C)]
struct BtrfsDevice {
    device_id: u64,
    uuid: [u8; 16],
    rest: [u64; 381],
    path: [u8; 1024],
}

/// `struct xfs_fsop_geom_v1`, fs/xfs/libxfs/xfs_fs.h.
#[repr(C)]
struct XfsGeometry {
    sizes: [u32; 8],
    blocks: [u64; 4],
    uuid: [u8; 16],
    rest: [u32; 7],
}

/// linux/fs.h, FSLABEL_MAX.
const FS_LABEL_MAX: usize = 256;

mod raw {
    use super::{
        BlkpgArg, BtrfsDevice, BtrfsInfo, FS_LABEL_MAX, FileCloneRange, LoopConfig, LoopInfo64, XfsGeometry,
    };
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, LoopInfo64);
    nix::ioctl_write_ptr_bad!(blkpg, 0x1269, BlkpgArg);
    // The number has the size of a C size_t in it, the kernel writes 64 bits (linux/fs.h, block/ioctl.c).
    nix::ioctl_read_bad!(blkgetsize64, nix::request_code_read!(0x12, 114, size_of::<usize>()), u64);
    nix::ioctl_none_bad!(blkflsbuf, 0x1261);
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, FileCloneRange);
    nix::ioctl_read!(fs_ioc_shutdown, b'X', 125, u32);
    nix::ioctl_read!(fs_ioc_getfslabel, 0x94, 49, [u8; FS_LABEL_MAX]);
    nix::ioctl_write_ptr!(fs_ioc_setfslabel, 0x94, 50, [u8; FS_LABEL_MAX]);
    nix::ioctl_read!(btrfs_ioc_fs_info, 0x94, 31, BtrfsInfo);
    nix::ioctl_readwrite!(btrfs_ioc_dev_info, 0x94, 30, BtrfsDevice);
    nix::ioctl_read!(xfs_ioc_fsgeometry_v1, b'X', 100, XfsGeometry);
}

/// The number of a free loop device; the kernel makes one where all are taken.
pub fn loop_get_free(control: &File) -> Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = answer(unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) })?;
    u32::try_from(number).map_err(|_| Errno::OVERFLOW)
}

/// What a loop device is to be given. Sizes in bytes; a limit of 0 means to the end of the backing file.
pub struct LoopSetup<'a> {
    pub backing: &'a File,
    pub offset_bytes: u64,
    pub size_limit_bytes: u64,
    pub sector_bytes: u32,
    pub flags: u32,
}

/// LOOP_CONFIGURE: attaches in one step, so that no half-configured device is ever seen.
pub fn loop_configure(device: &File, setup: &LoopSetup) -> Result<()> {
    // SAFETY: LoopConfig is a C struct of integers, for which all zeroes is a valid value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = setup.backing.as_raw_fd() as u32;
    config.block_size = setup.sector_bytes;
    config.info.offset_bytes = setup.offset_bytes;
    config.info.size_limit_bytes = setup.size_limit_bytes;
    config.info.flags = setup.flags;
    // SAFETY: both descriptors are open for the whole call, and the struct has the kernel's layout.
    answer(unsafe { raw::loop_configure(device.as_raw_fd(), &config) }).map(drop)
}

/// What is attached to a loop device; ENXIO where nothing is.
pub fn loop_status(device: &File) -> Result<LoopInfo64> {
    // SAFETY: all zeroes is a valid LoopInfo64 (integers only).
    let mut info: LoopInfo64 = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one loop_info64, which is what `info` is.
    answer(unsafe { raw::loop_get_status64(device.as_raw_fd(), &mut info) })?;
    Ok(info)
}

/// The operations of BLKPG, linux/blkpg.h.
#[derive(Clone, Copy)]
pub enum Blkpg {
    Add = 1,
    Delete = 2,
}

/// Adds or deletes the kernel's notion of partition `number`, in bytes; nothing is written to the disk.
pub fn blkpg(disk: &File, op: Blkpg, number: u32, start_bytes: u64, length_bytes: u64) -> Result<()> {
    let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| Errno::OVERFLOW);
    let mut partition = BlkpgPartition {
        start: signed(start_bytes)?,
        length: signed(length_bytes)?,
        number: i32::try_from(number).map_err(|_| Errno::OVERFLOW)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let arg = BlkpgArg {
        op: op as i32,
        flags: 0,
        data_len: size_of::<BlkpgPartition>() as i32,
        data: &mut partition,
    };
    // SAFETY: arg.data points to a blkpg_partition of data_len bytes that lives until the call returns.
    answer(unsafe { raw::blkpg(disk.as_raw_fd(), &arg) }).map(drop)
}

/// The size of a block device in bytes.
pub fn block_size_bytes(device: &File) -> Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one u64.
    answer(unsafe { raw::blkgetsize64(device.as_raw_fd(), &mut size) })?;
    Ok(size)
}

/// Writes out and drops the page cache of a block device's own path.
pub fn drop_block_cache(device: &File) -> Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    answer(unsafe { raw::blkflsbuf(device.as_raw_fd()) }).map(drop)
}

/// The label of a mounted filesystem, up to its first NUL; ENOTTY where it (or the kernel) has no such call.
pub fn fs_label(mount_point: &File) -> Result<Vec<u8>> {
    let mut buffer = [0u8; FS_LABEL_MAX];
    // SAFETY: the kernel writes FSLABEL_MAX bytes, which the buffer has.
    answer(unsafe { raw::fs_ioc_getfslabel(mount_point.as_raw_fd(), &mut buffer) })?;
    Ok(buffer.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
}

/// Lets `length` bytes of `to` at `at` be those of `from` at `offset`, without copying them (FICLONERANGE); an error where one filesystem does
/// not hold both, or cannot.
pub fn clone_range(from: &File, offset: u64, length: u64, to: &File, at: u64) -> Result<()> {
    let range = FileCloneRange {
        source_fd: i64::from(from.as_raw_fd()),
        source_offset: offset,
        source_length: length,
        destination_offset: at,
    };
    // SAFETY: both descriptors are open for the whole call, and the struct has the kernel's layout.
    answer(unsafe { raw::ficlonerange(to.as_raw_fd(), &range) }).map(drop)
}

/// Sets the label of a mounted filesystem; ENOTTY where it (or the kernel) has no such call.
pub fn set_fs_label(mount_point: &File, label: &str) -> Result<()> {
    let mut buffer = [0u8; FS_LABEL_MAX];
    if label.len() >= FS_LABEL_MAX {
        return Err(Errno::INVAL);
    }
    buffer[..label.len()].copy_from_slice(label.as_bytes());
    // SAFETY: the kernel reads FSLABEL_MAX bytes, which the buffer has; it is NUL-terminated.
    answer(unsafe { raw::fs_ioc_setfslabel(mount_point.as_raw_fd(), &buffer) }).map(drop)
}

/// What the kernel says of a mounted btrfs.
#[derive(Debug)]
pub struct MountedBtrfs {
    pub uuid: [u8; 16],
    pub devices: u64,
    /// The name by which the kernel knows the device with the highest number.
    pub device: PathBuf,
}

/// Asks which devices a mounted btrfs uses (BTRFS_IOC_FS_INFO, BTRFS_IOC_DEV_INFO).
pub fn mounted_btrfs(mount_point: &File) -> Result<MountedBtrfs> {
    // SAFETY: all zeroes is a valid BtrfsInfo (integers only).
    let mut info: BtrfsInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one btrfs_ioctl_fs_info_args, which is what `info` is.
    answer(unsafe { raw::btrfs_ioc_fs_info(mount_point.as_raw_fd(), &mut info) })?;
    // SAFETY: all zeroes is a valid BtrfsDevice (integers only).
    let mut device: BtrfsDevice = unsafe { std::mem::zeroed() };
    device.device_id = info.max_id;
    // SAFETY: the kernel reads and writes one btrfs_ioctl_dev_info_args, which is what `device` is.
    answer(unsafe { raw::btrfs_ioc_dev_info(mount_point.as_raw_fd(), &mut device) })?;
    let path = device.path.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(MountedBtrfs {
        uuid: info.fsid,
        devices: info.num_devices,
        device: PathBuf::from(OsStr::from_bytes(path)),
    })
}

/// The UUID of a mounted xfs (XFS_IOC_FSGEOMETRY_V1).
pub fn xfs_uuid(mount_point: &File) -> Result<[u8; 16]> {
    // SAFETY: all zeroes is a valid XfsGeometry (integers only).
    let mut geometry: XfsGeometry = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one xfs_fsop_geom_v1, which is what `geometry` is.
    answer(unsafe { raw::xfs_ioc_fsgeometry_v1(mount_point.as_raw_fd(), &mut geometry) })?;
    Ok(geometry.uuid)
}

/// Ends all writing of a mounted filesystem at once, the log included (FS_IOC_SHUTDOWN, NOLOGFLUSH): who still holds
/// it sees errors. ENOTTY where the filesystem has no such call.
pub fn shut_down_fs(mount_point: &File) -> Result<()> {
    let mut no_log_flush: u32 = 2;
    // SAFETY: the kernel reads one u32 that lives for the call; the direction in the number says otherwise, as it
    // always did (linux/xfs_fs.h, ext4.h).
    answer(unsafe { raw::fs_ioc_shutdown(mount_point.as_raw_fd(), &mut no_log_flush) }).map(drop)
}

/// Marks every descriptor from 3 up close-on-exec, so that none that we inherited reaches a child.
pub fn cloexec_inherited() {
    // SAFETY: close_range with CLOEXEC changes only flags of descriptors; no Rust object owns a flag.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if done == 0 {
        return;
    }
    // Before Linux 5.11: one by one.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    for fd in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<RawFd>().ok()) {
        if fd >= 3 {
            // SAFETY: as above, only a flag changes; a descriptor that is gone answers EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Whether a child gets namespaces of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// The child shares our namespaces.
    None,
    /// A mount and a PID namespace of its own; the child is the init of the latter.
    Namespaces,
}

/// Spawns `command` so that it dies with us: SIGKILL when the calling thread ends (so call from the main one),
/// default signal dispositions, `kept` descriptors open across exec. The child starts with an empty signal mask.
pub fn spawn(command: &mut Command, isolation: Isolation, kept: &[BorrowedFd]) -> io::Result<Child> {
    let kept: Vec<RawFd> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    // Its write end is closed when we die, before our children lose us. getppid says 0 in a new PID namespace.
    let (life, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (life_fd, ours_fd) = (life.as_raw_fd(), ours.as_raw_fd());
    // SAFETY: the closure runs between fork and exec; it only makes async-signal-safe system calls. It closes the
    // child's copy of a descriptor that the child does not use.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before prctl: then the pipe is at its end.
            libc::close(ours_fd);
            let mut at_end = libc::pollfd { fd: life_fd, events: 0, revents: 0 };
            if libc::poll(&mut at_end, 1, 0) != 0 {
                libc::_exit(127);
            }
            if isolation == Isolation::Namespaces {
                unshare(CloneFlags::CLONE_NEWNS)?;
            }
            for fd in &kept {
                if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    match isolation {
        Isolation::None => command.spawn(),
        Isolation::Namespaces => {
            // unshare(CLONE_NEWPID) moves only children to come; setns to our own namespace undoes that.
            let own = File::open("/proc/self/ns/pid")?;
            unshare(CloneFlags::CLONE_NEWPID)?;
            let child = command.spawn();
            setns(&own, CloneFlags::CLONE_NEWPID)?;
            child
        }
    }
}

/// Refuses the calling process, and all that it will start, the system calls that installing packages has no use for
/// (sys/filter.rs). Needs CAP_SYS_ADMIN: programs that change their user keep that right.
pub fn filter_package_calls() -> Result<()> {
    let mut code = filter::program();
    let length = libc::c_ushort::try_from(code.len()).map_err(|_| Errno::OVERFLOW)?;
    let program = libc::sock_fprog { len: length, filter: code.as_mut_ptr() };
    // SAFETY: the kernel copies the program, whose code lives until the call returns.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// Takes over a descriptor that our parent left open for us alone, and keeps it from our children.
pub fn adopt_fd(fd: RawFd) -> File {
    // SAFETY: the caller names a descriptor passed across exec; nothing else in this process owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    // SAFETY: only a flag of the descriptor changes.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    file
}

/// A descriptor that an environment names: a copy of it, if it is open.
pub fn inherited_fd(fd: RawFd) -> io::Result<File> {
    // SAFETY: the descriptor is only duplicated; one that is not open answers EBADF.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { File::from_raw_fd(copy) })
}
