//! What verify answers: a table of environments with the exact text and exit status of each, run as the node daemon
//! runs it. Needs no root.
#![allow(clippy::disallowed_methods, reason = "tests run the program")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use crate::common::{Node, log_of, text};

/// A title, what differs from the recorded environment of a verify, the exit status, and the answer, in which `NODE`
/// stands for the node's directory.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], i32, &'a str);

/// In place of a value: the variable is not set.
const UNSET: &str = "\0";

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqQ2ng7pEzAf0nJCLNQbPsNeD3qFdLIhyKNlN0IUrO4";
const HASH: &str =
    "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/";

const USAGE: &str = "\
Check an instance's OS parameters (called by Ganeti)

Usage: verify [WHAT]...

Arguments:
  [WHAT]...
          What is to be checked

          Possible values:
          - parameters: The OS parameters and the variant

Options:
  -h, --help
          Print help (see a summary with '-h')
Ganeti calls this verb with an environment that holds OS parameters; by hand use `config check`.
";

const OK: i32 = 0;
const WRONG: i32 = 1;
const MISUSED: i32 = 2;

/// A node with variants that are listed or not, and have a file or not.
fn node() -> Node {
    let node = Node::bare();
    node.config("defaults = \"1\"\n");
    fs::write(node.etc().join("variants.list"), "default\ntrixie\nweb\nbroken\nmissing\n").unwrap();
    node.variant("web.toml", "filesystem = \"xfs\"\n");
    node.variant("unlisted.toml", "boot = \"uefi\"\n");
    node.variant("broken.toml", "# a comment\npartition_style = \"gtp\"\nsutie = \"sid\"\n");
    node
}

/// Runs all rows and tells of all that differ.
fn compare(node: &Node, rows: &[Row]) {
    let mut differing = String::new();
    for (title, changes, status, answer) in rows {
        let mut env = node.recorded("verify", Path::new("/none"));
        env.remove("DISK_0_PATH");
        for (name, value) in *changes {
            match *value {
                UNSET => drop(env.remove(*name)),
                value => drop(env.insert((*name).to_owned(), value.to_owned())),
            }
        }
        let output = node.verb("verify", &env).output().unwrap();
        let got = log_of(&output).replace(node.path().to_str().unwrap(), "NODE");
        assert!(got.is_ascii(), "{title}: {got}");
        if (output.status.code(), got.as_str()) != (Some(*status), *answer) {
            differing +=
                &format!("\n## {title}\nwanted {status}: {answer}\n   got {:?}: {got}", output.status.code());
        }
    }
    assert!(differing.is_empty(), "{differing}");
}

#[test]
fn what_is_right_has_no_answer() {
    let keys = format!("{KEY} web@example.org,{KEY}\n# a comment\n{KEY}");
    let packages = format!("vim{}", ",linux-image-amd64".repeat(4000));
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("nothing set",       &[], OK, ""),
        ("every setting",     &[("OSP_SUITE", "bookworm"), ("OSP_MIRROR", "https://mirror.example.org/debian"), ("OSP_PROXY", "http://proxy.example.org:3128"),
                                ("OSP_ARCH", "amd64"), ("OSP_COMPONENTS", "main,contrib"), ("OSP_EXTRA_PKGS", "vim,less"), ("OSP_FILESYSTEM", "btrfs"),
                                ("OSP_PARTITION_STYLE", "gpt"), ("OSP_PARTITION_ALIGNMENT", "4096"), ("OSP_NETWORK", "dhcp"), ("OSP_BOOT", "uefi"), ("OSP_SWAP", "512M"),
                                ("OSP_DNS", "192.0.2.53,2001:db8::53"), ("OSP_SSH_KEYS", KEY), ("OSP_PASSWORD_HASH", HASH), ("OSP_TIMEZONE", "Europe/Berlin")], OK, ""),
        ("every one empty",   &[("OSP_SUITE", ""), ("OSP_MIRROR", ""), ("OSP_PROXY", ""), ("OSP_ARCH", ""), ("OSP_COMPONENTS", ""), ("OSP_EXTRA_PKGS", ""), ("OSP_FILESYSTEM", ""),
                                ("OSP_PARTITION_STYLE", ""), ("OSP_PARTITION_ALIGNMENT", ""), ("OSP_NETWORK", ""), ("OSP_BOOT", ""), ("OSP_SWAP", ""), ("OSP_DNS", ""),
                                ("OSP_SSH_KEYS", ""), ("OSP_PASSWORD_HASH", ""), ("OSP_TIMEZONE", "")], OK, ""),
        ("the least",         &[("OSP_PARTITION_ALIGNMENT", "1"), ("OSP_SWAP", "1M"), ("OSP_FILESYSTEM", "ext2"), ("OSP_PARTITION_STYLE", "msdos"), ("OSP_NETWORK", "manual"), ("OSP_BOOT", "bios")], OK, ""),
        ("the most",          &[("OSP_PARTITION_ALIGNMENT", "1048576"), ("OSP_SWAP", "1024G"), ("OSP_EXTRA_PKGS", &packages), ("OSP_NETWORK", "static"), ("OSP_BOOT", "no")], OK, ""),
        ("no table",          &[("OSP_PARTITION_STYLE", "none"), ("OSP_BOOT", "auto"), ("OSP_SWAP", "1G"), ("OSP_FILESYSTEM", "xfs")], OK, ""),
        ("a swap disk",       &[("OSP_PARTITION_STYLE", "none"), ("OSP_SWAP", "disk1"), ("OSP_FILESYSTEM", "btrfs")], OK, ""),
        ("another arch",      &[("OSP_ARCH", "arm64"), ("OSP_BOOT", "auto")], OK, ""),
        ("keys by lines",     &[("OSP_SSH_KEYS", &keys)], OK, ""),
        ("a zone's old name", &[("OSP_TIMEZONE", "US/Pacific")], OK, ""),
        ("an older API",      &[("OS_API_VERSION", "15")], OK, ""),
        ("no OS_NAME",        &[("OS_NAME", UNSET), ("DEBUG_LEVEL", UNSET)], OK, ""),
        ("debugging",         &[("DEBUG_LEVEL", "5")], OK, ""),
        ("no variant",        &[("OS_VARIANT", "")], OK, ""),
        ("a suite's name",    &[("OS_VARIANT", "trixie")], OK, ""),
        ("listed",            &[("OS_VARIANT", "web")], OK, ""),
        ("unlisted",          &[("OS_VARIANT", "unlisted")], OK, ""),
        ("not ours",          &[("OSP_PLAIN_PARAM", "pv"), ("OSP_CUSTOMIZE_DIR", "x"), ("OSP_", "x"), ("OSP_\u{e9}", "\u{e9}")], OK, ""),
    ];
    compare(&node(), rows);
}

