//! /etc/resolv.conf: the guest's own, never the node's; a link stays the link that it is.

use std::net::IpAddr;

use anyhow::Result;

use crate::rootdir::{Kind, RootDir};

const PATH: &str = "etc/resolv.conf";
const MAX_BYTES: u64 = 1 << 20;

/// What the guest's resolver is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<IpAddr>,
    pub search: Option<String>,
}

impl Resolver {
    /// Writes the file, unless it is a link (systemd-resolved, resolvconf).
    pub fn write(&self, root: &RootDir) -> Result<()> {
        if root.kind(PATH)? == Some(Kind::Symlink) {
            return Ok(());
        }
        root.write(PATH, self.text().as_bytes(), 0o644)
    }

    /// Writes the file where it stands as `old` wrote it: a domain that is another now.
    pub fn rewrite(&self, root: &RootDir, old: &Resolver) -> Result<()> {
        let unchanged = root.kind(PATH)? == Some(Kind::File)
            && root.read(PATH, MAX_BYTES)?.is_some_and(|text| text == old.text().as_bytes());
        if unchanged { self.write(root) } else { Ok(()) }
    }

    /// resolv.conf(5).
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(domain) = &self.search {
            text += &format!("search {domain}\n");
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        text
    }
}

/// While hooks run, a guest without name servers has the node's, as it ever had: hooks install packages in a
/// chroot. Afterwards they are gone, unless a hook wrote a file of its own.
pub struct HookResolver<'a> {
    resolver: &'a Resolver,
    lent: Option<Vec<u8>>,
}

impl<'a> HookResolver<'a> {
    /// Lends the node's resolver where the guest has no server of its own.
    pub fn lend(root: &RootDir, resolver: &'a Resolver) -> Result<HookResolver<'a>> {
        let node = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        let wanted = resolver.servers.is_empty() && !node.is_empty() && node.len() as u64 <= MAX_BYTES;
        if !wanted || root.kind(PATH)? == Some(Kind::Symlink) {
            return Ok(HookResolver { resolver, lent: None });
        }
        root.write(PATH, &node, 0o644)?;
        Ok(HookResolver { resolver, lent: Some(node) })
    }

    /// Takes it back where no hook changed it.
    pub fn take_back(self, root: &RootDir) -> Result<()> {
        let Some(lent) = self.lent else { return Ok(()) };
        if root.kind(PATH)? == Some(Kind::File) && root.read(PATH, MAX_BYTES)?.as_ref() == Some(&lent) {
            self.resolver.write(root)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_search_and_servers() {
        let resolver = Resolver {
            servers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
            search: Some("example.com".into()),
        };
        assert_eq!(resolver.text(), "search example.com\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n");
    }
}
