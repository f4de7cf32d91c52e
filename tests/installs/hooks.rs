//! Hooks as the field has them, and common.sh.

use std::fs;
use std::path::Path;

use crate::common::{GIB, Mounted, Node, log_of, root_offset, tool};

const DISK_BYTES: u64 = GIB;

fn root_of(disk: &Path) -> Mounted {
    Mounted::at(disk, root_offset(disk))
}

#[test]
fn hooks_see_everything_that_is_documented() {
    let node = Node::new();
    node.config(
        "extra_pkgs = []\nproxy = \"http://proxy.example.org:3128\"\ncustomize_dir = \"CONFIG_DIR/hooks\"\n",
    );
    node.hook(
        "env",
        "#!/bin/sh\nenv -0 > $TARGET/root/env; pwd > $TARGET/root/cwd; id -u > $TARGET/root/uid\n\
         test -b $BLOCKDEV && test -b $FSYSDEV && test -d $TARGET/etc && touch $TARGET/root/devices\n\
         ls $BLOCKDEV* > $TARGET/root/nodes; grep Cap /proc/self/status > $TARGET/root/caps\n",
    );
    let disk = node.disk("d", DISK_BYTES);
    // A proxy that answers nobody must not be asked: the tree comes from the cache.
    let mut env = node.recorded("create-full", &disk);
    for n in 1..3 {
        let other = node.disk(&n.to_string(), 1 << 20);
        env.insert(format!("DISK_{n}_PATH"), other.display().to_string());
    }
    node.create(&env);
    let root = root_of(&disk);
    let bytes = root.read("root/env");
    let seen: std::collections::BTreeMap<&str, &str> =
        bytes.split('\0').filter_map(|pair| pair.split_once('=')).collect();
    for (name, value) in &env {
        assert_eq!(seen.get(name.as_str()), Some(&value.as_str()), "{name} reaches the hooks");
    }
    let expected = [
        ("SUITE", "trixie"),
        ("ARCH", tool("dpkg", &["--print-architecture"]).trim()),
        ("PARTITION_STYLE", "gpt"),
        ("EXTRA_PKGS", ""),
        ("http_proxy", "http://proxy.example.org:3128"),
        ("https_proxy", "http://proxy.example.org:3128"),
    ]
    .map(|(n, v)| (n, v.to_owned()));
    for (name, value) in &expected {
        assert_eq!(seen.get(name), Some(&value.as_str()), "{name}");
    }
    assert!(seen["BLOCKDEV"].starts_with("/dev/loop"), "{}", seen["BLOCKDEV"]);
    assert_eq!(seen["FSYSDEV"], format!("{}p1", seen["BLOCKDEV"]));
    assert_eq!(root.read("root/cwd").trim(), node.path().join("os").display().to_string());
    assert_eq!(root.read("root/uid").trim(), "0");
    assert!(root.path().join("root/devices").exists());
    let nodes = root.read("root/nodes");
    for partition in ["p1", "p14", "p15"] {
        assert!(nodes.contains(&format!("{}{partition}", seen["BLOCKDEV"])), "{nodes}");
    }
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let caps = own.lines().find(|line| line.starts_with("CapBnd")).unwrap();
    assert!(root.read("root/caps").contains(caps), "hooks keep their capabilities");
}

#[test]
fn all_hooks_run_in_order_even_after_one_fails() {
    let node = Node::new();
    node.config("keep_failed = true\n");
    for (name, script) in [
        ("10-first", "echo 10 >> $TARGET/root/order; umask > $TARGET/root/umask; echo the reason; exit 3"),
        ("20-second", "echo 20 >> $TARGET/root/order; seq 100"),
        ("30_third", "echo 30 >> $TARGET/root/order; kill -9 $$"),
        ("not.a.hook", "echo bad >> $TARGET/root/order"),
    ] {
        node.hook(name, &format!("#!/bin/sh\n{script}\n"));
    }
    fs::create_dir(node.etc().join("hooks/confdata")).unwrap();
    let disk = node.disk("d", DISK_BYTES);
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let last: Vec<&str> = log.lines().rev().take(8).collect();
    assert!(last.iter().any(|l| l.contains("10-first ended with exit status 3")), "{log}");
    assert!(last.iter().any(|l| l.contains("30_third was ended by signal 9")), "{log}");
    assert!(
        last.iter().any(|l| l.ends_with("| the reason")),
        "although another hook said much after it: {log}"
    );
    assert!(last[0].starts_with("hint: "), "{log}");
    assert_eq!(root_of(&disk).read("root/umask"), "0022\n", "run-parts set it so, whatever Ganeti gave");
    assert_eq!(root_of(&disk).read("root/order"), "10\n20\n30\n");

    node.config("keep_failed = true\nhooks_fail_fast = true\n");
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(root_of(&disk).read("root/order"), "10\n");
    node.assert_nothing_left();
}

