//! A tree that was not made here and is to start from a new disk: the names of its root in the configurations that it
//! has, and GRUB where it has none that knows the disk.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use uuid::Uuid;

use super::{Console, GRUB_CFG, LOADER_DIR, MAX_BYTES, core_image, kernel_consoles, terminals};
use crate::filesystem::PartitionStyle;
use crate::rootdir::{Kind, RootDir};
use crate::sys::signals;

const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Names in /boot.
const MAX_ENTRIES: usize = 4096;
/// Modules of GRUB; it has about 280.
const MAX_MODULES: usize = 2048;

/// Gives a tree that was not made here the GRUB of a cached tree, as grub-install in the guest would do it: modules and
/// images of one version, and a configuration where it has none. False where the tree has no kernel.
pub fn install_grub_for(
    root: &RootDir,
    files: &RootDir,
    style: PartitionStyle,
    filesystem: Uuid,
    console: Option<&Console>,
) -> Result<bool> {
    let own_config = root.is_file(GRUB_CFG)?;
    let config = generated_config(&root.list("boot", MAX_ENTRIES)?, filesystem, console);
    if config.is_none() && !own_config {
        return Ok(false);
    }
    root.create_dir_all(LOADER_DIR, 0o755)?;
    let cores = [PartitionStyle::Gpt, PartitionStyle::Msdos].map(core_image);
    for name in files.list(LOADER_DIR, MAX_MODULES)? {
        signals::check()?;
        let path = Path::new(LOADER_DIR).join(&name);
        let bytes = files.read(&path, MAX_BYTES)?.context("reading GRUB's modules")?;
        match cores.iter().find(|core| path == Path::new(core)) {
            Some(core) if *core == core_image(style) => {
                root.write(format!("{LOADER_DIR}/core.img"), &bytes, 0o644)?
            }
            Some(_) => {}
            None => root.write(&path, &bytes, 0o644)?,
        }
    }
    if let Some(config) = config.filter(|_| !own_config) {
        root.write(GRUB_CFG, config.as_bytes(), 0o600)?;
    }
    Ok(true)
}

/// What grub-mkconfig would write of the newest kernel among the names in /boot; None where there is none.
fn generated_config(boot: &[OsString], filesystem: Uuid, console: Option<&Console>) -> Option<String> {
    let names = || boot.iter().filter_map(|name| name.to_str());
    // They stand in a configuration: nothing that GRUB would read as more than a word.
    let plain = |version: &&str| version.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+~".contains(c));
    let versions = names().filter_map(|name| name.strip_prefix("vmlinuz-")).filter(plain);
    let newest = versions.max_by_key(|version| numbers(version))?;
    let initrd = format!("initrd.img-{newest}");
    let mut config = format!(
        "# Written by ganeti-instance-debootstrap; update-grub replaces it.\n\
         set timeout=1\n{}\
         search --no-floppy --fs-uuid --set=root {filesystem}\n\
         menuentry 'Linux {newest}' {{\n\
         \tlinux /boot/vmlinuz-{newest} root=UUID={filesystem} ro {}\n",
        terminals(console),
        kernel_consoles(console)
    );
    if names().any(|name| name == initrd) {
        config += &format!("\tinitrd /boot/{initrd}\n");
    }
    Some(config + "}\n")
}

/// The numbers in a version, for comparison: 6.12 is newer than 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Configurations of loaders that name the root to the kernel; each may be there.
const CONFIGS: [&str; 6] = [
    GRUB_CFG,
    "boot/grub/menu.lst",
    "boot/extlinux/extlinux.conf",
    "boot/syslinux/syslinux.cfg",
    "extlinux.conf",
    "boot/extlinux.conf",
];

/// Directories and files that [`repair()`] and [`install_grub_for()`] change, a directory before what is in it.
pub fn changed_paths() -> impl Iterator<Item = &'static str> {
    ["boot", "boot/grub", "boot/extlinux", "boot/syslinux", LOADER_DIR].into_iter().chain(CONFIGS)
}

