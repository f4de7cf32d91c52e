//! A tree that boots: kernel, initramfs and GRUB, installed once when the cache is made. What differs from guest to
//! guest (identifiers, console) stands as a placeholder in grub.cfg and is written in place by `guest::boot`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::{MAX_BYTES, Recipe};
use crate::command::Tool;
use crate::command::root::Device;
use crate::filesystem::Filesystem;
use crate::guest::boot::{self, GRUB_DEFAULTS, PLACEHOLDER};
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;

/// Which kernel a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// Small: drivers of paravirtual devices alone.
    Cloud,
    /// With drivers of emulated devices too; up to bookworm packed so that PV-GRUB2 can unpack it.
    Generic,
}

impl Kernel {
    /// Both of them.
    pub const ALL: [Kernel; 2] = [Kernel::Cloud, Kernel::Generic];

    /// As it stands in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Cloud => "cloud",
            Kernel::Generic => "generic",
        }
    }
}

/// What makes a tree a system that one can start and reach.
const SYSTEM: &[&str] = &[
    "dbus",
    "udev",
    "iproute2",
    "openssh-server",
    "ca-certificates",
    "netbase",
    "kmod",
    "procps",
    "initramfs-tools",
    "zstd",
];

/// GRUB for both kinds of firmware, and shim, which Secure Boot starts first.
const LOADERS: &[&str] = &["grub-pc", "grub-efi-amd64-bin", "grub-efi-amd64-signed", "shim-signed"];

/// No disk of the node is GRUB's business.
const PRESEED: &str = "grub-pc grub-pc/install_devices multiselect\n\
                       grub-pc grub-pc/install_devices_empty boolean true\n";

/// What grub-install would copy and make, without a device: the modules, an environment, and a core image per table,
/// which finds /boot/grub on the first partition of the disk that it came from. boot.img is copied as it is.
const GRUB_PIECES: &str = r#"
pieces=/usr/lib/grub/i386-pc
boot=/boot/grub/i386-pc
mkdir -p "$boot"
cp "$pieces"/*.mod "$pieces"/*.lst "$pieces"/boot.img "$boot/"
for table in gpt msdos; do
  grub-mkimage -O i386-pc -o "$boot/core-$table.img" -p "(,${table}1)/boot/grub" \
    biosdisk part_$table search_fs_uuid "$@"
done
[ -e /boot/grub/grubenv ] || grub-editenv /boot/grub/grubenv create
exec grub-mkconfig -o /boot/grub/grub.cfg
"#;

/// Installs what boots into a tree that is mounted from `device`, whose filesystem bears [`PLACEHOLDER`].
pub fn install(recipe: &Recipe, kernel: Kernel, root: &RootDir, target: &Path, device: &Path) -> Result<()> {
    let os_release = root.read("usr/lib/os-release", MAX_BYTES)?.unwrap_or_default();
    let distribution = Distribution::of(&String::from_utf8_lossy(&os_release))
        .with_context(|| format!("choosing a kernel for {}", recipe.suite))
        .hint("set boot = \"no\", and install one by a hook")?;
    // Before the packages: what they run when they are configured reads it.
    root.create_dir_all("etc/initramfs-tools/conf.d", 0o755)?;
    // A guest that never hibernates need not wait for a swap device.
    root.write("etc/initramfs-tools/conf.d/resume", b"RESUME=none\n", 0o644)?;
    root.create_dir_all("etc/default/grub.d", 0o755)?;
    root.write(GRUB_DEFAULTS, boot::grub_defaults(Some(&boot::placeholder_console())).as_bytes(), 0o644)?;
    root.write("tmp/preseed", PRESEED.as_bytes(), 0o600)?;
    let device = Device { node: device.to_owned(), uuid: PLACEHOLDER.to_string() };
    let run = |tool: Tool| run(recipe, target, &device, tool);
    run(Tool::new("debconf-set-selections").arg("/tmp/preseed"))?;
    let apt = |words: &[&str]| apt(recipe, words);
    run(apt(&["update"]))?;
    // The kernel last and alone: each package with a hook for the initramfs would make it anew.
    run(apt(&["install"]).args(SYSTEM).args(distribution.init()).args(LOADERS))?;
    run(apt(&["install"]).arg(distribution.kernel(kernel)))?;
    report::step("making GRUB's images", || {
        let modules: BTreeSet<&str> = Filesystem::ALL.map(Filesystem::grub_module).into();
        run(Tool::new("sh").args(["-e", "-c", GRUB_PIECES, "sh"]).args(modules).quiet())
    })
}

fn apt(recipe: &Recipe, words: &[&str]) -> Tool {
    Tool::new("apt-get")
        .args(["-q", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
        .args(recipe.apt_options())
        .args(words)
}

fn run(recipe: &Recipe, target: &Path, device: &Device, tool: Tool) -> Result<()> {
    let env = recipe.env();
    tool.envs(env.iter().map(|(n, v)| (n, v))).chroot_with(target, device.clone()).run()
}

/// Whose packages these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distribution {
    Debian,
    Devuan,
    Ubuntu,
}

impl Distribution {
    /// By os-release(5).
    fn of(os_release: &str) -> Result<Distribution> {
        let id = os_release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or_default();
        match id.trim().trim_matches('"') {
            "debian" => Ok(Distribution::Debian),
            "devuan" => Ok(Distribution::Devuan),
            "ubuntu" => Ok(Distribution::Ubuntu),
            other => anyhow::bail!(
                "os-release says ID={other}; the kernels of debian, devuan and ubuntu are known"
            ),
        }
    }

    fn kernel(self, kernel: Kernel) -> &'static str {
        match (self, kernel) {
            (Distribution::Ubuntu, Kernel::Cloud) => "linux-image-virtual",
            (Distribution::Ubuntu, Kernel::Generic) => "linux-image-generic",
            (_, Kernel::Cloud) => "linux-image-cloud-amd64",
            (_, Kernel::Generic) => "linux-image-amd64",
        }
    }

    fn init(self) -> &'static [&'static str] {
        match self {
            Distribution::Devuan => &[],
            Distribution::Debian | Distribution::Ubuntu => &["systemd-sysv"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_known_by_its_id() {
        for (text, expected) in [
            ("NAME=x\nID=debian\n", Some(Distribution::Debian)),
            ("ID=\"ubuntu\"\nID_LIKE=debian\n", Some(Distribution::Ubuntu)),
            ("ID_LIKE=debian\n", None),
            ("", None),
        ] {
            assert_eq!(Distribution::of(text).ok(), expected, "{text}");
        }
    }
}
