//! Whoever chooses an instance's variant, suite, mirror or proxy gets no unsigned package unpacked; and what runs while a tree
//! is made finds no file and no process of the node.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::tiny_mirror::{serve, serve_to, small};
use crate::common::{GIB, Mounted, Node, PROGRAM, log_of, root_offset, text, tool};
use ganeti_instance_debootstrap::command::init::{self, Job};
use ganeti_instance_debootstrap::command::root::JobRoot;

/// What a package of the attacker has in a file.
const EVIL: &str = "evil-marker";
const GOOD: &str = "good-marker";

/// debootstrap's own directory with a script for the suite, so that a parameter needs to name none.
fn scripts(node: &Node, mirror: &Path) -> PathBuf {
    let dir = node.path().join("debootstrap");
    tool("cp", &["-a", "/usr/share/debootstrap", dir.to_str().unwrap()]);
    fs::copy(mirror.join("script"), dir.join("scripts/tiny")).unwrap();
    dir
}

/// A mirror and proxy of the attacker: signed by his own key, and unsigned.
fn evil_servers(node: &Node) -> [u16; 2] {
    let dir = node.path().join("evil");
    small(&dir, EVIL);
    let unsigned = node.path().join("unsigned");
    tool("cp", &["-a", dir.to_str().unwrap(), unsigned.to_str().unwrap()]);
    for file in ["InRelease", "Release.gpg"] {
        fs::remove_file(unsigned.join("dists/tiny").join(file)).unwrap();
    }
    [serve(dir), serve(unsigned)]
}

/// Whether a file of the package is in anything that the cache holds.
fn cache_has(node: &Node, marker: &str) -> bool {
    let files = fs::read_dir(node.cache()).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.is_file())
        .any(|path| fs::read(path).unwrap().windows(marker.len()).any(|window| window == marker.as_bytes()))
}

fn clear_cache(node: &Node) {
    for entry in fs::read_dir(node.cache()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// A server that serves nothing, and how often it was asked.
fn deaf_server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, asked)
}

/// A create with these of what an attacker may choose: variant, suite, mirror, proxy.
fn create(node: &Node, chosen: [bool; 4], evil: u16) -> Output {
    let mut env = node.recorded("create", &node.disk("d", GIB));
    let url = format!("http://127.0.0.1:{evil}/");
    let choices = [("OS_VARIANT", "tiny"), ("OSP_SUITE", "tiny"), ("OSP_MIRROR", &url), ("OSP_PROXY", &url)];
    for ((name, value), _) in choices.into_iter().zip(chosen).filter(|(_, is_chosen)| *is_chosen) {
        env.insert(name.into(), value.to_owned());
    }
    node.verb("create", &env).output().unwrap()
}

#[test]
fn nothing_unsigned_is_unpacked_whatever_an_instance_chooses() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    small(&mirror, GOOD);
    let good = serve(mirror.clone());
    let evil = evil_servers(&node);
    let scripts = scripts(&node, &mirror);
    fs::write(node.legacy_defaults(), format!("export DEBOOTSTRAP_DIR={}\n", scripts.display())).unwrap();
    node.variant("tiny.toml", "suite = \"tiny\"\n");
    let mut unpacked = 0;
    for choice in 0..32 {
        let chosen: [bool; 4] = std::array::from_fn(|bit| choice >> bit & 1 == 1);
        let allow_unsigned = choice & 16 != 0;
        let evil = evil[choice % 2];
        // An administrator who lets unsigned packages in has said from where.
        node.config(&format!(
            "defaults = \"1\"\nsuite = \"tiny\"\nboot = \"no\"\nmirror = \"http://127.0.0.1:{good}/\"\n\
             keyring = \"{}/keyring.gpg\"\nallow_unsigned = {allow_unsigned}\n",
            mirror.display()
        ));
        clear_cache(&node);
        let output = create(&node, chosen, evil);
        let log = log_of(&output);
        assert!(!cache_has(&node, EVIL), "{chosen:?} {allow_unsigned}: {log}");
        let from_elsewhere = chosen[2] || chosen[3];
        assert_eq!(output.status.success(), !from_elsewhere, "{chosen:?} {allow_unsigned}: {log}");
        unpacked += usize::from(cache_has(&node, GOOD));
    }
    assert_eq!(unpacked, 8);
    node.assert_nothing_left();
}