#[test]
fn each_wrong_value_is_answered_by_what_is_allowed() {
    let cut_key = format!("{KEY},{}", &KEY[..60]);
    let key_with_options = format!("command=\"x\" {KEY}");
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("suite", &[("OSP_SUITE", "../sid")], WRONG,
            "error: suite is \"../sid\"; expected a suite's name like \"trixie\" (set in the OS parameter suite)\n"),
        ("suite, a shell's", &[("OSP_SUITE", "sid;id")], WRONG,
            "error: suite is \"sid;id\"; expected a suite's name like \"trixie\" (set in the OS parameter suite)\n"),
        ("mirror, no URL", &[("OSP_MIRROR", "mirror.example.org")], WRONG,
            "error: mirror is \"mirror.example.org\"; expected a URL like \"http://mirror.example.org/debian\" (set in the OS parameter mirror)\n"),
        ("mirror, no host", &[("OSP_MIRROR", "http:///debian")], WRONG,
            "error: mirror is \"http:///debian\"; expected a URL like \"http://mirror.example.org/debian\" (set in the OS parameter mirror)\n"),
        ("mirror, a script", &[("OSP_MIRROR", "http://mirror.example.org/debian /tmp/script")], WRONG,
            "error: mirror is \"http://mirror.example.org/debian /tmp/script\"; expected one URL of http, https or ftp; a script or a path may be set in the node's own files only (set in the OS parameter mirror)\n"),
        ("mirror, a path", &[("OSP_MIRROR", "file:///srv/mirror")], WRONG,
            "error: mirror is \"file:///srv/mirror\"; expected one URL of http, https or ftp; a script or a path may be set in the node's own files only (set in the OS parameter mirror)\n"),
        ("proxy", &[("OSP_PROXY", "ftp://proxy.example.org")], WRONG,
            "error: proxy is \"ftp://proxy.example.org\"; expected a URL like \"http://proxy.example.org:3128\", or nothing (set in the OS parameter proxy)\n"),
        ("proxy, a shell's", &[("OSP_PROXY", "http://$(id)")], WRONG,
            "error: proxy is \"http://$(id)\"; expected a URL like \"http://proxy.example.org:3128\", or nothing (set in the OS parameter proxy)\n"),
        ("arch", &[("OSP_ARCH", "AMD64")], WRONG,
            "error: arch is \"AMD64\"; expected an architecture like \"amd64\", or nothing for the node's (set in the OS parameter arch)\n"),
        ("arch, an option", &[("OSP_ARCH", "-amd64")], WRONG,
            "error: arch is \"-amd64\"; expected an architecture like \"amd64\", or nothing for the node's (set in the OS parameter arch)\n"),
        ("components", &[("OSP_COMPONENTS", "main;contrib")], WRONG,
            "error: components is \"main;contrib\"; expected names separated by commas (set in the OS parameter components)\n"),
        ("extra_pkgs", &[("OSP_EXTRA_PKGS", "vim,--force")], WRONG,
            "error: extra_pkgs is \"vim,--force\"; expected names separated by commas (set in the OS parameter extra_pkgs)\n"),
        ("filesystem", &[("OSP_FILESYSTEM", "ntfs")], WRONG,
            "error: filesystem is \"ntfs\"; expected \"ext2\", \"ext3\", \"ext4\", \"xfs\" or \"btrfs\" (set in the OS parameter filesystem)\n"),
        ("filesystem's case", &[("OSP_FILESYSTEM", "EXT4")], WRONG,
            "error: filesystem is \"EXT4\"; expected \"ext2\", \"ext3\", \"ext4\", \"xfs\" or \"btrfs\" (set in the OS parameter filesystem)\n"),
        ("partition_style", &[("OSP_PARTITION_STYLE", "gtp")], WRONG,
            "error: partition_style is \"gtp\"; expected \"gpt\", \"msdos\" or \"none\" (set in the OS parameter partition_style)\n"),
        ("alignment of 0", &[("OSP_PARTITION_ALIGNMENT", "0")], WRONG,
            "error: partition_alignment is \"0\"; expected a number from 1 to 1048576 (set in the OS parameter partition_alignment)\n"),
        ("alignment's sign", &[("OSP_PARTITION_ALIGNMENT", "+2048")], WRONG,
            "error: partition_alignment is \"+2048\"; expected a number from 1 to 1048576 (set in the OS parameter partition_alignment)\n"),
        ("alignment's unit", &[("OSP_PARTITION_ALIGNMENT", "1M")], WRONG,
            "error: partition_alignment is \"1M\"; expected a number from 1 to 1048576 (set in the OS parameter partition_alignment)\n"),
        ("alignment's range", &[("OSP_PARTITION_ALIGNMENT", "1048577")], WRONG,
            "error: partition_alignment is \"1048577\"; expected a number from 1 to 1048576 (set in the OS parameter partition_alignment)\n"),
        ("alignment's digits", &[("OSP_PARTITION_ALIGNMENT", "99999999999999999999")], WRONG,
            "error: partition_alignment is \"99999999999999999999\"; expected a number from 1 to 1048576 (set in the OS parameter partition_alignment)\n"),
        ("network", &[("OSP_NETWORK", "none")], WRONG,
            "error: network is \"none\"; expected \"auto\", \"dhcp\", \"static\" or \"manual\" (set in the OS parameter network)\n"),
        ("boot", &[("OSP_BOOT", "yes")], WRONG,
            "error: boot is \"yes\"; expected \"auto\", \"bios\", \"uefi\" or \"no\" (set in the OS parameter boot)\n"),
        ("swap, no unit", &[("OSP_SWAP", "512")], WRONG,
            "error: swap is \"512\"; expected a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\" (set in the OS parameter swap)\n"),
        ("swap, the root", &[("OSP_SWAP", "disk0")], WRONG,
            "error: swap is \"disk0\"; expected a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\" (set in the OS parameter swap)\n"),
        ("swap, too large", &[("OSP_SWAP", "1025G")], WRONG,
            "error: swap is \"1025G\"; expected a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\" (set in the OS parameter swap)\n"),
        ("dns", &[("OSP_DNS", "192.0.2.53,resolver.example.org")], WRONG,
            "error: dns is \"192.0.2.53,resolver.example.org\"; expected IP addresses separated by commas (set in the OS parameter dns)\n"),
        ("dns with a zone", &[("OSP_DNS", "fe80::1%eth0")], WRONG,
            "error: dns is \"fe80::1%eth0\"; expected IP addresses separated by commas (set in the OS parameter dns)\n"),
        ("ssh_keys, no key", &[("OSP_SSH_KEYS", "hunter2")], WRONG,
            "error: ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 1 does not begin with a key's type, as ssh-ed25519 (options before it are not taken) (set in the OS parameter ssh_keys)\n"),
        ("ssh_keys, cut", &[("OSP_SSH_KEYS", &cut_key)], WRONG,
            "error: ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 2 is damaged or incomplete (set in the OS parameter ssh_keys)\n"),
        ("ssh_keys, private", &[("OSP_SSH_KEYS", "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----")], WRONG,
            "error: ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 1 is a part of a private key (set in the OS parameter ssh_keys)\n"),
        ("ssh_keys, options", &[("OSP_SSH_KEYS", &key_with_options)], WRONG,
            "error: ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 1 does not begin with a key's type, as ssh-ed25519 (options before it are not taken) (set in the OS parameter ssh_keys)\n"),
        ("ssh_keys, DSA", &[("OSP_SSH_KEYS", "ssh-dss AAAAB3NzaC1kc3M= x")], WRONG,
            "error: ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 1 is damaged or incomplete (set in the OS parameter ssh_keys)\n"),
        ("a plain password", &[("OSP_PASSWORD_HASH", "hunter2")], WRONG,
            "error: password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n"),
        ("a cut hash", &[("OSP_PASSWORD_HASH", "$6$saltsalt$hunter2")], WRONG,
            "error: password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n"),
        ("a DES hash", &[("OSP_PASSWORD_HASH", "ab01FAX.bQRSU")], WRONG,
            "error: password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n"),
        ("timezone, a path", &[("OSP_TIMEZONE", "../../etc/passwd")], WRONG,
            "error: timezone is \"../../etc/passwd\"; expected a timezone like \"Europe/Berlin\", or nothing for what the release brings (set in the OS parameter timezone)\n"),
        ("timezone, unknown", &[("OSP_TIMEZONE", "Europe/Berln")], WRONG,
            "error: timezone is \"Europe/Berln\", which the tzdata of this node does not know; expected one like \"Europe/Berlin\" (set in the OS parameter timezone)\n"),
        ("timezone, a region", &[("OSP_TIMEZONE", "Europe")], WRONG,
            "error: timezone is \"Europe\", which the tzdata of this node does not know; expected one like \"Europe/Berlin\" (set in the OS parameter timezone)\n"),
    ];
    compare(&node(), rows);
}

