//! The OS definition on a real Ganeti cluster: what an administrator types, and what he sees.
//!
//! `tests/machines/ganeti/cluster` starts a cluster of one node in namespaces of its own; the installed files go to the places
//! on the node where the package would put them (the OS directory into Ganeti's other search directory, so that a
//! package installed on this machine is not in the way). The node has no network: its cache is filled beforehand.
//!
//! Needs root, and a Debian machine: Ganeti is installed when missing. In the environment, for development:
//!
//! - `GANETI_DEBOOTSTRAP_TEST_CACHE`: a directory of cache files to use; without it the test bootstraps a tree first;
//! - `GANETI_DEBOOTSTRAP_TEST_INST`: an installed tree (as by `make install DESTDIR=`); without it the test makes one;
//! - `GANETI_DEBOOTSTRAP_TEST_SUITE`: the suite to install, bookworm if unset;
//! - `GANETI_DEBOOTSTRAP_TEST_KEEP`: leave the cluster running, to look at.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test drives programs from outside; the fences are the program's"
)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use walkdir::WalkDir;

const PROGRAM: &str = "usr/sbin/ganeti-instance-debootstrap";
const SETTINGS: &str = "etc/ganeti/instance-debootstrap";
const CACHE: &str = "var/cache/ganeti-instance-debootstrap";
const FILE_STORAGE: &str = "srv/ganeti/file-storage";
const VOLUMES: &str = "srv/ganeti/volumes";

/// How much of a script's log Ganeti shows: `INSTANCE_CREATE_LOG_LINES` in its `constants.py`.
const LINES_SHOWN: usize = 20;

type Step = fn(&Node) -> Result<()>;

/// The steps, in order; each is told with its name when it fails, and the next one runs all the same.
const STORY: &[(&str, Step)] = &[
    ("gnt-os diagnose is clean and lists variants and parameters", diagnose_is_clean),
    ("gnt-os info lists variants and parameters", info_lists_variants_and_parameters),
    ("add -t file installs a GPT disk with an ext4 root", add_installs_a_file_disk),
    ("the OS log shows steps with times, in ASCII", the_log_shows_steps_with_times),
    ("reinstall makes the disk anew", reinstall_makes_the_disk_anew),
    ("rename gives the guest the new name, there and back", rename_goes_there_and_back),
    ("a guest with another hostname is named, and stays as it is", a_guest_with_its_own_name_is_left_alone),
    ("a backup of the predecessor's kind comes back under another name", an_old_backup_is_imported),
    ("a failed import leaves a disk that nobody takes for a guest", a_damaged_backup_leaves_nothing),
    (
        "a running instance on files is exported only while it may be down",
        a_running_instance_is_shut_down_meanwhile,
    ),
    ("two disks are exported and come back under another name", two_disks_go_there_and_back),
    ("reinstall after an import makes disk 0 anew, and disk 1 stays", reinstall_after_an_import),
    ("export --remove leaves the backup alone, from which the instance comes back", removed_and_brought_back),
    ("add -t ext installs a block device", add_installs_a_block_device),
    ("a running instance is exported by a snapshot of its block device", a_snapshot_is_exported),
    ("a bad value is refused before anything is created", a_bad_value_is_refused),
    ("an unknown parameter is refused", an_unknown_parameter_is_refused),
    ("a failing hook fails add and is named to the admin", a_failing_hook_is_named),
    ("a KVM instance starts from its disk to a login on its serial console", a_kvm_instance_starts),
    ("after gnt-instance remove nothing is left", removed_instances_leave_nothing),
];

#[test]
#[ignore = "run by make test-full"]
fn a_real_cluster_installs_reinstalls_refuses_and_is_left_as_it_was() -> Result<()> {
    let node = Node::start()?;
    let mut failed = Vec::new();
    for (name, step) in STORY {
        let start = Instant::now();
        let result = step(&node);
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{seconds:6.1}s  {}  {name}", if result.is_ok() { "ok    " } else { "FAILED" });
        if let Err(error) = result {
            failed.push(format!("--- {name}\n{error:#}"));
        }
    }
    if let Err(error) = node.stop() {
        failed.push(format!("--- the cluster is gone without a trace\n{error:#}"));
    }
    assert!(failed.is_empty(), "{} steps failed:\n\n{}\n", failed.len(), failed.join("\n\n"));
    Ok(())
}

// ----------------------------------------------------------------- the story

fn diagnose_is_clean(node: &Node) -> Result<()> {
    let answer = node.succeeds("gnt-os diagnose")?;
    answer.has("OS: debootstrap [global status: valid]")?;
    answer.has("status: valid (path: /srv/ganeti/os/debootstrap)")?;
    answer.has("[API versions: 20, 15, 10, 5]")?;
    answer.has("[trusted]")?;
    let variants = answer.list_after("[variants: ")?;
    let parameters = answer.list_after("[parameters: ")?;
    same_names("variants", &variants, &node.names_in(&format!("{SETTINGS}/variants.list"))?)?;
    same_names("parameters", &parameters, &node.names_in("srv/ganeti/os/debootstrap/parameters.list")?)?;
    ensure!(variants.contains("default"), "no variant called default\n{answer}");
    for name in ["filesystem", "partition_style", "suite"] {
        ensure!(parameters.contains(name), "no parameter called {name}\n{answer}");
    }
    node.succeeds("gnt-os list --no-headers")?.has("debootstrap+default")
}

