//! mmdebstrap, told to make what debootstrap would: the same packages from the same mirror, checked with the same
//! keyring, and nothing of its own left behind.

use std::path::Path;

use anyhow::{Context, Result};

use super::debootstrap::default_mirror;
use super::downloads::ARCHIVES;
use super::{Recipe, keyring};
use crate::command::{self, Tool};
use crate::debian::node_arch;
use crate::report::WithHint;
use crate::rootdir::RootDir;

/// debootstrap's own keyring for these suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Releases of which both were seen to make the same tree. Older ones merge /usr while packages install, each program
/// in its way.
const SUITES: &[&str] = &["trixie", "forky", "sid", "stable", "testing", "unstable"];

/// What it is told to leave out. The directory is not empty: it holds packages that were fetched before, and
/// policy-rc.d. What it would clean is wanted afterwards (the lists), or scrubbed whoever left it.
const SKIP: &str = "--skip=check/empty,chroot/policy-rc.d,download/empty,essential/unlink,cleanup/apt";

/// Why it cannot make the tree that debootstrap makes of this; None where it can.
pub fn obstacle(suite: &str, arch: &str, mirror: &[String]) -> Option<&'static str> {
    let fetched = |url: &String| ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
    match mirror {
        _ if !SUITES.contains(&suite) => Some("the release is none of which it makes the same tree"),
        _ if arch != node_arch() => Some("the architecture is not the node's"),
        [_, _, ..] => Some("the mirror brings a debootstrap script"),
        [url] if !fetched(url) => Some("the mirror is none of http or https"),
        _ => None,
    }
}

/// Whether this node has what it needs: the program, and the keyring without which it would not begin.
pub fn refuse_missing() -> Result<()> {
    command::require("mmdebstrap")?;
    if !has_keyring() {
        return Err(anyhow::anyhow!("{KEYRING} is not there, which mmdebstrap checks the release with"))
            .hint("apt-get install debian-archive-keyring");
    }
    Ok(())
}

/// Whether this node can tell Debian's signature.
pub fn has_keyring() -> bool {
    Path::new(KEYRING).is_file()
}

/// Makes the tree in `target`.
pub fn run(recipe: &Recipe, root: &RootDir, target: &Path) -> Result<()> {
    let mirror = recipe.mirror.first().cloned().or_else(default_mirror);
    let mirror = mirror.context("finding debootstrap's default mirror").hint("set mirror")?;
    let components =
        if recipe.components.is_empty() { "main".to_owned() } else { recipe.components.join(" ") };
    let included =
        (!recipe.included().is_empty()).then(|| format!("--include={}", recipe.included().join(",")));
    let env = recipe.env();
    let own = recipe.keys.as_ref().map(|_| keyring::place(target).display().to_string());
    let keyring = own.as_deref().unwrap_or(KEYRING);
    Tool::new("mmdebstrap")
        // It leaves a keyring of its own behind: in the workspace, which ends with us.
        .env("TMPDIR", target.parent().unwrap_or(target))
        .args(["--mode=root", "--format=directory", "--variant=debootstrap", SKIP])
        .arg(format!("--architectures={}", recipe.arch))
        .args(included)
        .arg(recipe.suite.as_str())
        .arg(target)
        // What the keyrings of the node's own apt trust counts as little as it does with debootstrap.
        .arg(format!("deb [signed-by={keyring}] {mirror} {} {components}", recipe.suite))
        .envs(env.iter().map(|(n, v)| (n, v)))
        .cwd("/")
        .in_made_root(recipe.made_root(target)?)
        .run()
        .hint("check suite, mirror, components and extra_pkgs")?;
    root.write(
        "etc/apt/sources.list",
        format!("deb {mirror} {} {components}\n", recipe.suite).as_bytes(),
        0o644,
    )?;
    // To apt all that debootstrap installs was asked for; nothing of it is to be removed as superfluous.
    root.remove("var/lib/apt/extended_states")?;
    root.remove("var/lib/dpkg/arch")?;
    root.write("var/lib/dpkg/cmethopt", b"apt apt\n", 0o644)?;
    root.create_dir_all(ARCHIVES, 0o755)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_debootstrap_can_do_is_left_to_it() {
        let of = |suite, arch, mirror: &[&str]| {
            let mirror: Vec<String> = mirror.iter().map(|&word| word.to_owned()).collect();
            obstacle(suite, arch, &mirror)
        };
        let url = "http://mirror.example.org/debian";
        assert_eq!(of("trixie", node_arch(), &[]), None);
        assert_eq!(of("stable", node_arch(), &[url]), None);
        assert!(of("noble", node_arch(), &[]).is_some_and(|why| why.contains("release")));
        assert!(of("bookworm", node_arch(), &[]).is_some_and(|why| why.contains("release")));
        assert!(of("trixie", "riscv64", &[]).is_some_and(|why| why.contains("architecture")));
        assert!(of("trixie", node_arch(), &[url, "/a/script"]).is_some_and(|why| why.contains("script")));
        assert!(of("trixie", node_arch(), &["file:/srv/mirror"]).is_some_and(|why| why.contains("http")));
    }
}
