//! From the predecessor to this package, back, forward again, and away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::effects::{Created, assert_same_effects};
use crate::held::{Held, Steps};
use crate::installed::{
    CONFFILES, assert_kept_by_autoremove, assert_obsolete_conffiles, assert_os_directory_is_the_predecessors,
    assert_os_directory_is_whole, assert_unchanged, settings_files,
};
use crate::node::Node;
use crate::trees::{Suite, our_deb};
use crate::tuned::{explains_each_tuned_value, noded_environment, tune};
use crate::{CACHE, ETC, LEGACY, OS_DIR};

/// Requests that both programs answer: what noded sends for the fake hypervisor, and for KVM.
const REQUESTS: [&str; 2] = ["create.env", "create-kvm.env"];

#[test]
fn an_upgrade_keeps_settings_hooks_and_caches_and_can_be_undone() -> Result<()> {
    upgrade_and_back(&Suite::of_this_machine())
}

/// 0.17 differs from 0.16 in what it gives to hooks and in kpartx's names.
#[test]
#[ignore = "run by make test-full"]
fn an_upgrade_from_0_17_keeps_them_as_well() -> Result<()> {
    let suite = Suite::of_this_machine();
    // Where this machine's own release has 0.17, the test above has done it.
    if suite.version.starts_with("0.17") { Ok(()) } else { upgrade_and_back(&Suite::trixie()) }
}

/// A node in the middle of its way.
struct Upgrade<'a> {
    node: Node,
    suite: &'a Suite,
    deb: &'a Path,
    step: Steps,
    /// What the predecessor made of each request.
    old: BTreeMap<&'a str, Created>,
    /// The settings files, byte by byte, as the admin left them.
    tuned: BTreeMap<String, String>,
}

fn upgrade_and_back(suite: &Suite) -> Result<()> {
    let deb = our_deb()?;
    let before = Held::now()?;
    let upgrade = Upgrade::begin(suite, &deb)?;
    upgrade.to_ours()?;
    upgrade.compare_creates()?;
    upgrade.back()?;
    upgrade.forward_and_away()?;
    before.nothing_new_is_left_by(&upgrade.node)
}

impl<'a> Upgrade<'a> {
    /// The predecessor, tuned and at work.
    fn begin(suite: &'a Suite, deb: &'a Path) -> Result<Upgrade<'a>> {
        let node = Node::unpack(&suite.node_tree())?;
        let step = Steps::new();
        node.apt_install(&suite.predecessor())?;
        tune(&node, suite)?;
        step.done("predecessor installed and tuned");

        let mut old = BTreeMap::new();
        for request in REQUESTS {
            let request_env = noded_environment(request, "web")?;
            old.insert(request, Created::by(&node, &request_env, &format!("predecessor, {request}"))?);
            step.done(&format!("predecessor's create with {request}"));
        }
        let tuned = settings_files(&node)?;
        assert_eq!(tuned.len(), 8, "settings, variants and hooks: {:?}", tuned.keys());
        Ok(Upgrade { node, suite, deb, step, old, tuned })
    }

    fn assert_settings_are_as_tuned(&self, what: &str) -> Result<()> {
        assert_unchanged(&self.tuned, &settings_files(&self.node)?, what);
        Ok(())
    }

    /// No terminal, no DEBIAN_FRONTEND, no --force-conf*.
    fn to_ours(&self) -> Result<()> {
        let node = &self.node;
        node.install_file(self.deb)?;
        self.step.done("upgraded");
        self.assert_settings_are_as_tuned("the upgrade changed, added or removed a settings file")?;
        assert!(!node.path(&format!("{ETC}/config.toml")).exists(), "config.toml would flip the defaults");
        assert_obsolete_conffiles(node, &CONFFILES)?;
        assert_os_directory_is_whole(node)?;
        assert_kept_by_autoremove(node, &["kpartx", "dump"])?;

        explains_each_tuned_value(node, self.suite, "create.env")?;
        self.step.done("config show");
        Ok(())
    }

    fn compare_creates(&self) -> Result<()> {
        let node = &self.node;
        let old_cache = node.path(&self.suite.cache_tar());
        let cache_before = fs::metadata(&old_cache)?;
        for request in REQUESTS {
            let request_env = noded_environment(request, "web")?;
            let node_before = node.listing()?;
            let new = Created::by(node, &request_env, &format!("ours, {request}"))?;
            self.step.done(&format!("our create with {request}"));
            assert_same_effects(&self.old[request], &new, self.suite, request);
            assert!(new.log.contains("0.17"), "the log says whose defaults hold:\n{}", new.log);
            assert_unchanged(
                &node_before,
                &node.listing()?,
                &format!("{request}: create changed the node itself"),
            );
        }
        let cache_after = fs::metadata(&old_cache).context("the predecessor's cache is still there")?;
        assert_eq!(
            (cache_after.ino(), cache_after.len(), cache_after.mtime()),
            (cache_before.ino(), cache_before.len(), cache_before.mtime()),
            "the predecessor's cache was rewritten"
        );
        Ok(())
    }

    fn back(&self) -> Result<()> {
        let node = &self.node;
        // Over itself: nothing changes, and dpkg still knows the old conffiles.
        node.install_file(self.deb)?;
        self.assert_settings_are_as_tuned("a reinstall changed a settings file")?;
        assert_obsolete_conffiles(node, &CONFFILES)?;

        // Back to the predecessor, whose package is still in apt's cache.
        node.install_file(&node.cached_deb(self.suite)?)?;
        self.assert_settings_are_as_tuned("the downgrade changed a settings file")?;
        assert_os_directory_is_the_predecessors(node)?;
        assert_obsolete_conffiles(node, &[])?;
        let again = Created::by(node, &noded_environment("create.env", "web")?, "predecessor again")?;
        assert_unchanged(
            &self.old["create.env"].settings,
            &again.settings,
            "the predecessor after the downgrade",
        );
        self.step.done("downgraded, predecessor's create again");
        Ok(())
    }

    fn forward_and_away(&self) -> Result<()> {
        let node = &self.node;
        node.install_file(self.deb)?;
        self.assert_settings_are_as_tuned("the second upgrade changed a settings file")?;
        assert_os_directory_is_whole(node)?;
        fs::write(node.path(&format!("{CACHE}/base-0123456789abcdef.tar")), "ours")?;
        fs::write(node.path(&format!("{CACHE}/base-0123456789abcdef.toml")), "ours")?;
        node.purge()?;
        let left =
            node.files_under(&[ETC, LEGACY, CACHE, OS_DIR, "/usr/sbin/ganeti-instance-debootstrap"])?;
        let cache_name = self.suite.cache_tar();
        let admins_own: BTreeSet<&str> = [
            "/etc/ganeti/instance-debootstrap/hooks/10-record",
            "/etc/ganeti/instance-debootstrap/hooks/20_second",
            "/etc/ganeti/instance-debootstrap/hooks/30-ignored.sh",
            "/etc/ganeti/instance-debootstrap/hooks/confdata/motd",
            "/etc/ganeti/instance-debootstrap/variants/web.conf",
            cache_name.as_str(),
        ]
        .into();
        assert_eq!(left.iter().map(String::as_str).collect::<BTreeSet<_>>(), admins_own, "left after purge");
        self.step.done("second upgrade and purge");
        Ok(())
    }
}
