//! Who gets in: root by the keys and the password hash of the settings. Without either, as documented for the
//! predecessor, root has an empty password, which the console takes and sshd refuses (PermitEmptyPasswords is off
//! by default).

use std::fmt;

use anyhow::{Result, ensure};
use ssh_key::{Algorithm, PublicKey};

use crate::report;
use crate::rootdir::RootDir;

const MAX_BYTES: u64 = 4 << 20;

/// A field of shadow(5) that no password fits. Not `!`: to PAM that is a locked account, and sshd would refuse its
/// keys as well.
const NO_PASSWORD: &str = "*";

/// A password as crypt(5) stores it. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// None for anything but a whole hash in a form that a Debian guest takes: a plain password, DES, a prefix alone.
    pub fn parse(text: &str) -> Option<PasswordHash> {
        is_hash(text).then(|| PasswordHash(text.to_owned()))
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(set)")
    }
}

/// The shapes of crypt(5): method, parameters and salt, and a hash of exactly so many characters.
fn is_hash(text: &str) -> bool {
    let Some((method, rest)) = text.strip_prefix('$').and_then(|rest| rest.split_once('$')) else {
        return false;
    };
    let fields: Vec<&str> = rest.split('$').collect();
    let crypt = |text: &str, from: usize, to: usize| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'/';
        (from..=to).contains(&text.len()) && text.bytes().all(plain)
    };
    let rounds = |text: &str| {
        let number = text.strip_prefix("rounds=").and_then(|n| n.parse::<u32>().ok());
        number.is_some_and(|n| (1000..=999_999_999).contains(&n))
    };
    let sha = |length: usize| match fields[..] {
        [salt, hash] => crypt(salt, 1, 16) && crypt(hash, length, length),
        [count, salt, hash] => rounds(count) && crypt(salt, 1, 16) && crypt(hash, length, length),
        _ => false,
    };
    match (method, &fields[..]) {
        ("1", [salt, hash]) => crypt(salt, 1, 8) && crypt(hash, 22, 22),
        ("5", _) => sha(43),
        ("6", _) => sha(86),
        ("2b" | "2y", [cost, salt_and_hash]) => {
            let cost_fits = cost.len() == 2 && cost.parse().is_ok_and(|n: u8| (4..=31).contains(&n));
            cost_fits && crypt(salt_and_hash, 53, 53)
        }
        ("7", [salt, hash]) => crypt(salt, 11, 97) && crypt(hash, 43, 43),
        ("y" | "gy", [parameters, salt, hash]) => {
            crypt(parameters, 1, 32) && crypt(salt, 0, 86) && crypt(hash, 43, 43)
        }
        _ => false,
    }
}

/// The members of the setting `ssh_keys`, each as a line of authorized_keys; an error says which is wrong and why,
/// and repeats nothing of it (it may be a private key).
pub fn parse_keys(text: &str) -> Result<Vec<String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let members = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|key| !key.is_empty());
    let parse = |(n, key): (usize, &str)| parse_key(key).map_err(|why| format!("number {} {why}", n + 1));
    members.enumerate().map(parse).collect()
}

fn parse_key(text: &str) -> Result<String, &'static str> {
    if text.contains("PRIVATE KEY") {
        return Err("is a part of a private key");
    }
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    let begins_with_type = ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| first.starts_with(prefix));
    if !begins_with_type {
        return Err("does not begin with a key's type, as ssh-ed25519 (options before it are not taken)");
    }
    let key = PublicKey::from_openssh(text).map_err(|_| "is damaged or incomplete")?;
    match key.algorithm() {
        Algorithm::Dsa | Algorithm::Other(_) => Err("is of a type that sshd no longer takes"),
        _ => key.to_openssh().map_err(|_| "is damaged or incomplete"),
    }
}

/// How root gets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Lines of authorized_keys.
    pub keys: Vec<String>,
    pub password: Option<PasswordHash>,
}

impl Access {
    /// Writes root's keys and root's field in /etc/shadow. Keys of the tree stay where none are given.
    pub fn write(&self, root: &RootDir) -> Result<()> {
        if !self.keys.is_empty() {
            root.create_dir_all("root", 0o700)?;
            root.create_dir_all("root/.ssh", 0o700)?;
            let text = self.keys.join("\n") + "\n";
            root.write("root/.ssh/authorized_keys", text.as_bytes(), 0o600)?;
            if !root.is_dir("etc/ssh/sshd_config.d")? && !root.is_file("etc/ssh/sshd_config")? {
                report::warning(
                    "ssh_keys is set and the guest has no sshd; extra_pkgs can add openssh-server",
                );
            }
        }
        self.write_password(root)
    }