#[test]
fn an_unsigned_tree_is_told_of_as_long_as_it_lives() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    let settings = small(&mirror, GOOD);
    for file in ["InRelease", "Release.gpg"] {
        fs::remove_file(mirror.join("dists/tiny").join(file)).unwrap();
    }
    node.config(&settings);
    let refused = node.verb("create", &node.recorded("create", &node.disk("d", GIB))).output().unwrap();
    assert!(!refused.status.success() && !cache_has(&node, GOOD), "{}", log_of(&refused));

    let without_keys: String = settings
        .lines()
        .filter(|line| !line.starts_with("keyring"))
        .fold(String::new(), |text, line| text + line + "\n");
    node.config(&format!("{without_keys}allow_unsigned = true\n"));
    for _ in 0..2 {
        let log = node.create_on(&node.disk("d", GIB));
        assert!(log.contains("warning: nobody signed all packages of this tree"), "{log}");
    }
    let listed = node.command(&["cache", "list"]).output().unwrap();
    assert!(text(&listed.stdout).contains("unsigned"), "{}", log_of(&listed));
    let listed = node.command(&["cache", "list", "--json"]).output().unwrap();
    assert!(text(&listed.stdout).contains("\"not checked\""), "{}", log_of(&listed));

    // Without it, that tree is not used.
    node.config(&settings);
    let refused = node.verb("create", &node.recorded("create", &node.disk("d", GIB))).output().unwrap();
    assert!(!refused.status.success(), "{}", log_of(&refused));
}

/// By every verb that makes a tree, whatever is cached. The site's own repository and the attacker's proxy are one server here.
#[test]
fn a_source_of_the_site_that_checks_nothing_is_refused_by_every_verb() {
    let node = Node::bare();
    let settings = small(&node.path().join("mirror"), GOOD);
    let (proxy, asked) = deaf_server();
    let apt = node.path().join("apt");
    fs::create_dir(&apt).unwrap();
    fs::write(apt.join("site.list"), "deb [trusted=\"yes\"] http://site.example/ tiny main\n").unwrap();
    node.config(&format!("{settings}apt_dir = \"{}\"\n", apt.display()));
    let mut env = node.recorded("create", &node.disk("d", GIB));
    env.insert("OSP_PROXY".into(), format!("http://127.0.0.1:{proxy}/"));
    let image = node.path().join("image");
    let image = ["image", "--name", "image.example.com", "--size", "1G", "--output", image.to_str().unwrap()];
    for mut command in [node.verb("create", &env), node.command(&image), node.command(&["cache", "build"])] {
        let output = command.output().unwrap();
        let log = log_of(&output);
        assert!(!output.status.success() && log.contains("install what nobody signed"), "{log}");
        assert!(!cache_has(&node, GOOD) && asked.load(Ordering::SeqCst) == 0, "{log}");
    }
    node.assert_nothing_left();
}

/// A directory of debootstrap's, and a script, decide what is unpacked, and by which keys.
#[test]
fn trees_of_different_scripts_are_not_shared() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    let settings = small(&mirror, GOOD);
    let scripts = scripts(&node, &mirror);
    let plain = settings.replace(&format!(" {}/script", mirror.display()), "");
    let trees =
        || fs::read_dir(node.cache()).unwrap().filter(|entry| is_tree(entry.as_ref().unwrap())).count();
    node.config(&settings);
    node.create_on(&node.disk("d", GIB));
    assert_eq!(trees(), 1);
    fs::write(mirror.join("script"), fs::read_to_string(mirror.join("script")).unwrap() + "# changed\n")
        .unwrap();
    node.create_on(&node.disk("d", GIB));
    assert_eq!(trees(), 2, "the script's content counts");
    node.config(&plain);
    fs::write(node.legacy_defaults(), format!("export DEBOOTSTRAP_DIR={}\n", scripts.display())).unwrap();
    node.create_on(&node.disk("d", GIB));
    assert_eq!(trees(), 3, "the directory counts");
    node.create_on(&node.disk("d", GIB));
    assert_eq!(trees(), 3);
    // Who else can write a script is root.
    tool("chmod", &["666", scripts.join("scripts/tiny").to_str().unwrap()]);
    let refused = node.verb("create", &node.recorded("create", &node.disk("d", GIB))).output().unwrap();
    assert!(!refused.status.success() && log_of(&refused).contains("chmod go-w"), "{}", log_of(&refused));
}

fn is_tree(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name().into_string().unwrap();
    name.starts_with("base-") && name.ends_with(".tar")
}

