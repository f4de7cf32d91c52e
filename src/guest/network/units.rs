//! systemd units switched on by the links that `systemctl enable` makes, read from their own [Install] sections.

use anyhow::{Result, ensure};

use crate::rootdir::{Kind, RootDir};

const MAX_BYTES: u64 = 1 << 20;
const ETC: &str = "etc/systemd/system";
/// Units that one brings along; networkd's has five.
const MAX_UNITS: usize = 64;

/// What an [Install] section asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    aliases: Vec<String>,
    also: Vec<String>,
}

/// Enables a unit and those that its section names besides; one that is masked stays so, one that only another
/// names and that is absent is passed over.
pub fn enable(root: &RootDir, unit: &str) -> Result<()> {
    ensure!(find(root, unit)?.is_some(), "the unit {unit} is missing");
    let mut pending = vec![unit.to_owned()];
    let mut done: Vec<String> = Vec::new();
    while let Some(unit) = pending.pop() {
        if done.contains(&unit) {
            continue;
        }
        ensure!(done.len() < MAX_UNITS, "the unit {unit} brings along more than {MAX_UNITS} others");
        let Some(dir) = find(root, &unit)? else {
            done.push(unit);
            continue;
        };
        let text = root.read(format!("{dir}/{unit}"), MAX_BYTES)?.unwrap_or_default();
        let install = Install::parse(&String::from_utf8_lossy(&text));
        link(root, dir, &unit, &install)?;
        pending.extend(install.also);
        done.push(unit);
    }
    Ok(())
}

/// The directory of units that has it.
fn find(root: &RootDir, unit: &str) -> Result<Option<&'static str>> {
    for dir in ["usr/lib/systemd/system", "lib/systemd/system"] {
        if root.is_file(format!("{dir}/{unit}"))? {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

fn link(root: &RootDir, dir: &str, unit: &str, install: &Install) -> Result<()> {
    let own = format!("{ETC}/{unit}");
    if root.kind(&own)? == Some(Kind::Symlink) {
        return Ok(());
    }
    let target = format!("/{dir}/{unit}");
    for (by, suffix) in [(&install.wanted_by, "wants"), (&install.required_by, "requires")] {
        for other in by {
            let dir = format!("{ETC}/{other}.{suffix}");
            root.create_dir_all(&dir, 0o755)?;
            root.symlink(&target, format!("{dir}/{unit}"))?;
        }
    }
    for alias in install.aliases.iter().filter(|alias| *alias != unit) {
        root.create_dir_all(ETC, 0o755)?;
        root.symlink(&target, format!("{ETC}/{alias}"))?;
    }
    Ok(())
}

impl Install {
    /// systemd.unit(5), as far as [Install] goes; words that are no names of units are not taken.
    fn parse(text: &str) -> Install {
        let mut install = Install::default();
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                inside = line == "[Install]";
            }
            let Some((key, words)) = line.split_once('=').filter(|_| inside) else { continue };
            let list = match key.trim() {
                "WantedBy" => &mut install.wanted_by,
                "RequiredBy" => &mut install.required_by,
                "Alias" => &mut install.aliases,
                "Also" => &mut install.also,
                _ => continue,
            };
            let is_unit = |word: &&str| !word.contains(['/', '%']) && word.contains('.');
            list.extend(words.split_ascii_whitespace().filter(is_unit).map(str::to_owned));
        }
        install
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_install_section_says_which_links_there_are() {
        let text = "[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=multi-user.target\n# WantedBy=x.target\n\
                    Also=a.socket b.service\nAlias=dbus-x.service\nWantedBy=../evil.target\n";
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let expected = Install {
            wanted_by: words(&["multi-user.target"]),
            required_by: Vec::new(),
            aliases: words(&["dbus-x.service"]),
            also: words(&["a.socket", "b.service"]),
        };
        assert_eq!(Install::parse(text), expected);
    }
}