#[test]
fn no_secret_is_repeated() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("in a proxy's URL", &[("OSP_PROXY", "http://admin:hunter2@proxy.example.org:port;")], WRONG,
            "error: proxy is \"http://...@proxy.example.org:port;\"; expected a URL like \"http://proxy.example.org:3128\", or nothing (set in the OS parameter proxy)\n"),
        ("in a proxy", &[("OSP_PROXY", "admin:hunter2@proxy:3128")], WRONG,
            "error: proxy is \"...@proxy:3128\"; expected a URL like \"http://proxy.example.org:3128\", or nothing (set in the OS parameter proxy)\n"),
        ("in a mirror's URL", &[("OSP_MIRROR", "http://admin:hunter2@mirror.example.org/ /tmp/x")], WRONG,
            "error: mirror is \"http://...@mirror.example.org/ /tmp/x\"; expected one URL of http, https or ftp; a script or a path may be set in the node's own files only (set in the OS parameter mirror)\n"),
        ("all at once", &[("OSP_PASSWORD_HASH", "hunter2"), ("OSP_SSH_KEYS", "hunter2"), ("OSP_PROXY", "ftp://hunter2@p")], WRONG,
            "error: proxy is \"ftp://...@p\"; expected a URL like \"http://proxy.example.org:3128\", or nothing (set in the OS parameter proxy)\n\
             ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 1 does not begin with a key's type, as ssh-ed25519 (options before it are not taken) (set in the OS parameter ssh_keys)\n\
             password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n"),
    ];
    for (title, _, _, answer) in rows {
        assert!(!answer.contains("hunter2"), "{title}");
    }
    compare(&node(), rows);
}