#[test]
fn a_release_without_keys_on_this_node_is_refused_with_what_helps() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    small(&mirror, GOOD);
    let scripts = scripts(&node, &mirror);
    let script = fs::read_to_string(scripts.join("scripts/tiny")).unwrap();
    fs::write(scripts.join("scripts/tiny"), format!("keyring /usr/share/keyrings/absent.gpg\n{script}"))
        .unwrap();
    fs::write(node.legacy_defaults(), format!("export DEBOOTSTRAP_DIR={}\n", scripts.display())).unwrap();
    node.config(&format!(
        "suite = \"tiny\"\nboot = \"no\"\nmirror = \"file://{}\"\nallow_unsigned = false\n",
        mirror.display()
    ));
    let output = node.verb("create", &node.recorded("create", &node.disk("d", GIB))).output().unwrap();
    let log = log_of(&output);
    assert!(!output.status.success() && log.contains("/usr/share/keyrings/absent.gpg is not there"), "{log}");
    assert!(log.contains("hint: set keyring = \"FILE\"") && !log.contains("apt-get install"), "{log}");
    assert!(!log.contains("bootstrapping"), "it is told before anything is begun: {log}");
    let checked = node.command(&["config", "check"]).output().unwrap();
    assert!(!checked.status.success(), "{}", log_of(&checked));
    assert!(log_of(&checked).contains("absent.gpg is not there"), "{}", log_of(&checked));
}

/// Looks for files and processes of the node by every way that /proc has; prints what it finds.
const SPY: &str = r#"
for secret in SECRETS; do
  for way in "" /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/[0-9]*/fd/* /proc/[0-9]*/cwd/../../../..; do
    [ ! -e "$way/$secret" ] || echo "found $way/$secret"
  done
done
for process in /proc/[0-9]*; do
  tr '\0' ' ' < "$process/cmdline" | grep -q NODE_PROCESS && echo "found $process"
done
echo "the spy has ended"
"#;

/// Tries what root may do to the node's kernel and files without leaving its root; prints whether it was OPEN or held. Nothing
/// is changed where it is open: files are opened and not written, a name and a mode are set to what they are.
const ATTACKS: &str = r#"
sub report { my ($name, $open) = @_; print(($open ? "OPEN" : "held"), " $name: $!\n") }
sub call { my $number = shift; syscall($number, @_) != -1 }
# The node's own files: by a handle of its root, through the first process, by a mount that is not read-only any more.
for my $inode (2, 128, 256) {
  open(my $any, "<", "/etc/resolv.conf") || open($any, "<", "/");
  report("handle $inode", call(304, fileno($any), pack("IiII", 8, 1, $inode, 0), 0));
}
for my $process ("1", "self") {
  opendir(my $dir, "/proc/$process/map_files");
  my @maps = grep { !/^[.]/ } readdir($dir);
  report("list what $process maps", @maps && $process eq "1");
  for my $file ("exe", map { "map_files/$_" } @maps) {
    report("write $file of $process", open(my $any, "+<", "/proc/$process/$file"));
  }
}
report("mode of /proc/1/exe", chmod(0755, "/proc/1/exe"));
report("root of 1", -e "/proc/1/root/.");
my ($none, $shown) = ("none", "SHOWN");
report("remount", call(165, $none, $shown, $none, 0x1020, 0));
report("write to what is shown", open(my $file, ">", "$shown/escaped"));
for my $kind ("proc", "sysfs", "devtmpfs", "cgroup2") {
  my ($at, $copy) = ("/tmp", $kind);
  report("mount $kind", call(165, $none, $at, $copy, 0, 0));
}
# Devices that are the node's.
for my $node ([060600, 0x700], [060600, 0x800], [020600, 0x101]) {
  my $path = "/tmp/node$node->[1]";
  report("node $node->[1]", call(133, $path, $node->[0], $node->[1]));
  unlink($path);
}
# The terminal of who called the program.
report("terminal", open(my $tty, "+<", "/dev/tty"));
ioctl($tty, 0x5412, my $key = "!") if $tty;
# The node's name, kernel and keys.
open(my $host, "<", "/proc/sys/kernel/hostname") or die; chomp(my $name = <$host>);
report("hostname", call(170, $name, length($name)));
for my $switch ("sys/kernel/core_pattern", "sys/kernel/hostname", "sysrq-trigger", "irq/default_smp_affinity") {
  report("write $switch", open(my $any, "+<", "/proc/$switch")) if -e "/proc/$switch";
}
report("keyring", call(250, 0, -4, 0));
# Namespaces in which a process has all capabilities again.
report("user namespace", call(272, 0x10000000));
report("cgroup namespace", call(272, 0x02000000));
for my $kind ("uts", "ipc", "mnt", "pid") { print "namespace ", readlink("/proc/self/ns/$kind"), "\n" }
open(my $status, "<", "/proc/self/status") or die; print(grep { /^Cap/ } <$status>);
print "all was tried\n";
"#;

