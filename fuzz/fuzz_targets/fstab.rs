//! fstab(5) of a guest that comes back on a new disk. The first byte chooses what the disk has.
#![no_main]

use ganeti_instance_debootstrap::filesystem::Filesystem;
use ganeti_instance_debootstrap::guest::Volumes;
use ganeti_instance_debootstrap::guest::fstab::repaired;
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|input: &[u8]| {
    let Some((choice, old)) = input.split_first() else { return };
    let filesystem =
        [Filesystem::Ext4, Filesystem::Ext3, Filesystem::Xfs, Filesystem::Btrfs][usize::from(choice & 3)];
    let volumes = Volumes {
        root: Uuid::from_u128(7),
        swap: (choice & 4 != 0).then(|| format!("UUID={}", Uuid::from_u128(8))),
        esp: (choice & 8 != 0).then(|| "UUID=0000-0009".to_owned()),
    };
    let new = repaired(old, filesystem, &volumes);
    assert!(repaired(&new, filesystem, &volumes) == new, "a second time changes nothing");

    // One root, by its new name.
    let roots: Vec<_> = lines(&new).filter(|fields| is_mount(fields) && fields[1] == b"/").collect();
    let name = format!("UUID={}", volumes.root);
    assert!(
        roots.len() == 1 && roots[0][0] == name.as_bytes() && roots[0][2] == filesystem.name().as_bytes()
    );

    // What is no volume of ours stays, in its order.
    let mut written = new.split(|byte| *byte == b'\n');
    for line in old.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = words(line);
        let may_change =
            is_mount(&fields) && (fields[1] == b"/" || fields[1] == b"/boot/efi" || fields[2] == b"swap");
        assert!(may_change || written.any(|found| found == line), "a line is lost");
    }
});

fn words(line: &[u8]) -> Vec<&[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|byte| *byte == b'\n').map(words)
}

fn is_mount(fields: &[&[u8]]) -> bool {
    fields.len() >= 3 && !fields[0].starts_with(b"#")
}