#[test]
fn whatever_a_value_holds_the_answer_is_short_ascii_lines() {
    let long = "a".repeat(100_000);
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("a long value", &[("OSP_SUITE", &long)], WRONG,
            "error: suite is \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...\" (100000 bytes); expected a suite's name like \"trixie\" (set in the OS parameter suite)\n"),
        ("a long secret", &[("OSP_PASSWORD_HASH", &long)], WRONG,
            "error: password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n"),
        ("a line break", &[("OSP_PARTITION_STYLE", "gpt\nerror: all is lost")], WRONG,
            "error: partition_style is \"gpt\\nerror: all is lost\"; expected \"gpt\", \"msdos\" or \"none\" (set in the OS parameter partition_style)\n"),
        ("an escape sequence", &[("OSP_FILESYSTEM", "\x1b[31mext4\x07")], WRONG,
            "error: filesystem is \"\\u{1b}[31mext4\\u{7}\"; expected \"ext2\", \"ext3\", \"ext4\", \"xfs\" or \"btrfs\" (set in the OS parameter filesystem)\n"),
        ("not ASCII", &[("OSP_SUITE", "tr\u{ef}xie\u{2028}")], WRONG,
            "error: suite is \"tr\\u{ef}xie\\u{2028}\"; expected a suite's name like \"trixie\" (set in the OS parameter suite)\n"),
        ("quotes", &[("OSP_SWAP", "\"1G\"")], WRONG,
            "error: swap is \"\\\"1G\\\"\"; expected a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\" (set in the OS parameter swap)\n"),
        ("a variant's bytes", &[("OS_VARIANT", "tr\u{ef}xie\n")], WRONG,
            "error: OS_VARIANT is \"tr\\u{ef}xie\\n\"; expected a name of up to 64 letters, digits, '-', '_' and '.' that does not begin with '.'\n"),
        ("a long variant", &[("OS_VARIANT", &"v".repeat(65))], WRONG,
            "error: OS_VARIANT is \"vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\"; expected a name of up to 64 letters, digits, '-', '_' and '.' that does not begin with '.'\n"),
    ];
    compare(&node(), rows);
}