    /// In /etc/passwd of a tree without shadow passwords.
    fn write_password(&self, root: &RootDir) -> Result<()> {
        let field = self.password_field();
        for path in ["etc/shadow", "etc/passwd"] {
            let Some(bytes) = root.read(path, MAX_BYTES)? else { continue };
            let edited = with_root_password(&bytes, field.as_bytes());
            // An empty one where root is unknown is nothing; what was asked for must not be lost.
            ensure!(edited.is_some() || field.is_empty(), "/{path} has no line for root");
            if let Some(edited) = edited.filter(|edited| *edited != bytes) {
                root.rewrite(path, &edited)?;
            }
            return Ok(());
        }
        Ok(())
    }

    fn password_field(&self) -> &str {
        match &self.password {
            Some(hash) => &hash.0,
            None if self.keys.is_empty() => "",
            None => NO_PASSWORD,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys.len() {
            0 => {}
            1 => f.write_str("1 SSH key, ")?,
            n => write!(f, "{n} SSH keys, ")?,
        }
        f.write_str(match (&self.password, self.keys.is_empty()) {
            (Some(_), _) => "root's password by its hash",
            (None, false) => "no password",
            (None, true) => "root with an empty password, on the console only",
        })
    }
}

/// The file with another second field in root's line; None where root has no line.
fn with_root_password(bytes: &[u8], field: &[u8]) -> Option<Vec<u8>> {
    let mut found = false;
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for line in bytes.split(|b| *b == b'\n') {
        let mut fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        if fields.len() > 2 && fields[0] == b"root" {
            fields[1] = field;
            found = true;
        }
        lines.push(fields.join(&b':'));
    }
    found.then(|| lines.join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_password_is_changed() {
        let old = b"daemon:*:1::::::\nroot:!x:20000:0:99999:7:::\nrooty:*:1::::::\n";
        for field in ["", "*", "$6$s$h"] {
            let new = format!("daemon:*:1::::::\nroot:{field}:20000:0:99999:7:::\nrooty:*:1::::::\n");
            assert_eq!(with_root_password(old, field.as_bytes()).as_deref(), Some(new.as_bytes()));
        }
        assert_eq!(with_root_password(b"\xff\xfe\nno colons", b"*"), None);
    }

    /// Of "correct horse", made by crypt(3) in each method.
    const HASHES: [&str; 9] = [
        "$1$saltsalt$NuzA7WTAelpl95xgBGWN60",
        "$5$saltsalt$myjXcpMpE2Ofk7fj9hqyNYSn6lmWG4Mqnjx.KIRRr4/",
        "$6$saltsalt$hRM5XZ86KXEw9UOmjigeVqFgULtFB2sgpC9lXQDfMib3Zgw7mEiUvBJI2EplzfAqxL5Vvwp2scFtv/uamSo5z0",
        "$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2",
        "$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2",
        "$6$rounds=5000$saltsalt$hRM5XZ86KXEw9UOmjigeVqFgULtFB2sgpC9lXQDfMib3Zgw7mEiUvBJI2EplzfAqxL5Vvwp2scFtv/uamSo5z0",
        "$7$CU..../....SodiumChloride$Yw7JGvjxkSv2Fvi7sJpBeLiTTtUGxnbZZs6HOj7nC3/",
        "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$zwtVrjrUCmXcyLTs6oxLTQlzifSUkF8RHJ./tK5KU79",
        "$gy$j9T$F5Jx5fExrKuPp53xLKQ..1$fjSOzYe3VPU6Q.dJqx4tYW6CE1ptRyuKNHZ4IlHBYq1",
    ];

    #[test]
    fn whole_hashes_of_crypt_are_taken() {
        for hash in HASHES {
            assert!(PasswordHash::parse(hash).is_some(), "{hash}");
        }
    }

    #[test]
    fn anything_else_is_no_password_hash() {
        let bad = [
            "",
            "secret",
            "!",
            "*",
            "$",
            "$6$",
            "$6$salt",
            "$6$salt$",
            "xyJ8v.4cqPXFA",
            "_J9..K0AyUubcChQ7tvI",
        ];
        for text in bad {
            assert_eq!(PasswordHash::parse(text), None, "{text}");
        }
        for hash in HASHES {
            let shorter = &hash[..hash.len() - 1];
            let salted = hash.replacen('$', "$9", 1);
            let broken = [
                shorter.to_owned(),
                format!("{hash}."),
                format!("{shorter}:"),
                format!("{shorter}\n"),
                format!("{hash}:x"),
                format!(" {hash}"),
                salted,
                shorter.replacen(&hash[1..2], "", 1),
            ];
            for text in broken {
                assert_eq!(PasswordHash::parse(&text), None, "{text}");
            }
        }
        assert!(PasswordHash::parse(&HASHES[5].replacen("rounds=5000", "rounds=10", 1)).is_none());
        assert_eq!(format!("{:?}", PasswordHash::parse(HASHES[0])), "Some((set))");
    }

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmAp9hKsBInMOVUYgvtKSzVEXumn7A0aztcBBK62iZy ed25519@example.org";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBDOFeyHlo4yeMe0Syft2yuPFBHYhxemETDoxWMkrPGTew7orukGyovxIQM+D9+e16kevJI3zpxazdqEBVKv3vAc= ecdsa@example.org";
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQCmXiG3iDRb4WUPpw6GQX/W3eE12IrJTdIOJbXIi4x0QU0thbavlxlQcpllMRoY5aurKxARqZ/boJzVY9BSZdhGKxL2vfOEgSyR9494vipjqaL7roVCuF9iwOLoRXeJTyjakiHZwh9V6jBFLfMFnIrIj7o5NOw78cDEpR47LpBXcTn5QtIq5OkIMjqmo2oDd7NxVrPOj2XBJeeRM2JLnEvUCcieGvKkGpX4cIEqYc+6JjsVA4MpxNpXXMVs6d5rHg7DHD+fmMwJygxQQowmccWQmEj+8tGDWfRX6ZqZbX8+Eq+r/gAUgMQCO6649+Zv+e95RZ7q+yHaime7tRwGFNOGjOgIqNwOnqnrwg35Ned5uZ73yGSyFCjd2em5iO0CH/wXwY9NAvbV3Jmr/sQTbPo0woLSh2dWpZrom6aM6Rr1HjkK0szVJYCkgJxUcafCFt4mlqetoQv2YuKc/FYqe+4Sdc9Tq2yqAIVvj6eahxXQXI8NgZD1zft0cl8blfpDeO0= rsa@example.org";
    const DSA: &str = "ssh-dss AAAAB3NzaC1kc3MAAAABBQAAAAEFAAAAAQUAAAABBQ== old";

    #[test]
    fn keys_are_separated_by_newlines_or_commas() {
        let table = [
            (String::new(), vec![]),
            (format!("{ED25519}\n"), vec![ED25519]),
            (format!("{ED25519},{ECDSA}"), vec![ED25519, ECDSA]),
            (format!("# mine\n\n  {ED25519}\r\n{RSA} , {ECDSA}\n"), vec![ED25519, RSA, ECDSA]),
        ];
        for (text, keys) in table {
            assert_eq!(parse_keys(&text).unwrap(), keys, "{text}");
        }
        let bare = ED25519.rsplit_once(' ').unwrap().0;
        assert_eq!(parse_keys(bare).unwrap().len(), 1, "a comment may be missing");
    }

    #[test]
    fn a_wrong_key_is_refused_by_its_number_and_not_repeated() {
        let table = [
            (format!("{ED25519}\nsecret"), "number 2 does not begin with a key's type"),
            (format!("from=\"192.0.2.1\" {ED25519}"), "number 1 does not begin"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n".into(), "number 1 is a part of a private key"),
            (ED25519[..40].into(), "number 1 is damaged"),
            (ED25519.replacen("ssh-ed25519", "ssh-rsa", 1), "number 1 is damaged"),
            ("ssh-ed25519".into(), "number 1 is damaged"),
            (DSA.into(), "number 1 is of a type that sshd no longer takes"),
        ];
        for (text, told) in table {
            let error = parse_keys(&text).unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
            assert!(
                !error.contains("AAAA") && !error.contains("secret") && !error.contains("b3Blbn"),
                "{error}"
            );
        }
    }

    #[test]
    fn keys_alone_leave_no_password() {
        let hash = PasswordHash::parse(HASHES[0]);
        let table =
            [(vec![], None, ""), (vec![ED25519], None, "*"), (vec![ED25519], hash.clone(), HASHES[0])];
        for (keys, password, field) in table {
            let access = Access { keys: keys.iter().map(|key| key.to_string()).collect(), password };
            assert_eq!(access.password_field(), field);
        }
    }
}