/// Names the root by its new UUID wherever a loader's configuration in the tree names it otherwise.
pub fn repair(root: &RootDir, filesystem: Uuid) -> Result<()> {
    for path in CONFIGS {
        if root.kind(path)? != Some(Kind::File) {
            continue;
        }
        let old = root.read(path, MAX_CONFIG_BYTES)?.unwrap_or_default();
        let new = with_root(&old, filesystem);
        if new != old {
            root.rewrite(path, &new)?;
        }
    }
    Ok(())
}

/// A configuration with another root: the values of `root=` that name a device, and what GRUB searches for by UUID.
pub fn with_root(config: &[u8], filesystem: Uuid) -> Vec<u8> {
    let uuid = filesystem.to_string();
    let own = format!("root=UUID={uuid}");
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"\"'".contains(byte);
    let mut new = Vec::with_capacity(config.len() + 256);
    for line in config.split_inclusive(|byte| *byte == b'\n') {
        let searches = line.trim_ascii_start().starts_with(b"search");
        let mut rest = line;
        let mut previous = b' ';
        while let Some(first) = rest.first() {
            let length = rest.iter().position(is_end).unwrap_or(rest.len()).max(1);
            let (word, after) = rest.split_at(length);
            let names_device = |value: &[u8]| {
                [&b"UUID="[..], b"PARTUUID=", b"LABEL=", b"/dev/"].iter().any(|kind| value.starts_with(kind))
            };
            let is_root = word.strip_prefix(b"root=").is_some_and(names_device) && is_end(&previous);
            let is_searched = searches && Uuid::try_parse_ascii(word).is_ok();
            match (is_root, is_searched) {
                (true, _) => new.extend_from_slice(own.as_bytes()),
                (_, true) => new.extend_from_slice(uuid.as_bytes()),
                _ => new.extend_from_slice(word),
            }
            previous = *first;
            rest = after;
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "00000000-0000-0000-0000-000000000007";

    #[test]
    fn every_name_of_the_root_becomes_its_uuid() {
        let old = "b5a70c8f-0000-4000-8000-0123456789ab";
        for (before, after) in [
            (
                format!("\tlinux /boot/vmlinuz root=UUID={old} ro quiet\n"),
                format!("\tlinux /boot/vmlinuz root=UUID={UUID} ro quiet\n"),
            ),
            (
                "linux /vmlinuz root=/dev/mapper/loop0p1 ro".into(),
                format!("linux /vmlinuz root=UUID={UUID} ro"),
            ),
            ("append \"root=PARTUUID=12-01\" x".into(), format!("append \"root=UUID={UUID}\" x")),
            (
                format!("  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos1  {old}\n"),
                format!("  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos1  {UUID}\n"),
            ),
            ("set root='hd0,msdos1'\n".into(), "set root='hd0,msdos1'\n".into()),
            (
                "linux /x xroot=/dev/a root=nfs overlayroot=/dev/b\n".into(),
                "linux /x xroot=/dev/a root=nfs overlayroot=/dev/b\n".into(),
            ),
            (format!("echo {old}"), format!("echo {old}")),
        ] {
            let new = with_root(before.as_bytes(), Uuid::from_u128(7));
            assert_eq!(String::from_utf8(new.clone()).unwrap(), after);
            assert_eq!(with_root(&new, Uuid::from_u128(7)), new, "again");
        }
    }

    #[test]
    fn the_newest_kernel_is_started() {
        let names = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
        let boot = names(&[
            "vmlinuz-6.9.1-1-amd64",
            "vmlinuz-6.12.3-1-amd64",
            "initrd.img-6.12.3-1-amd64",
            "vmlinuz-9;reboot",
        ]);
        let config = generated_config(&boot, Uuid::from_u128(7), None).unwrap();
        assert!(config.contains("linux /boot/vmlinuz-6.12.3-1-amd64 root=UUID=00000000-"), "{config}");
        assert!(config.contains("initrd /boot/initrd.img-6.12.3-1-amd64\n"), "{config}");
        assert_eq!(generated_config(&names(&["grub", "config-6.1"]), Uuid::nil(), None), None);
    }
}
