//! What a node of the predecessor sees of each rule that keeps strangers out, before anything of its own is refused; and
//! what this program made there, on the way down to the predecessor and up again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use anyhow::{Context, Result, ensure};

use crate::common::tiny_mirror;
use crate::held::{Held, Steps};
use crate::node::Node;
use crate::trees::{Suite, our_deb};
use crate::tuned::{noded_environment, tune};
use crate::{CACHE, DISK, ETC, LEGACY, OS_DIR, PACKAGE};

/// A system user and a group that every Debian has.
const WWW_DATA: u32 = 33;
const STAFF: u32 = 50;
/// Where the node has a mirror of one package.
const MIRROR: &str = "/srv/mirror";
const BACKUP: &str = "/srv/backup";

#[test]
fn an_upgraded_node_is_told_of_each_rule_and_keeps_what_it_makes() -> Result<()> {
    let suite = Suite::of_this_machine();
    let deb = our_deb()?;
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree())?;
    let step = Steps::new();
    node.apt_install(&suite.predecessor())?;
    tune(&node, &suite)?;
    let file_modes = loosen(&node)?;
    node.install_file(&deb)?;
    step.done("upgraded, with the modes and owners of a site");

    the_check_names_all_and_how_to_mend_it(&node, &file_modes)?;
    creates_go_on_and_say_the_same(&node, &file_modes)?;
    the_cache_has_a_lock_of_roots_own(&node)?;
    what_everybody_can_write_is_refused(&node)?;
    step.done("looked at, by the check and by creates");
    mended_as_told(&node, &file_modes)?;
    step.done("mended");

    make_a_tree_and_a_backup(&node)?;
    step.done("a tree and a backup of today");
    node.install_file(&node.cached_deb(&suite)?)?;
    let again = node.create(&noded_environment("create.env", "web")?)?;
    ensure!(again.status.success(), "the predecessor beside our cache:\n{}", again.log);
    step.done("down");
    node.install_file(&deb)?;
    the_tree_and_the_backup_still_serve(&node)?;
    step.done("up again");
    before.nothing_new_is_left_by(&node)
}

/// Gives files and directories the modes and owners that sites give them, and adds variants that a rule concerns. Returns
/// what mends each.
fn loosen(node: &Node) -> Result<Vec<String>> {
    let (web, hooks) = (format!("{ETC}/variants/web.conf"), format!("{ETC}/hooks"));
    fs::set_permissions(node.path(LEGACY), Permissions::from_mode(0o664))?;
    chown(node.path(&web), Some(WWW_DATA), None)?;
    chown(node.path(&hooks), None, Some(STAFF))?;
    fs::set_permissions(node.path(&hooks), Permissions::from_mode(0o2775))?;
    fs::set_permissions(node.path(CACHE), Permissions::from_mode(0o777))?;
    fs::write(
        node.path(&format!("{ETC}/variants/keyless.conf")),
        "SUITE=jammy\nMIRROR=http://mirror.example.org/ubuntu\n",
    )?;
    fs::write(
        node.path(&format!("{ETC}/variants/secret.conf")),
        "MIRROR=http://me:hidden@mirror.example.org/debian\nPROXY=\n",
    )?;
    let list = node.path(&format!("{ETC}/variants.list"));
    fs::write(&list, format!("{}keyless\nsecret\n", fs::read_to_string(&list)?))?;
    Ok(vec![format!("chmod g-w {LEGACY}"), format!("chown root {web}"), format!("chmod g-w {hooks}")])
}

fn the_check_names_all_and_how_to_mend_it(node: &Node, file_modes: &[String]) -> Result<()> {
    let checked = node.run(&[PACKAGE, "config", "check"])?;
    ensure!(!checked.status.success(), "{}", checked.log);
    for command in file_modes {
        ensure!(
            checked.log.lines().any(|line| line.contains(command.as_str())),
            "{command}:\n{}",
            checked.log
        );
    }
    for words in [
        "could be written by everybody; it cannot any more",
        "create refuses: keyless",
        "ubuntu-archive-keyring.gpg is not there",
        "keyring = \"FILE\"",
        "secret.conf can be read by every user of this node; chmod o-r it",
    ] {
        ensure!(checked.log.contains(words), "{words}:\n{}", checked.log);
    }
    Ok(())
}

