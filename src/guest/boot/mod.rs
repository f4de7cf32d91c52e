//! What starts a guest: GRUB's configuration and images in its tree, made bootable when the cache was made, and given
//! this guest's identifiers here. No program of the guest runs, nothing is mounted.

mod grub;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use super::Console;
use crate::filesystem::PartitionStyle;
use crate::rootdir::RootDir;

pub use grub::{changed_paths, install_grub_for, repair, with_root};

/// The root's UUID in a cached tree; every guest gets its own in its place.
pub const PLACEHOLDER: Uuid = Uuid::from_u128(0x676e_7400_0000_4000_8000_0000_0000_0001);

/// Our settings of GRUB, read after /etc/default/grub: grub-mkconfig in the guest keeps to them.
pub const GRUB_DEFAULTS: &str = "etc/default/grub.d/50-ganeti.cfg";

const GRUB_CFG: &str = "boot/grub/grub.cfg";
const LOADER_DIR: &str = "boot/grub/i386-pc";
const BOOT_IMAGE: &str = "boot/grub/i386-pc/boot.img";
/// Says trust GRUB it is: each looks for its configuration in a directory of its own.
const OS_RELEASE: &str = "usr/lib/os-release";
const SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
const SIGNED_GRUB: &str = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";

/// The largest of the files that are read: GRUB's signed image has a few MiB.
const MAX_BYTES: u64 = 32 << 20;

/// Which kinds of firmware are to start the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firmware {
    pub bios: bool,
    pub uefi: bool,
}

/// The console that a cached tree's grub.cfg names.
pub fn placeholder_console() -> Console {
    Console { port: "ttyS0", speed: 115_200 }
}

/// grub-mkconfig's settings. Interfaces keep the kernel's names: whoever knows them by other names matches their MAC.
pub fn grub_defaults(console: Option<&Console>) -> String {
    let mut text = format!(
        "# Written by ganeti-instance-debootstrap; `update-grub` applies changes.\n\
         GRUB_TIMEOUT=1\n\
         GRUB_DISABLE_OS_PROBER=true\n\
         GRUB_CMDLINE_LINUX_DEFAULT=\"\"\n\
         GRUB_CMDLINE_LINUX=\"net.ifnames=0 {}\"\n",
        kernel_consoles(console)
    );
    if let Some(speed) = serial_speed(console) {
        text +=
            &format!("GRUB_TERMINAL=\"console serial\"\nGRUB_SERIAL_COMMAND=\"{}\"\n", serial_command(speed));
    } else {
        text += "GRUB_TERMINAL=console\n";
    }
    text
}

/// The kernel writes to all and takes the last for /dev/console.
fn kernel_consoles(console: Option<&Console>) -> String {
    match console {
        None => "console=tty0".into(),
        // hvc has no speed.
        Some(console) if console.port == "hvc0" => "console=tty0 console=hvc0".into(),
        Some(console) => format!("console=tty0 console={},{}n8", console.port, console.speed),
    }
}

/// GRUB itself speaks on the first serial port only.
fn serial_speed(console: Option<&Console>) -> Option<u32> {
    console.filter(|console| console.port == "ttyS0").map(|console| console.speed)
}

fn serial_command(speed: u32) -> String {
    format!("serial --unit=0 --speed={speed}")
}

/// What GRUB's configuration says of its terminals, as grub-mkconfig writes it.
fn terminals(console: Option<&Console>) -> String {
    match serial_speed(console) {
        Some(speed) => {
            format!(
                "{}\nterminal_input console serial\nterminal_output console serial\n",
                serial_command(speed)
            )
        }
        None => "terminal_input console\nterminal_output console\n".into(),
    }
}

/// The files of a tree that its loader is made of, as far as they are there: their paths, and what is in them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoaderFiles(BTreeMap<String, Vec<u8>>);

impl LoaderFiles {
    /// Those of a tree.
    pub fn of(root: &RootDir) -> Result<LoaderFiles> {
        let cores = [PartitionStyle::Gpt, PartitionStyle::Msdos].map(core_image);
        let others = [GRUB_CFG, BOOT_IMAGE, OS_RELEASE, SHIM, SIGNED_GRUB].map(str::to_owned);
        let mut pieces = BTreeMap::new();
        for path in cores.into_iter().chain(others) {
            pieces.extend(root.read(&path, MAX_BYTES)?.map(|bytes| (path, bytes)));
        }
        Ok(LoaderFiles(pieces))
    }

    /// Those that were kept elsewhere.
    pub fn kept(files: BTreeMap<String, Vec<u8>>) -> LoaderFiles {
        LoaderFiles(files)
    }

    pub fn into_files(self) -> BTreeMap<String, Vec<u8>> {
        self.0
    }

    /// Whether their tree was made bootable for this: one that was made by hand may not be, or have a loader of its own.
    pub fn boot(&self, firmware: Firmware, style: PartitionStyle) -> bool {
        let has = |path: &str| self.0.contains_key(path);
        let has_bios = has(BOOT_IMAGE) && has(&core_image(style));
        let has_uefi = has(SHIM) && has(SIGNED_GRUB);
        self.is_ours() && (has_bios || !firmware.bios) && (has_uefi || !firmware.uefi)
    }

    fn is_ours(&self) -> bool {
        let config = self.0.get(GRUB_CFG).map(|config| String::from_utf8_lossy(config));
        config.is_some_and(|config| config.contains(&PLACEHOLDER.to_string()))
    }