#[test]
fn all_faults_come_in_one_answer_also_those_between_settings() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("uefi on msdos", &[("OSP_BOOT", "uefi"), ("OSP_PARTITION_STYLE", "msdos")], WRONG,
            "error: boot is \"uefi\" (from the OS parameter boot), but UEFI wants partition_style gpt, not msdos (from the OS parameter partition_style); set boot to \"bios\", or partition_style to \"gpt\"\n"),
        ("boot without a table", &[("OSP_BOOT", "bios"), ("OSP_PARTITION_STYLE", "none")], WRONG,
            "error: boot is \"bios\" (from the OS parameter boot), but partition_style none has no room for a loader (from the OS parameter partition_style); set boot to \"no\", or partition_style to \"gpt\"\n"),
        ("boot on arm64", &[("OSP_BOOT", "bios"), ("OSP_ARCH", "arm64")], WRONG,
            "error: boot is \"bios\" (from the OS parameter boot), but a loader is known for amd64 only, not for arm64 (from the OS parameter arch); set boot to \"no\", and let the hypervisor start its own kernel or a hook install a loader\n"),
        ("swap file on btrfs", &[("OSP_SWAP", "1G"), ("OSP_PARTITION_STYLE", "none"), ("OSP_FILESYSTEM", "btrfs")], WRONG,
            "error: a swap file cannot lie on btrfs (from the OS parameter swap); set partition_style to \"gpt\", or swap to a disk of its own (disk1)\n"),
        ("all of these", &[("OSP_BOOT", "uefi"), ("OSP_ARCH", "arm64"), ("OSP_SWAP", "1G"), ("OSP_PARTITION_STYLE", "none"), ("OSP_FILESYSTEM", "btrfs")], WRONG,
            "error: boot is \"uefi\" (from the OS parameter boot), but a loader is known for amd64 only, not for arm64 (from the OS parameter arch); set boot to \"no\", and let the hypervisor start its own kernel or a hook install a loader\n\
             boot is \"uefi\" (from the OS parameter boot), but partition_style none has no room for a loader (from the OS parameter partition_style); set boot to \"no\", or partition_style to \"gpt\"\n\
             a swap file cannot lie on btrfs (from the OS parameter swap); set partition_style to \"gpt\", or swap to a disk of its own (disk1)\n"),
        ("with wrong values", &[("OSP_BOOT", "uefi"), ("OSP_PARTITION_STYLE", "msdos"), ("OSP_DNS", "resolver"), ("OSP_TIMEZONE", "Europe/Berln"), ("OSP_PASSWORD_HASH", "hunter2")], WRONG,
            "error: dns is \"resolver\"; expected IP addresses separated by commas (set in the OS parameter dns)\n\
             password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n\
             timezone is \"Europe/Berln\", which the tzdata of this node does not know; expected one like \"Europe/Berlin\" (set in the OS parameter timezone)\n\
             boot is \"uefi\" (from the OS parameter boot), but UEFI wants partition_style gpt, not msdos (from the OS parameter partition_style); set boot to \"bios\", or partition_style to \"gpt\"\n"),
        ("one is wrong itself", &[("OSP_BOOT", "uefi"), ("OSP_PARTITION_STYLE", "MSDOS"), ("OSP_ARCH", "ARM64")], WRONG,
            "error: arch is \"ARM64\"; expected an architecture like \"amd64\", or nothing for the node's (set in the OS parameter arch)\n\
             partition_style is \"MSDOS\"; expected \"gpt\", \"msdos\" or \"none\" (set in the OS parameter partition_style)\n"),
        ("a variant's boot", &[("OS_VARIANT", "unlisted"), ("OSP_PARTITION_STYLE", "msdos")], WRONG,
            "error: boot is \"uefi\" (from NODE/etc/variants/unlisted.toml:1), but UEFI wants partition_style gpt, not msdos (from the OS parameter partition_style); set boot to \"bios\", or partition_style to \"gpt\"\n"),
        ("an unknown variant", &[("OS_VARIANT", "nonsense"), ("OSP_BOOT", "uefi"), ("OSP_PARTITION_STYLE", "msdos")], WRONG,
            "error: Unofficial variant nonsense is unsupported\n\
             Most probably this is a user error, forcing a wrong name\n\
             To support this variant please create file NODE/etc/variants/nonsense.toml (or nonsense.conf)\n\
             boot is \"uefi\" (from the OS parameter boot), but UEFI wants partition_style gpt, not msdos (from the OS parameter partition_style); set boot to \"bios\", or partition_style to \"gpt\"\n"),
        ("a variant unread", &[("OS_VARIANT", "../x"), ("OSP_BOOT", "uefi"), ("OSP_PARTITION_STYLE", "msdos"), ("OSP_DNS", "x")], WRONG,
            "error: OS_VARIANT is \"../x\"; expected a name of up to 64 letters, digits, '-', '_' and '.' that does not begin with '.'\n\
             dns is \"x\"; expected IP addresses separated by commas (set in the OS parameter dns)\n\
             boot is \"uefi\" (from the OS parameter boot), but UEFI wants partition_style gpt, not msdos (from the OS parameter partition_style); set boot to \"bios\", or partition_style to \"gpt\"\n"),
        ("every one wrong", &[("OSP_SUITE", "?"), ("OSP_MIRROR", "?"), ("OSP_PROXY", "?"), ("OSP_ARCH", "?"), ("OSP_COMPONENTS", "?"), ("OSP_EXTRA_PKGS", "?"), ("OSP_FILESYSTEM", "?"), ("OSP_PARTITION_STYLE", "?"), ("OSP_PARTITION_ALIGNMENT", "?"), ("OSP_NETWORK", "?"), ("OSP_BOOT", "?"), ("OSP_SWAP", "?"), ("OSP_DNS", "?"), ("OSP_SSH_KEYS", "?"), ("OSP_PASSWORD_HASH", "?"), ("OSP_TIMEZONE", "?")], WRONG,
            "error: suite is \"?\"; expected a suite's name like \"trixie\" (set in the OS parameter suite)\n\
             mirror is \"?\"; expected a URL like \"http://mirror.example.org/debian\" (set in the OS parameter mirror)\n\
             proxy is \"?\"; expected a URL like \"http://proxy.example.org:3128\", or nothing (set in the OS parameter proxy)\n\
             arch is \"?\"; expected an architecture like \"amd64\", or nothing for the node's (set in the OS parameter arch)\n\
             components is \"?\"; expected names separated by commas (set in the OS parameter components)\n\
             extra_pkgs is \"?\"; expected names separated by commas (set in the OS parameter extra_pkgs)\n\
             filesystem is \"?\"; expected \"ext2\", \"ext3\", \"ext4\", \"xfs\" or \"btrfs\" (set in the OS parameter filesystem)\n\
             partition_style is \"?\"; expected \"gpt\", \"msdos\" or \"none\" (set in the OS parameter partition_style)\n\
             partition_alignment is \"?\"; expected a number from 1 to 1048576 (set in the OS parameter partition_alignment)\n\
             network is \"?\"; expected \"auto\", \"dhcp\", \"static\" or \"manual\" (set in the OS parameter network)\n\
             boot is \"?\"; expected \"auto\", \"bios\", \"uefi\" or \"no\" (set in the OS parameter boot)\n\
             swap is \"?\"; expected a size like \"512M\" (1M to 1024G), \"disk1\" (to disk63), \"auto\" or \"no\" (set in the OS parameter swap)\n\
             dns is \"?\"; expected IP addresses separated by commas (set in the OS parameter dns)\n\
             ssh_keys is not right; expected OpenSSH public keys, separated by newlines or commas; number 1 does not begin with a key's type, as ssh-ed25519 (options before it are not taken) (set in the OS parameter ssh_keys)\n\
             password_hash is not right; expected a whole hash of crypt(3) that begins with $6$, $y$, $5$, $2b$, $2y$, $7$, $gy$ or $1$, as `openssl passwd -6` prints it, and no plain password (set in the OS parameter password_hash)\n\
             timezone is \"?\"; expected a timezone like \"Europe/Berlin\", or nothing for what the release brings (set in the OS parameter timezone)\n"),
    ];
    compare(&node(), rows);
}

