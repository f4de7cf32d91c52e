//! What a package leaves on a node: files, links, dpkg's records.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::node::Node;
use crate::{ETC, LEGACY, OS_DIR, PACKAGE};

/// What the predecessor ships as conffiles, with an unmodified one among them.
pub const CONFFILES: [&str; 3] = [
    LEGACY,
    "/etc/ganeti/instance-debootstrap/variants.list",
    "/etc/ganeti/instance-debootstrap/variants/default.conf",
];

pub fn assert_unchanged<K: Ord + Debug, V: PartialEq + Debug>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    what: &str,
) {
    let keys: BTreeSet<&K> = before.keys().chain(after.keys()).collect();
    let changed: Vec<String> = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| format!("{key:?}: {:?} became {:?}", before.get(key), after.get(key)))
        .collect();
    assert!(changed.is_empty(), "{what}:\n  {}", changed.join("\n  "));
}

/// Exactly these are marked obsolete in dpkg's records.
pub fn assert_obsolete_conffiles(node: &Node, expected: &[&str]) -> Result<()> {
    let listed = node.run(&["dpkg-query", "-W", "-f", "${Conffiles}\n", PACKAGE])?.expect_success()?;
    let obsolete: BTreeSet<&str> = listed
        .lines()
        .filter(|line| line.ends_with(" obsolete"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(obsolete, expected.iter().copied().collect(), "Conffiles:\n{listed}");
    Ok(())
}

/// What the predecessor depended on stays on an upgraded node: hooks and a way back want it.
pub fn assert_kept_by_autoremove(node: &Node, packages: &[&str]) -> Result<()> {
    let plan = node.run(&["apt-get", "--simulate", "autoremove"])?.expect_success()?;
    for package in packages {
        let removal = format!("Remv {package} ");
        assert!(!plan.contains(&removal), "autoremove takes {package} away:\n{plan}");
    }
    Ok(())
}

/// Ganeti's view: the files it asks for, by the one program, and never create_untrusted.
pub fn assert_os_directory_is_whole(node: &Node) -> Result<()> {
    let directory = node.path(OS_DIR);
    for verb in ["create", "import", "export", "rename", "verify"] {
        let target =
            fs::read_link(directory.join(verb)).with_context(|| format!("reading the link {verb}"))?;
        assert_eq!(target, Path::new("../../../../sbin").join(PACKAGE), "{verb}");
    }
    assert_eq!(fs::read_link(directory.join("variants.list"))?, Path::new(ETC).join("variants.list"));
    for file in ["ganeti_api_version", "parameters.list", "common.sh"] {
        assert!(fs::symlink_metadata(directory.join(file))?.is_file(), "{file}");
    }
    assert!(!directory.join("create_untrusted").exists());
    Ok(())
}

pub fn assert_os_directory_is_the_predecessors(node: &Node) -> Result<()> {
    for verb in ["create", "import", "export", "rename", "verify"] {
        let path = node.path(OS_DIR).join(verb);
        let found = fs::symlink_metadata(&path)?;
        assert!(found.is_file() && found.mode() & 0o111 == 0o111, "{verb} is a script again");
        assert!(fs::read(&path)?.starts_with(b"#!/bin/bash"), "{verb} is a script again");
    }
    assert!(!node.path("/usr/sbin").join(PACKAGE).exists());
    Ok(())
}

/// Everything an admin may have written, byte by byte.
pub fn settings_files(node: &Node) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for path in node.files_under(&[ETC, LEGACY])? {
        let text = fs::read_to_string(node.path(&path))?;
        found.insert(path, text);
    }
    Ok(found)
}

pub fn active_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).collect()
}
