//! A formatted device with a guest on it: the mount, and what is written inside through [`RootDir`] alone.
//!
//! [`RootDir`]: crate::rootdir::RootDir

mod access;
mod console;
pub mod identity;
mod mount;
mod names;
mod resolver;

use anyhow::Result;
use uuid::Uuid;

use crate::disk::Filesystem;
use crate::rootdir::RootDir;

pub use console::Console;
pub use mount::{Root, Workspace};
pub use names::edit_hosts;
pub use resolver::{HookResolver, Resolver};

use crate::request::InstanceName;

/// Everything that makes a tree this instance's guest. Decided by the plan; written by [`personalise`].
#[derive(Debug, Clone)]
pub struct Personality {
    pub name: InstanceName,
    pub filesystem: Filesystem,
    pub resolver: Resolver,
    pub console: Option<Console>,
}

/// The identifiers that only exist once the disk is formatted.
#[derive(Debug, Clone, Copy)]
pub struct Volumes {
    pub root: Uuid,
    pub swap: Option<Uuid>,
}

/// Makes the tree this guest's: names, fstab, resolver, loopback, console, an identity of its own.
pub fn personalise(root: &RootDir, personality: &Personality, volumes: Volumes) -> Result<()> {
    let Personality { name, filesystem, resolver, console } = personality;
    root.create_dir_all("etc", 0o755)?;
    names::write(root, name)?;
    write_fstab(root, *filesystem, volumes)?;
    resolver.write(root)?;
    write_loopback(root)?;
    if let Some(console) = console {
        console.enable(root)?;
    }
    access::clear_root_password(root)?;
    identity::renew(root, name)
}

/// The root by its UUID, in the form of fstab(5).
fn write_fstab(root: &RootDir, filesystem: Filesystem, volumes: Volumes) -> Result<()> {
    let (options, pass) = if filesystem.is_ext() { ("errors=remount-ro", 1) } else { ("defaults", 0) };
    let mut text = String::from("# <file system> <mount point> <type> <options> <dump> <pass>\n");
    text += &format!("UUID={} / {filesystem} {options} 0 {pass}\n", volumes.root);
    if let Some(swap) = volumes.swap {
        text += &format!("UUID={swap} none swap sw 0 0\n");
    }
    root.write("etc/fstab", text.as_bytes(), 0o644)
}

/// ifupdown's loopback interface, where the guest has ifupdown's directory; systemd needs nothing.
fn write_loopback(root: &RootDir) -> Result<()> {
    if !root.is_dir("etc/network")? {
        return Ok(());
    }
    let text = "# interfaces(5) file used by ifup(8) and ifdown(8)\n\
                source /etc/network/interfaces.d/*\n\n\
                auto lo\niface lo inet loopback\n";
    root.write("etc/network/interfaces", text.as_bytes(), 0o644)
}