#[test]
fn a_variant_needs_its_file() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("listed, no file", &[("OS_VARIANT", "missing")], WRONG,
            "ERROR: instance-debootstrap configuration error\n\
             \x20 Published variant missing is missing its config file\n\
             \x20 Please create NODE/etc/variants/missing.toml (or missing.conf) or unpublish the variant\n\
             \x20 (by removing missing from variants.list)\n"),
        ("unlisted, no file", &[("OS_VARIANT", "nonsense")], WRONG,
            "error: Unofficial variant nonsense is unsupported\n\
             Most probably this is a user error, forcing a wrong name\n\
             To support this variant please create file NODE/etc/variants/nonsense.toml (or nonsense.conf)\n"),
        ("a path", &[("OS_VARIANT", "../web")], WRONG,
            "error: OS_VARIANT is \"../web\"; expected a name of up to 64 letters, digits, '-', '_' and '.' that does not begin with '.'\n"),
        ("a hidden file", &[("OS_VARIANT", ".web")], WRONG,
            "error: OS_VARIANT is \".web\"; expected a name of up to 64 letters, digits, '-', '_' and '.' that does not begin with '.'\n"),
        ("a wrong file", &[("OS_VARIANT", "broken")], WRONG,
            "error: NODE/etc/variants/broken.toml:3: unknown key \"sutie\"; the nearest known one is \"suite\"\n\
             partition_style is \"gtp\"; expected \"gpt\", \"msdos\" or \"none\" (set in NODE/etc/variants/broken.toml:2)\n"),
        ("a wrong file, and more", &[("OS_VARIANT", "broken"), ("OSP_DNS", "x"), ("OSP_PARTITION_STYLE", "gpt")], WRONG,
            "error: NODE/etc/variants/broken.toml:3: unknown key \"sutie\"; the nearest known one is \"suite\"\n\
             dns is \"x\"; expected IP addresses separated by commas (set in the OS parameter dns)\n"),
        ("no file, and more", &[("OS_VARIANT", "missing"), ("OSP_FILESYSTEM", "ntfs")], WRONG,
            "ERROR: instance-debootstrap configuration error\n\
             \x20 Published variant missing is missing its config file\n\
             \x20 Please create NODE/etc/variants/missing.toml (or missing.conf) or unpublish the variant\n\
             \x20 (by removing missing from variants.list)\n\
             filesystem is \"ntfs\"; expected \"ext2\", \"ext3\", \"ext4\", \"xfs\" or \"btrfs\" (set in the OS parameter filesystem)\n"),
    ];
    compare(&node(), rows);
}

