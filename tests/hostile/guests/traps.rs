//! Traps in a tree: what an owner with bad intentions can put in the place of a file or a directory of a guest. Only
//! the tree is known here, not what is done with it afterwards.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::canary::Canary;
use crate::common::small_guest::{Flavour, HEADER, OLD_NAME};
use crate::common::tool;

/// What stands at a place in an honest guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
}

/// A place in a guest.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub path: &'static str,
    pub kind: Kind,
    /// The guest in which it matters.
    pub flavour: Flavour,
    /// Whether renaming has any business there; where it has not, no trap may be in its way.
    pub concerned: bool,
}

const fn place(path: &'static str, kind: Kind, flavour: Flavour) -> Place {
    Place { path, kind, flavour, concerned: true }
}

const fn bystander(path: &'static str, kind: Kind) -> Place {
    Place { path, kind, flavour: Flavour::Ifupdown, concerned: false }
}

pub const PLACES: [Place; 20] = [
    place("etc", Kind::Dir, Flavour::Ifupdown),
    place("etc/hostname", Kind::File, Flavour::Ifupdown),
    place("etc/hosts", Kind::File, Flavour::Networkd),
    place("etc/mailname", Kind::File, Flavour::Netplan),
    bystander("etc/fstab", Kind::File),
    place("etc/resolv.conf", Kind::File, Flavour::Ifupdown),
    bystander("etc/machine-id", Kind::File),
    bystander("etc/udev/rules.d", Kind::Dir),
    // As the program's own names for what is not finished, which nobody can guess.
    bystander("etc/.tmp-0123456789abcdef", Kind::File),
    place("etc/network", Kind::Dir, Flavour::Ifupdown),
    place("etc/network/interfaces", Kind::File, Flavour::Ifupdown),
    place("etc/network/interfaces.d", Kind::Dir, Flavour::Ifupdown),
    place("etc/network/interfaces.d/ganeti", Kind::File, Flavour::Ifupdown),
    place("etc/systemd", Kind::Dir, Flavour::Networkd),
    place("etc/systemd/network", Kind::Dir, Flavour::Networkd),
    place("etc/systemd/network/10-ganeti-nic0.link", Kind::File, Flavour::Ifupdown),
    place("etc/systemd/network/50-ganeti-nic0.network", Kind::File, Flavour::Networkd),
    place("etc/netplan", Kind::Dir, Flavour::Netplan),
    place("etc/netplan/50-ganeti.yaml", Kind::File, Flavour::Netplan),
    place("usr/sbin/netplan", Kind::File, Flavour::Netplan),
];

/// What is put there instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// A link to the same place of the canary's tree.
    AbsoluteLink,
    /// The same, by more steps upwards than there are.
    UpwardLink,
    /// To the original, elsewhere in the guest: a guest may have that.
    InnerLink,
    LinkLoop,
    /// Through /proc to the root of whoever resolves it.
    ProcRoot,
    /// To an open file of whoever resolves it.
    ProcFd,
    Fifo,
    BlockDevice,
    CharDevice,
    Socket,
    /// A directory for a file, a file for a directory.
    WrongKind,
    /// The original with some hundred names.
    ManyNames,
    /// The original, 200 GiB long.
    Sparse,
    /// The original, for nobody.
    NoMode,
    Immutable,
    AppendOnly,
    LongLine,
    ManyLines,
    Nuls,
    NotUtf8,
    /// More entries than such a directory has.
    ManyEntries,
    Absent,
}

pub const LINKS: [Trap; 6] =
    [Trap::AbsoluteLink, Trap::UpwardLink, Trap::InnerLink, Trap::LinkLoop, Trap::ProcRoot, Trap::ProcFd];
pub const NODES: [Trap; 5] = [Trap::Fifo, Trap::BlockDevice, Trap::CharDevice, Trap::Socket, Trap::WrongKind];
pub const CONTENTS: [Trap; 8] = [
    Trap::ManyNames,
    Trap::Sparse,
    Trap::LongLine,
    Trap::ManyLines,
    Trap::Nuls,
    Trap::NotUtf8,
    Trap::ManyEntries,
    Trap::Absent,
];
pub const LOCKED: [Trap; 3] = [Trap::NoMode, Trap::Immutable, Trap::AppendOnly];

/// Where the original goes that a trap displaces.
pub const DISPLACED: &str = "var/displaced";

impl Trap {
    /// Whether there is such a thing for a file, or a directory.
    pub fn fits(self, kind: Kind) -> bool {
        match self {
            Trap::ManyNames
            | Trap::Sparse
            | Trap::LongLine
            | Trap::ManyLines
            | Trap::Nuls
            | Trap::NotUtf8 => kind == Kind::File,
            Trap::ManyEntries => kind == Kind::Dir,
            _ => true,
        }
    }