    /// GRUB for BIOS: the guest's boot.img, and its core image for a table.
    pub fn bios_images(&self, style: PartitionStyle) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok((self.piece(BOOT_IMAGE)?, self.piece(&core_image(style))?))
    }

    /// What lies on the EFI system partition beside what firmware starts: GRUB, and where it finds its configuration.
    pub fn efi_files(&self, filesystem: Uuid) -> Result<Vec<EfiFile>> {
        let os_release = self.0.get(OS_RELEASE).map(|text| String::from_utf8_lossy(text));
        let ubuntu = os_release.is_some_and(|text| text.lines().any(|line| line == "ID=ubuntu"));
        let vendor = if ubuntu { "ubuntu" } else { "debian" };
        let config = format!(
            "search.fs_uuid {filesystem} root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
        );
        Ok(vec![
            ("EFI/BOOT/grubx64.efi".into(), self.piece(SIGNED_GRUB)?),
            (format!("EFI/{vendor}/grub.cfg"), config.into_bytes()),
        ])
    }

    /// What firmware starts where no boot entry says otherwise: shim, under the name of the UEFI specification.
    pub fn efi_loader(&self) -> Result<EfiFile> {
        Ok(("EFI/BOOT/BOOTX64.EFI".into(), self.piece(SHIM)?))
    }

    fn piece(&self, path: &str) -> Result<Vec<u8>> {
        self.0.get(path).cloned().with_context(|| format!("/{path} is missing: the tree does not boot"))
    }
}

/// Whether a file of a cached tree is a piece of its loader: what [`install_grub_for()`] and a disk's loader are made of.
pub fn is_loader_file(path: &[u8]) -> bool {
    let modules = path.strip_prefix(LOADER_DIR.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
    modules || [GRUB_CFG, SHIM, SIGNED_GRUB, OS_RELEASE].iter().any(|piece| path == piece.as_bytes())
}

/// Room for all pieces: modules and images have some 10 MiB.
pub const LOADER_FILES_MAX_BYTES: u64 = 128 << 20;

/// Gives GRUB this guest's root and console, and leaves the one core image that its disk wants.
pub fn configure_loader(
    root: &RootDir,
    style: PartitionStyle,
    filesystem: Uuid,
    console: Option<&Console>,
) -> Result<()> {
    let config = read(root, GRUB_CFG)?;
    let config = String::from_utf8(config).context("reading GRUB's configuration")?;
    if let Some(edited) = edit_config(&config, filesystem, console) {
        root.rewrite(GRUB_CFG, edited.as_bytes())?;
        root.write(GRUB_DEFAULTS, grub_defaults(console).as_bytes(), 0o644)?;
    }
    for candidate in [PartitionStyle::Gpt, PartitionStyle::Msdos] {
        let path = core_image(candidate);
        if let Some(image) = root.read(&path, MAX_BYTES)? {
            if candidate == style {
                root.write(format!("{LOADER_DIR}/core.img"), &image, 0o644)?;
            }
            root.remove(&path)?;
        }
    }
    Ok(())
}

/// grub.cfg with this guest's identifiers; None where it is not one of ours.
fn edit_config(config: &str, filesystem: Uuid, console: Option<&Console>) -> Option<String> {
    let placeholder = PLACEHOLDER.to_string();
    let theirs = placeholder_console();
    config.contains(&placeholder).then(|| {
        config
            .replace(&placeholder, &filesystem.to_string())
            .replace(&kernel_consoles(Some(&theirs)), &kernel_consoles(console))
            .replace(&terminals(Some(&theirs)), &terminals(console))
    })
}

fn core_image(style: PartitionStyle) -> String {
    format!("{LOADER_DIR}/core-{style}.img")
}

/// A file of the EFI system partition: its path and its content.
pub type EfiFile = (String, Vec<u8>);

fn read(root: &RootDir, path: &str) -> Result<Vec<u8>> {
    match root.read(path, MAX_BYTES)? {
        Some(bytes) => Ok(bytes),
        None => bail!("/{path} is missing: the tree does not boot"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grub_cfg_gets_the_guests_root_and_console() {
        let own = Uuid::from_u128(7);
        let theirs = placeholder_console();
        let config = format!(
            "{}search --fs-uuid --set=root {PLACEHOLDER}\nlinux /boot/vmlinuz root=UUID={PLACEHOLDER} ro net.ifnames=0 {}\n",
            terminals(Some(&theirs)),
            kernel_consoles(Some(&theirs))
        );
        let slow = Console { port: "ttyS0", speed: 38400 };
        let edited = edit_config(&config, own, Some(&slow)).unwrap();
        assert!(!edited.contains(&PLACEHOLDER.to_string()) && !edited.contains("115200"), "{edited}");
        assert!(edited.contains("console=tty0 console=ttyS0,38400n8\n"));
        assert!(edited.contains("--speed=38400\nterminal_input console serial"));
        let none = edit_config(&config, own, None).unwrap();
        assert!(!none.contains("serial") && none.contains("net.ifnames=0 console=tty0\n"), "{none}");
        let xen = edit_config(&config, own, Some(&Console { port: "hvc0", speed: 38400 })).unwrap();
        assert!(xen.contains("console=tty0 console=hvc0\n") && !xen.contains("serial"), "{xen}");
        assert_eq!(edit_config("linux /vmlinuz root=/dev/vda1\n", own, None), None);
    }
}