#[test]
fn a_daemon_that_a_hook_starts_cannot_hold_the_disk() {
    let node = Node::new();
    node.hook(
        "10-daemon",
        "#!/bin/sh\ncd $TARGET\n(exec >$TARGET/root/daemon.log 2>&1; setsid sleep 600 <$TARGET/etc/hostname) &\n\
         mount --bind $TARGET/etc $TARGET/mnt\nkill -9 $PPID\nsleep 0.2\nexit 0\n",
    );
    node.hook("20-after", "#!/bin/sh\ntest -e $TARGET/mnt/hostname && touch $TARGET/root/saw-the-mount\n");
    let disk = node.disk("d", DISK_BYTES);
    let start = std::time::Instant::now();
    node.create_on(&disk);
    assert!(start.elapsed().as_secs() < 300, "it does not wait for the daemon");
    node.assert_nothing_left();
    let root = root_of(&disk);
    assert!(root.path().join("root/saw-the-mount").exists(), "one hook's mounts are the next one's too");
    assert!(!root.path().join("mnt/hostname").exists());
}

#[test]
fn without_the_namespace_a_process_lives_on() {
    let node = Node::new();
    node.config("hooks_namespace = false\n");
    let pid_file = node.path().join("pid");
    node.hook(
        "daemon",
        &format!("#!/bin/sh\nsetsid sleep 600 >/dev/null 2>&1 &\necho $! > {}\n", pid_file.display()),
    );
    let disk = node.disk("d", DISK_BYTES);
    node.create_on(&disk);
    let pid: i32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is alive");
    let _ = nix::sys::wait::waitpid(pid, None);
    node.assert_nothing_left();

    // Where it holds the disk the create fails, and what it does later cannot bring the filesystem back.
    node.hook(
        "daemon",
        &format!(
            "#!/bin/sh\ncd $TARGET/root\nsetsid sleep 600 >/dev/null 2>&1 &\necho $! > {}\n",
            node.path().join("pid").display()
        ),
    );
    for style in ["gpt", "none"] {
        let mut env = node.recorded("create", &disk);
        env.insert("OSP_PARTITION_STYLE".into(), style.into());
        let output = node.verb("create", &env).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("hint: ") && log.contains("unmounting"), "{log}");
        let pid: i32 = fs::read_to_string(node.path().join("pid")).unwrap().trim().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let _ = nix::sys::wait::waitpid(pid, None);
        std::thread::sleep(std::time::Duration::from_millis(500));
        for offset in ["0", "134217728"] {
            let probe =
                std::process::Command::new("blkid").args(["-p", "-O", offset]).arg(&disk).output().unwrap();
            assert_eq!(probe.status.code(), Some(2), "{style} {offset}: {}", log_of(&probe));
        }
        node.assert_nothing_left();
    }
}

#[test]
fn common_sh_gives_the_functions_and_the_settings() {
    let node = Node::new();
    fs::write(node.legacy_defaults(), "PARTITION_ALIGNMENT=2048\nexport FROM_DEFAULTS='a b'\nCUSTOM='plain value'\nmyfn() { echo \"fn $1\"; }\n").unwrap();
    node.hook(
        "common",
        r#"#!/bin/bash
set -e
. common.sh
set > /dev/null
{
  echo "instance=$instance"; echo "blockdev=$blockdev"; echo "dev=$(map_disk0 "$blockdev")"
  echo "suite=$SUITE"; echo "alignment=$PARTITION_ALIGNMENT"; echo "style=$PARTITION_STYLE"
  echo "cache=$GENERATE_CACHE/$CLEAN_CACHE/$CACHE_DIR"; echo "exported=$FROM_DEFAULTS"
  echo "custom=$CUSTOM/$(myfn x)"
  type -t log_error cleanup map_disk0 unmap_disk0 format_disk0
} > "$TARGET/root/common"
log_error "a message"
CLEANUP+=("touch $TARGET/root/cleaned-1")
CLEANUP+=("touch $TARGET/root/cleaned-2")
"#,
    );
    let disk = node.disk("d", DISK_BYTES);
    let log = node.create_on(&disk);
    assert!(log.contains("| a message"), "{log}");
    let root = root_of(&disk);
    let said = root.read("root/common");
    let cache = format!("cache=yes/14/{}", node.cache().display());
    for line in [
        "instance=lg1.example.com",
        "suite=trixie",
        "alignment=2048",
        "style=msdos",
        &cache,
        "exported=a b",
        "custom=plain value/fn x",
    ] {
        assert!(said.lines().any(|l| l == line), "{line} is not in\n{said}");
    }
    assert_eq!(said.matches("function").count(), 5, "{said}");
    let value = |name: &str| said.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    assert_eq!(value("blockdev="), disk.display().to_string());
    assert!(value("dev=").starts_with("/dev/loop") && value("dev=").ends_with("p1"), "{said}");
    for file in ["cleaned-1", "cleaned-2"] {
        assert!(root.path().join("root").join(file).exists(), "{file}");
    }
}