fn info_lists_variants_and_parameters(node: &Node) -> Result<()> {
    let answer = node.succeeds("gnt-os info debootstrap")?;
    answer.has("  - valid: True\n")?;
    answer.has("  - trusted: True\n")?;
    for variant in node.names_in(&format!("{SETTINGS}/variants.list"))? {
        answer.has(&format!("    - {variant}\n"))?;
    }
    for line in node.read("srv/ganeti/os/debootstrap/parameters.list")?.lines() {
        let (name, help) =
            line.split_once(char::is_whitespace).context("a parameter without a description")?;
        answer.has(&format!("    - {name}: {}\n", help.trim()))?;
    }
    Ok(())
}

fn add_installs_a_file_disk(node: &Node) -> Result<()> {
    node.succeeds(&add("inst1", "-t file -s 2G"))?;
    let root = Root::on(&node.disk_of(FILE_STORAGE, "inst1")?)?;
    root.is_a_good_filesystem()?;
    root.belongs_to("inst1.example.com")
}

fn the_log_shows_steps_with_times(node: &Node) -> Result<()> {
    let logs = node.os_logs("inst1")?;
    let [log] = &logs[..] else { bail!("expected one log, found {logs:#?}") };
    let timed: Vec<&str> = log.lines().filter(|line| names_a_time(line)).collect();
    ensure!(timed.len() >= 3, "{} lines with an elapsed time, expected 3 or more, in\n{log}", timed.len());
    Ok(())
}

fn reinstall_makes_the_disk_anew(node: &Node) -> Result<()> {
    let disk = node.disk_of(FILE_STORAGE, "inst1")?;
    let before = Root::on(&disk)?;
    before.debugfs(&["-w"], "write /dev/null from-before-the-reinstall")?;
    before.holds("from-before-the-reinstall")?;

    node.succeeds("gnt-instance reinstall -f inst1.example.com")?;

    let after = Root::on(&disk)?;
    after.is_a_good_filesystem()?;
    after.belongs_to("inst1.example.com")?;
    ensure!(after.uuid != before.uuid, "the filesystem still has the UUID {:02x?}", after.uuid);
    ensure!(
        after.holds("from-before-the-reinstall").is_err(),
        "a file from before the reinstall is still there"
    );
    // Ganeti names the log of a reinstallation like that of the first.
    let logs = node.os_logs("inst1")?;
    ensure!(logs.len() == 2, "expected two logs, found {logs:#?}");
    Ok(())
}

fn rename_goes_there_and_back(node: &Node) -> Result<()> {
    let uuid = Root::on(&node.disk_of(FILE_STORAGE, "inst1")?)?.uuid;
    for (old, new) in [("inst1", "inst7"), ("inst7", "inst1")] {
        let answer = node.succeeds(&rename(old, new))?;
        answer.has_not("Could not run OS rename script")?;
        let root = Root::on(&node.disk_of(FILE_STORAGE, new)?)?;
        root.is_a_good_filesystem()?;
        root.belongs_to(&format!("{new}.example.com"))?;
        let hosts = root.debugfs(&[], "cat etc/hosts")?;
        ensure!(hosts.contains(&format!("{new}.example.com {new}\n")) && !hosts.contains(old), "{hosts}");
        ensure!(root.uuid == uuid, "another filesystem");
    }
    Ok(())
}

fn a_guest_with_its_own_name_is_left_alone(node: &Node) -> Result<()> {
    let hostname = tempfile::NamedTempFile::new()?;
    let set = |root: &Root, text: &str| -> Result<()> {
        fs::write(hostname.path(), text)?;
        root.debugfs(&["-w"], "rm etc/hostname")?;
        root.debugfs(&["-w"], &format!("write {} etc/hostname", hostname.path().display())).map(drop)
    };
    set(&Root::on(&node.disk_of(FILE_STORAGE, "inst1")?)?, "mine.example.net\n")?;
    // Ganeti takes a failed rename script for a warning.
    let answer = node.succeeds(&rename("inst1", "inst7"))?;
    answer.has("Could not run OS rename script")?;
    node.succeeds(&rename("inst7", "inst1"))?;
    let root = Root::on(&node.disk_of(FILE_STORAGE, "inst1")?)?;
    root.belongs_to("mine.example.net")?;
    set(&root, "inst1.example.com\n")
}

/// What the predecessor's export does: dump(8) of the root partition.
const OLD_EXPORT: &str = r#"#!/bin/sh
set -e
start=$(sfdisk --dump "$EXPORT_DEVICE" | sed -n 's/^[^ ]*1 : start= *\([0-9]*\),.*/\1/p')
loop=$(losetup --show --find --read-only --offset $((start * 512)) "$EXPORT_DEVICE")
trap 'losetup --detach "$loop"' EXIT
dump -0 -q -f - "$loop"
"#;

