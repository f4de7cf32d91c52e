//! A node for tests: settings, cache and disks of its own below a temporary directory, a real bootstrapped tree
//! shared by all, and a look at what is left behind.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod backup;
pub mod btrfs_devices;
pub mod bytes;
pub mod guest;
pub mod live;
pub mod running;
pub mod small_guest;
pub mod stepping;
pub mod tiny_mirror;
pub mod trees;
pub mod unharmed;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_ganeti-instance-debootstrap");
pub const SUITE: &str = "trixie";
pub const GIB: u64 = 1 << 30;

/// What was let go, or killed, is gone when the kernel has come to it.
pub const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);

/// What noded gives in PATH.
const NODED_PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin";

/// The project's directory.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the test makes what it needs: the runner gives each one a directory of its own.
pub fn scratch() -> PathBuf {
    std::env::var_os("TEST_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from)
}

/// A cache with a Debian that does not boot, and a template of it for disks of 2 GiB.
pub fn shared_cache() -> PathBuf {
    trees::cache(SUITE, "no", "2G")
}

/// A cache with a Debian that has a kernel and GRUB, and a template of it for disks of 3 GiB.
pub fn bootable_cache(suite: &str) -> PathBuf {
    trees::cache(suite, "auto", "3G")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a tool and wants it to succeed; returns its stdout.
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Where `cargo test` runs several tests in one process, those with a node take turns: each looks at what is left behind.
/// The runner gives each a process.
fn one_test_at_a_time() {
    static TURN: Mutex<()> = Mutex::new(());
    thread_local! {
        static HELD: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
    }
    // Until the thread ends, and with it the test.
    HELD.with_borrow_mut(|held| {
        held.get_or_insert_with(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// A node of one test.
pub struct Node {
    dir: tempfile::TempDir,
    /// Extra variables for every run.
    pub env: BTreeMap<String, String>,
}

impl Node {
    /// With an empty cache.
    pub fn bare() -> Node {
        one_test_at_a_time();
        // What a run leaves behind becomes our child, and is found.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::Builder::new().prefix("node-").tempdir_in(scratch()).unwrap();
        for sub in ["etc/hooks", "etc/variants", "cache", "disks"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        // The OS directory as it is installed: five links and the files beside them.
        let os = dir.path().join("os");
        fs::create_dir(&os).unwrap();
        for verb in ["create", "import", "export", "rename", "verify"] {
            std::os::unix::fs::symlink(PROGRAM, os.join(verb)).unwrap();
        }
        for file in ["ganeti_api_version", "parameters.list", "common.sh"] {
            fs::copy(project().join("os-def").join(file), os.join(file)).unwrap();
        }
        fs::copy(project().join("os-def/variants.list"), dir.path().join("etc/variants.list")).unwrap();
        Node { dir, env: BTreeMap::new() }
    }

    /// With a tree of a handful of files in its cache, in the place of a Debian, and templates of it for disks of 1, 2 and
    /// 3 GiB.
    pub fn new() -> Node {
        Node::bare().with_cache(&trees::small(), |_| true)
    }

    /// With a Debian in its cache, and a template of it for disks of 2 GiB: where its programs run, or where much is to be
    /// copied.
    pub fn debian() -> Node {
        Node::bare().with_cache(&shared_cache(), |_| true)
    }

    /// With a Debian in its cache, and no template of it.
    pub fn debian_without_templates() -> Node {
        Node::bare().with_cache(&shared_cache(), |name| !name.starts_with("template-"))
    }

    /// With a Debian that boots in its cache, and a template of it for disks of 3 GiB; and with one that does not boot.
    pub fn bootable(suite: &str) -> Node {
        Node::debian_without_templates().with_cache(&bootable_cache(suite), |_| true)
    }

    /// Puts a Debian in the place of what is in its cache.
    pub fn get_debian(&self) {
        for entry in fs::read_dir(self.cache()).unwrap().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
        self.take_from(&shared_cache(), |name| !name.starts_with("template-"));
    }

    fn with_cache(self, dir: &Path, wanted: fn(&str) -> bool) -> Node {
        self.take_from(dir, wanted);
        self
    }

    /// Takes files of a shared cache. What no program writes to or touches is linked, all else copied.
    pub fn take_from(&self, dir: &Path, wanted: fn(&str) -> bool) {
        // Packages that were fetched are not this node's concern.
        let files = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        for entry in fs::read_dir(dir).unwrap().flatten().filter(files) {
            let name = entry.file_name().into_string().unwrap();
            let to = self.cache().join(&name);
            match () {
                () if !wanted(&name) => {}
                () if name.ends_with(".tar") => fs::hard_link(entry.path(), to).unwrap(),
                () => {
                    fs::copy(entry.path(), &to).unwrap();
                    // Which one was used last is known by this.
                    let modified = entry.metadata().unwrap().modified().unwrap();
                    File::options().write(true).open(to).unwrap().set_modified(modified).unwrap();
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn etc(&self) -> PathBuf {
        self.path().join("etc")
    }

    pub fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    pub fn legacy_defaults(&self) -> PathBuf {
        self.path().join("etc/default-file")
    }

    pub fn config(&self, text: &str) {
        fs::write(self.etc().join("config.toml"), text).unwrap();
    }

    pub fn variant(&self, file: &str, text: &str) {
        fs::write(self.etc().join("variants").join(file), text).unwrap();
    }

    pub fn hook(&self, name: &str, script: &str) {
        let path = self.etc().join("hooks").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A sparse file for a disk.
    pub fn disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path().join("disks").join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// A recorded environment of a node daemon, with disk 0 (and its size) replaced.
    pub fn recorded(&self, name: &str, disk: &Path) -> BTreeMap<String, String> {
        let file = project().join("tests/ganeti-env").join(format!("{name}.env"));
        let recorded = fs::read_to_string(file).unwrap();
        let mut env: BTreeMap<String, String> = recorded
            .lines()
            .map(|line| line.split_once('=').unwrap())
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect();
        // The recording's variants are those of another OS definition.
        if env.get("OS_VARIANT").is_some_and(|v| v == "other") {
            env.insert("OS_VARIANT".into(), "default".into());
        }
        env.insert("DISK_0_PATH".into(), disk.display().to_string());
        env
    }

    /// What noded sends for a KVM instance that is to start its own loader; its NIC is on QEMU's own network, which
    /// serves DHCP.
    pub fn kvm(&self, disk: &Path, params: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut env = self.recorded("create-kvm", disk);
        env.retain(|name, _| !name.starts_with("NIC_0_NETWORK") && name != "NIC_0_IP");
        env.insert("NIC_0_MAC".into(), "aa:00:00:00:00:01".into());
        env.insert("INSTANCE_HV_serial_speed".into(), "115200".into());
        env.insert("INSTANCE_HV_kernel_path".into(), String::new());
        env.extend(
            params.iter().map(|(name, value)| (format!("OSP_{}", name.to_uppercase()), (*value).to_owned())),
        );
        env
    }

    /// The program by its own name.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).env_clear().env("PATH", NODED_PATH).stdin(Stdio::null());
        self.move_places(&mut command);
        command
    }

    fn move_places(&self, command: &mut Command) {
        command
            .env("GANETI_DEBOOTSTRAP_CONFIG_DIR", self.etc())
            .env("GANETI_DEBOOTSTRAP_LEGACY_DEFAULTS", self.legacy_defaults())
            .env("GANETI_DEBOOTSTRAP_CACHE_DIR", self.cache())
            .envs(&self.env);
    }

    /// A verb as noded runs it: by its link, in the OS directory, umask 0077, stdin at its end.
    pub fn verb(&self, verb: &str, env: &BTreeMap<String, String>) -> Command {
        let os = self.path().join("os");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 0077; exec \"$0\" \"$@\""]).arg(os.join(verb));
        if verb == "verify" {
            command.arg("parameters");
        }
        command.env_clear().envs(env).current_dir(os).stdin(Stdio::null());
        self.move_places(&mut command);
        command
    }

    /// Runs create and wants it to succeed; returns its log.
    pub fn create(&self, env: &BTreeMap<String, String>) -> String {
        let output = self.verb("create", env).output().unwrap();
        let log = log_of(&output);
        assert!(output.status.success(), "{log}");
        log
    }

    /// The create of `create.env` on a disk.
    pub fn create_on(&self, disk: &Path) -> String {
        self.create(&self.recorded("create", disk))
    }

    /// Loop devices over what is this node's.
    fn attached(&self) -> Vec<String> {
        let dir = self.path().to_str().unwrap();
        let devices = fs::read_dir("/sys/block")
            .unwrap()
            .flatten()
            .map(|entry| Path::new("/dev").join(entry.file_name()));
        let over = |device: PathBuf| {
            let file = backing_file(&device)?;
            file.starts_with(dir).then(|| format!("{} over {}", device.display(), file.trim()))
        };
        devices.filter_map(over).collect()
    }

    /// Waits until the test's own loop devices are gone: one that anybody else looks at goes when he has looked.
    pub fn wait_until_detached(&self) {
        let start = Instant::now();
        while !self.attached().is_empty() {
            assert!(start.elapsed() < KERNEL_TIMEOUT, "still attached: {:?}", self.attached());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until what was killed with a run has ended, too, and let go.
    pub fn wait_until_killed(&self) {
        let start = Instant::now();
        while !children().is_empty() {
            assert!(start.elapsed() < KERNEL_TIMEOUT, "they do not end: {:?}", children());
            std::thread::sleep(Duration::from_millis(2));
        }
        self.wait_until_detached();
    }

    /// Wants that nothing of this node is held any more: loop devices, mounts, processes.
    pub fn assert_nothing_left(&self) {
        self.wait_until_detached();
        let dir = self.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> =
            mounts.lines().filter(|l| l.contains(&dir) || l.contains("/run/ganeti-instance-deb")).collect();
        assert!(left.is_empty(), "mounts are left: {left:?}");
        let children = children();
        assert!(children.is_empty(), "processes are left: {children:?}");
    }
}

/// Processes that are this one's children: started by it, or left behind by one that it started.
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| fs::read_to_string(e.path().join("stat")).ok())
        .filter(|stat| {
            let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let mut fields = after.split(' ');
            fields.next() != Some("Z") && fields.next() == Some(own.as_str())
        })
        .collect()
}

/// stdout and stderr as noded's log has them.
pub fn log_of(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// A loop device of a test's own over a file: stands for any block device.
pub struct BlockDevice(pub PathBuf);

impl BlockDevice {
    pub fn over(file: &Path, options: &[&str]) -> BlockDevice {
        let file = file.display().to_string();
        let mut args = vec!["--show", "-f"];
        args.extend(options);
        args.push(&file);
        BlockDevice(tool("losetup", &args).trim().into())
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        let before = backing_file(&self.0);
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        wait_until_let_go(&self.0, before);
    }
}

/// The file below a loop device, by sysfs: whoever opened the device would keep it from detaching.
fn backing_file(device: &Path) -> Option<String> {
    let name = device.file_name()?.to_str()?;
    fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
}

/// Whoever looks at a loop device for a moment (another test, a monitor) keeps it until he has looked.
fn wait_until_let_go(device: &Path, file: Option<String>) {
    let start = Instant::now();
    while file.is_some() && backing_file(device) == file && start.elapsed() < KERNEL_TIMEOUT {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A filesystem mounted read-only to look at.
pub struct Mounted {
    target: tempfile::TempDir,
    /// What was mounted: a device, or a file.
    over: PathBuf,
}

impl Mounted {
    /// The root of a disk at an offset in bytes.
    pub fn at(disk: &Path, offset: u64) -> Mounted {
        Mounted::with(disk, &format!("ro,loop,offset={offset}"))
    }

    pub fn with(disk: &Path, options: &str) -> Mounted {
        let target = tempfile::tempdir().unwrap();
        tool("mount", &["-o", options, disk.to_str().unwrap(), target.path().to_str().unwrap()]);
        Mounted { target, over: disk.into() }
    }

    pub fn path(&self) -> &Path {
        self.target.path()
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    pub fn mode(&self, file: &str) -> u32 {
        fs::symlink_metadata(self.path().join(file)).unwrap_or_else(|e| panic!("{file}: {e}")).mode() & 0o7777
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        let own = mounts.lines().rfind(|line| line.split(' ').nth(1) == self.path().to_str());
        let source = own.and_then(|line| line.split(' ').next()).map(PathBuf::from);
        let file = source.as_deref().and_then(backing_file);
        let _ = Command::new("umount").arg(self.target.path()).status();
        // A loop device that was made for the mount goes with it; one that was there before stays.
        let stays = source.as_deref().is_some_and(|device| device == self.over);
        if let (Some(device), false) = (source, stays) {
            wait_until_let_go(&device, file);
        }
    }
}

/// Where the root begins, as sfdisk sees the table.
pub fn root_offset(disk: &Path) -> u64 {
    partition_offset(disk, 1)
}

/// A partition's first byte.
pub fn partition_offset(disk: &Path, number: u32) -> u64 {
    let json = tool("sfdisk", &["--json", disk.to_str().unwrap()]);
    let table: serde_json::Value = serde_json::from_str(&json).unwrap();
    let partitions = table["partitiontable"]["partitions"].as_array().unwrap();
    // The name of a node is that of the disk, perhaps a `p`, and the number.
    let stem = disk.to_str().unwrap();
    let is_it = |node: &str| {
        node.strip_prefix(stem).is_some_and(|rest| rest.trim_start_matches('p') == number.to_string())
    };
    let first = partitions.iter().find(|p| is_it(p["node"].as_str().unwrap()));
    let first = first.unwrap_or_else(|| panic!("no partition {number} in {json}"));
    first["start"].as_u64().unwrap() * 512
}

/// Wants an ext4 to have nothing that came after e2fsprogs 1.43.
pub fn assert_every_release_reads(disk: &Path, offset: u64) {
    let shown = tool("dumpe2fs", &["-h", &format!("{}?offset={offset}", disk.display())]);
    let features = shown.lines().find(|line| line.starts_with("Filesystem features:")).unwrap();
    assert!(features.contains(" metadata_csum"), "{features}");
    assert!(!features.contains("metadata_csum_seed") && !features.contains("orphan_file"), "{features}");
}

/// Checks a filesystem with its own tool; wants it clean.
pub fn fsck(disk: &Path, offset: u64, filesystem: &str) {
    let device = BlockDevice::over(disk, &["-r", "-o", &offset.to_string()]);
    let path = device.0.to_str().unwrap();
    match filesystem {
        "xfs" => drop(tool("xfs_repair", &["-n", path])),
        "btrfs" => drop(tool("btrfs", &["check", "--readonly", path])),
        _ => drop(tool("e2fsck", &["-fn", path])),
    }
}

/// Does something, and says how much processor time of this thread it took: the clock would count other tests, too.
pub fn processor_time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    // Nanoseconds on a processor come first.
    let used = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    let before = used();
    let result = work();
    (result, used() - before)
}

/// What of a sparse file is no hole.
pub fn data_ranges(path: &Path) -> Vec<Range<u64>> {
    let file = File::open(path).unwrap();
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        ranges.push(start..at);
    }
    ranges
}

/// Hands out all that is in a sparse file, in pieces, each with its place.
pub fn read_data(path: &Path, mut take: impl FnMut(u64, &[u8])) {
    let file = File::open(path).unwrap();
    let mut piece = vec![0; 1 << 20];
    for range in data_ranges(path) {
        for at in range.clone().step_by(piece.len()) {
            let count = (range.end - at).min(piece.len() as u64) as usize;
            file.read_exact_at(&mut piece[..count], at).unwrap();
            take(at, &piece[..count]);
        }
    }
}

/// Tells files of different content apart, and does not take a disk's size to do so: for "nothing was touched".
pub fn digest(path: &Path) -> String {
    const BLOCK: usize = 4096;
    let mut hash = blake3::Hasher::new();
    read_data(path, |at, piece| {
        for (number, block) in piece.chunks(BLOCK).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                hash.update(&(at + (number * BLOCK) as u64).to_le_bytes()).update(block);
            }
        }
    });
    format!("{} {}", hash.finalize(), fs::metadata(path).unwrap().len())
}

/// Wants two files of one content; where one has a hole the other has zeros.
pub fn assert_same_content(one: &Path, other: &Path) {
    assert_eq!(fs::metadata(one).unwrap().len(), fs::metadata(other).unwrap().len(), "their sizes");
    let mut there = vec![0; 1 << 20];
    for (path, against) in [(one, other), (other, one)] {
        let against = File::open(against).unwrap();
        read_data(path, |at, piece| {
            against.read_exact_at(&mut there[..piece.len()], at).unwrap();
            assert!(there[..piece.len()] == *piece, "{} differs in the MiB at {at}", path.display());
        });
    }
}

/// Starts a command whose end is waited for elsewhere; it is killed if the test ends first.
pub fn killed_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is async-signal-safe.
    #[allow(unsafe_code, reason = "a parent-death signal for the program under test")]
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?))
    }
}
