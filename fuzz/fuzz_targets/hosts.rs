//! /etc/hosts of a guest, edited: the first line is the guest's name, the rest is the old file.
#![no_main]

use ganeti_instance_debootstrap::guest::edit_hosts;
use ganeti_instance_debootstrap::request::InstanceName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (name, old) = input.split_once('\n').unwrap_or((input, ""));
    let Some(name) = InstanceName::parse(name) else { return };
    let new = edit_hosts(old, &name);
    assert_eq!(edit_hosts(&new, &name), new, "a second time changes nothing");

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
});