fn an_old_backup_is_imported(node: &Node) -> Result<()> {
    let export = node.path("srv/ganeti/os/debootstrap/export");
    let ours = fs::read_link(&export)?;
    fs::remove_file(&export)?;
    fs::write(&export, OLD_EXPORT)?;
    fs::set_permissions(&export, fs::Permissions::from_mode(0o755))?;
    let exported = node.succeeds("gnt-backup export -n node1.example.com --noshutdown inst1.example.com");
    fs::remove_file(&export)?;
    std::os::unix::fs::symlink(ours, &export)?;
    exported?;

    let answer = node.succeeds(&import("inst6"))?;
    answer.has_not("failed")?;
    answer.has_not("Could not run OS rename script")?;
    let root = Root::on(&node.disk_of(FILE_STORAGE, "inst6")?)?;
    root.is_a_good_filesystem()?;
    root.belongs_to("inst6.example.com")?;
    let original = Root::on(&node.disk_of(FILE_STORAGE, "inst1")?)?;
    ensure!(root.uuid != original.uuid, "two guests with the UUID {:02x?}", root.uuid);
    for file in ["etc/os-release", "var/lib/dpkg/status", "etc/shadow"] {
        let cat = |root: &Root| root.debugfs(&[], &format!("cat {file}"));
        ensure!(cat(&root)? == cat(&original)?, "{file} differs");
    }
    Ok(())
}

fn a_damaged_backup_leaves_nothing(node: &Node) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(&node.exported("inst1")?[0])?;
    file.set_len(file.metadata()?.len() / 2)?;
    // A failed import is only a warning to Ganeti: our last lines must come through, and the disk itself must say it.
    let answer = node.succeeds(&import("inst8"))?;
    answer.has("were not imported successfully")?;
    answer.has(
        "the disk is wiped: nothing is installed on it\\nerror: importing disk 0 of inst8.example.com\\n  ",
    )?;
    answer.has("before its end header: it was cut, or it has more volumes\\nhint: the backup is damaged")?;
    answer.has("no guest is on /srv/ganeti/file-storage/inst8.example.com/")?;
    answer.has("\\nhint: where an import came before, it failed; its log says why")?;
    let disk = node.disk_of(FILE_STORAGE, "inst8")?;
    let found = Command::new("blkid").arg("-p").arg(&disk).output()?;
    ensure!(found.status.code() == Some(2), "the disk of the failed import shows {found:?}");
    node.succeeds("gnt-backup remove inst1.example.com").map(drop)
}

const EXPORT: &str = "gnt-backup export -n node1.example.com";

/// What the second disk of an instance holds.
fn noise() -> Vec<u8> {
    (0..64_u32 << 20).map(|n| (n / 3 + n / 4096) as u8).collect()
}

/// Files have no snapshots: Ganeti shuts the instance down first, where it may, and says so where it may not.
fn a_running_instance_is_shut_down_meanwhile(node: &Node) -> Result<()> {
    node.succeeds(&add("inst9", "-t file --disk 0:size=2G --disk 1:size=64M"))?;
    fs::write(&node.two_disks_of("inst9")?[1], noise())?;
    node.succeeds("gnt-instance start inst9.example.com")?;
    let refused = node.fails(&format!("{EXPORT} --noshutdown inst9.example.com"))?;
    refused.has("Not all disks could be snapshotted, and you requested a live export")?;

    // A slow network, or Ganeti has nothing to tell: it looks at a transfer after seconds.
    node.succeeds("tc qdisc add dev lo root tbf rate 200mbit burst 512k latency 200ms")?;
    let exported = node.succeeds(&format!("{EXPORT} --long-sleep inst9.example.com"));
    node.succeeds("tc qdisc del dev lo root")?;
    let exported = exported?;
    exported.has("disk/0 finished sending data")?;
    exported.has("disk/1 finished sending data")?;
    shows_progress(&exported, fs::metadata(&node.exported("inst9")?[0])?.len())?;
    node.succeeds("gnt-instance list --no-headers -o status inst9.example.com")?.has("running")?;
    node.succeeds("gnt-instance shutdown --timeout=0 inst9.example.com").map(drop)
}

/// `disk/0 sent 80M, 11.6 MiB/s, 36%, ETA 12s`: of the size that we told.
fn shows_progress(answer: &Answer, stream_bytes: u64) -> Result<()> {
    let progress = answer.text.lines().find_map(|line| line.split_once("disk/0 sent ")).map(|(_, rest)| rest);
    let progress = progress.with_context(|| format!("no progress of disk 0 in\n{answer}"))?;
    let [sent, _, percent, eta] = progress.split(", ").collect::<Vec<_>>()[..] else {
        bail!("expected size, speed, percent and ETA, found {progress:?}")
    };
    let (sent_mib, percent): (f64, f64) =
        (sent.trim_end_matches('M').parse()?, percent.trim_end_matches('%').parse()?);
    let expected = 100.0 * sent_mib / (stream_bytes as f64 / f64::from(1 << 20));
    ensure!((percent - expected).abs() < 2.0, "{progress}: expected {expected:.1}% of {stream_bytes} bytes");
    ensure!(eta.starts_with("ETA "), "{progress}");
    Ok(())
}

fn two_disks_go_there_and_back(node: &Node) -> Result<()> {
    let imported = node.succeeds(&import_of("inst9", "inst7"))?;
    imported.has_not("failed")?;
    imported.has_not("Could not run OS rename script")?;
    let restored = node.two_disks_of("inst7")?;
    ensure!(fs::read(&restored[1])? == noise(), "the second disk came back different");
    let root = Root::on(&restored[0])?;
    root.is_a_good_filesystem()?;
    root.belongs_to("inst7.example.com")?;
    node.succeeds("gnt-backup remove inst9.example.com").map(drop)
}

