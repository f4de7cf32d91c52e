//! A guest of a handful of files on a small disk, made in the wink of an eye: what a verb finds when it looks at a disk
//! that somebody else wrote. Copied for each case.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::running::{Family, Running};
use super::{BlockDevice, Mounted, Node, tool};

/// As the recorded environment of a rename has them.
pub const OLD_NAME: &str = "lg1.example.com";
pub const NEW_NAME: &str = "lg1new.example.com";

/// What begins every file of the network that the program wrote.
pub const HEADER: &str = "# written by ganeti-instance-debootstrap\n";

/// The root's place on a disk with a table, as `create` lays it out.
pub const ROOT_AT: u64 = 128 << 20;

/// What a guest sets its network up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Ifupdown,
    Netplan,
    Networkd,
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Gpt,
    Msdos,
    None,
}

/// A disk with a guest on it.
pub struct SmallDisk {
    pub path: PathBuf,
    pub filesystem: &'static str,
    /// Where the root begins.
    pub root_at: u64,
    pub root_bytes: u64,
}

impl SmallDisk {
    /// On ext4 with a GPT, as `create` makes it by default.
    pub fn make(node: &Node, name: &str, flavour: Flavour) -> SmallDisk {
        SmallDisk::make_with(node, name, flavour, Table::Gpt, "ext4")
    }

    pub fn make_with(
        node: &Node,
        name: &str,
        flavour: Flavour,
        table: Table,
        filesystem: &'static str,
    ) -> SmallDisk {
        // The least that the tools make.
        let (mkfs, options, root_mib): (&str, &[&str], u64) = match filesystem {
            "xfs" => ("mkfs.xfs", &["-q", "-f"], 300),
            "btrfs" => ("mkfs.btrfs", &["-q", "-f"], 112),
            _ => ("mke2fs", &["-q", "-F", "-t", filesystem], 16),
        };
        let root_at = if table == Table::None { 0 } else { ROOT_AT };
        let root_bytes = root_mib << 20;
        let path = node.disk(name, root_at + root_bytes + (1 << 20));
        divide(&path, table, root_bytes);
        let disk = SmallDisk { path, filesystem, root_at, root_bytes };
        let device = disk.attach();
        tool(mkfs, &[options, &[device.0.to_str().unwrap()]].concat());
        drop(device);
        plant(disk.mount_writable().path(), flavour);
        disk
    }

    /// Another disk with the same on it; holes stay holes.
    pub fn copy(&self, name: &str) -> SmallDisk {
        let path = self.path.with_file_name(name);
        tool("cp", &["--sparse=always", self.path.to_str().unwrap(), path.to_str().unwrap()]);
        SmallDisk { path, ..*self }
    }

    /// The root as a block device.
    pub fn attach(&self) -> BlockDevice {
        let (offset, size) = (self.root_at.to_string(), self.root_bytes.to_string());
        BlockDevice::over(&self.path, &["-o", &offset, "--sizelimit", &size])
    }

    pub fn mount_writable(&self) -> Mounted {
        self.mount_with("noatime")
    }

    pub fn mount(&self) -> Mounted {
        self.mount_with("ro")
    }

    fn mount_with(&self, option: &str) -> Mounted {
        let window = format!("loop,offset={},sizelimit={}", self.root_at, self.root_bytes);
        Mounted::with(&self.path, &format!("{option},{window}"))
    }

    /// A rename of the guest, as noded runs it.
    pub fn rename_command(&self, node: &Node) -> Command {
        node.wait_until_detached();
        node.verb("rename", &node.recorded("rename", &self.path))
    }

    /// Runs it to its end.
    pub fn rename(&self, node: &Node) -> Answer {
        Answer::of(self.rename_command(node))
    }
}

/// How a run ended that must end soon, with 0 or 1.
pub struct Answer {
    pub done: bool,
    pub log: String,
}

impl Answer {
    pub fn of(command: Command) -> Answer {
        let ended = Running::start(command).end_within(super::running::SOON, Family::default());
        let log = ended.log;
        assert!(!log.contains("panicked"), "{log}");
        match ended.status.code() {
            Some(0) => Answer { done: true, log },
            Some(1) => Answer { done: false, log },
            _ => panic!("{}: {log}", ended.status),
        }
    }

