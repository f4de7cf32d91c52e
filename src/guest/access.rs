//! Who gets in: as documented for the predecessor, root has an empty password, which the console takes and sshd
//! refuses (PermitEmptyPasswords is off by default).

use anyhow::Result;

use crate::rootdir::RootDir;

const MAX_BYTES: u64 = 4 << 20;

/// Empties root's password in /etc/shadow, or in /etc/passwd of a tree without shadow passwords.
pub fn clear_root_password(root: &RootDir) -> Result<()> {
    for path in ["etc/shadow", "etc/passwd"] {
        let Some(bytes) = root.read(path, MAX_BYTES)? else { continue };
        if let Some(edited) = without_root_password(&bytes) {
            root.rewrite(path, &edited)?;
        }
        return Ok(());
    }
    Ok(())
}

/// The file with the second field of root's line empty; None where there is nothing to change.
fn without_root_password(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut changed = false;
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for line in bytes.split(|b| *b == b'\n') {
        let mut fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        if fields.len() > 2 && fields[0] == b"root" && !fields[1].is_empty() {
            fields[1] = b"";
            changed = true;
        }
        lines.push(fields.join(&b':'));
    }
    changed.then(|| lines.join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_password_is_emptied() {
        let old = b"daemon:*:1::::::\nroot:!x:20000:0:99999:7:::\nrooty:*:1::::::\n";
        let new = b"daemon:*:1::::::\nroot::20000:0:99999:7:::\nrooty:*:1::::::\n";
        assert_eq!(without_root_password(old).as_deref(), Some(&new[..]));
        assert_eq!(without_root_password(new), None);
        assert_eq!(without_root_password(b"\xff\xfe\nno colons"), None);
    }
}