fn reinstall_after_an_import(node: &Node) -> Result<()> {
    let disks = node.two_disks_of("inst7")?;
    let before = Root::on(&disks[0])?;
    node.succeeds("gnt-instance reinstall -f inst7.example.com")?;
    let after = Root::on(&disks[0])?;
    after.is_a_good_filesystem()?;
    after.belongs_to("inst7.example.com")?;
    ensure!(after.uuid != before.uuid, "the filesystem still has the UUID {:02x?}", after.uuid);
    ensure!(fs::read(&disks[1])? == noise(), "the second disk was touched");
    Ok(())
}

fn removed_and_brought_back(node: &Node) -> Result<()> {
    let uuid = Root::on(&node.two_disks_of("inst7")?[0])?.uuid;
    node.succeeds(&format!("{EXPORT} --remove inst7.example.com"))?;
    node.knows_nothing_of("inst7")?;
    node.succeeds(&import_of("inst7", "inst7"))?.has_not("failed")?;
    let disks = node.two_disks_of("inst7")?;
    let root = Root::on(&disks[0])?;
    root.is_a_good_filesystem()?;
    root.belongs_to("inst7.example.com")?;
    ensure!(root.uuid == uuid, "another filesystem");
    ensure!(fs::read(&disks[1])? == noise(), "the second disk came back different");
    node.succeeds("gnt-backup remove inst7.example.com").map(drop)
}

fn rename(old: &str, new: &str) -> String {
    format!("gnt-instance rename --no-ip-check {old}.example.com {new}.example.com")
}

fn import(name: &str) -> String {
    import_of("inst1", name)
}

fn import_of(exported: &str, name: &str) -> String {
    format!(
        "gnt-backup import -n node1.example.com -t file --no-ip-check --net 0:mac=generate \
         --src-node=node1.example.com --src-dir={exported}.example.com {name}.example.com"
    )
}

fn add_installs_a_block_device(node: &Node) -> Result<()> {
    node.succeeds(&add("inst2", "-t ext --disk 0:size=2G,provider=loop"))?;
    let root = Root::on(&node.disk_of(VOLUMES, "")?)?;
    root.is_a_good_filesystem()?;
    root.belongs_to("inst2.example.com")
}

fn a_snapshot_is_exported(node: &Node) -> Result<()> {
    let original = Root::on(&node.disk_of(VOLUMES, "")?)?;
    node.succeeds("gnt-instance start inst2.example.com")?;
    let exported = node.succeeds(&format!("{EXPORT} --noshutdown inst2.example.com"))?;
    exported.has("snapshot/0 finished sending data")?;
    node.succeeds("gnt-instance list --no-headers -o status inst2.example.com")?.has("running")?;
    node.succeeds("gnt-instance shutdown --timeout=0 inst2.example.com")?;
    node.succeeds(&import_of("inst2", "inst3"))?.has_not("failed")?;
    let root = Root::on(&node.disk_of(FILE_STORAGE, "inst3")?)?;
    root.is_a_good_filesystem()?;
    root.belongs_to("inst3.example.com")?;
    ensure!(root.uuid == original.uuid, "another filesystem");
    node.succeeds("gnt-instance remove -f inst3.example.com")?;
    node.succeeds("gnt-backup remove inst2.example.com").map(drop)
}

fn a_bad_value_is_refused(node: &Node) -> Result<()> {
    let answer = node.fails(&add("inst3", "-t file -s 2G -O partition_style=gtp"))?;
    for expected in ["partition_style", "gtp", "gpt", "msdos", "none"] {
        answer.has(expected)?;
    }
    node.knows_nothing_of("inst3")
}

fn an_unknown_parameter_is_refused(node: &Node) -> Result<()> {
    let answer = node.fails(&add("inst3", "-t file -s 2G -O partition_stile=gpt"))?;
    answer.has("parameters are not supported by the OS debootstrap: partition_stile")?;
    node.knows_nothing_of("inst3")
}

fn a_failing_hook_is_named(node: &Node) -> Result<()> {
    let hook = node.path(&format!("{SETTINGS}/hooks/50-say-no"));
    fs::create_dir_all(hook.parent().context("the hook's directory")?)?;
    fs::write(&hook, "#!/bin/sh\necho 'this guest is not wanted here' >&2\nexit 3\n")?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let answer = node.fails(&add("inst4", "-t file -s 2G"));
    fs::remove_file(&hook)?;

    let answer = answer?;
    answer.has("OS create script failed")?;
    let shown = Answer { text: answer.last_lines(LINES_SHOWN), ..answer };
    shown.has("this guest is not wanted here")?;
    ensure!(
        shown.text.lines().any(|line| line.contains("50-say-no") && names_exit_status_3(line)),
        "no line names the hook and its exit status\n{shown}"
    );
    node.os_logs("inst4")?;

    // What failed must not be mistaken for a guest. blkid exits 2 when it finds nothing at all.
    let disk = node.disk_of(FILE_STORAGE, "inst4")?;
    let found = Command::new("blkid").arg("-p").arg(&disk).output()?;
    ensure!(found.status.code() == Some(2), "the disk of the failed instance shows {found:?}");
    Ok(())
}

