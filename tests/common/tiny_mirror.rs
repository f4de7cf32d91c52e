//! A suite of a test's own, whose bootstrap takes seconds and no network, signed by a key of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::log_of;
use super::trees::shared;

/// A mirror of one package that makes a tree of 50 MiB, with a debootstrap script for it: a bootstrap of seconds. The
/// second stage leaves a process behind.
const TINY_MIRROR: &str = r#"set -e
rm -rf root pool dists gnupg script keyring.gpg
mkdir -p root/DEBIAN root/etc root/usr/sbin root/usr/bin root/var/lib/dpkg root/var/log root/root pool
index=main/binary-amd64/Packages
mkdir -p dists/tiny/main/binary-amd64
printf 'Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: A Test <test@example.com>\nDescription: a tree\n' \
  > root/DEBIAN/control
head -c 50M /dev/urandom > root/usr/bin/payload
ln -s usr/bin root/bin
touch root/usr/bin/sh
for i in $(seq 500); do echo "$i" > "root/etc/file$i"; done
printf 'root:*:1::::::\n' > root/etc/shadow
printf 'Package: tiny\nStatus: install ok installed\nVersion: 1\n' > root/var/lib/dpkg/status
dpkg-deb -Znone --build root pool/tiny.deb >/dev/null
rm -r root
sum () { sha256sum < "$1" | cut -c -64; }
size () { stat -c %s "$1"; }
printf 'Package: tiny\nVersion: 1\nArchitecture: all\nPriority: required\nFilename: pool/tiny.deb\nSize: %s\nSHA256: %s\n\n' \
  "$(size pool/tiny.deb)" "$(sum pool/tiny.deb)" > dists/tiny/$index
printf 'Origin: test\nSuite: tiny\nCodename: tiny\nArchitectures: amd64\nComponents: main\nSHA256:\n %s %s %s\nDescription: a suite\n' \
  "$(sum dists/tiny/$index)" "$(size dists/tiny/$index)" $index > dists/tiny/Release
export GNUPGHOME="$PWD/gnupg"
mkdir -m 700 gnupg
gpg --quiet --batch --passphrase '' --quick-gen-key tiny@example.com ed25519 sign never
gpg --quiet --export > keyring.gpg
gpg --quiet --clearsign --output dists/tiny/InRelease dists/tiny/Release
gpg --quiet --armor --detach-sign --output dists/tiny/Release.gpg dists/tiny/Release
agent=$(gpg-connect-agent --no-autostart 'getinfo pid' /bye | sed -n 's/^D //p')
gpgconf --kill all
# It ends a little later.
i=0
while grep -qs '^State:.[^Z]' "/proc/$agent/status" && [ $((i += 1)) -lt 100 ]; do sleep 0.02; done
rm -rf gnupg
cat > script <<'END'
mirror_style release
download_style apt
finddebs_style from-indices
variants -
work_out_debs () { required="tiny"; base=""; }
first_stage_install () { extract $required; sleep 0.3; }
second_stage_install () { sleep 1000 & info CONFTINY "Configuring %s..." tiny; sleep 0.5; }
END
"#;

/// Settings of a suite whose bootstrap takes two seconds.
pub fn tiny() -> String {
    let dir = shared("tiny-mirror", TINY_MIRROR, |dir| make(dir, TINY_MIRROR));
    format!("suite = \"tiny\"\nboot = \"no\"\n{}", source_of(&dir))
}

/// A program that does nothing and succeeds (ELF for x86-64: exit(0)): the apt of a tree in which nothing can run.
const DOES_NOTHING: &str = "f0VMRgIBAQAAAAAAAAAAAAIAPgABAAAAeABAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAEAAOAABAAAAAAAAAAEAAAAFAAAAAAAAAAAAAAAAAEAAAAAAAAAAQAAAAAAAgQAAAAAAAACBAAAAAAAAAAAQAAAAAAAAuDwAAAAx/w8F";

/// The same, of a mirror in a directory of the test's own, with a small package that has `marker` in a file: its bootstrap
/// takes half a second.
pub fn small(dir: &Path, marker: &str) -> String {
    let apt = format!(
        "mkdir root/proc root/dev root/tmp; echo {DOES_NOTHING} | base64 -d > root/usr/bin/apt-get; \
         chmod 755 root/usr/bin/apt-get\n"
    );
    let script = TINY_MIRROR
        .replace("head -c 50M /dev/urandom >", &format!("echo {marker} >"))
        .replace("dpkg-deb -Znone", &format!("{apt}dpkg-deb -Znone"))
        .replace("sleep 0.3;", "")
        .replace("sleep 1000 & info", "info")
        .replace("; sleep 0.5;", ";");
    fs::create_dir_all(dir).unwrap();
    make(dir, &script);
    format!("suite = \"tiny\"\nboot = \"no\"\n{}", source_of(dir))
}

fn make(dir: &Path, script: &str) {
    let made = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", log_of(&made));
}

fn source_of(dir: &Path) -> String {
    format!("mirror = \"file://{0} {0}/script\"\nkeyring = \"{0}/keyring.gpg\"\n", dir.display())
}

/// Serves the files of a directory on this machine until the test ends, as a mirror and as a proxy for any host; the port.
pub fn serve(dir: PathBuf) -> u16 {
    serve_to(dir, None)
}

/// The same, for those alone who send this as `Authorization`.
pub fn serve_to(dir: PathBuf, authorization: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let dir = dir.clone();
            std::thread::spawn(move || answer(stream, &dir, authorization));
        }
    });
    port
}

/// Requests of one connection, one after the other.
fn answer(mut stream: TcpStream, dir: &Path, authorization: Option<&str>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let url = head.split(' ').nth(1).unwrap_or_default();
        // A proxy is asked for a whole URL.
        let path =
            url.split_once("://").map_or(url, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
        let found = fs::read(dir.join(path.trim_start_matches(['/', '.'])));
        let is_allowed =
            authorization.is_none_or(|words| head.contains(&format!("Authorization: {words}\r\n")));
        let (status, body) = match (is_allowed, found) {
            (true, Ok(bytes)) => ("200 OK", bytes),
            (true, Err(_)) => ("404 Not Found", Vec::new()),
            (false, _) => ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"", Vec::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}
