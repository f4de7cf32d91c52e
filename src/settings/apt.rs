//! apt_dir: the site's own apt sources and the keys that sign them, for the guests of a variant.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use crate::admin_file::AdminFiles;
use crate::bootstrap::AptFile;

/// Files beyond this are no sources and no keys.
const MAX_BYTES: u64 = 1 << 20;
/// Files beyond this are no list of a site's sources.
const MAX_FILES: usize = 100;

/// Reads the directory: `*.list` and `*.sources` are sources, `*.asc` and `*.gpg` keys, which sources name as
/// /etc/apt/keyrings/NAME, `*.pref` preferences. Other names are left out. Problems are sentences.
pub fn read(dir: &Path, admin: &mut AdminFiles, problems: &mut Vec<String>) -> Vec<AptFile> {
    let mut files = Vec::new();
    let names = match names(dir) {
        Ok(names) => names,
        Err(error) => {
            problems.push(format!("reading apt_dir {}: {error}", dir.display()));
            return files;
        }
    };
    problems.extend(admin.look_in(dir).err());
    let named = names.iter().filter_map(|name| Some((name.to_str()?, place(name.to_str()?)?)));
    let named: Vec<(&str, &str)> = named.collect();
    if named.len() > MAX_FILES {
        problems.push(format!("apt_dir {} has more than {MAX_FILES} files", dir.display()));
        return files;
    }
    for (name, place) in named {
        match content(&dir.join(name), admin) {
            Ok(content) => files.push(AptFile { path: format!("{place}/{name}"), content }),
            Err(problem) => problems.push(problem),
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

fn names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

fn content(path: &Path, admin: &mut AdminFiles) -> Result<Vec<u8>, String> {
    let mut file = admin.open(path)?;
    let mut content = Vec::new();
    match file.metadata() {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_BYTES => {}
        _ => return Err(format!("{} is not a file of 1 MiB at most", path.display())),
    }
    file.read_to_end(&mut content).map_err(|error| format!("reading {}: {error}", path.display()))?;
    Ok(content)
}

/// Where a file belongs, by its ending; the names are those that apt itself reads.
fn place(name: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let (stem, ending) = name.rsplit_once('.')?;
    if stem.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return None;
    }
    match ending {
        "list" | "sources" => Some("etc/apt/sources.list.d"),
        "asc" | "gpg" => Some("etc/apt/keyrings"),
        "pref" => Some("etc/apt/preferences.d"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_where_apt_looks_for_them() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["site.list", "b.sources", "site.asc", "README", ".hidden.list", "x.pref", "a b.list"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let mut problems = Vec::new();
        let files = read(dir.path(), &mut AdminFiles::new(true), &mut problems);
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "etc/apt/keyrings/site.asc",
                "etc/apt/preferences.d/x.pref",
                "etc/apt/sources.list.d/b.sources",
                "etc/apt/sources.list.d/site.list"
            ]
        );
        assert_eq!(problems, [""; 0]);
        assert!(read(&dir.path().join("no"), &mut AdminFiles::new(true), &mut problems).is_empty());
        assert_eq!(problems.len(), 1);
        for number in 0..=MAX_FILES {
            std::fs::write(dir.path().join(format!("{number}.pref")), "").unwrap();
        }
        assert!(read(dir.path(), &mut AdminFiles::new(true), &mut problems).is_empty());
        assert!(problems[1].contains("has more than 100 files"), "{problems:?}");
    }
}