/// Its own loader, kernel and console: Ganeti names no kernel.
fn a_kvm_instance_starts(node: &Node) -> Result<()> {
    node.succeeds(&add("inst5", "-H kvm -t file -s 3G -B minmem=512,maxmem=512,vcpus=1"))?;
    node.succeeds("gnt-instance start inst5.example.com")?;
    let mut console = Console::of(node, "inst5")?;
    console.wait_for(" login: ")?;
    console.send("root")?;
    console.wait_for("# ")?;
    console.send("systemctl is-system-running --wait; hostname; echo rc''=$?")?;
    let said = console.wait_for("rc=0")?;
    // The kernel may put a line of its own between the two.
    let line = |end: &str| said.lines().any(|line| line.ends_with(end));
    ensure!(line("running") && line("inst5.example.com"), "it said {said:?}");
    node.succeeds("gnt-instance shutdown --timeout=0 inst5.example.com").map(drop)
}

/// The serial console of a KVM instance, as `gnt-instance console` shows it.
struct Console {
    line: UnixStream,
    heard: String,
}

impl Console {
    fn of(node: &Node, name: &str) -> Result<Console> {
        // By the node's root: the path from here is longer than a socket's address may be.
        let ctrl = format!("/proc/{}/root/run/ganeti/kvm-hypervisor/ctrl", node.pid()?);
        let line = UnixStream::connect(format!("{ctrl}/{name}.example.com.serial"))
            .context("opening the console")?;
        line.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Console { line, heard: String::new() })
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.line.write_all(format!("{text}\n").as_bytes())?)
    }

    /// Reads up to `text`; what came before it.
    fn wait_for(&mut self, text: &str) -> Result<String> {
        let start = Instant::now();
        let mut bytes = [0; 4096];
        loop {
            if let Some(at) = self.heard.find(text) {
                let rest = self.heard.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.heard, rest));
            }
            ensure!(
                start.elapsed() < Duration::from_secs(300),
                "{text:?} does not come; the console said {:?}",
                self.heard
            );
            match self.line.read(&mut bytes) {
                Ok(0) => bail!("the console closed; it said {:?}", self.heard),
                Ok(count) => self.heard += &String::from_utf8_lossy(&bytes[..count]).replace('\r', ""),
                // A prompt that was written before we listened comes again.
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.send("")?,
                Err(error) => return Err(error).context("reading the console"),
            }
        }
    }
}

fn removed_instances_leave_nothing(node: &Node) -> Result<()> {
    node.remember_disks()?;
    for name in ["inst1", "inst2", "inst4", "inst5", "inst6", "inst7", "inst8", "inst9"] {
        node.succeeds(&format!("gnt-instance remove -f {name}.example.com"))?;
        node.knows_nothing_of(name)?;
    }
    node.is_at_rest()
}

fn add(name: &str, options: &str) -> String {
    format!(
        "gnt-instance add -n node1.example.com -o debootstrap+default --no-start --no-ip-check {options} {name}.example.com"
    )
}

// ------------------------------------------------------------------ the node

/// Where the cluster lies: what a run leaves there that is killed, the next one removes.
fn base() -> PathBuf {
    crate::common::scratch().join("ganeti")
}

/// A running cluster of one node; stopped when dropped.
struct Node {
    state: PathBuf,
    /// Mounts, processes and temporary files before the first instance.
    at_first: RefCell<BTreeSet<String>>,
    /// Device and inode numbers of the disks, since a loop device may outlive the file it is on.
    disks: RefCell<BTreeSet<String>>,
    network: PathBuf,
    _alone: Flock<File>,
}

impl Node {
    fn start() -> Result<Node> {
        let base = base();
        fs::create_dir_all(&base)?;
        let lock = Flock::lock(File::create(base.join("lock"))?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| anyhow!("another run of this test holds {}: {errno}", base.display()))?;
        let state = base.join("cluster");
        run(cluster("down", &state))?;
        let inst = installed_tree(&base.join("inst"))?;

        let start = Instant::now();
        run(cluster("up", &state))?;
        eprintln!("{:6.1}s  ok      the cluster runs in {}", start.elapsed().as_secs_f64(), state.display());
        let mut node = Node {
            state,
            at_first: RefCell::default(),
            disks: RefCell::default(),
            network: PathBuf::new(),
            _alone: lock,
        };
        node.network = fs::read_link(format!("/proc/{}/ns/net", node.pid()?))?;

        let start = Instant::now();
        node.install(&inst)?;
        node.fill_cache()?;
        eprintln!(
            "{:6.1}s  ok      the OS definition and its cache are in place",
            start.elapsed().as_secs_f64()
        );
        *node.at_first.borrow_mut() = node.traces()?;
        Ok(node)
    }

    /// Puts the installed files where the package has them, and the settings where its maintainer script puts them.
    fn install(&self, inst: &Path) -> Result<()> {
        copy(&inst.join(PROGRAM), &self.path("usr/sbin/"))?;
        copy(&inst.join("usr/share/ganeti/os/debootstrap"), &self.path("srv/ganeti/os/"))?;
        let templates = inst.join("usr/share/ganeti-instance-debootstrap");
        fs::create_dir_all(self.path(SETTINGS))?;
        copy(&templates.join("variants.list"), &self.path(SETTINGS))?;
        let config =
            fs::read_to_string(templates.join("config.toml")).context("reading the installed config.toml")?;
        let suite = setting("SUITE").unwrap_or_else(|| "bookworm".into());
        fs::write(self.path(SETTINGS).join("config.toml"), format!("suite = {suite:?}\n{config}"))?;
        Ok(())
    }

