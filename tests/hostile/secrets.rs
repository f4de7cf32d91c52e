//! What other users of the node could read or hold: images, command lines, the lock of the cache.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ganeti_instance_debootstrap::cache::{Judgement, Store};

use crate::common::{Mounted, Node, killed_with_us, log_of, root_offset, tool};

const HASH: &str =
    "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g.";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn nobody_else_can_lock_the_cache_or_write_to_it() {
    let node = Node::bare();
    let new = node.path().join("new/cache");
    let store = Store::open(&new, Judgement::Strict).unwrap();
    store.make_dir().unwrap();
    assert_eq!(mode(&new), 0o700);

    let open = node.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o757)).unwrap();
    tool("chmod", &["a+rx", node.path().to_str().unwrap()]);
    // A stranger holds what he can open. One process: it ends when it is killed.
    let hold = "exec 9< \"$0\" && flock -x 9 && echo held && exec sleep 600";
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", hold]).arg(&open);
    let mut stranger = killed_with_us(&mut stranger).stdout(Stdio::piped()).spawn().unwrap();
    stranger.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    let store = Store::open(&open, Judgement::Strict).unwrap();
    let held = store.lock(|who| panic!("waits for {who}")).unwrap();
    assert_eq!(mode(&open), 0o755, "what the administrator gave to readers stays");
    assert_eq!(mode(&open.join(".lock")), 0o600);
    drop(held);
    stranger.kill().unwrap();
    stranger.wait().unwrap();

    chown(open.join(".lock"), Some(65534), None).unwrap();
    let Err(error) = store.lock(|_| ()) else { panic!("another's file is a lock") };
    assert!(format!("{error:#}").contains("is not root's file"), "{error:#}");
}

#[test]
fn an_image_is_of_its_owner_alone_from_the_first_byte() {
    let node = Node::new();
    node.config("defaults = \"1\"\nboot = \"no\"\n");
    let dir = node.path().join("images");
    fs::create_dir(&dir).unwrap();
    let output = dir.join("a.qcow2");
    let image = || {
        let mut command = node.command(&[
            "image",
            "--name",
            "img.example.com",
            "--size",
            "1G",
            "--format",
            "qcow2",
            "--output",
        ]);
        killed_with_us(command.arg(&output)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // A file without a name has nothing that others could open, and ends with its run.
    let nothing_but_the_whole = || {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            assert_eq!((entry.path(), mode(&entry.path())), (output.clone(), 0o600));
        }
    };
    for milliseconds in [10, 40, 80, 120] {
        let mut killed = image();
        std::thread::sleep(Duration::from_millis(milliseconds));
        killed.kill().unwrap();
        killed.wait().unwrap();
        node.wait_until_killed();
        nothing_but_the_whole();
        fs::remove_file(&output).ok();
    }

    let mut whole = image();
    while whole.try_wait().unwrap().is_none() {
        nothing_but_the_whole();
    }
    assert!(whole.wait().unwrap().success());
    assert_eq!(mode(&output), 0o600);
}

#[test]
fn a_parameter_of_an_image_comes_from_a_file_or_from_standard_input() {
    let node = Node::new();
    node.config("defaults = \"1\"\nboot = \"no\"\n");
    let file = node.path().join("hash");
    fs::write(&file, format!("{HASH}\n")).unwrap();
    let named = format!("password_hash=@{}", file.display());
    for (index, param) in
        [named.as_str(), "password_hash=@-", &format!("password_hash={HASH}")].into_iter().enumerate()
    {
        let output = node.path().join(format!("{index}.img"));
        let args = ["image", "--name", "img.example.com", "--size", "1G", "--param", param, "--output"];
        let mut command = node.command(&args);
        command.arg(&output).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = killed_with_us(&mut command).spawn().unwrap();
        child.stdin.take().unwrap().write_all(HASH.as_bytes()).ok();
        let answer = child.wait_with_output().unwrap();
        let log = log_of(&answer);
        assert!(answer.status.success() && !log.contains(HASH), "{param}: {log}");
        assert_eq!(log.contains("can see password_hash among the processes"), index == 2, "{log}");
        let root = Mounted::at(&output, root_offset(&output));
        assert!(root.read("etc/shadow").contains(&format!("root:{HASH}:")), "{param}");
    }
    // A value that begins with @ has another in front.
    let refused = |param: &str| {
        let args = ["image", "--name", "img.example.com", "--size", "1G", "--param", param, "--output"];
        let answer = node.command(&args).arg(node.path().join("x.img")).output().unwrap();
        assert_eq!(answer.status.code(), Some(1), "{param}: {}", log_of(&answer));
        log_of(&answer)
    };
    let log = refused("timezone=@@x");
    assert!(log.contains("\"@x\"") && !log.contains("opening"), "{log}");
    let log = refused("timezone=@/absent");
    assert!(log.contains("opening /absent"), "{log}");
}

#[test]
fn a_parameter_that_is_too_long_is_refused_and_not_cut() {
    let node = Node::new();
    node.config("defaults = \"1\"\nboot = \"no\"\n");
    let file = node.path().join("keys");
    let param = format!("ssh_keys=@{}", file.display());
    let image = |content: &[u8]| {
        fs::write(&file, content).unwrap();
        let output = node.path().join("long.img");
        let args = [
            "image",
            "--name",
            "img.example.com",
            "--size",
            "1G",
            "--dry-run",
            "--param",
            &param,
            "--output",
        ];
        log_of(&node.command(&args).arg(&output).output().unwrap())
    };
    let is_cut = |log: &str| log.contains("a parameter has 1 MiB at most");
    assert!(!is_cut(&image(&vec![b'\n'; 1 << 20])));
    let log = image(&vec![b'\n'; (1 << 20) + 1]);
    assert!(is_cut(&log) && log.contains(&file.display().to_string()), "{log}");
    // The end of what is allowed may lie in a character.
    let log = image("\u{e9}".repeat((1 << 19) + 1).as_bytes());
    assert!(is_cut(&log), "{log}");
}

#[test]
fn a_value_that_was_given_a_wrong_name_is_not_repeated() {
    let node = Node::bare();
    for args in [
        &["--param", "pasword_hash=$6$hunter2"][..],
        &["password_hash=$6$hunter2"],
        &["--param", "$6$hunter2"],
    ] {
        let output = node.command(&["image"]).args(args).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(2), "{log}");
        assert!(log.starts_with("error: ") && !log.contains("hunter2"), "{log}");
    }
}
