//! A node that never had the predecessor, or had it in an odd way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;

use crate::held::{Held, Steps};
use crate::installed::{
    CONFFILES, active_lines, assert_obsolete_conffiles, assert_os_directory_is_the_predecessors,
    assert_os_directory_is_whole, assert_unchanged, settings_files,
};
use crate::node::Node;
use crate::trees::{Suite, our_deb};
use crate::{CACHE, ETC, LEGACY, PACKAGE};

#[test]
fn a_fresh_install_starts_with_the_new_defaults_and_purges_clean() -> Result<()> {
    let suite = Suite::of_this_machine();
    let deb = our_deb()?;
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree())?;
    let step = Steps::new();
    first_install(&node, &deb)?;
    step.done("installed by apt");
    changed_by_the_admin(&node, &deb)?;
    step.done("reinstalled and purged");
    began_with_ours_and_went_back(&node, &suite, &deb)?;
    step.done("began with ours, went back, came again");
    odd_beginnings(&node, &suite, &deb)?;
    step.done("odd beginnings");
    before.nothing_new_is_left_by(&node)
}

/// apt resolves the dependencies and gets no hint of a predecessor.
fn first_install(node: &Node, deb: &Path) -> Result<()> {
    let config = node.path(&format!("{ETC}/config.toml"));
    let list = node.path(&format!("{ETC}/variants.list"));
    let legacy = node.path(LEGACY);
    fs::copy(deb, node.path("/srv/new.deb"))?;
    node.apt_install("/srv/new.deb")?;
    let text = fs::read_to_string(&config)?;
    assert_eq!(active_lines(&text), [r#"defaults = "1""#], "all of config.toml but one key is comment");
    let listed = fs::read_to_string(&list)?;
    assert!(listed.lines().any(|line| line == "default"), "variants.list:\n{listed}");
    assert!(listed.lines().count() > 1, "variants.list names the current suites:\n{listed}");
    for path in [&config, &list] {
        assert_eq!(fs::metadata(path)?.mode() & 0o7777, 0o644, "{}", path.display());
    }
    assert!(!legacy.exists(), "the predecessor's settings file is not shipped anew");
    assert_os_directory_is_whole(node)?;
    let shown = node.run(&[PACKAGE, "config", "show", "--origin"])?.expect_success()?;
    assert!(
        shown.lines().any(|line| line.contains("defaults") && line.contains(&format!("{ETC}/config.toml:"))),
        "config show says where defaults comes from:\n{shown}"
    );
    let checked = node.run(&[PACKAGE, "config", "check"])?;
    assert!(checked.status.success(), "a fresh install passes its own check:\n{}", checked.log);
    Ok(())
}

/// What the admin changes or deletes stays changed or deleted.
fn changed_by_the_admin(node: &Node, deb: &Path) -> Result<()> {
    let config = node.path(&format!("{ETC}/config.toml"));
    let list = node.path(&format!("{ETC}/variants.list"));
    fs::write(&config, "defaults = \"1\"\nsuite = \"sid\"\n")?;
    fs::remove_file(&list)?;
    node.install_file(deb)?;
    assert_eq!(fs::read_to_string(&config)?, "defaults = \"1\"\nsuite = \"sid\"\n");
    assert!(!list.exists(), "a deleted variants.list came back");
    node.run(&["dpkg", "--remove", PACKAGE])?.expect_success()?;
    assert!(config.exists(), "remove is not purge");
    node.install_file(deb)?;
    assert_eq!(fs::read_to_string(&config)?, "defaults = \"1\"\nsuite = \"sid\"\n");
    node.purge()?;
    assert!(!node.path("/etc/ganeti").exists(), "left: {:?}", node.files_under(&["/etc/ganeti"])?);
    assert!(!node.path(CACHE).exists(), "left: {:?}", node.files_under(&[CACHE])?);
    Ok(())
}

/// A node that began with this package goes back without a question: 0.16 brings a conffile of
/// the same name as our variants.list.
fn began_with_ours_and_went_back(node: &Node, suite: &Suite, deb: &Path) -> Result<()> {
    let config = node.path(&format!("{ETC}/config.toml"));
    let list = node.path(&format!("{ETC}/variants.list"));
    let legacy = node.path(LEGACY);
    node.install_file(deb)?;
    node.apt_install(&suite.predecessor())?;
    assert_os_directory_is_the_predecessors(node)?;
    assert_eq!(fs::read_to_string(&list)?, "default\n");
    assert!(legacy.exists());
    assert!(!node.path(&format!("{ETC}/variants.list.dpkg-bak")).exists());
    node.install_file(deb)?;
    assert_eq!(active_lines(&fs::read_to_string(&config)?), [r#"defaults = "1""#], "the key still decides");
    node.purge()?;
    assert!(!legacy.exists() && !list.exists() && !config.exists());
    Ok(())
}

/// Nodes whose settings say less clearly whose defaults they want.
fn odd_beginnings(node: &Node, suite: &Suite, deb: &Path) -> Result<()> {
    let config = node.path(&format!("{ETC}/config.toml"));
    let list = node.path(&format!("{ETC}/variants.list"));
    let legacy = node.path(LEGACY);
    // The predecessor ran without its settings file; a node that lacks it must not pass for new.
    node.apt_install(&suite.predecessor())?;
    fs::remove_file(&legacy)?;
    node.install_file(deb)?;
    assert_eq!(active_lines(&fs::read_to_string(&config)?), [r#"defaults = "0.17""#]);
    assert_eq!(fs::read_to_string(&list)?, "default\n");
    node.purge()?;

    // Never edited, and removed but not purged: its settings are still there, and so are their
    // defaults.
    node.apt_install(&suite.predecessor())?;
    let unmodified = settings_files(node)?;
    assert_eq!(unmodified.len(), CONFFILES.len());
    node.run(&["dpkg", "--remove", PACKAGE])?.expect_success()?;
    node.install_file(deb)?;
    assert_unchanged(&unmodified, &settings_files(node)?, "an upgrade by way of remove");
    assert_obsolete_conffiles(node, &CONFFILES)?;
    node.purge()?;
    assert_eq!(settings_files(node)?, BTreeMap::new(), "left after purge");

    // Settings put in place ahead of the package, by configuration management.
    fs::write(&legacy, "SUITE=sid\n")?;
    node.install_file(deb)?;
    assert!(!config.exists(), "settings that were there first got the new defaults");
    assert!(list.exists());
    assert_eq!(fs::read_to_string(&legacy)?, "SUITE=sid\n");
    node.purge()?;
    assert_eq!(fs::read_to_string(&legacy)?, "SUITE=sid\n", "never ours, not even to purge");
    Ok(())
}