    fn fill_cache(&self) -> Result<()> {
        let cache = self.path(CACHE);
        fs::create_dir_all(&cache)?;
        if let Some(ready) = setting("CACHE") {
            return copy(&Path::new(&ready).join("."), &cache);
        }
        // One for KVM, and one without a kernel for the hypervisor that starts none.
        let config = self.path(SETTINGS).join("config.toml");
        let text = fs::read_to_string(&config)?;
        for boot in ["", "boot = \"no\"\n"] {
            fs::write(&config, format!("{boot}{text}"))?;
            let mut build = Command::new(self.path(PROGRAM));
            build
                .args(["cache", "build", "default"])
                .env("GANETI_DEBOOTSTRAP_CONFIG_DIR", self.path(SETTINGS))
                .env(
                    "GANETI_DEBOOTSTRAP_LEGACY_DEFAULTS",
                    self.path("etc/default/ganeti-instance-debootstrap"),
                )
                .env("GANETI_DEBOOTSTRAP_CACHE_DIR", &cache);
            run(build)?;
        }
        Ok(fs::write(&config, text)?)
    }

    /// Where a path of the node lies on this machine.
    fn path(&self, path: &str) -> PathBuf {
        self.state.join("node").join(path)
    }

    fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path(path)).with_context(|| format!("reading the node's /{path}"))
    }

    /// The first word of each line that is no comment.
    fn names_in(&self, path: &str) -> Result<BTreeSet<String>> {
        let text = self.read(path)?;
        let words = text.lines().filter_map(|line| line.split_whitespace().next());
        Ok(words.filter(|word| !word.starts_with('#')).map(str::to_owned).collect())
    }

    fn pid(&self) -> Result<String> {
        let pid = fs::read_to_string(self.state.join("node.pid"))?;
        Ok(pid.split_whitespace().next().context("node.pid is empty")?.to_owned())
    }

    /// Runs a command line (split at blanks) on the node; both its outputs in the order they were written.
    fn runs(&self, line: &str) -> Result<Answer> {
        let mut command = cluster("run", &self.state);
        command
            .args(["timeout", "--kill-after=9", "170", "sh", "-c", "exec \"$@\" 2>&1", "-"])
            .args(line.split(' '));
        let output = command.stdin(Stdio::null()).output()?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok(Answer { line: line.to_owned(), status: output.status.code(), text })
    }

    fn succeeds(&self, line: &str) -> Result<Answer> {
        let answer = self.runs(line)?;
        ensure!(answer.status == Some(0), "expected success\n{answer}");
        Ok(answer)
    }

    fn fails(&self, line: &str) -> Result<Answer> {
        let answer = self.runs(line)?;
        ensure!(answer.status == Some(1), "expected a refusal with exit status 1\n{answer}");
        Ok(answer)
    }

    /// The one disk of an instance: a file below `storage` on the node.
    fn disk_of(&self, storage: &str, name: &str) -> Result<PathBuf> {
        let files: Vec<PathBuf> = self
            .files_below(storage)
            .filter(|path| path.components().any(|c| c.as_os_str().to_string_lossy().starts_with(name)))
            .collect();
        let [disk] = &files[..] else {
            bail!("expected one disk of {name} below {storage}, found {files:?}")
        };
        Ok(disk.clone())
    }

    /// Disk 0 and disk 1 of an instance on files.
    fn two_disks_of(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut found: Vec<PathBuf> = self
            .files_below(FILE_STORAGE)
            .filter(|path| path.components().any(|c| c.as_os_str().to_string_lossy().starts_with(name)))
            .collect();
        found.sort_by_key(|path| path.extension().map(ToOwned::to_owned));
        ensure!(found.len() == 2, "expected two disks of {name}, found {found:?}");
        Ok(found)
    }

    /// The streams of an instance's backup, the largest first.
    fn exported(&self, name: &str) -> Result<Vec<PathBuf>> {
        let dir = format!("var/lib/ganeti/export/{name}.example.com");
        let mut streams: Vec<PathBuf> = self
            .files_below(&dir)
            .filter(|path| path.file_name().is_some_and(|file| file != "config.ini"))
            .collect();
        ensure!(!streams.is_empty(), "there is no backup of {name}");
        streams.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |meta| meta.len())));
        Ok(streams)
    }

    fn remember_disks(&self) -> Result<()> {
        for disk in self.files_below(FILE_STORAGE).chain(self.files_below(VOLUMES)) {
            self.disks.borrow_mut().insert(identity(&disk)?);
        }
        Ok(())
    }

    fn files_below(&self, path: &str) -> impl Iterator<Item = PathBuf> + use<> {
        WalkDir::new(self.path(path))
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file())
            .map(walkdir::DirEntry::into_path)
    }

    /// What `create` logged for an instance, installation after installation; all ASCII.
    fn os_logs(&self, name: &str) -> Result<Vec<String>> {
        let mut logs: Vec<PathBuf> = self
            .files_below("var/log/ganeti/os")
            .filter(|path| {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                file.starts_with(&format!("add-debootstrap+default-{name}."))
            })
            .collect();
        logs.sort();
        logs.iter()
            .map(|log| ascii(&fs::read(log)?).with_context(|| format!("in {}", log.display())))
            .collect()
    }

    fn knows_nothing_of(&self, name: &str) -> Result<()> {
        let list = self.succeeds("gnt-instance list --no-headers -o name")?;
        ensure!(!list.text.contains(name), "an instance {name} exists\n{list}");
        let files: Vec<PathBuf> =
            self.files_below(FILE_STORAGE).filter(|path| path.to_string_lossy().contains(name)).collect();
        ensure!(files.is_empty(), "{name} left {files:?}");
        Ok(())
    }

    /// Nothing but the cluster's own daemons, mounts and files is there. Ganeti's job processes need a moment to end.
    fn is_at_rest(&self) -> Result<()> {
        let at_first = self.at_first.borrow();
        for attempt in 0.. {
            let now = self.traces()?;
            let new: Vec<&String> = now.difference(&at_first).collect();
            let gone: Vec<&String> = at_first.difference(&now).filter(|t| t.starts_with("mount")).collect();
            if new.is_empty() && gone.is_empty() {
                break;
            }
            ensure!(attempt < 50, "not there before: {new:#?}\nno longer there: {gone:#?}");
            sleep(Duration::from_millis(200));
        }
        let disks: Vec<PathBuf> = self.files_below(FILE_STORAGE).chain(self.files_below(VOLUMES)).collect();
        ensure!(disks.is_empty(), "left over: {disks:?}");
        self.holds_no_loop_device()
    }

    fn traces(&self) -> Result<BTreeSet<String>> {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.pid()?))?;
        let temporary = WalkDir::new(self.path("tmp")).min_depth(1).into_iter().filter_map(Result::ok);
        // Ganeti starts this daemon of its own when an instance is first installed.
        let processes = self.processes()?.into_iter().filter(|line| line != "/usr/sbin/ganeti-metad");
        Ok(mounts
            .lines()
            .map(|mount| format!("mount {mount}"))
            .chain(processes.map(|line| format!("process {line}")))
            .chain(temporary.map(|entry| format!("file {}", entry.path().display())))
            .collect())
    }

    /// Command lines of all processes on the node's network, so also of those in PID namespaces below the node's.
    fn processes(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
            if fs::read_link(entry.path().join("ns/net")).is_ok_and(|network| network == self.network) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.insert(String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned());
            }
        }
        Ok(found)
    }

    /// No loop device is on a file of the node, nor on a disk it once had.
    fn holds_no_loop_device(&self) -> Result<()> {
        let mut files = self.disks.borrow().clone();
        files.extend(self.files_below("").filter_map(|path| identity(&path).ok()));
        let columns = "BACK-MAJ:MIN,BACK-INO,NAME,BACK-FILE";
        let mut busy = Vec::new();
        for attempt in 0..50 {
            // The kernel lets go of a device a moment after its last user has ended.
            sleep(Duration::from_millis(if attempt == 0 { 0 } else { 200 }));
            let list = run_quietly("losetup", &["-nO", columns])?;
            busy = list
                .lines()
                .filter(|line| {
                    let mut words = line.split_whitespace();
                    matches!((words.next(), words.next()), (Some(d), Some(i)) if files.contains(&format!("{d} {i}")))
                })
                .map(str::to_owned)
                .collect();
            if busy.is_empty() {
                return Ok(());
            }
        }
        bail!("loop devices left: {busy:#?}")
    }

    /// Stops the cluster and makes sure that it is gone.
    fn stop(&self) -> Result<()> {
        if setting("KEEP").is_some() {
            eprintln!("kept running: tests/machines/ganeti/cluster run {} bash", self.state.display());
            return Ok(());
        }
        run(cluster("down", &self.state))?;
        let processes = self.processes()?;
        ensure!(processes.is_empty(), "processes left: {processes:#?}");
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains(&*self.state.to_string_lossy()), "mounts left:\n{mounts}");
        ensure!(!self.state.exists(), "{} is still there", self.state.display());
        self.holds_no_loop_device()?;
        fs::remove_dir_all(base()).context("removing what was made for the cluster")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if setting("KEEP").is_none() {
            if let Err(error) = run(cluster("down", &self.state)) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// `DEVICE INODE` of a file, as losetup prints them.
fn identity(path: &Path) -> Result<String> {
    let data = fs::metadata(path)?;
    Ok(format!("{}:{} {}", nix::sys::stat::major(data.dev()), nix::sys::stat::minor(data.dev()), data.ino()))
}

/// The tree that `make install` makes: given, or made here.
fn installed_tree(destination: &Path) -> Result<PathBuf> {
    if let Some(given) = setting("INST") {
        return Ok(given.into());
    }
    if destination.exists() {
        fs::remove_dir_all(destination)?;
    }
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "install", "prefix=/usr"])
        .arg(format!("DESTDIR={}", destination.display()))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    run(make)?;
    Ok(destination.to_owned())
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("GANETI_DEBOOTSTRAP_TEST_{name}")).ok().filter(|value| !value.is_empty())
}

