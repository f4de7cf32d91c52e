//! Disks for paravirtual guests of a real Xen, which runs in QEMU: through pygrub and through PV-GRUB2 to a login on
//! the guest's only console, with every unit up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::guest::{Firmware, Guest};
use crate::common::trees::{self, shared};
use crate::common::{GIB, Node, project, tool};

/// The release whose Xen is the host: the same one, whatever this machine runs.
const HOST_SUITE: &str = "bookworm";

/// `mitigations=off` and `spec-ctrl=no` save time under emulation; the latter would switch the processor's registers
/// lazily too, which emulation does not survive.
const XEN_OPTIONS: &str = "console=com1 com1=115200,8n1 dom0_mem=768M,max:768M dom0_max_vcpus=1 loglvl=warning \
                           guest_loglvl=warning spec-ctrl=no,eager-fpu=yes";
const HOST_OPTIONS: &str = "console=hvc0 loglevel=4 mitigations=off";

/// Hypervisor parameters of a paravirtual instance under Xen that starts its own kernel: names, as Ganeti has them,
/// with its defaults.
const XEN_PVM: [(&str, &str); 18] = [
    ("blockdev_prefix", "xvd"),
    ("bootloader_args", ""),
    ("bootloader_path", "/usr/bin/pygrub"),
    ("cpu_cap", "0"),
    ("cpu_mask", "all"),
    ("cpu_weight", "256"),
    ("cpuid", ""),
    ("initrd_path", ""),
    ("kernel_args", "ro"),
    ("kernel_path", ""),
    ("migration_mode", "live"),
    ("migration_port", "8002"),
    ("reboot_behavior", "reboot"),
    ("root_path", "/dev/xvda1"),
    ("soundhw", ""),
    ("use_bootloader", "True"),
    ("vif_script", ""),
    ("xen_cmd", "xl"),
];

/// Who finds the guest's kernel: names of configurations in tests/machines/xen.
const PYGRUB: &str = "pygrub";
const PV_GRUB2: &str = "pv-grub2";

/// What noded sends for a paravirtual instance under Xen: a recorded environment of another hypervisor with this one's
/// parameters.
fn xen_pvm(node: &Node, disk: &Path, params: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut env = node.recorded("create-kvm", disk);
    // Its disks and cards have no type that one could choose.
    env.retain(|name, _| !name.starts_with("INSTANCE_HV_") && !name.ends_with("_FRONTEND_TYPE"));
    // The domain gets no card: a static address on one that is not there is a failed unit.
    env.retain(|name, _| !name.starts_with("NIC_"));
    env.insert("NIC_COUNT".into(), "0".into());
    env.insert("HYPERVISOR".into(), "xen-pvm".into());
    env.extend(XEN_PVM.map(|(name, value)| (format!("INSTANCE_HV_{name}"), value.to_owned())));
    env.extend(
        params.iter().map(|(name, value)| (format!("OSP_{}", name.to_uppercase()), (*value).to_owned())),
    );
    env
}

/// A cache with a tree that has the generic kernel: a create of the hypervisor's makes it.
pub fn cache(suite: &str) -> PathBuf {
    shared(&format!("cache-{suite}-xen"), &trees::program(), |dir| {
        let mut node = Node::bare();
        node.env.insert("GANETI_DEBOOTSTRAP_CACHE_DIR".into(), dir.display().to_string());
        disk_for_xen(&node, "d", &[("suite", suite)]);
    })
}

fn disk_for_xen(node: &Node, name: &str, params: &[(&str, &str)]) -> PathBuf {
    let disk = node.disk(name, 3 * GIB);
    node.create(&xen_pvm(node, &disk, params));
    disk
}

/// Xen and its first domain, made once for all tests.
pub fn host() -> PathBuf {
    let script = project().join("tests/machines/xen/make-dom0");
    let text = fs::read_to_string(&script).unwrap();
    let made = shared(&format!("xen-{HOST_SUITE}"), &text, |dir| {
        let _ = fs::remove_dir_all(dir.join("host"));
        tool(script.to_str().unwrap(), &[HOST_SUITE, dir.join("host").to_str().unwrap()]);
    });
    made.join("host")
}

