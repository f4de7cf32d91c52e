//! Trees from nothing: debootstrap and mmdebstrap make the same one, what was fetched once is not fetched again, and
//! what is missing is told before anything is touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write, copy};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{GIB, Node, log_of, text, tool};
use nix::sys::signal::Signal;

use crate::common::running::Running;

/// An http proxy on this machine that counts the packages that were asked for.
struct Proxy {
    port: u16,
    packages: Arc<AtomicUsize>,
}

impl Proxy {
    fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, packages) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = packages.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let count = count.clone();
                std::thread::spawn(move || forward(client, &count));
            }
        });
        Proxy { port, packages }
    }

    /// How many since it was asked last.
    fn fetched(&self) -> usize {
        self.packages.swap(0, Ordering::SeqCst)
    }
}

/// One request of a connection, which then ends.
fn forward(mut client: TcpStream, packages: &AtomicUsize) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let url = line.split(' ').nth(1)?.strip_prefix("http://")?.to_owned();
    let (host, path) = url.split_once('/')?;
    packages.fetch_add(usize::from(path.ends_with(".deb")), Ordering::SeqCst);
    let mut head = format!("GET /{path} HTTP/1.1\r\nConnection: close\r\n");
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        if field.trim().is_empty() {
            break;
        }
        if !field.to_ascii_lowercase().starts_with("connection:") {
            head += &field;
        }
    }
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut server = TcpStream::connect(address).ok()?;
    server.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    copy(&mut server, &mut client).ok().map(drop)
}

/// Builds the tree of a bootstrapper; where it was unpacked by GNU tar.
fn built(node: &Node, bootstrapper: &str, proxy: &Proxy) -> PathBuf {
    node.config(&format!(
        "boot = \"no\"\nbootstrapper = \"{bootstrapper}\"\nproxy = \"http://127.0.0.1:{}\"\n",
        proxy.port
    ));
    let before = trees(node);
    let output = node.command(&["cache", "build", crate::common::SUITE]).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    node.assert_nothing_left();
    let tar = trees(node).difference(&before).next().expect("a tree of its own").clone();
    let manifest = tar.with_extension("").with_extension("toml");
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(manifest).unwrap()).unwrap();
    assert_eq!(manifest["bootstrapper"].as_str(), Some(bootstrapper));
    let dir = node.path().join(bootstrapper);
    fs::create_dir(&dir).unwrap();
    let paths = [tar.to_str().unwrap(), dir.to_str().unwrap()];
    tool(
        "tar",
        &["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf", paths[0], "-C", paths[1]],
    );
    dir
}

fn trees(node: &Node) -> BTreeSet<PathBuf> {
    let files = fs::read_dir(node.cache()).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "tar")).collect()
}