fn cluster(verb: &str, state: &Path) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines/ganeti/cluster"));
    command.arg(verb).arg(state);
    command
}

/// Runs a command that has to succeed; says all it printed when it does not.
fn run(mut command: Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn run_quietly(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(String::from_utf8(run(command)?.stdout)?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--"]).arg(from).arg(to);
    run(command).map(drop)
}

// --------------------------------------------------------------- the answers

/// What a command on the node said.
struct Answer {
    line: String,
    status: Option<i32>,
    text: String,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\n{}[exit status {:?}]", self.line, self.text, self.status)
    }
}

impl Answer {
    fn has(&self, expected: &str) -> Result<()> {
        ensure!(self.text.contains(expected), "expected {expected:?} in\n{self}");
        Ok(())
    }

    fn has_not(&self, unwanted: &str) -> Result<()> {
        ensure!(!self.text.contains(unwanted), "unexpected {unwanted:?} in\n{self}");
        Ok(())
    }

    /// The names in `[variants: a, b]` or `[parameters: a, b]`.
    fn list_after(&self, opening: &str) -> Result<BTreeSet<String>> {
        let names = self.text.split_once(opening).and_then(|(_, rest)| rest.split_once(']'));
        let (names, _) = names.with_context(|| format!("expected {opening:?} in\n{self}"))?;
        Ok(names.split(", ").map(str::to_owned).collect())
    }

    fn last_lines(&self, count: usize) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n") + "\n"
    }
}

