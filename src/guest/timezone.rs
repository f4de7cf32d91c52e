//! The guest's timezone.

use std::fmt;

use anyhow::{Result, anyhow};

use crate::report::WithHint;
use crate::rootdir::RootDir;

const MAX_BYTES: u64 = 1 << 20;

/// The name of a zone, as `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(String);

impl Zone {
    /// None where it could name a file outside of the zones.
    pub fn parse(text: &str) -> Option<Zone> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-_".contains(c);
        let part = |part: &str| !part.is_empty() && part.chars().all(plain);
        (text.len() <= 64 && text.split('/').all(part)).then(|| Zone(text.to_owned()))
    }

    /// Makes it the guest's, for programs that follow /etc/localtime and for those that read /etc/timezone.
    pub fn write(&self, root: &RootDir) -> Result<()> {
        let file = format!("/usr/share/zoneinfo/{self}");
        // tzfile(5); beside zones lie lists and directories.
        let is_zone = root.is_file(&file)?
            && root.read(&file, MAX_BYTES)?.is_some_and(|bytes| bytes.starts_with(b"TZif"));
        if !is_zone {
            return Err(anyhow!("the guest has no timezone \"{self}\": {file} is missing or no zone"))
                .hint("correct timezone, or add tzdata (for names of old tzdata-legacy) to extra_pkgs");
        }
        root.symlink(&file, "etc/localtime")?;
        root.write("etc/timezone", format!("{self}\n").as_bytes(), 0o644)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zones_name_cannot_lead_elsewhere() {
        for good in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+1", "EST5EDT"] {
            assert!(Zone::parse(good).is_some(), "{good}");
        }
        for bad in
            ["", "/etc/passwd", "../x", "Europe/../x", "Europe//Berlin", "Europe/", "a b", "zone.tab", "a\n"]
        {
            assert!(Zone::parse(bad).is_none(), "{bad}");
        }
    }
}