/// The capabilities that the attacks had, by the numbers of linux/capability.h.
const CAPABILITIES: &[u32] = &[0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 27, 29, 31];

fn assert_all_held(said: &str) {
    assert!(said.contains("all was tried") && !said.contains("OPEN"), "{said}");
    for word in [
        "handle 2",
        "write exe of 1",
        "remount",
        "hostname",
        "write sys/kernel/core_pattern",
        "user namespace",
        "cgroup namespace",
    ] {
        assert!(said.contains(&format!("held {word}: ")), "{word}: {said}");
    }
    let all = CAPABILITIES.iter().fold(0u64, |all, number| all | 1 << number);
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        assert!(said.contains(&format!("{set}:\t{all:016x}")), "{set} {all:016x}: {said}");
    }
    for kind in ["uts", "ipc", "mnt", "pid"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(said.contains(&format!("namespace {kind}:[")), "{said}");
        assert!(!said.contains(own.to_str().unwrap()), "{kind} is that of the node: {said}");
    }
}

/// A command on a terminal of its own.
fn on_a_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")));
    let line = quoted.collect::<Vec<_>>().join(" ");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_clear().env("TERM", "linux");
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.current_dir(command.get_current_dir().unwrap_or(Path::new("/"))).stdin(Stdio::null());
    script
}

#[test]
fn a_bootstrappers_scripts_can_do_nothing_to_the_node() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    node.config(&small(&mirror, GOOD));
    // What is shown of the node, for reading.
    let shown = scripts(&node, &mirror);
    fs::write(node.legacy_defaults(), format!("export DEBOOTSTRAP_DIR={}\n", shown.display())).unwrap();
    let script = fs::read_to_string(mirror.join("script")).unwrap();
    let attack = format!(
        "attack () {{\nperl - <<'ATTACKS'\n{}\nATTACKS\n}}\n\
         second_stage_install () {{ attack > \"$TARGET/etc/found\" 2>&1;",
        ATTACKS.replace("SHOWN", shown.to_str().unwrap())
    );
    fs::write(mirror.join("script"), script.replace("second_stage_install () {", &attack)).unwrap();
    let disk = node.disk("d", GIB);
    let create = node.verb("create", &node.recorded("create", &disk));
    let output = on_a_terminal(&create).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    assert_all_held(&Mounted::at(&disk, root_offset(&disk)).read("etc/found"));
    assert!(!shown.join("escaped").exists());
}

#[test]
fn ctrl_c_on_a_terminal_ends_a_bootstrap() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    node.config(&small(&mirror, GOOD));
    let script = fs::read_to_string(mirror.join("script")).unwrap();
    let waiting =
        "second_stage_install () { mkfifo \"$TARGET/wait\"; echo it waits >&2; : < \"$TARGET/wait\";";
    fs::write(mirror.join("script"), script.replace("second_stage_install () {", waiting)).unwrap();
    let disk = node.disk("d", GIB);
    let mut create = on_a_terminal(&node.verb("create", &node.recorded("create", &disk)));
    let mut child = create.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut shown = Vec::new();
    // Progress on a terminal has no lines.
    while !text(&shown).contains("bootstrapping tiny") {
        let mut some = [0; 4096];
        let count = screen.read(&mut some).unwrap();
        assert!(count > 0, "{}", text(&shown));
        shown.extend(&some[..count]);
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    screen.read_to_end(&mut shown).unwrap();
    assert!(text(&shown).contains("stopped by SIGINT"), "{}", text(&shown));
    assert!(!child.wait().unwrap().success());
    node.assert_nothing_left();
}

