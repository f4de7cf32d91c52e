//! debootstrap, run and understood.

use std::path::Path;

use anyhow::Result;

use super::{MAX_BYTES, Recipe, keyring};
use crate::command::Tool;
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;
use crate::sys::signals;

/// The mirror that it falls back to; it is a shell script that says so in one line.
pub fn default_mirror() -> Option<String> {
    let script = std::fs::read_to_string("/usr/sbin/debootstrap").ok()?;
    let value = script.lines().find_map(|line| line.strip_prefix("DEF_MIRROR="))?;
    Some(value.trim_matches('"').to_owned()).filter(|mirror| mirror.contains("://"))
}

/// Makes the tree in `target`.
pub fn run(recipe: &Recipe, root: &RootDir, target: &Path) -> Result<()> {
    let list = |option: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("--{option}={}", names.join(",")))
    };
    let env = recipe.env();
    let result = Tool::new("debootstrap")
        .args(["--arch", recipe.arch.as_str()])
        .args(list("include", recipe.included()))
        .args(list("components", &recipe.components))
        .arg(if recipe.allow_unsigned { "--no-check-gpg" } else { "--force-check-gpg" })
        .args(recipe.keys.as_ref().map(|_| format!("--keyring={}", keyring::place(target).display())))
        .arg(recipe.suite.as_str())
        .arg(target)
        .args(&recipe.mirror)
        .envs(env.iter().map(|(n, v)| (n, v)))
        .cwd("/")
        .in_made_root(recipe.made_root(target)?)
        .run();
    if let Err(error) = result {
        signals::check()?;
        show_log(root);
        let hint = remedy(&error.to_string());
        return Err(error).hint(hint);
    }
    Ok(())
}

/// By what debootstrap says of itself.
fn remedy(said: &str) -> &'static str {
    let table = [
        (
            "E: No such script",
            "correct suite, or install a debootstrap that knows it: apt-get install debootstrap",
        ),
        (
            "E: Release signed by unknown key",
            "set keyring = \"FILE\" with the keys of who signs there, or do not trust that mirror",
        ),
        ("E: Invalid Release signature", "do not trust that mirror: somebody changed what it serves"),
        (
            "E: Keyring-based check was requested",
            "set keyring = \"FILE\" in a file of the node, or install the package with the release's keys",
        ),
        ("E: Failed getting release file", "check that the mirror can be reached, and has the suite"),
    ];
    let known = table.into_iter().find(|(words, _)| said.contains(words));
    known.map_or("check suite, mirror, components and extra_pkgs", |(_, hint)| hint)
}

/// debootstrap's own log says what its last line does not.
fn show_log(root: &RootDir) {
    if let Ok(Some(log)) = root.read("debootstrap/debootstrap.log", MAX_BYTES) {
        let lines: Vec<&[u8]> = log.split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
        for line in &lines[lines.len().saturating_sub(6)..] {
            report::tool_line(line);
        }
    }
}
