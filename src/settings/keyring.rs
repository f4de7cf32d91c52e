//! The keys that a site's mirrors sign with: a keyring, or a directory of them, as the one keyring that gpgv reads.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};

use crate::admin_file::AdminFiles;

/// Larger ones are no keyrings.
const MAX_BYTES: u64 = 512 << 10;
/// Files beyond this are no directory of keyrings.
const MAX_FILES: usize = 100;
const ARMOUR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const ARMOUR_END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// Reads all keys at `path`, in the order of the files' names. Problems are sentences.
pub fn read(path: &Path, admin: &mut AdminFiles, problems: &mut Vec<String>) -> Option<Vec<u8>> {
    let problem = |error: std::io::Error| format!("reading the keyring {}: {error}", path.display());
    let files = match std::fs::metadata(path)
        .and_then(|meta| if meta.is_dir() { files_in(path) } else { Ok(vec![path.into()]) })
    {
        Ok(files) => files,
        Err(error) => {
            problems.push(problem(error));
            return None;
        }
    };
    if files.is_empty() {
        problems.push(format!("the keyring {} has no file that ends in .gpg or .asc", path.display()));
    }
    if files.len() > MAX_FILES {
        problems.push(format!("the keyring {} has more than {MAX_FILES} files", path.display()));
        return None;
    }
    problems.extend(admin.look_in(path).err());
    let mut keys = Vec::new();
    for file in files {
        match read_one(&file, admin) {
            Ok(more) => keys.extend(more),
            Err(problem) => problems.push(problem),
        }
    }
    Some(keys)
}

fn files_in(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let is_keyring =
        |path: &PathBuf| path.extension().is_some_and(|ending| ending == "gpg" || ending == "asc");
    let paths = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = paths.collect::<std::io::Result<Vec<_>>>()?;
    files.retain(is_keyring);
    files.sort();
    Ok(files)
}

fn read_one(path: &Path, admin: &mut AdminFiles) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let problem = |error: std::io::Error| format!("reading the keyring {shown}: {error}");
    let mut file = admin.open(path).map_err(|fault| format!("{fault}; {shown} is no keyring to trust"))?;
    let meta = file.metadata().map_err(problem)?;
    if !meta.is_file() || meta.len() == 0 || meta.len() > MAX_BYTES {
        return Err(format!("{shown} is no keyring (a regular file of 512 KiB at most)"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(problem)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if text.contains(ARMOUR) => without_armour(text)
            .ok_or_else(|| format!("{shown} is damaged: its armour does not hold together")),
        // A packet of a public key (RFC 9580, 4.2), in either format of its header.
        _ if matches!(bytes[0], 0x98..=0x9b | 0xc6) => Ok(bytes),
        _ => Err(format!(
            "{shown} is no keyring that gpgv reads (binary, or armoured by gpg --armor --export)"
        )),
    }
}

/// The bytes of every armoured block (RFC 9580, 6.2); the sum of 24 bits at its end is optional, and not looked at.
fn without_armour(text: &str) -> Option<Vec<u8>> {
    let mut keys = Vec::new();
    for block in text.split(ARMOUR).skip(1) {
        let (block, _) = block.split_once(ARMOUR_END)?;
        let mut lines = block.lines().map(str::trim).skip(1).skip_while(|line| line.contains(": "));
        let body: String = lines.by_ref().take_while(|line| !line.starts_with('=')).collect();
        keys.extend(Base64::decode_vec(&body).ok()?);
    }
    Some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armoured(bytes: &[u8]) -> String {
        let body = Base64::encode_string(bytes);
        format!("{ARMOUR}\nComment: x\n\n{}\n{}\n=abcd\n{ARMOUR_END}\n", &body[..4], &body[4..])
    }

    #[test]
    fn armoured_and_binary_keyrings_are_joined_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let key = [0x98, 1, 2, 3, 4, 5, 6];
        std::fs::write(dir.path().join("b.asc"), armoured(&key).repeat(2)).unwrap();
        std::fs::write(dir.path().join("a.gpg"), [0xc6, 9]).unwrap();
        std::fs::write(dir.path().join("README"), "no key").unwrap();
        let mut problems = Vec::new();
        let keys = read(dir.path(), &mut AdminFiles::new(true), &mut problems).unwrap();
        assert_eq!(problems, [""; 0]);
        assert_eq!(keys, [&[0xc6, 9][..], &key, &key].concat());
    }

    #[test]
    fn what_is_no_keyring_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.asc");
        for text in ["", "hello", ARMOUR, &armoured(&[0x98; 40]).replace('=', "!")] {
            std::fs::write(&path, text).unwrap();
            let mut problems = Vec::new();
            read(&path, &mut AdminFiles::new(true), &mut problems);
            assert_eq!(problems.len(), 1, "{text}");
        }
        for number in 0..=MAX_FILES {
            std::fs::write(dir.path().join(format!("{number}.gpg")), [0x98, 1]).unwrap();
        }
        let mut problems = Vec::new();
        assert_eq!(read(dir.path(), &mut AdminFiles::new(true), &mut problems), None);
        assert!(problems[0].contains("has more than 100 files"), "{problems:?}");
        let mut problems = Vec::new();
        assert_eq!(read(&dir.path().join("absent"), &mut AdminFiles::new(true), &mut problems), None);
        assert_eq!(problems.len(), 1);
    }
}