/// Text of graphic characters, blanks and line ends only: Ganeti shows no log with anything else in it.
fn ascii(bytes: &[u8]) -> Result<String> {
    if let Some(at) = bytes.iter().position(|byte| !(byte.is_ascii_graphic() || b" \n\t".contains(byte))) {
        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
        let text = String::from_utf8_lossy(bytes);
        bail!("byte {:#04x} in line {}: {:?}", bytes[at], line + 1, text.lines().nth(line));
    }
    Ok(String::from_utf8(bytes.to_vec())?)
}

fn same_names(what: &str, seen: &BTreeSet<String>, expected: &BTreeSet<String>) -> Result<()> {
    ensure!(seen == expected, "{what} shown: {seen:?}\n{what} shipped: {expected:?}");
    Ok(())
}

/// Whether a line contains a duration: digits, and then `s`, `ms` or `min` as a word.
fn names_a_time(line: &str) -> bool {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).collect::<Vec<_>>().windows(2).any(
        |pair| {
            let unit = |word: &str| ["s", "ms", "min"].contains(&word);
            let number =
                |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.parse::<f64>().is_ok();
            let joined = |word: &str| {
                let end = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
                unit(end) && number(&word[..word.len() - end.len()])
            };
            (number(pair[0]) && unit(pair[1])) || joined(pair[0]) || joined(pair[1])
        },
    )
}

fn names_exit_status_3(line: &str) -> bool {
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.any(|word| word == "exit" || word == "exited") && words.any(|word| word == "3")
}

// ----------------------------------------------------------------- the disks

/// The root filesystem of an installed disk, read without mounting it.
struct Root {
    disk: PathBuf,
    offset: u64,
    uuid: [u8; 16],
}

impl Root {
    /// Finds partition 1 in the GPT of `disk`, and its ext4 superblock.
    fn on(disk: &Path) -> Result<Root> {
        let file = File::open(disk)?;
        let read = |offset, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        };
        // UEFI specification, 5.3: header in sector 1, the entries where it says; type at 0, first sector at 32.
        let header = read(512, 512)?;
        ensure!(header.starts_with(b"EFI PART"), "no GPT on {}", disk.display());
        let entry = read(512 * le64(&header, 72), 128)?;
        ensure!(entry[..16] != [0; 16], "no partition 1 on {}", disk.display());
        let offset = 512 * le64(&entry, 32);
        // The ext4 superblock begins at 1024: magic at 0x38, incompatible features at 0x60, UUID at 0x68.
        let superblock = read(offset + 1024, 1024)?;
        ensure!(superblock[0x38..0x3a] == [0x53, 0xef], "partition 1 at {offset} is not ext4");
        ensure!(superblock[0x60] & 0x40 != 0, "the filesystem has no extents: older than ext4");
        let uuid = superblock[0x68..0x78].try_into()?;
        Ok(Root { disk: disk.to_owned(), offset, uuid })
    }

    /// The name by which the tools of e2fsprogs open a filesystem inside a file.
    fn device(&self) -> String {
        format!("{}?offset={}", self.disk.display(), self.offset)
    }

    fn debugfs(&self, options: &[&str], request: &str) -> Result<String> {
        let output = Command::new("debugfs").args(options).args(["-R", request, &self.device()]).output()?;
        ensure!(output.status.success(), "debugfs {request}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn is_a_good_filesystem(&self) -> Result<()> {
        let mut check = Command::new("e2fsck");
        check.args(["-f", "-n", &self.device()]);
        run(check)?;
        ["bin/sh", "etc/fstab", "etc/apt/sources.list"].iter().try_for_each(|path| self.holds(path))
    }

    fn holds(&self, path: &str) -> Result<()> {
        // debugfs exits 0 whatever happened; what it finds it describes.
        let found = self.debugfs(&[], &format!("stat {path}"))?;
        ensure!(found.contains("Inode:"), "no /{path} on {}", self.disk.display());
        Ok(())
    }

    fn belongs_to(&self, name: &str) -> Result<()> {
        let hostname = self.debugfs(&[], "cat etc/hostname")?;
        ensure!(hostname.trim_end() == name, "/etc/hostname says {hostname:?}, expected {name:?}");
        Ok(())
    }
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