#[test]
fn what_is_wrong_with_the_environment_is_said_too() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("a later API", &[("OS_API_VERSION", "25")], WRONG,
            "error: reading the request for verify\n\
             \x20 OS_API_VERSION is \"25\"; expected 20, 15, 10 or 5\n\
             hint: these come from Ganeti's environment; see ganeti-os-interface(7)\n"),
        ("no number", &[("OS_API_VERSION", "twenty\n")], WRONG,
            "error: reading the request for verify\n\
             \x20 OS_API_VERSION is \"twenty\\n\"; expected 20, 15, 10 or 5\n\
             hint: these come from Ganeti's environment; see ganeti-os-interface(7)\n"),
        ("no API", &[("OS_API_VERSION", UNSET)], MISUSED, USAGE),
        ("an empty API", &[("OS_API_VERSION", "")], MISUSED, USAGE),
        ("an API without verify", &[("OS_API_VERSION", "5")], MISUSED, USAGE),
        ("DEBUG_LEVEL", &[("DEBUG_LEVEL", "much"), ("OSP_DNS", "x")], WRONG,
            "error: DEBUG_LEVEL is \"much\"; expected a number\n\
             dns is \"x\"; expected IP addresses separated by commas (set in the OS parameter dns)\n"),
    ];
    compare(&node(), rows);
}

#[test]
fn bytes_that_are_no_text_are_refused_by_the_name_of_their_variable() {
    let node = node();
    for name in ["OS_VARIANT", "OSP_SUITE", "OSP_PASSWORD_HASH", "DEBUG_LEVEL"] {
        let mut command = node.verb("verify", &node.recorded("verify", Path::new("/none")));
        let output = command.env(name, OsStr::from_bytes(b"hunter2\xff\n")).output().unwrap();
        assert_eq!(
            (output.status.code(), log_of(&output).as_str()),
            (Some(WRONG), format!("error: {name} is not UTF-8\n").as_str())
        );
    }
    let mut command = node.verb("verify", &node.recorded("verify", Path::new("/none")));
    let output = command.env("OS_API_VERSION", OsStr::from_bytes(b"20\xff")).output().unwrap();
    let hint = "hint: these come from Ganeti's environment; see ganeti-os-interface(7)";
    let answer = format!("error: reading the request for verify\n  OS_API_VERSION is not UTF-8\n{hint}\n");
    assert_eq!((output.status.code(), log_of(&output)), (Some(WRONG), answer));
}

/// The predecessor's files in play: the defaults file, and the variant `shell`.
#[test]
fn what_a_shell_file_may_yet_say_is_not_held_against_an_instance() {
    let by_hypervisor = "case $HYPERVISOR in kvm) PARTITION_STYLE=gpt;; esac\n";
    let on_uefi: &[(&str, &str)] = &[("OS_VARIANT", "shell"), ("OSP_BOOT", "uefi")];
    #[rustfmt::skip]
    let table: &[(&str, &str, Row)] = &[
        ("SUITE=bookworm\n", "EXTRA_PKGS=vim\n", ("right", &[("OS_VARIANT", "shell")], OK, "")),
        (by_hypervisor, "", ("gpt under KVM only", on_uefi, OK, "")),
        ("", by_hypervisor, ("the same of a variant", on_uefi, OK, "")),
        ("PARTITION_STYLE=msdos\n", "", ("the parameters decide", &[("OSP_BOOT", "uefi"), ("OSP_PARTITION_STYLE", "none"), ("OSP_DNS", "x")], WRONG,
            "error: dns is \"x\"; expected IP addresses separated by commas (set in the OS parameter dns)\n\
             boot is \"uefi\" (from the OS parameter boot), but partition_style none has no room for a loader (from the OS parameter partition_style); set boot to \"no\", or partition_style to \"gpt\"\n")),
        ("\n\nSUITE=../sid\n", "PARTITION_STYLE=gtp\n", ("wrong values", &[("OS_VARIANT", "shell"), ("OSP_DNS", "x")], WRONG,
            "error: suite is \"../sid\"; expected a suite's name like \"trixie\" (set in NODE/etc/default-file:3)\n\
             partition_style is \"gtp\"; expected \"gpt\", \"msdos\" or \"none\" (set in NODE/etc/variants/shell.conf:1)\n\
             dns is \"x\"; expected IP addresses separated by commas (set in the OS parameter dns)\n")),
        ("test -n \"$HYPERVISOR\"\n", "", ("a file that wants its instance", on_uefi, OK,
            "    | NODE/etc/default-file:1: this command failed\n\
             warning: evaluating the shell settings: bash stopped in NODE/etc/default-file, NODE/etc/variants/shell.conf with exit status 1\n    \
                 | NODE/etc/default-file:1: this command failed\n")),
    ];
    for (defaults, variant, row) in table {
        let node = Node::bare();
        fs::write(node.legacy_defaults(), defaults).unwrap();
        node.variant("shell.conf", variant);
        compare(&node, &[*row]);
    }
}