fn kept(node: &Node) -> Vec<PathBuf> {
    let dir = node.cache().join(format!("packages/{}-amd64", crate::common::SUITE));
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// What apt and dpkg know of each package.
fn packages(tree: &Path) -> String {
    let admin = format!("--admindir={}/var/lib/dpkg", tree.display());
    tool("dpkg-query", &[&admin, "-W", "-f", "${db:Status-Abbrev} ${Package}:${Architecture} ${Version}\n"])
}

fn sorted_lines(file: &Path) -> Vec<String> {
    let mut lines: Vec<String> = fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Damages a package that was kept.
fn damage_one(node: &Node) -> PathBuf {
    let victim = kept(node).into_iter().find(|path| path.to_string_lossy().contains("-bash_")).unwrap();
    let size = victim.metadata().unwrap().size();
    fs::write(&victim, vec![0; usize::try_from(size).unwrap()]).unwrap();
    victim
}

/// Wants the damaged package fetched, and no other.
fn assert_one_was_fetched(proxy: &Proxy, victim: &Path) {
    assert_eq!(proxy.fetched(), 1, "the damaged one");
    let digest = victim.file_name().unwrap().to_str().unwrap().split_once('-').unwrap().0;
    assert!(tool("sha256sum", &[victim.to_str().unwrap()]).starts_with(digest), "whole again");
}

/// The packages of the bootstrap whose tree all tests share.
#[test]
fn a_bootstrap_fetches_nothing_that_is_kept_and_what_is_damaged_once_more() {
    let (node, proxy) = (Node::bare(), Proxy::start());
    let (from, to) = (crate::common::shared_cache().join("packages"), node.cache().join("packages"));
    tool("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
    assert!(kept(&node).len() > 100, "{}", kept(&node).len());
    let victim = damage_one(&node);
    built(&node, "mmdebstrap", &proxy);
    assert_one_was_fetched(&proxy, &victim);
}

#[test]
#[ignore = "run by make test-full"]
fn both_bootstrappers_make_the_same_tree_and_the_second_fetches_nothing() {
    let (node, proxy) = (Node::bare(), Proxy::start());
    let theirs = built(&node, "debootstrap", &proxy);
    let fetched = proxy.fetched();
    assert!(fetched > 100, "{fetched} packages were fetched");
    assert!(kept(&node).len() > 100 && kept(&node).len() <= fetched, "{} of {fetched}", kept(&node).len());
    let victim = damage_one(&node);
    let ours = built(&node, "mmdebstrap", &proxy);
    assert_one_was_fetched(&proxy, &victim);

    assert_eq!(packages(&ours), packages(&theirs));
    for file in ["etc/shadow", "etc/gshadow"] {
        assert_eq!(sorted_lines(&ours.join(file)), sorted_lines(&theirs.join(file)), "{file}");
    }
    // Content, owners, modes, links, attributes and ACLs of all else.
    let listed = tool(
        "rsync",
        &[
            "-naHAXci",
            "--no-times",
            "--delete",
            &format!("{}/", ours.display()),
            &format!("{}/", theirs.display()),
        ],
    );
    let documented = |line: &&str| {
        let (how, path) = line.split_once(' ').unwrap();
        let path = path.trim();
        let units = path.starts_with("etc/systemd/system/") && path.contains(" -> /usr/lib/systemd/");
        ["etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-"].contains(&path)
            || ["var/lib/dpkg/status", "var/lib/dpkg/available"].contains(&path)
            || (units && how.starts_with("cL"))
            || how.trim_end_matches('.') == ".d..t"
    };
    let others: Vec<&str> = listed.lines().filter(|line| !documented(line)).collect();
    assert!(others.is_empty(), "{others:#?}");
    for tree in [&ours, &theirs] {
        assert_eq!(fs::read_dir(tree.join("etc/dpkg/dpkg.cfg.d")).unwrap().count(), 0);
        assert!(!tree.join("usr/sbin/policy-rc.d").exists());
    }

    // Struck while packages install, it leaves nothing.
    for tar in trees(&node) {
        fs::remove_file(tar).unwrap();
    }
    let before = node.cache_files();
    let mut run = Running::start(node.command(&["cache", "build", crate::common::SUITE]));
    run.wait_for("I: installing essential packages");
    let ended = run.strike(Signal::SIGKILL);
    node.assert_released(&ended);
    assert_eq!(node.cache_files(), before);

    let listed = node.command(&["cache", "list"]).output().unwrap();
    assert!(log_of(&listed).contains(" packages for bootstraps to come in "), "{}", log_of(&listed));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(40 * 24 * 3600);
    fs::File::options().write(true).open(&victim).unwrap().set_modified(long_ago).unwrap();
    let others = kept(&node).len() - 1;
    let pruned = node.command(&["cache", "prune"]).output().unwrap();
    assert!(pruned.status.success(), "{}", log_of(&pruned));
    assert!(!victim.exists() && kept(&node).len() == others, "what was not used for long");
}

/// Runs a command where a program is not to be found.
fn without(program: &str, command: &Command) -> Command {
    let script = format!("mount --bind /dev/null $(command -v {program}) && exec \"$0\" \"$@\"");
    let mut hidden = Command::new("unshare");
    hidden.args(["-m", "sh", "-c", &script]).arg(command.get_program()).args(command.get_args());
    hidden.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    hidden.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
    hidden.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    hidden
}

#[test]
fn what_is_asked_for_and_cannot_be_is_told_before_anything_is_touched() {
    let node = Node::bare();
    let disk = node.disk("d", GIB);
    let mut env = node.recorded("create", &disk);
    env.insert("OSP_BOOTSTRAPPER".into(), "mmdebstrap".into());
    let create = without("mmdebstrap", &node.verb("create", &env)).output().unwrap();
    let log = log_of(&create);
    assert_eq!(create.status.code(), Some(1), "{log}");
    assert!(log.contains("mmdebstrap is not installed on this node"), "{log}");
    assert!(log.ends_with("hint: apt-get install mmdebstrap\n"), "{log}");
    assert_eq!(fs::metadata(&disk).unwrap().blocks(), 0, "nothing was written");
    let verify = without("mmdebstrap", &node.verb("verify", &env)).output().unwrap();
    assert!(!verify.status.success(), "{}", log_of(&verify));
    assert!(
        log_of(&verify).contains("mmdebstrap is not installed on this node; install it"),
        "{}",
        log_of(&verify)
    );

    env.insert("OSP_SUITE".into(), "bookworm".into());
    let verify = node.verb("verify", &env).output().unwrap();
    let log = log_of(&verify);
    assert!(!verify.status.success(), "{log}");
    assert!(log.contains("but the release is none of which it makes the same tree"), "{log}");
    env.insert("OSP_BOOTSTRAPPER".into(), "auto".into());
    let verify = without("mmdebstrap", &node.verb("verify", &env)).output().unwrap();
    assert!(verify.status.success(), "{}", log_of(&verify));
    node.assert_nothing_left();
}

#[test]
fn the_timer_and_its_service_are_what_systemd_understands() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["service", "timer"] {
        let name = format!("ganeti-instance-debootstrap-cache.{kind}");
        let unit = crate::common::project().join(format!("debian/ganeti-instance-debootstrap.{name}"));
        let unit = fs::read_to_string(unit)
            .unwrap()
            .replace("/usr/sbin/ganeti-instance-debootstrap", crate::common::PROGRAM);
        fs::write(dir.path().join(name), unit).unwrap();
    }
    let timer = dir.path().join("ganeti-instance-debootstrap-cache.timer");
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&timer).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    let about = |line: &&str| line.contains("ganeti-instance-debootstrap");
    let said = text(&output.stderr);
    assert_eq!(said.lines().filter(about).collect::<Vec<_>>(), Vec::<&str>::new());
    let next = tool("systemd-analyze", &["calendar", "weekly"]);
    assert!(next.contains("Next elapse"), "{next}");
}
