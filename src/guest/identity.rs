//! What makes a guest another one than its copy: machine-id, SSH host keys, random seed. Nothing here runs a guest's program.

use anyhow::{Context, Result};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey};

use crate::report;
use crate::request::InstanceName;
use crate::rootdir::{Kind, RootDir};
use crate::sys::signals;

/// As much as systemd-random-seed(8) keeps.
const SEED_BYTES: usize = 512;

/// Seeds that a second guest must never have.
const SEEDS: [&str; 3] =
    ["var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/systemd/credential.secret"];

/// More than any guest has in /etc/ssh.
const SSH_FILES_MAX: usize = 1024;

/// Scrubs what a tree (perhaps a hand-made one) brought along, and makes what is needed anew.
pub fn renew(root: &RootDir, name: &InstanceName) -> Result<()> {
    scrub(root)?;
    signals::check()?;
    plant_seeds(root)?;
    signals::check()?;
    if root.is_file("etc/ssh/sshd_config")? {
        make_host_keys(root, name)?;
    }
    Ok(())
}

/// Removes every identity from a tree; the first boot makes a machine-id.
pub fn scrub(root: &RootDir) -> Result<()> {
    if root.kind("etc/machine-id")?.is_some() || root.is_dir("etc/systemd")? {
        root.write("etc/machine-id", b"", 0o444)?;
    }
    // dbus would restore the old one from its own copy.
    if root.is_dir("var/lib/dbus")? && root.kind("var/lib/dbus/machine-id")? != Some(Kind::Symlink) {
        root.symlink("/etc/machine-id", "var/lib/dbus/machine-id")?;
    }
    for seed in SEEDS {
        signals::check()?;
        root.remove(seed)?;
    }
    root.remove_files("etc/ssh", SSH_FILES_MAX, |file| {
        signals::check()?;
        Ok(file.as_encoded_bytes().starts_with(b"ssh_host_"))
    })?;
    Ok(())
}

/// A seed of its own for the kernel's random numbers: a guest without a hardware source need not wait for the first.
fn plant_seeds(root: &RootDir) -> Result<()> {
    for seed in ["var/lib/systemd/random-seed", "var/lib/urandom/random-seed"] {
        let dir = seed.rsplit_once('/').map_or("", |(dir, _)| dir);
        if root.is_dir(dir)? {
            let mut bytes = [0u8; SEED_BYTES];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                .context("making a random seed")?;
            root.write(seed, &bytes, 0o600)?;
        }
    }
    Ok(())
}

/// Host keys as sshd looks for them by default; RSA is left to who still needs it (`ssh-keygen -A`).
fn make_host_keys(root: &RootDir, name: &InstanceName) -> Result<()> {
    let kinds =
        [(Algorithm::Ed25519, "ed25519"), (Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }, "ecdsa")];
    for (algorithm, file) in kinds {
        signals::check()?;
        let mut key = PrivateKey::random(&mut OsRng, algorithm).context("making an SSH host key")?;
        key.set_comment(format!("root@{name}"));
        let private = key.to_openssh(LineEnding::LF).context("encoding an SSH host key")?;
        let public = key.public_key().to_openssh().context("encoding an SSH host key")?;
        root.write(format!("etc/ssh/ssh_host_{file}_key"), private.as_bytes(), 0o600)?;
        root.write(format!("etc/ssh/ssh_host_{file}_key.pub"), format!("{public}\n").as_bytes(), 0o644)?;
        report::line(&format!("{:>10}  SSH host key {}", "", key.fingerprint(HashAlg::Sha256)));
    }
    Ok(())
}
