//! Tests that fail on purpose, or that wait for what the tests of the runner do to them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{scratch, tool};

/// A loop device over a new file, which is removed.
fn attach(file: &Path) -> String {
    File::create(file).unwrap().set_len(1 << 20).unwrap();
    let device = tool("losetup", &["--show", "-f", file.to_str().unwrap()]);
    fs::remove_file(file).unwrap();
    device.trim().to_owned()
}

/// The directory of the test that runs this one.
fn outside() -> PathBuf {
    scratch().parent().unwrap().to_owned()
}

fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

mod leaves {
    use super::*;

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn nothing() {
        for dir in [scratch(), "/tmp".into(), "/var/tmp".into()] {
            fs::write(dir.join("file"), "").unwrap();
            fs::remove_file(dir.join("file")).unwrap();
        }
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_process() {
        #[allow(clippy::zombie_processes, reason = "that is what is to be noticed")]
        Command::new("sleep").arg("1000").spawn().unwrap();
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_mount() {
        tool("mount", &["-t", "tmpfs", "left", "/mnt"]);
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_loop_device() {
        attach(&scratch().join("file"));
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_loop_device_over_a_file_of_tmp() {
        attach(Path::new("/tmp/file"));
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_loop_device_over_another_one() {
        tool("losetup", &["-f", &attach(&scratch().join("file"))]);
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_loop_device_over_a_file_of_a_mount() {
        tool("mount", &["-t", "tmpfs", "left", "/mnt"]);
        attach(Path::new("/mnt/file"));
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_loop_device_whose_file_has_another_name() {
        let file = scratch().join("file");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let script = "mount --bind $0 /mnt && losetup -f /mnt/file";
        tool("unshare", &["--mount", "sh", "-c", script, scratch().to_str().unwrap()]);
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_file() {
        fs::write(scratch().join("file"), "").unwrap();
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_file_in_tmp() {
        fs::write("/tmp/file", "").unwrap();
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_file_in_var_tmp() {
        fs::write("/var/tmp/file", "").unwrap();
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn a_network_namespace() {
        fs::write("/run/netns/left", "").unwrap();
        tool("unshare", &["--net=/run/netns/left", "true"]);
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn no_proc() {
        tool("umount", &["/proc"]);
    }

    #[test]
    #[ignore = "run by the tests of the runner"]
    fn no_var_tmp() {
        tool("umount", &["--lazy", "/var/tmp"]);
    }
}

#[test]
#[ignore = "run by the tests of the runner"]
fn fails() {
    fs::write(scratch().join("file"), "").unwrap();
    panic!("on purpose");
}

#[test]
#[ignore = "run by the tests of the runner"]
fn ends_without_a_verdict() {
    std::process::exit(0);
}

#[test]
#[ignore = "run by the tests of the runner"]
fn loses_its_log() {
    fs::remove_dir_all(outside().join("logs")).unwrap();
    panic!("on purpose");
}

#[test]
#[ignore = "run by the tests of the runner"]
fn hangs() {
    attach(&scratch().join("file"));
    tool("sleep", &["1000"]);
}

/// A mount outside goes, and another one comes.
#[test]
#[ignore = "run by the tests of the runner"]
fn sees_the_mounts_outside() {
    fs::write(outside().join("ready"), "").unwrap();
    wait_until(|| !outside().join("goes/there").exists() && outside().join("comes/there").exists());
    fs::remove_file(outside().join("ready")).unwrap();
}

mod alone {
    #[test]
    #[ignore = "run by the tests of the runner"]
    fn passes() {}
}
