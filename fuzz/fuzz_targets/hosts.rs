//! /etc/hosts of a guest, written and renamed in: the first line is the guest's name, behind a blank the old one where
//! there is one, the rest is the file.
#![no_main]

use ganeti_instance_debootstrap::guest::{edit_hosts, rename_in_hosts};
use ganeti_instance_debootstrap::request::InstanceName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (names, old) = input.split_once('\n').unwrap_or((input, ""));
    let (name, old_name) = names.split_once(' ').unwrap_or((names, "golden.example.org"));
    let (Some(name), Some(old_name)) = (InstanceName::parse(name), InstanceName::parse(old_name)) else {
        return;
    };
    written(old, &name);
    renamed(old, &old_name, &name);
});

fn written(old: &str, name: &InstanceName) {
    let new = edit_hosts(old, name);
    assert_eq!(edit_hosts(&new, name), new, "a second time changes nothing");

    let address = |line: &&str| line.split_ascii_whitespace().next() == Some("127.0.1.1");
    let own: Vec<&str> = new.lines().filter(address).collect();
    assert_eq!(own.len(), 1, "one line for the guest itself");
    let names: Vec<&str> = own[0].split_ascii_whitespace().skip(1).collect();
    assert!(names.contains(&name.full()) && names.contains(&name.short()));

    // The others stay, but for carriage returns, in their order; what was missing is put around them.
    let mut written = new.lines();
    for line in old.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !address(line)) {
        assert!(written.any(|found| found == line), "{line:?} is lost");
    }
    for needed in ["127.0.0.1", "::1"] {
        assert!(new.lines().any(|line| line.split_ascii_whitespace().next() == Some(needed)), "{needed}");
    }
}

fn renamed(old: &str, old_name: &InstanceName, name: &InstanceName) {
    let renamed =
        |text: &[u8]| rename_in_hosts(text, old_name, name).expect("a short text stays short enough");
    let new = renamed(old.as_bytes());
    assert_eq!(renamed(&new), new, "a second time changes nothing");
    let new = std::str::from_utf8(&new).expect("text stays text");

    // A line stays a line, with its address and its comment; one may be added.
    let mut after = new.split('\n');
    for line in old.split_terminator('\n') {
        let found = after.next().expect("no line is lost");
        let address = |line: &str| line.split_ascii_whitespace().next().map(str::to_owned);
        assert_eq!(address(found), address(line));
        assert_eq!(
            found.split_once('#').map(|(_, comment)| comment),
            line.split_once('#').map(|(_, comment)| comment)
        );
    }
    assert!(after.count() <= 2);
}
