//! A node that ran the shell scripts of 0.16 (or 0.17) yesterday gets this package today.
//!
//! A real Debian tree is the node: the predecessor is installed in it from Debian's archive and
//! tuned, runs `create` with the environment that noded sends, and is then replaced by the package
//! that `make deb` builds. What hooks were given and what stands on the disk is compared side by
//! side (upgrade.rs), and so is what the hooks that admins wrote for it do to a guest (field.rs);
//! going back, going forward again and purging follow. Backups that the predecessor
//! made are imported (backup.rs).
//!
//! Needs root (loop devices, chroot, namespaces) and, the first time, Debian's archive: the trees are
//! kept in target/test-cache. `UPGRADE_TEST_DEB` names a package to test instead of building one.
//!
//! Everything on the node runs in mount and PID namespaces of its own (enter.sh). Nothing here may
//! mount or attach anything outside of them.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test drives the program from outside: it starts processes and reads its own environment"
)]

mod backup;
#[path = "../common/mod.rs"]
mod common;
mod effects;
#[cfg(target_arch = "x86_64")]
mod field;
mod fresh;
mod held;
mod installed;
mod node;
mod rules;
mod steps;
mod trees;
mod tuned;
mod upgrade;

const PACKAGE: &str = "ganeti-instance-debootstrap";
const OS_DIR: &str = "/usr/share/ganeti/os/debootstrap";
const LEGACY: &str = "/etc/default/ganeti-instance-debootstrap";
const ETC: &str = "/etc/ganeti/instance-debootstrap";
const CACHE: &str = "/var/cache/ganeti-instance-debootstrap";
const DISK: &str = "/srv/disk.img";
const DISK_BYTES: u64 = 1 << 30;
