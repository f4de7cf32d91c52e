//! What is known of Debian and its relatives by name: how old the kernels of releases are, and what architectures are called.
//! Owns these tables; must not ask the node.

use crate::filesystem::KernelVersion;

/// Kernels of releases that are older than a node may be. The tools and loaders of a release are of its kernel's age.
const KERNELS: [(&str, KernelVersion); 20] = [
    ("wheezy", KernelVersion(3, 2)),
    ("jessie", KernelVersion(3, 16)),
    ("stretch", KernelVersion(4, 9)),
    ("buster", KernelVersion(4, 19)),
    ("bullseye", KernelVersion(5, 10)),
    ("bookworm", KernelVersion(6, 1)),
    ("trixie", KernelVersion(6, 12)),
    ("forky", KernelVersion(6, 12)),
    // What they name gets newer, and what is here stays readable by it.
    ("oldoldstable", KernelVersion(5, 10)),
    ("oldstable", KernelVersion(6, 1)),
    ("stable", KernelVersion(6, 12)),
    ("testing", KernelVersion(6, 12)),
    ("unstable", KernelVersion(6, 12)),
    ("sid", KernelVersion(6, 12)),
    ("trusty", KernelVersion(3, 13)),
    ("xenial", KernelVersion(4, 4)),
    ("bionic", KernelVersion(4, 15)),
    ("focal", KernelVersion(5, 4)),
    ("jammy", KernelVersion(5, 15)),
    ("noble", KernelVersion(6, 8)),
];

/// The kernel of a release, or an older one; None for a release that is not known: newer than this program, or a derivative.
pub fn kernel(suite: &str) -> Option<KernelVersion> {
    // bookworm-backports and the like are of their release's age.
    let release = suite.split(['-', '/']).next().unwrap_or(suite);
    KERNELS.iter().find(|(name, _)| *name == release).map(|(_, kernel)| *kernel)
}

/// The Debian architecture of this node: that of this program, which was built for it.
pub fn node_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "i386",
        "aarch64" => "arm64",
        "arm" => "armhf",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64el",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_of_its_releases_age() {
        assert_eq!(kernel("bullseye"), Some(KernelVersion(5, 10)));
        assert_eq!(kernel("bookworm-backports"), kernel("bookworm"));
        assert_eq!(kernel("oldoldstable"), kernel("bullseye"));
        assert_eq!(kernel("sid"), kernel("trixie"));
        assert_eq!(kernel("a-derivative"), None);
    }
}
