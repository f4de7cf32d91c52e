//! The settings of a node that has been in use for years, and the requests it gets.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use crate::node::Node;
use crate::trees::Suite;
use crate::{DISK, ETC, LEGACY, PACKAGE};

/// `config show --origin` gives every value that was tuned with the file and line that set it.
pub fn explains_each_tuned_value(node: &Node, suite: &Suite, request: &str) -> Result<()> {
    let web = format!("{ETC}/variants/web.conf");
    let expected = [
        ("suite", suite.name.as_str(), LEGACY, "SUITE="),
        ("mirror", "file:///srv/mirror", LEGACY, "MIRROR="),
        ("proxy", "http://proxy.example.com:3128/", LEGACY, "PROXY="),
        ("clean_cache", "30", LEGACY, "CLEAN_CACHE="),
        ("partition_style", "none", LEGACY, "PARTITION_STYLE="),
        ("components", "main,contrib", web.as_str(), "COMPONENTS="),
        (
            "extra_pkgs",
            "less,vim-tiny,nginx-light,netcat-openbsd",
            web.as_str(),
            "        EXTRA_PKGS=\"$EXTRA_PKGS,netcat",
        ),
    ];
    // With noded's environment: `case $HYPERVISOR` takes the branch it takes in create.
    let environment = noded_environment(request, "web")?;
    let shown = node
        .run_with(&environment, 0o022, "/root", &[PACKAGE, "config", "show", "--variant", "web", "--origin"])?
        .expect_success()?;
    let mut missing = Vec::new();
    for (key, value, file, setting) in expected {
        let text = fs::read_to_string(node.path(file))?;
        let line = 1 + text.lines().position(|line| line.starts_with(setting)).context(setting)?;
        let origin = format!("{file}:{line}");
        let named = shown.lines().any(|shown| {
            // A list is shown as config.toml takes it: ["a", "b"].
            let shown = shown.replace("\", \"", ",");
            let words: Vec<_> = shown.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
            words.contains(&key)
                && shown.contains(value)
                && shown.split_whitespace().any(|word| word.trim_matches(['(', ')', ',']) == origin)
        });
        if !named {
            missing.push(format!("{key} = {value} from {origin}"));
        }
    }
    ensure!(missing.is_empty(), "not explained: {missing:#?}\n{shown}");
    ensure!(
        shown.lines().any(|line| line.contains("defaults") && line.contains("0.17")),
        "config show does not say whose defaults hold:\n{shown}"
    );
    Ok(())
}

/// The settings, variants, hooks and cache of a node that has been in use for years.
pub fn tune(node: &Node, suite: &Suite) -> Result<()> {
    let data = data_dir();
    let default = fs::read_to_string(data.join("default.in"))?.replace("@SUITE@", &suite.name);
    fs::write(node.path(LEGACY), default)?;
    fs::copy(data.join("web.conf"), node.path(&format!("{ETC}/variants/web.conf")))?;
    fs::copy(data.join("variants.list"), node.path(&format!("{ETC}/variants.list")))?;
    copy_hooks(node, &data.join("hooks"))?;
    write_resolver(node)?;
    plant_cache(node, suite, &suite.guest_tree())
}

/// Hooks with what lies beside them, from a directory of this checkout.
pub fn copy_hooks(node: &Node, from: &Path) -> Result<()> {
    for entry in WalkDir::new(from).min_depth(1) {
        let entry = entry?;
        let target = node.path(ETC).join("hooks").join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs::create_dir(&target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// The predecessor copies both files into the guest.
pub fn write_resolver(node: &Node) -> Result<()> {
    fs::write(node.path("/etc/hosts"), "127.0.0.1 localhost\n192.0.2.1 node1.example.com node1\n")?;
    fs::write(node.path("/etc/resolv.conf"), "nameserver 192.0.2.53\n")?;
    Ok(())
}

/// The automatic cache: what `create` would have made of this suite a week ago.
pub fn plant_cache(node: &Node, suite: &Suite, tree: &Path) -> Result<()> {
    let cache = node.path(&suite.cache_tar());
    fs::copy(tree, &cache)?;
    let week_ago = SystemTime::now() - Duration::from_secs(7 * 24 * 3600);
    File::options().write(true).open(&cache)?.set_modified(week_ago)?;
    Ok(())
}

/// The environment that noded sends, verbatim but for the disks and the variant.
pub fn noded_environment(file: &str, variant: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ganeti-env").join(file);
    let bytes = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let separator = if bytes.contains('\0') { '\0' } else { '\n' };
    let mut adjusted = Vec::new();
    for pair in bytes.split(separator).filter(|pair| !pair.is_empty()) {
        let (name, _) = pair.split_once('=').with_context(|| format!("no = in {pair:?}"))?;
        adjusted.push(match name {
            "DISK_0_PATH" | "EXPORT_DEVICE" | "EXPORT_DISK_PATH" | "IMPORT_DEVICE" | "IMPORT_DISK_PATH" => {
                format!("{name}={DISK}")
            }
            "DISK_1_PATH" => format!("DISK_1_PATH={DISK}.1"),
            "OS_VARIANT" => format!("OS_VARIANT={variant}"),
            "INSTANCE_OS" => format!("INSTANCE_OS=debootstrap+{variant}"),
            _ => pair.to_owned(),
        });
    }
    Ok(adjusted)
}

pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade")
}