/// Starts Xen, its first domain, and in that a guest from the disk; waits for the guest's login.
fn boot(node: &Node, disk: &Path, loader: &str) -> Guest {
    let host = host();
    let initramfs = node.path().join("initramfs");
    // The kernel unpacks archives one after the other: what may change is not in that which is kept.
    let own = node.path().join("own.cpio");
    let files = project().join("tests/machines/xen");
    let configuration = format!("{loader}.cfg");
    let to_str = |path: &Path| path.to_str().unwrap().to_owned();
    tool(
        "bsdtar",
        &["--format", "newc", "-cf", &to_str(&own), "-C", &to_str(&files), "init", &configuration],
    );
    let mut whole = File::create(&initramfs).unwrap();
    for part in [host.join("packages.cpio"), own] {
        io::copy(&mut File::open(part).unwrap(), &mut whole).unwrap();
    }
    let modules =
        format!("{} {HOST_OPTIONS} config={loader},{}", host.join("vmlinuz").display(), initramfs.display());
    let xen = to_str(&host.join("xen"));
    let options = [
        "-m",
        "2048",
        "-smp",
        "1",
        "-cpu",
        "max",
        "-kernel",
        &xen,
        "-append",
        XEN_OPTIONS,
        "-initrd",
        &modules,
    ];
    let mut guest = Guest::boot(Firmware::SeaBios, disk, &options);
    // Two systems start, one after the other.
    guest.patience = Duration::from_secs(600);
    guest.wait_for("Linux version");
    guest.login(None);
    guest.assert_running();
    guest
}

/// Wants that this is the guest, not its host, and that it has what its disk says.
fn assert_is_our_guest(guest: &mut Guest, suite: &str) {
    assert_eq!(guest.run("hostname"), "lk.example.com");
    assert_eq!(guest.run("systemd-detect-virt"), "xen");
    assert!(guest.run("cat /etc/os-release").contains(suite));
    assert_eq!(guest.run("findmnt -no SOURCE,FSTYPE /"), "/dev/xvda1 ext4");
    assert_eq!(guest.run("tty"), "/dev/hvc0");
    // systemd would start one on the kernel's console by itself; this is the one that we enabled.
    let getty = "serial-getty@hvc0.service";
    assert_eq!(guest.run(&format!("systemctl is-active {getty}")), "active");
    assert_eq!(
        guest.run(&format!("systemctl show -P DropInPaths {getty}")),
        format!("/etc/systemd/system/{getty}.d/speed.conf")
    );
    let command_line = guest.run("cat /proc/cmdline");
    assert!(command_line.contains("console=hvc0") && !command_line.contains("ttyS0"), "{command_line}");
}

fn assert_boots_under_xen(suite: &str, style: &str, loaders: &[&str]) {
    let node = Node::bare();
    node.take_from(&cache(suite), |_| true);
    let params = [("suite", suite), ("partition_style", style), ("swap", "128M")];
    let disk = disk_for_xen(&node, "d", &params);
    for loader in loaders {
        let mut guest = boot(&node, &disk, loader);
        assert_is_our_guest(&mut guest, suite);
        assert_eq!(guest.run("swapon --noheadings --show=NAME"), "/dev/xvda2");
        guest.power_off();
    }
    node.assert_nothing_left();
}

// Trixie's not through PV-GRUB2: it unpacks gzip, xz and lzo, and trixie's kernels are packed with zstd.

#[test]
#[ignore = "run by make test-full"]
fn a_trixie_gpt_disk_boots_under_xen_through_pygrub() {
    assert_boots_under_xen("trixie", "gpt", &[PYGRUB]);
}

#[test]
#[ignore = "run by make test-full"]
fn a_trixie_msdos_disk_boots_under_xen_through_pygrub() {
    assert_boots_under_xen("trixie", "msdos", &[PYGRUB]);
}

#[test]
#[ignore = "run by make test-full"]
fn a_bookworm_gpt_disk_boots_under_xen_through_pygrub_and_pv_grub2() {
    assert_boots_under_xen("bookworm", "gpt", &[PYGRUB, PV_GRUB2]);
}

#[test]
#[ignore = "run by make test-full"]
fn a_bookworm_msdos_disk_boots_under_xen_through_pygrub_and_pv_grub2() {
    assert_boots_under_xen("bookworm", "msdos", &[PYGRUB, PV_GRUB2]);
}