    /// Sets it in the tree at a place.
    pub fn set(self, tree: &Path, place: &Place, canary: &Canary) {
        let at = tree.join(place.path);
        match self {
            Trap::ManyNames => {
                create_if_absent(&at, place.kind);
                let names = tree.join("var/names");
                fs::create_dir_all(&names).unwrap();
                (0..300).for_each(|n| fs::hard_link(&at, names.join(n.to_string())).unwrap());
            }
            Trap::Sparse => {
                File::options().append(true).create(true).open(&at).unwrap().set_len(200 << 30).unwrap()
            }
            Trap::NoMode => {
                create_if_absent(&at, place.kind);
                fs::set_permissions(&at, fs::Permissions::from_mode(0o000)).unwrap();
            }
            Trap::Immutable | Trap::AppendOnly => {
                create_if_absent(&at, place.kind);
                let flag = if self == Trap::Immutable { "+i" } else { "+a" };
                tool("chattr", &[flag, at.to_str().unwrap()]);
            }
            Trap::ManyEntries => {
                // Names of one file: a small filesystem has no room for so many.
                let entry = |n: u32| at.join(format!("50-ganeti-nic{n}.entry"));
                fs::write(entry(0), HEADER).unwrap();
                (1..5000).for_each(|n| fs::hard_link(entry(0), entry(n)).unwrap());
            }
            _ => {
                displace(tree, &at);
                self.make(&at, place, canary);
            }
        }
    }

    /// Makes it where nothing is.
    pub fn make(self, at: &Path, place: &Place, canary: &Canary) {
        let outside = canary.tree().join(place.path);
        let content = |bytes: &[u8]| fs::write(at, [header_of(place).as_bytes(), bytes].concat()).unwrap();
        let node = |kind: SFlag, device| mknod(at, kind, Mode::from_bits_truncate(0o666), device).unwrap();
        match self {
            Trap::AbsoluteLink => symlink(outside, at).unwrap(),
            Trap::UpwardLink => symlink(format!("{}{}", "../".repeat(40), outside.display()), at).unwrap(),
            Trap::InnerLink => symlink(Path::new("/").join(DISPLACED), at).unwrap(),
            Trap::LinkLoop => {
                let other = format!("{}.loop", at.file_name().unwrap().to_str().unwrap());
                symlink(&other, at).unwrap();
                symlink(at.file_name().unwrap(), at.with_file_name(other)).unwrap();
            }
            Trap::ProcRoot => symlink(format!("/proc/self/root{}", outside.display()), at).unwrap(),
            Trap::ProcFd => symlink("/proc/self/fd/3", at).unwrap(),
            Trap::Fifo => node(SFlag::S_IFIFO, 0),
            Trap::BlockDevice => node(SFlag::S_IFBLK, device_number(&canary.device.0)),
            // /dev/zero: without an end.
            Trap::CharDevice => node(SFlag::S_IFCHR, makedev(1, 5)),
            Trap::Socket => node(SFlag::S_IFSOCK, 0),
            Trap::WrongKind if place.kind == Kind::Dir => content(b"a file\n"),
            Trap::WrongKind => {
                fs::create_dir(at).unwrap();
                fs::write(at.join("inside"), "a file\n").unwrap();
            }
            Trap::LongLine => content(
                &[b"x".repeat(1 << 20).as_slice(), b"\n127.0.1.1 ", OLD_NAME.as_bytes(), b"\n"].concat(),
            ),
            // As many as a file of that size can have.
            Trap::ManyLines => content(&b"\n".repeat((1 << 20) - HEADER.len())),
            Trap::Nuls => {
                content(&[OLD_NAME.as_bytes(), &[0; 5000], b"\n127.0.1.1 ", OLD_NAME.as_bytes()].concat())
            }
            Trap::NotUtf8 => {
                content(&[b"\xff\xfe\x80\x1b[2J\r\xc3\n127.0.1.1 ", OLD_NAME.as_bytes(), b"\n"].concat());
            }
            Trap::Absent => {}
            _ => panic!("{self:?} is not made, but set"),
        }
    }
}

/// A file of the program's own stays one, whatever else is in it.
fn header_of(place: &Place) -> &'static str {
    if place.path.contains("ganeti") { HEADER } else { "" }
}

fn create_if_absent(at: &Path, kind: Kind) {
    match kind {
        Kind::Dir => fs::create_dir_all(at).unwrap(),
        Kind::File if at.exists() => {}
        Kind::File => fs::write(at, "").unwrap(),
    }
}

fn displace(tree: &Path, at: &Path) {
    let to: PathBuf = tree.join(DISPLACED);
    if fs::symlink_metadata(at).is_ok() {
        fs::rename(at, to).unwrap();
    } else {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
    }
}

fn device_number(device: &Path) -> nix::libc::dev_t {
    nix::sys::stat::stat(device).unwrap().st_rdev
}