#[test]
fn a_hook_has_the_nodes_resolver_and_the_guest_has_it_not() {
    let node = Node::new();
    node.hook("10-look", "#!/bin/sh\ncp $TARGET/etc/resolv.conf $TARGET/root/seen\n");
    let disk = node.disk("d", DISK_BYTES);
    node.create_on(&disk);
    let root = root_of(&disk);
    let nodes = fs::read_to_string("/etc/resolv.conf").unwrap();
    assert_eq!(root.read("root/seen"), nodes);
    assert_eq!(root.read("etc/resolv.conf"), "search example.com\n");
    drop(root);

    node.hook("20-write", "#!/bin/sh\necho 'nameserver 192.0.2.7' > $TARGET/etc/resolv.conf\n");
    node.create_on(&disk);
    assert_eq!(root_of(&disk).read("etc/resolv.conf"), "nameserver 192.0.2.7\n", "a hook's own file stays");
}

#[test]
fn boot_code_that_a_hook_writes_stays_and_a_truncated_disk_is_noticed() {
    let node = Node::new();
    node.config("partition_style = \"msdos\"\n");
    node.hook("mbr", "#!/bin/sh\nprintf BOOTCODE | dd of=$DISK_0_PATH conv=notrunc status=none\n");
    let disk = node.disk("d", DISK_BYTES);
    node.create_on(&disk);
    use std::io::Read;
    let mut first = [0u8; 8];
    fs::File::open(&disk).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"BOOTCODE");
    assert_eq!(root_of(&disk).read("etc/hostname"), "lg1.example.com\n", "and the table is whole");

    node.hook("mbr", "#!/bin/sh\nprintf BOOTCODE > $DISK_0_PATH\n");
    let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("a hook changed the size of"), "{log}");
    node.assert_nothing_left();
}

#[test]
fn the_motd_hook_names_the_instance() {
    let node = Node::new();
    let script = fs::read_to_string(crate::common::project().join("hooks/motd")).unwrap();
    node.hook("90-motd", &script);
    let disk = node.disk("d", DISK_BYTES);
    node.create_on(&disk);
    let motd = root_of(&disk).read("etc/motd");
    assert!(motd.contains("lg1.example.com: trixie "), "{motd}");
}

#[test]
fn a_hook_that_ruins_the_disk_is_noticed() {
    let node = Node::new();
    for (script, expected) in [
        ("dd if=/dev/zero of=$BLOCKDEV bs=1M count=1 status=none", "the partition table is gone"),
        (
            "dd if=/dev/zero of=$DISK_0_PATH bs=1M count=1 conv=notrunc status=none",
            "the partition table is gone",
        ),
        (
            "cp --sparse=always $DISK_0_PATH $DISK_0_PATH.new; mv $DISK_0_PATH.new $DISK_0_PATH",
            "a hook replaced it",
        ),
        ("exit 125", "ruin ended with exit status 125"),
        ("exit 200", "ruin ended with exit status 200"),
    ] {
        node.hook("ruin", &format!("#!/bin/sh\n{script}\n"));
        let disk = node.disk("d", DISK_BYTES);
        let output = node.verb("create", &node.recorded("create", &disk)).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{script}: {log}");
        assert!(log.contains(expected), "{script}: {log}");
        node.assert_nothing_left();
    }
}

#[test]
fn a_signal_is_heard_while_a_hook_prints_without_end() {
    let node = Node::new();
    node.hook("yes", "#!/bin/sh\nexec yes\n");
    let disk = node.disk("d", DISK_BYTES);
    let mut command = node.verb("create", &node.recorded("create", &disk));
    let log = fs::File::create(node.path().join("log")).unwrap();
    let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    while !fs::read(node.path().join("log")).unwrap().ends_with(b"| y\n") {
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(child.try_wait().unwrap().is_none());
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed().as_secs() < 60, "it goes on after SIGTERM");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    node.assert_nothing_left();
}

#[test]
fn who_looks_at_a_partition_for_a_moment_is_waited_for() {
    let node = Node::new();
    // It holds the last partition open a second longer than the hooks run.
    node.config("hooks_namespace = false\n");
    node.hook(
        "look",
        "#!/bin/sh\n(sleep 1 < ${BLOCKDEV}p14) >/dev/null 2>&1 &\npartx -d --nr 15 $BLOCKDEV\nexit 0\n",
    );
    node.create_on(&node.disk("d", DISK_BYTES));
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let _ = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    node.assert_nothing_left();
}
