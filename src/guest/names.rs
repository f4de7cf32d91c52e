//! hostname, mailname and hosts.

use anyhow::Result;

use crate::request::InstanceName;
use crate::rootdir::RootDir;

/// Bytes of an /etc/hosts that is edited and not replaced.
const HOSTS_MAX_BYTES: u64 = 1 << 20;

/// The full name in /etc/hostname, as the predecessor wrote it (its rename compares with that); never a
/// hosts file of the node.
pub fn write(root: &RootDir, name: &InstanceName) -> Result<()> {
    root.write("etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
    root.write("etc/mailname", format!("{name}\n").as_bytes(), 0o644)?;
    let old = match root.read("etc/hosts", HOSTS_MAX_BYTES) {
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(None) | Err(_) => String::new(),
    };
    root.write("etc/hosts", edit_hosts(&old, name).as_bytes(), 0o644)
}

/// hosts(5) with the guest's own name on 127.0.1.1, as Debian does it; other lines of a hand-made cache stay.
pub fn edit_hosts(old: &str, name: &InstanceName) -> String {
    let mut own = format!("127.0.1.1\t{name}");
    if name.short() != name.full() {
        own += &format!(" {}", name.short());
    }
    let kept: Vec<&str> =
        old.lines().filter(|line| line.split_ascii_whitespace().next() != Some("127.0.1.1")).collect();
    let has = |address: &str| kept.iter().any(|l| l.split_ascii_whitespace().next() == Some(address));
    let mut lines: Vec<String> = Vec::new();
    if !has("127.0.0.1") {
        lines.push("127.0.0.1\tlocalhost".into());
    }
    let mut kept_lines: Vec<String> = kept.iter().map(|line| (*line).to_owned()).collect();
    let after = kept_lines.iter().position(|l| l.starts_with("127.0.0.1")).map_or(0, |at| at + 1);
    kept_lines.insert(after, own);
    lines.extend(kept_lines);
    if !has("::1") {
        lines.push(String::new());
        lines.push("::1\tlocalhost ip6-localhost ip6-loopback".into());
        lines.push("ff02::1\tip6-allnodes".into());
        lines.push("ff02::2\tip6-allrouters".into());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_gets_the_guests_name_and_keeps_other_lines() {
        let name = InstanceName::parse("web.example.com").unwrap();
        let fresh = edit_hosts("", &name);
        assert!(fresh.starts_with("127.0.0.1\tlocalhost\n127.0.1.1\tweb.example.com web\n"), "{fresh}");
        assert!(fresh.contains("::1\tlocalhost"));
        let old = "127.0.0.1 localhost\n127.0.1.1 golden.example.org golden\n192.0.2.9 db\n::1 localhost\n";
        assert_eq!(
            edit_hosts(old, &name),
            "127.0.0.1 localhost\n127.0.1.1\tweb.example.com web\n192.0.2.9 db\n::1 localhost\n"
        );
        assert_eq!(edit_hosts(&fresh, &name), fresh);
    }
}
