//! What the node's udev knows of a device of ours: nothing, until hooks run.
//!
//! udev looks at a device only while nobody has an exclusive lock on the whole of it, and rereads a partition table
//! only where it gets such a lock itself. So a shared lock lets it make its links, and still keeps everybody else off.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use crate::report;
use crate::sys::{lock, signals};

/// There while a udev runs.
const CONTROL: &str = "/run/udev/control";

/// How long udev gets to make its links.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Shares the lock of a device, and waits for the link of the filesystem on `node` where a udev runs: a boot loader
/// that a hook installs looks for it, and names the root by the node's own device where it finds none.
pub fn show(device: &File, node: &Path, uuid: Uuid) -> Result<()> {
    let shared = || lock::try_shared(device).context("sharing the lock of the loop device");
    if !soon(shared)? {
        bail!("another program has locked the loop device of {}", node.display());
    }
    if !Path::new(CONTROL).exists() {
        return Ok(());
    }
    // An event that udev put off while the lock was exclusive may come late, or never.
    let name = node.file_name().context("a device without a name")?;
    let event = Path::new("/sys/class/block").join(name).join("uevent");
    if let Err(error) = std::fs::write(&event, "change") {
        report::detail(&format!("{}: {error}", event.display()));
    }
    let link = PathBuf::from(format!("/dev/disk/by-uuid/{uuid}"));
    if !soon(|| Ok(link.exists()))? {
        report::warning(&format!(
            "udev made no {}: a boot loader that a hook installs may not find the root",
            link.display()
        ));
    }
    Ok(())
}

fn soon(is_so: impl Fn() -> Result<bool>) -> Result<bool> {
    let start = Instant::now();
    loop {
        signals::check()?;
        if is_so()? {
            return Ok(true);
        }
        if start.elapsed() > TIMEOUT {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
