//! What the runner of the tests promises: a test that leaves something behind fails, by its name, beside others.

use std::process::Command;

use crate::common::{log_of, scratch};

/// Tests that fail on purpose, and one that does not.
mod on_purpose {
    use std::fs::File;
    use std::process::Command;

    use crate::common::{scratch, tool};

    #[test]
    #[ignore = "run by the test below"]
    fn leaves_nothing() {
        std::fs::write(scratch().join("file"), "").unwrap();
        std::fs::remove_file(scratch().join("file")).unwrap();
    }

    #[test]
    #[ignore = "run by the test below"]
    fn leaves_a_process() {
        #[allow(clippy::zombie_processes, reason = "that is what is to be noticed")]
        Command::new("sleep").arg("1000").spawn().unwrap();
    }

    #[test]
    #[ignore = "run by the test below"]
    fn leaves_a_mount() {
        tool("mount", &["-t", "tmpfs", "left", "/mnt"]);
    }

    #[test]
    #[ignore = "run by the test below"]
    fn leaves_a_loop_device() {
        let file = scratch().join("file");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        tool("losetup", &["-f", file.to_str().unwrap()]);
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    #[ignore = "run by the test below"]
    fn leaves_a_file() {
        std::fs::write(scratch().join("file"), "").unwrap();
    }

    #[test]
    #[ignore = "run by the test below"]
    fn fails() {
        panic!("on purpose");
    }
}

#[test]
fn a_test_that_leaves_something_behind_fails_by_its_name_beside_others() {
    let runner = std::env::var_os("TEST_RUNNER").expect("run by `make test`");
    let output = Command::new(runner).arg("faults::runner::on_purpose::").output().unwrap();
    let log = log_of(&output);
    // Where it keeps what those tests said.
    std::fs::remove_dir_all(scratch().join("logs")).unwrap();
    assert!(!output.status.success(), "{log}");
    for (name, word) in [
        ("leaves_a_process", "left behind: process "),
        ("leaves_a_mount", "left behind: mount "),
        ("leaves_a_loop_device", "left behind: loop device "),
        ("leaves_a_file", "left behind: file "),
        ("fails", "on purpose"),
    ] {
        let name = format!("faults::runner::on_purpose::{name}");
        assert!(log.contains(&format!("FAILED: {name}\n")), "{name}\n{log}");
        let said = log.split(&format!("==== {name}\n")).nth(1).unwrap_or_else(|| panic!("{name}\n{log}"));
        assert!(said.split("====").next().unwrap().contains(word), "{name}\n{log}");
    }
    assert!(!log.contains("FAILED: faults::runner::on_purpose::leaves_nothing"), "{log}");
    assert!(log.contains(" passed, 5 failed"), "{log}");
}
