//! debootstrap's scripts, where the site names its own: they run as root, and shape the tree.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::admin_file::AdminFiles;
use crate::bootstrap::{Scripts, scripts};
use crate::presence;
use crate::report;

/// `PATH sha256:HEX` of each script, in the order in which they are read. Problems are sentences.
pub fn read(
    (suite, mirror): (&str, &[String]),
    exports: &BTreeMap<OsString, OsString>,
    admin: &mut AdminFiles,
    problems: &mut Vec<String>,
) -> Vec<String> {
    if !Scripts::are_own(mirror, exports) {
        return Vec::new();
    }
    let found = match Scripts::of(suite, mirror, exports) {
        Ok(found) => found,
        Err(error) => {
            problems.push(format!("reading debootstrap's script: {}", report::sentence(&error)));
            return Vec::new();
        }
    };
    let dir = exports.get(OsStr::new(scripts::DIR_VARIABLE)).map(Path::new);
    let functions = dir.map(|dir| dir.join("functions"));
    let files = found.files.into_iter().chain(functions);
    let mut digests = Vec::new();
    for file in files {
        match presence::is_there(&file) {
            Ok(true) => match digest(&file, admin) {
                Ok(digest) => digests.push(format!("{} sha256:{digest}", file.display())),
                Err(problem) => problems.push(problem),
            },
            // debootstrap says so itself.
            Ok(false) => {}
            Err(error) => problems.push(report::sentence(&error)),
        }
    }
    digests
}

fn digest(path: &Path, admin: &mut AdminFiles) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = admin.open(path)?;
    file.take(scripts::SCRIPT_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("reading {}: {error}", path.display()))?;
    // What is not read is not in the digest.
    if bytes.len() as u64 > scripts::SCRIPT_MAX_BYTES {
        return Err(format!("{} is too long for a script of debootstrap", path.display()));
    }
    Ok(format!("{:x}", Sha256::digest(&bytes)))
}
