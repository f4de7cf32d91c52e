//! What others than root could have written is not used: it is refused, or an admin is told the command that mends it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::common::{GIB, Node, log_of, tool};

const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 12345;

/// How a file becomes another's.
#[derive(Debug, Clone, Copy)]
enum Change {
    Mode(u32),
    Owner(u32),
}

impl Change {
    fn apply(self, path: &Path) {
        match self {
            Change::Mode(mode) => {
                let old = fs::metadata(path).unwrap().permissions().mode();
                fs::set_permissions(path, fs::Permissions::from_mode(old | mode)).unwrap();
            }
            Change::Owner(owner) => chown(path, Some(owner), None).unwrap(),
        }
    }

    fn take_back(self, path: &Path) {
        match self {
            Change::Mode(_) => drop(tool("chmod", &["go-w", path.to_str().unwrap()])),
            Change::Owner(_) => chown(path, Some(0), None).unwrap(),
        }
    }
}

/// A node where every kind of file of the administrator is used by one instance, and these files.
fn node_with_all_kinds(defaults: &str) -> (Node, Vec<PathBuf>) {
    let node = Node::bare();
    let etc = node.etc();
    let apt = etc.join("apt");
    let variants = node.path().join("moved");
    for dir in [&apt, &variants, &etc.join("hooks/confdata"), &node.path().join("images")] {
        fs::create_dir_all(dir).unwrap();
    }
    let image = node.path().join("images/golden.img");
    let table = format!("truncate -s 2M {0} && echo 2048,,L | sfdisk -q {0}", image.display());
    tool("sh", &["-c", &table]);
    let digest = Sha256::digest(fs::read(&image).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    node.config(&format!(
        "defaults = \"{defaults}\"\napt_dir = \"{}\"\nkeyring = \"{}\"\nsource = \"{} sha256:{digest}\"\n",
        apt.display(),
        etc.join("site.gpg").display(),
        image.display(),
    ));
    fs::write(node.legacy_defaults(), format!("VARIANTS_DIR={}\n", variants.display())).unwrap();
    fs::write(variants.join("mine.conf"), "EXTRA_PKGS=vim\n").unwrap();
    fs::write(variants.join("mine.toml"), "").unwrap();
    fs::write(etc.join("site.gpg"), [0x98, 1]).unwrap();
    fs::write(apt.join("site.list"), "").unwrap();
    node.hook("hook", "exit 0");
    fs::write(etc.join("hooks/confdata/motd"), "").unwrap();
    let files = vec![
        etc.join("config.toml"),
        node.legacy_defaults(),
        variants.join("mine.conf"),
        variants.join("mine.toml"),
        variants,
        etc.join("site.gpg"),
        apt.join("site.list"),
        apt,
        etc.join("hooks"),
        etc.join("hooks/hook"),
        etc.join("hooks/confdata"),
        etc.join("hooks/confdata/motd"),
        image.clone(),
        image.parent().unwrap().to_owned(),
        etc,
    ];
    (node, files)
}

#[test]
fn what_others_could_have_written_is_refused_or_warned_of() {
    let changes = [
        (Change::Mode(0o002), true),
        (Change::Owner(NOBODY), true),
        (Change::Mode(0o020), false),
        (Change::Owner(SOMEBODY), false),
    ];
    for defaults in ["1", "0.17"] {
        let (node, files) = node_with_all_kinds(defaults);
        let disk = node.disk("d", GIB);
        let mut env = node.recorded("create", &disk);
        env.insert("OS_VARIANT".into(), "mine".into());
        env.insert("OSP_PARTITION_STYLE".into(), "none".into());
        let create = || node.verb("create", &env).arg("--dry-run").output().unwrap();
        let check = || node.command(&["config", "check"]).output().unwrap();
        let log = log_of(&create());
        assert!(log.contains("golden.img") && !log.contains("chmod") && !log.contains("chown"), "{log}");
        assert!(!log_of(&check()).contains("chmod"), "{}", log_of(&check()));
        for file in &files {
            for (change, always) in changes {
                change.apply(file);
                let case = format!("{defaults:?} {} {change:?}", file.display());
                let output = create();
                let log = log_of(&output);
                let refused = always || defaults == "1";
                assert_eq!(output.status.success(), !refused, "{case}: {log}");
                let command = match change {
                    Change::Mode(0o002) => "chmod o-w ",
                    Change::Mode(_) => "chmod g-w ",
                    Change::Owner(_) => "chown root ",
                };
                let line = log.lines().find(|line| line.contains(&format!("{command}{}", file.display())));
                let line = line.unwrap_or_else(|| panic!("{case}: {log}"));
                assert!(refused || line.starts_with("warning: "), "{case}: {log}");
                if !refused {
                    let output = check();
                    assert_eq!(output.status.code(), Some(1), "{case}: {}", log_of(&output));
                }
                change.take_back(file);
            }
        }
        let output = create();
        assert!(output.status.success(), "{}", log_of(&output));
    }
}

#[test]
fn a_shell_file_that_others_could_have_written_is_not_run() {
    let (node, _) = node_with_all_kinds("1");
    let disk = node.disk("d", GIB);
    let mut env = node.recorded("create", &disk);
    env.insert("OS_VARIANT".into(), "mine".into());
    let ran = node.path().join("ran");
    let moved = node.path().join("moved/mine.conf");
    for file in [node.legacy_defaults(), moved] {
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{before}: > {}\n", ran.display())).unwrap();
        Change::Owner(SOMEBODY).apply(&file);
        let output = node.verb("create", &env).arg("--dry-run").output().unwrap();
        assert!(log_of(&output).contains(&format!("{} is not run", file.display())), "{}", log_of(&output));
        assert!(!ran.exists(), "{}", file.display());
        Change::Owner(SOMEBODY).take_back(&file);
        fs::write(&file, before).unwrap();
    }
}
