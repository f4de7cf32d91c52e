//! Whether something is there on the node. Alone answers that: only ENOENT of the thing itself is absence; whatever else
//! keeps us from looking (EIO, EACCES, EMFILE, a link that leads nowhere) is an error.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// What a path leads to. `None`: there is nothing of that name. A link that leads nowhere is an error.
pub fn metadata(path: &Path) -> Result<Option<Metadata>> {
    let Some(own) = own_metadata(path)? else { return Ok(None) };
    if !own.is_symlink() {
        return Ok(Some(own));
    }
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{} is a link that leads nowhere", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// The same of the name itself: of a link, and not of what it leads to.
pub fn own_metadata(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Whether a name is there, whatever it is.
pub fn is_there(path: &Path) -> Result<bool> {
    Ok(own_metadata(path)?.is_some())
}

/// Whether a path leads to a regular file.
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some_and(|meta| meta.is_file()))
}

/// Whether a path leads to a directory.
pub fn is_dir(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some_and(|meta| meta.is_dir()))
}

/// The names in a directory, sorted: all of them, or an error. `None`: there is no such directory.
pub fn names(dir: &Path) -> Result<Option<Vec<OsString>>> {
    let context = || format!("reading the directory {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound && !is_there(dir)? => return Ok(None),
        Err(error) => return Err(error).with_context(context),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.with_context(context)?.file_name());
    }
    names.sort();
    Ok(Some(names))
}

/// The bytes of a regular file of at most so many. `None`: there is nothing of that name.
pub fn bytes(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    // Asked before: to open a pipe would wait for its other end.
    let Some(meta) = metadata(path)? else { return Ok(None) };
    let shown = path.display();
    ensure!(meta.is_file(), "{shown} is no regular file");
    let file = match File::open(path) {
        Ok(file) => file,
        // Removed since.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {shown}")),
    };
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).with_context(|| format!("reading {shown}"))?;
    ensure!(bytes.len() as u64 <= max_bytes, "{shown} has more than {max_bytes} bytes");
    Ok(Some(bytes))
}

/// The same, of a file that is text.
pub fn text(path: &Path, max_bytes: u64) -> Result<Option<String>> {
    let Some(bytes) = bytes(path, max_bytes)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).ok().with_context(|| format!("{} is no UTF-8 text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_no_name_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        for name in ["none", "none/below"] {
            assert!(metadata(&at(name)).unwrap().is_none() && !is_there(&at(name)).unwrap(), "{name}");
            assert!(names(&at(name)).unwrap().is_none() && bytes(&at(name), 9).unwrap().is_none(), "{name}");
        }
        for name in ["dangling", "loop", "file/below"] {
            assert!(metadata(&at(name)).is_err() && names(&at(name)).is_err(), "{name}");
            assert!(bytes(&at(name), 9).is_err(), "{name}");
        }
        assert!(is_there(&at("dangling")).unwrap());
        assert!(is_file(&at("link")).unwrap() && !is_dir(&at("link")).unwrap());
        assert_eq!(text(&at("link"), 4).unwrap().unwrap(), "text");
        assert!(text(&at("link"), 3).is_err() && bytes(dir.path(), 9).is_err());
        assert_eq!(names(dir.path()).unwrap().unwrap(), ["dangling", "file", "link", "loop"]);
    }
}