    /// The part of the log that Ganeti shows when a verb fails.
    pub fn last_lines(&self) -> String {
        let lines: Vec<&str> = self.log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A partition table as `create` writes it: the root is number 1 and lies last.
fn divide(disk: &Path, table: Table, root_bytes: u64) {
    let (start, sectors) = (ROOT_AT / 512, root_bytes / 512);
    let script = match table {
        Table::None => return,
        Table::Msdos => format!("label: dos\n1: start={start}, size={sectors}, type=83, bootable\n"),
        Table::Gpt => format!(
            "label: gpt\nfirst-lba: 34\n1: start={start}, size={sectors}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n\
             2: start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649\n\
             3: start=8192, size=253952, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
        ),
    };
    let input = disk.with_extension("sfdisk");
    fs::write(&input, script).unwrap();
    let command = format!("sfdisk -q --no-reread {} < {}", disk.display(), input.display());
    tool("sh", &["-c", &command]);
    fs::remove_file(input).unwrap();
}

/// A tree as a bootstrap leaves it, of a handful of files.
pub fn plant_bootstrapped(tree: &Path) {
    plant(tree, Flavour::Ifupdown);
    let file = |path: &str, text: &str| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for owned in ["etc/network/interfaces.d", "etc/systemd/network", "etc/udev", "etc/netplan"] {
        fs::remove_dir_all(tree.join(owned)).unwrap();
    }
    for own in ["etc/hostname", "etc/mailname", "etc/hosts", "etc/fstab", "etc/resolv.conf"] {
        fs::remove_file(tree.join(own)).unwrap();
    }
    for dir in ["etc/network/interfaces.d", "etc/systemd/system", "home", "mnt", "root", "var/log", "var/tmp"]
    {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for dir in ["tmp", "var/tmp"] {
        fs::set_permissions(tree.join(dir), fs::Permissions::from_mode(0o1777)).unwrap();
    }
    tool("mknod", &["-m", "666", tree.join("dev/null").to_str().unwrap(), "c", "1", "3"]);
    symlink("/etc/machine-id", tree.join("var/lib/dbus/machine-id")).unwrap();
    file("etc/machine-id", "");
    file("etc/debian_version", "13.1\n");
    file(
        "usr/lib/os-release",
        "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\nVERSION_CODENAME=trixie\n",
    );
    symlink("../usr/lib/os-release", tree.join("etc/os-release")).unwrap();
    let sources = ["trixie", "trixie-updates", "trixie-security"]
        .map(|suite| format!("deb http://mirror.example.org/debian {suite} main\n"));
    file("etc/apt/sources.list", &sources.concat());
    file("var/lib/dpkg/status", "Package: base-files\nStatus: install ok installed\nVersion: 13.8\n\n");
    file("usr/lib/systemd/system/serial-getty@.service", "[Service]\n[Install]\nWantedBy=getty.target\n");
}

/// The guest's files: all that personalising and renaming touch, and what stands beside it.
pub fn plant(tree: &Path, flavour: Flavour) {
    let file = |path: &str, text: &str, mode: u32| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let ours = |path: &str, text: &str| file(path, &format!("{HEADER}{text}"), 0o644);
    for dir in ["dev", "proc", "run", "sys", "tmp", "var/lib/dbus", "var/lib/systemd", "etc/ssh", "boot"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    file("etc/hostname", &format!("{OLD_NAME}\n"), 0o644);
    file("etc/hosts", &format!("127.0.0.1\tlocalhost\n127.0.1.1\t{OLD_NAME} lg1\n192.0.2.9\tdb\n"), 0o644);
    file("etc/mailname", &format!("{OLD_NAME}\n"), 0o644);
    file("etc/fstab", "UUID=00000000-0000-0000-0000-000000000000 / ext4 errors=remount-ro 0 1\n", 0o644);
    file("etc/resolv.conf", "nameserver 192.0.2.53\n", 0o644);
    file("etc/machine-id", "0123456789abcdef0123456789abcdef\n", 0o444);
    file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
    file("etc/shadow", "root:*:19000:0:99999:7:::\n", 0o640);
    file("etc/udev/rules.d/70-own.rules", "# the owner's\n", 0o644);
    file(
        "etc/network/interfaces",
        "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n",
        0o644,
    );
    file("etc/network/interfaces.d/own", "# the owner's\n", 0o644);
    file("etc/systemd/network/90-own.network", "# the owner's\n", 0o644);
    fs::create_dir_all(tree.join("etc/netplan")).unwrap();
    match flavour {
        Flavour::Ifupdown => {
            ours("etc/network/interfaces.d/ganeti", "\nallow-hotplug nic0\niface nic0 inet dhcp\n");
            ours("etc/systemd/network/10-ganeti-nic0.link", "[Match]\nMACAddress=aa:00:00:00:00:01\n");
        }
        Flavour::Netplan => {
            file("etc/netplan/50-ganeti.yaml", &format!("{HEADER}network:\n  version: 2\n"), 0o600);
        }
        Flavour::Networkd => {
            ours("etc/systemd/network/50-ganeti-nic0.network", "[Match]\nMACAddress=aa:00:00:00:00:01\n");
            let dir = "etc/systemd/system/systemd-networkd-wait-online.service.d";
            ours(&format!("{dir}/ganeti.conf"), "[Service]\nExecStart=\n");
        }
    }
    // Each would tell that it ran.
    let program = "#!/bin/sh\n: > /was-run\n";
    for path in ["usr/bin/sh", "usr/bin/hostname", "usr/sbin/ldconfig", "usr/bin/systemctl"] {
        file(path, program, 0o755);
    }
    match flavour {
        Flavour::Ifupdown => {
            file("usr/sbin/ifup", program, 0o755);
            file("usr/lib/systemd/network/99-default.link", "[Link]\n", 0o644);
        }
        Flavour::Netplan => file("usr/sbin/netplan", program, 0o755),
        Flavour::Networkd => {
            file("usr/lib/systemd/systemd-networkd", program, 0o755);
            let unit = "[Service]\n[Install]\nWantedBy=multi-user.target\n";
            file("usr/lib/systemd/system/systemd-networkd.service", unit, 0o644);
            let wants = tree.join("etc/systemd/system/multi-user.target.wants");
            fs::create_dir_all(&wants).unwrap();
            let unit = "systemd-networkd.service";
            symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(unit)).unwrap();
        }
    }
    for dir in ["bin", "sbin", "lib"] {
        symlink(format!("usr/{dir}"), tree.join(dir)).unwrap();
    }
}