#[test]
fn by_hand_or_with_another_question_it_prints_its_usage() {
    let node = node();
    let run = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = Command::new(node.path().join("os/verify"));
        let output = command.args(args).env_clear().envs(env.iter().copied()).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let ganeti = [("OS_API_VERSION", "20")];
    assert_eq!(run(&[], &[]), (Some(MISUSED), String::new(), USAGE.into()));
    assert_eq!(run(&[], &ganeti), (Some(MISUSED), String::new(), USAGE.into()), "nothing to check");
    assert_eq!(run(&["parameters"], &[]), (Some(MISUSED), String::new(), USAGE.into()), "not by Ganeti");
    let (status, stdout, stderr) = run(&["-h"], &ganeti);
    assert_eq!((status, stderr.as_str()), (Some(OK), ""));
    assert!(stdout.contains("Usage: ganeti-instance-debootstrap verify [WHAT]..."), "{stdout}");
    let (status, _, stderr) = run(&["parameters", "disks"], &ganeti);
    assert_eq!(status, Some(MISUSED), "what is not checked must not seem right");
    assert!(stderr.contains("[possible values: parameters]"), "{stderr}");
}

mod as_root {
    use super::*;

    /// What verify cannot know, for want of a hypervisor, a disk and a NIC: create refuses it before it touches the disk.
    #[test]
    fn what_depends_on_the_instance_is_refused_by_create() {
        let node = Node::bare();
        let tib = 1 << 40;
        let pygrub = [
            ("HYPERVISOR", "xen-pvm"),
            ("INSTANCE_HV_use_bootloader", "True"),
            ("INSTANCE_HV_bootloader_path", "/usr/lib/xen/bin/pygrub"),
        ];
        let on_xen = |filesystem| [&pygrub[..], &[("OSP_FILESYSTEM", filesystem)]].concat();
        let by_hand = |filesystem| [on_xen(filesystem), vec![("OSP_BOOT", "no")]].concat();
        let pv_grub2 = vec![("HYPERVISOR", "xen-pvm"), ("OSP_FILESYSTEM", "xfs")];
        #[rustfmt::skip]
        let table = [
            (2 * tib - 512, vec![("OSP_PARTITION_STYLE", "msdos")], None),
            (2 * tib,       vec![("OSP_PARTITION_STYLE", "msdos")], Some("the disk has 2 TiB, but partition_style msdos can address 2 TiB only; use gpt")),
            (2 * tib,       vec![("OSP_PARTITION_STYLE", "gpt")], None),
            (4 << 30,       vec![("OSP_NETWORK", "static")], Some("NIC 0 has no static address: NIC_0_IP is missing")),
            (4 << 30,       on_xen("xfs"),   Some("the instance is started by pygrub (use_bootloader), which cannot read xfs (from the OS parameter filesystem)")),
            (4 << 30,       on_xen("btrfs"), Some("which cannot read btrfs")),
            (4 << 30,       on_xen("ext4"),  None),
            (4 << 30,       by_hand("xfs"),  None),
            (4 << 30,       pv_grub2,        None),
        ];
        for (bytes, settings, refusal) in table {
            let disk = node.disk("d", bytes);
            let mut env = node.recorded("create", &disk);
            env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let output = node.verb("create", &env).arg("--dry-run").output().unwrap();
            let log = log_of(&output);
            assert_eq!(output.status.success(), refusal.is_none(), "{settings:?}: {log}");
            assert!(log.contains(refusal.unwrap_or("")), "{settings:?}: {log}");
            assert!(refusal.is_none() || log.lines().last().unwrap().starts_with("hint: "), "{log}");
        }
    }
}
