//! The machine that is measured on: a Debian tree with both programs, entered in namespaces of its own. Leaves nothing but
//! what was measured; must not measure anything itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cases::{Case, Report};
use crate::common::{self, PROGRAM};
use crate::held::{Held, scratch_dir};
use crate::node::{Node, admins_environment};
use crate::sides::{BOOTABLE_TREES, OURS, PROXY, SUITE, TREES, predecessors_tree};
use crate::trees::Suite;
use crate::tuned::{data_dir, write_resolver};
use crate::{BENCH, proxy};

/// Runs the cases on a machine made for it; the raw runs stay in target/bench.json.
pub fn measured(rounds: usize, cases: &[&'static Case]) -> Result<Report> {
    let suite = Suite::of_this_machine();
    eprintln!("== A machine with version {} and with this one", suite.version);
    let before = Held::now()?;
    let node = Node::unpack(&suite.node_tree())?;
    node.apt_install(&suite.predecessor())?;
    node.apt_install("mmdebstrap")?;
    write_resolver(&node)?;
    place_ours(&node)?;
    place_trees(&node)?;
    let packages = scratch_dir()?;
    fs::write(node.path(PROXY), format!("http://{}", proxy::start(packages.path())?))?;

    let runs = format!("{BENCH}/runs.json");
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
        .arg("sh")
        .arg(data_dir().join("enter.sh"))
        .arg(&node.root)
        .args(["0022", BENCH])
        .args(admins_environment())
        .args([&format!("{BENCH}/speed"), "inside", &runs, &rounds.to_string()])
        .args(cases.iter().map(|case| case.name))
        .stdin(Stdio::null())
        .status()
        .context("entering the machine")?;
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bench.json");
    if node.path(&runs).exists() {
        fs::copy(node.path(&runs), &kept)?;
    }
    before.nothing_new_is_left_by(&node)?;
    ensure!(status.success(), "measuring: {status}");
    serde_json::from_slice(&fs::read(kept)?).context("reading what was measured")
}

/// The program and this one, as they were built, and what they need.
fn place_ours(node: &Node) -> Result<()> {
    let os = node.path(OURS);
    fs::create_dir_all(&os)?;
    fs::copy(PROGRAM, node.path(BENCH).join("program"))?;
    fs::copy("/proc/self/exe", node.path(BENCH).join("speed"))?;
    let by_hand = common::project().join("benches/speed/by-hand");
    fs::copy(by_hand, node.path(BENCH).join("by-hand"))?;
    for verb in ["create", "import", "export", "rename", "verify"] {
        std::os::unix::fs::symlink("../program", os.join(verb))?;
    }
    for file in ["ganeti_api_version", "parameters.list", "common.sh", "variants.list"] {
        fs::copy(common::project().join("os-def").join(file), os.join(file))?;
    }
    let recorded = node.path(BENCH).join("ganeti-env");
    fs::create_dir(&recorded)?;
    for entry in fs::read_dir(common::project().join("tests/ganeti-env"))? {
        let entry = entry?;
        fs::copy(entry.path(), recorded.join(entry.file_name()))?;
    }
    Ok(())
}

/// One tree is in both caches, as one file: neither has it in the page cache alone.
fn place_trees(node: &Node) -> Result<()> {
    link_all(&common::shared_cache(), &node.path(TREES))?;
    link_all(&common::bootable_cache(SUITE), &node.path(BOOTABLE_TREES))?;
    let theirs = node.path(&predecessors_tree());
    fs::create_dir_all(theirs.parent().context("a directory")?)?;
    for entry in fs::read_dir(node.path(TREES))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            fs::hard_link(path, &theirs).with_context(|| format!("two trees of {SUITE}"))?;
        }
    }
    Ok(())
}

fn link_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // Packages that were fetched stay behind.
        if !entry.file_type()?.is_file() {
            continue;
        }
        // A create touches the template that it uses, and what is shared stays as it is.
        let place = to.join(entry.file_name());
        match entry.path().extension().is_some_and(|extension| extension == "tar") {
            true => fs::hard_link(entry.path(), place)?,
            false => fs::copy(entry.path(), place).map(drop)?,
        }
    }
    Ok(())
}
