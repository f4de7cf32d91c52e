//! A suite of a test's own, whose bootstrap takes seconds and no network.

use std::process::Command;

use super::log_of;
use super::trees::shared;

/// A mirror of one package that makes a tree of 50 MiB, with a debootstrap script for it: a bootstrap of seconds. The
/// second stage leaves a process behind.
const TINY_MIRROR: &str = r#"set -e
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
printf 'Origin: test\nSuite: tiny\nCodename: tiny\nArchitectures: amd64\nComponents: main\nSHA256:\n %s %s %s\n' \
  "$(sum dists/tiny/$index)" "$(size dists/tiny/$index)" $index > dists/tiny/Release
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
    let dir = shared("tiny-mirror", TINY_MIRROR, |dir| {
        let made = Command::new("sh").args(["-c", TINY_MIRROR]).current_dir(dir).output().unwrap();
        assert!(made.status.success(), "{}", log_of(&made));
    });
    format!("suite = \"tiny\"\nboot = \"no\"\nmirror = \"file://{0} {0}/script\"\n", dir.display())
}