/// Files that no job needs, and a process of the node.
fn secrets(node: &Node) -> (String, std::process::Child) {
    let own = node.etc().join("config.toml").display().to_string();
    let paths = [
        "etc/shadow",
        "etc/ssh",
        "root/.ssh",
        "root/.bashrc",
        "var/lib/dpkg/status",
        "etc/fstab",
        "var/log",
        "home",
    ];
    let secrets = paths.map(str::to_owned).into_iter().chain([own.trim_start_matches('/').to_owned()]);
    let words = secrets.filter(|path| Path::new("/").join(path).exists()).collect::<Vec<_>>().join(" ");
    assert!(words.contains("etc/shadow") && words.contains("config.toml"), "{words}");
    let process = Command::new("sleep").arg("31415.9265").spawn().unwrap();
    (SPY.replace("SECRETS", &words).replace("NODE_PROCESS", "31415[.]9265"), process)
}

#[test]
fn what_runs_while_a_tree_is_made_finds_nothing_of_the_node() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    let settings = small(&mirror, GOOD);
    node.config(&settings);
    let (spy, mut process) = secrets(&node);
    let spy = spy.replace("var/lib/dpkg/status", "").replace("etc/shadow", "etc/gshadow");
    // In a bootstrapper: all that a package's own scripts could do.
    let script = fs::read_to_string(mirror.join("script")).unwrap();
    let spying = script.replace(
        "second_stage_install () {",
        &format!("spy () {{\n{spy}\n}}\nsecond_stage_install () {{ spy > \"$TARGET/etc/found\" 2>&1;"),
    );
    fs::write(mirror.join("script"), spying).unwrap();
    let disk = node.disk("d", GIB);
    let log = node.create_on(&disk);
    let found = Mounted::at(&disk, root_offset(&disk)).read("etc/found");
    assert!(found.contains("the spy has ended") && !found.contains("found /"), "{found}\n{log}");
    process.kill().unwrap();
    process.wait().unwrap();
}

/// A tree with a shell and a few tools of this machine.
fn tree_with_tools(node: &Node) -> PathBuf {
    let tree = node.path().join("tree");
    let programs = ["sh", "tr", "grep", "perl"]
        .map(|name| tool("sh", &["-c", &format!("readlink -f $(command -v {name})")]));
    let script = format!(
        "set -e; mkdir -p {0}/bin {0}/proc {0}/dev {0}/tmp; for p in {1}; do cp --parents -L $p {0}; \
         for l in $(ldd $p | grep -o '/[^ ]*'); do cp --parents -L $l {0}; done; done; \
         for n in sh tr grep perl; do ln -s $(readlink -f $(command -v $n)) {0}/bin/ 2>/dev/null || :; done",
        tree.display(),
        programs.map(|program| program.trim().to_owned()).join(" ")
    );
    tool("sh", &["-c", &script]);
    tree
}