fn creates_go_on_and_say_the_same(node: &Node, file_modes: &[String]) -> Result<()> {
    let made = node.create(&noded_environment("create.env", "web")?)?;
    ensure!(made.status.success(), "{}", made.log);
    for command in file_modes {
        let is_told = |line: &str| line.starts_with("warning: ") && line.contains(command.as_str());
        ensure!(made.log.lines().any(is_told), "{command}:\n{}", made.log);
    }
    let secret = node.create(&noded_environment("create.env", "secret")?)?;
    ensure!(secret.status.success() && secret.log.contains("chmod o-r it"), "{}", secret.log);
    ensure!(!secret.log.contains("hidden"), "{}", secret.log);
    let keyless = node.create(&noded_environment("create.env", "keyless")?)?;
    ensure!(!keyless.status.success(), "{}", keyless.log);
    let last: Vec<&str> = keyless.log.trim_end().lines().rev().take(2).collect();
    ensure!(last[1].starts_with("error: ") && last[0].starts_with("hint: set keyring = "), "{}", keyless.log);
    // What the predecessor cached is the admin's own.
    let list = node.run(&[PACKAGE, "cache", "list"])?.expect_success()?;
    ensure!(list.contains("  by hand  "), "{list}");
    Ok(())
}

fn the_cache_has_a_lock_of_roots_own(node: &Node) -> Result<()> {
    let mode = |path: &str| -> Result<u32> {
        Ok(fs::metadata(node.path(path)).context(path.to_owned())?.mode() & 0o7777)
    };
    assert_eq!((mode(CACHE)?, mode(&format!("{CACHE}/.lock"))?), (0o755, 0o600));
    Ok(())
}

fn what_everybody_can_write_is_refused(node: &Node) -> Result<()> {
    let hook = format!("{ETC}/hooks/10-record");
    let mode = fs::metadata(node.path(&hook))?.permissions();
    fs::set_permissions(node.path(&hook), Permissions::from_mode(0o777))?;
    let ran = node.create(&noded_environment("create.env", "web")?)?;
    ensure!(!ran.status.success() && ran.log.contains(&format!("chmod go-w {hook}")), "{}", ran.log);
    Ok(fs::set_permissions(node.path(&hook), mode)?)
}

fn mended_as_told(node: &Node, file_modes: &[String]) -> Result<()> {
    node.run(&["sh", "-ec", &file_modes.join("\n")])?.expect_success()?;
    let checked = node.run(&[PACKAGE, "config", "check"])?;
    ensure!(
        !checked.log.contains("can be written by") && !checked.log.contains("belongs to"),
        "{}",
        checked.log
    );
    Ok(())
}

fn make_a_tree_and_a_backup(node: &Node) -> Result<()> {
    let settings = tiny_mirror::small(&node.path(MIRROR), "today");
    let on_node = format!("{}extra_pkgs = []\n", settings.replace(&node.root.display().to_string(), ""));
    fs::write(node.path(&format!("{ETC}/variants/tiny.toml")), on_node)?;
    let ran = node.create(&noded_environment("create.env", "tiny")?)?;
    ensure!(ran.status.success(), "{}", ran.log);
    let export = format!("{OS_DIR}/export > {BACKUP}");
    let env = noded_environment("export.env", "tiny")?;
    node.run_with(&env, 0o077, OS_DIR, &["sh", "-ec", &export])?.expect_success()?;
    Ok(())
}

fn the_tree_and_the_backup_still_serve(node: &Node) -> Result<()> {
    fs::remove_dir_all(node.path(MIRROR).join("pool"))?;
    let ran = node.create(&noded_environment("create.env", "tiny")?)?;
    ensure!(ran.status.success() && !ran.log.contains("warning"), "{}", ran.log);
    let import = format!("{OS_DIR}/import < {BACKUP}");
    let env = noded_environment("import.env", "tiny")?;
    node.run_with(&env, 0o077, OS_DIR, &["sh", "-ec", &import])?.expect_success()?;
    let verified = node.run(&[PACKAGE, "cache", "verify"])?;
    ensure!(verified.status.success(), "{}", verified.log);
    // The guest came back as it was: the small tree, and the program's own work in it.
    let seen = node.run(&[
        "sh",
        "-ec",
        "mount -o ro,loop \"$0\" /mnt; cat /mnt/usr/bin/payload /mnt/etc/hostname",
        DISK,
    ])?;
    assert_eq!(seen.expect_success()?, "today\nlg1.example.com\n");
    node.detached(DISK)
}