/// A program as the one command of a job in a tree.
fn in_tree(tree: &Path, program: &str, arguments: &[&str]) -> Command {
    let program = tool("sh", &["-c", &format!("readlink -f $(command -v {program})")]);
    let words = std::iter::once(program.trim()).chain(arguments.iter().copied());
    let job = Job { root: JobRoot::tree(tree), ..Job::single(words.map(OsString::from).collect()) };
    let script = "exec unshare --mount --pid --fork bash -c 'exec -a \"$0\" \"$@\"' \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, init::ARGV0, PROGRAM, &job.to_arg().unwrap()]);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

#[test]
fn what_runs_in_a_tree_finds_nothing_of_the_node() {
    let node = Node::bare();
    node.config("");
    let (spy, mut process) = secrets(&node);
    let output = in_tree(&tree_with_tools(&node), "sh", &["-c", &spy]).output().unwrap();
    let found = log_of(&output);
    assert!(found.contains("the spy has ended") && !found.contains("found "), "{found}");
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_packages_scripts_can_do_nothing_to_the_node() {
    let node = Node::bare();
    let attacks = ATTACKS.replace("SHOWN", "/proc/sys");
    let output =
        on_a_terminal(&in_tree(&tree_with_tools(&node), "perl", &["-e", &attacks])).output().unwrap();
    assert_all_held(&text(&output.stdout).replace('\r', ""));
}

/// `deploy:s3cret` as HTTP has it.
const AUTHORIZATION: &str = "Basic ZGVwbG95OnMzY3JldA==";

#[test]
fn a_mirrors_password_goes_to_the_mirror_alone() {
    let node = Node::bare();
    let mirror = node.path().join("mirror");
    small(&mirror, GOOD);
    let port = serve_to(mirror.clone(), Some(AUTHORIZATION));
    let scripts = scripts(&node, &mirror);
    fs::write(node.legacy_defaults(), format!("export DEBOOTSTRAP_DIR={}\n", scripts.display())).unwrap();
    node.config(&format!(
        "defaults = \"1\"\nsuite = \"tiny\"\nboot = \"no\"\nkeyring = \"{}/keyring.gpg\"\n\
         mirror = \"http://deploy:s3cret@127.0.0.1:{port}/\"\n",
        mirror.display()
    ));
    tool("chmod", &["644", node.etc().join("config.toml").to_str().unwrap()]);
    let disk = node.disk("d", GIB);
    let mut env = node.recorded("create", &disk);
    env.insert("DEBUG_LEVEL".into(), "1".into());
    let log = node.create(&env);
    assert!(log.contains("+ debootstrap ") && !log.contains("s3cret"), "{log}");
    assert!(log.contains("warning: mirror in") && log.contains("can be read by every user"), "{log}");
    assert!(cache_has(&node, GOOD) && !cache_has(&node, "s3cret"));
    let guest = Mounted::at(&disk, root_offset(&disk));
    assert_eq!(guest.mode("etc/apt/auth.conf.d/mirror.conf"), 0o600);
    assert!(guest.read("etc/apt/auth.conf.d/mirror.conf").contains("login deploy password s3cret"));
    assert!(!guest.read("etc/apt/sources.list").contains("s3cret"));
    drop(guest);
    for command in [&["config", "show"][..], &["config", "show", "--json"], &["cache", "list", "--json"]] {
        let shown = node.command(command).output().unwrap();
        assert!(shown.status.success() && !log_of(&shown).contains("s3cret"), "{}", log_of(&shown));
    }

    // Another instance fetches from the same mirror with nothing, or with its own: it gets the tree, and its own.
    for (name, password) in
        [("http://127.0.0.1:PORT/", None), ("http://me:mine@127.0.0.1:PORT/", Some("mine"))]
    {
        let other = node.disk("other", GIB);
        let mut env = node.recorded("create", &other);
        env.insert("OSP_MIRROR".into(), name.replace("PORT", &port.to_string()));
        let log = node.create(&env);
        assert!(log.contains("cache  using"), "{log}");
        let guest = Mounted::at(&other, root_offset(&other));
        let found = fs::read_to_string(guest.path().join("etc/apt/auth.conf.d/mirror.conf")).ok();
        assert_eq!(found.is_some(), password.is_some(), "{found:?}");
        assert!(found.is_none_or(|text| text.ends_with(" login me password mine\n")));
    }

    // A proxy that an instance names would see it: by create, by import, which fetches a loader, and in a source of apt_dir.
    let (proxy, asked) = deaf_server();
    clear_cache(&node);
    let mut import = node.recorded("import", &disk);
    for name in ["IMPORT_DEVICE", "IMPORT_DISK_PATH"] {
        import.insert(name.into(), disk.display().to_string());
    }
    import.insert("OSP_PROXY".into(), format!("http://127.0.0.1:{proxy}/"));
    import.insert("OSP_BOOT".into(), "bios".into());
    let tree = node.path().join("tree.tar");
    tool("tar", &["-cf", tree.to_str().unwrap(), "-C", mirror.to_str().unwrap(), "script"]);
    let output = node.verb("import", &import).stdin(File::open(&tree).unwrap()).output().unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 0, "{}", log_of(&output));
    assert!(log_of(&output).contains("has a user and a password"), "{}", log_of(&output));
    let apt = node.path().join("apt");
    fs::create_dir(&apt).unwrap();
    fs::write(apt.join("site.list"), "deb http://site:secret@site.example/ tiny main\n").unwrap();
    let config = fs::read_to_string(node.etc().join("config.toml")).unwrap();
    node.config(&format!("{}apt_dir = \"{}\"\n", config.replace("deploy:s3cret@", ""), apt.display()));
    let mut sources = node.recorded("create", &disk);
    sources.insert("OSP_PROXY".into(), format!("http://127.0.0.1:{proxy}/"));
    let output = node.verb("create", &sources).output().unwrap();
    assert!(
        log_of(&output).contains("a source in apt_dir") && !output.status.success(),
        "{}",
        log_of(&output)
    );
    assert_eq!(asked.load(Ordering::SeqCst), 0, "{}", log_of(&output));
    node.config(&config);
    env.insert("OSP_PROXY".into(), "http://127.0.0.1:9/".into());
    let refused = node.verb("create", &env).output().unwrap();
    let log = log_of(&refused);
    assert!(!refused.status.success() && log.contains("has a user and a password"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
}
