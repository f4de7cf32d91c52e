//! fstab(5): written for a new guest, and repaired in one that comes back on a new disk.

use anyhow::{Context, Result};

use super::Volumes;
use crate::filesystem::Filesystem;
use crate::rootdir::{Kind, RootDir};

/// Where it is.
pub const PATH: &str = "etc/fstab";
const MAX_BYTES: u64 = 1 << 20;
const HEAD: &str = "# <file system> <mount point> <type> <options> <dump> <pass>\n";

/// The volumes of a new disk, and nothing else.
pub fn write(root: &RootDir, filesystem: Filesystem, volumes: &Volumes) -> Result<()> {
    if volumes.esp.is_some() {
        root.create_dir_all("boot/efi", 0o755)?;
    }
    let lines: String = own_lines(filesystem, volumes).into_iter().map(|line| line.text).collect();
    root.write(PATH, format!("{HEAD}{lines}").as_bytes(), 0o644)
}

/// Names the volumes of the new disk in the place of those that were there; all other lines stay as they are.
pub fn repair(root: &RootDir, filesystem: Filesystem, volumes: &Volumes) -> Result<()> {
    let Some(old) = root.read(PATH, MAX_BYTES).context("repairing fstab")? else {
        return write(root, filesystem, volumes);
    };
    if volumes.esp.is_some() {
        root.create_dir_all("boot/efi", 0o755)?;
    }
    let repaired = repaired(&old, filesystem, volumes);
    match root.kind(PATH)? {
        _ if repaired == old => Ok(()),
        Some(Kind::File) => root.rewrite(PATH, &repaired),
        // A link is replaced by a file.
        _ => root.write(PATH, &repaired, 0o644),
    }
}

/// A line of ours, and which line it takes the place of.
struct OwnLine {
    mount_point: &'static str,
    /// Where many lines have that mount point.
    kind: &'static str,
    text: String,
}

/// The root by its UUID, the EFI system partition and swap where the disk has them.
fn own_lines(filesystem: Filesystem, volumes: &Volumes) -> Vec<OwnLine> {
    let (options, pass) = if filesystem.is_ext() { ("errors=remount-ro", 1) } else { ("defaults", 0) };
    let root = format!("UUID={} / {filesystem} {options} 0 {pass}\n", volumes.root);
    let mut lines = vec![OwnLine { mount_point: "/", kind: "", text: root }];
    if let Some(esp) = &volumes.esp {
        // Only an upgrade of the loader needs it: a guest comes up without.
        let text = format!("{esp} /boot/efi vfat umask=0077,nofail 0 0\n");
        lines.push(OwnLine { mount_point: "/boot/efi", kind: "", text });
    }
    if let Some(swap) = &volumes.swap {
        lines.push(OwnLine { mount_point: "none", kind: "swap", text: format!("{swap} none swap sw 0 0\n") });
    }
    lines
}

/// fstab(5) with our lines; the first line of each kind is replaced, one that is missing goes to the end, and what
/// would be mounted in its place besides goes away. The root keeps its options while its type does.
pub fn repaired(old: &[u8], filesystem: Filesystem, volumes: &Volumes) -> Vec<u8> {
    let own_lines = own_lines(filesystem, volumes);
    let mut written = vec![false; own_lines.len()];
    let mut new = Vec::with_capacity(old.len() + 256);
    for line in old.split_inclusive(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> =
            line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).take(6).collect();
        let replaces = |own: &OwnLine| {
            let (Some(point), Some(kind)) = (fields.get(1), fields.get(2)) else { return false };
            let commented = fields[0].starts_with(b"#");
            // A swap file came along with the tree.
            let device =
                own.kind.is_empty() || !fields[0].starts_with(b"/") || fields[0].starts_with(b"/dev/");
            let same = match own.kind {
                "" => *point == own.mount_point.as_bytes(),
                wanted => *kind == wanted.as_bytes(),
            };
            same && !commented && device
        };
        let Some(index) = own_lines.iter().position(replaces) else {
            new.extend_from_slice(line);
            continue;
        };
        if !std::mem::replace(&mut written[index], true) {
            new.extend_from_slice(&with_options(own_lines[index].text.as_bytes(), &fields, filesystem));
        }
    }
    for (own, _) in own_lines.iter().zip(written).filter(|(_, written)| !written) {
        if !new.is_empty() && !new.ends_with(b"\n") {
            new.push(b'\n');
        }
        new.extend_from_slice(own.text.as_bytes());
    }
    new
}

/// Our line with the options of the one that it replaces, where they are those of the same kind of filesystem.
fn with_options(own: &[u8], old: &[&[u8]], filesystem: Filesystem) -> Vec<u8> {
    let [_, b"/", kind, options, ..] = old else { return own.to_vec() };
    let is_ext = [&b"ext2"[..], b"ext3", b"ext4"].contains(kind);
    let same = if filesystem.is_ext() { is_ext } else { *kind == filesystem.name().as_bytes() };
    let mut fields: Vec<&[u8]> = own.trim_ascii_end().split(|byte| *byte == b' ').collect();
    if same && fields.len() == 6 {
        fields[3] = options;
    }
    let mut line = fields.join(&b' ');
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const ROOT: &str = "UUID=00000000-0000-0000-0000-000000000007";

    fn repair_text(old: &str, filesystem: Filesystem, swap: Option<&str>, esp: Option<&str>) -> String {
        let volumes =
            Volumes { root: Uuid::from_u128(7), swap: swap.map(str::to_owned), esp: esp.map(str::to_owned) };
        let new = repaired(old.as_bytes(), filesystem, &volumes);
        assert_eq!(repaired(&new, filesystem, &volumes), new, "again");
        String::from_utf8(new).unwrap()
    }

    #[test]
    fn the_root_is_named_by_its_new_uuid_and_other_lines_stay() {
        let old = "# /etc/fstab\n\nUUID=old\t/\text3\tnoatime,errors=remount-ro 0 1\nproc /proc proc defaults 0 0\nnas:/x /srv nfs ro 0 0";
        assert_eq!(
            repair_text(old, Filesystem::Ext4, None, None),
            format!(
                "# /etc/fstab\n\n{ROOT} / ext4 noatime,errors=remount-ro 0 1\nproc /proc proc defaults 0 0\nnas:/x /srv nfs ro 0 0"
            )
        );
        assert_eq!(
            repair_text("/dev/sda1 / ext4 errors=remount-ro 0 1\n", Filesystem::Xfs, None, None),
            format!("{ROOT} / xfs defaults 0 0\n")
        );
    }

    #[test]
    fn what_is_missing_is_added_and_what_is_there_twice_goes() {
        assert_eq!(
            repair_text("proc /proc proc defaults 0 0", Filesystem::Ext4, Some("UUID=s"), None),
            format!(
                "proc /proc proc defaults 0 0\n{ROOT} / ext4 errors=remount-ro 0 1\nUUID=s none swap sw 0 0\n"
            )
        );
        let old = "/dev/sda1 / ext4 defaults 0 1\n/dev/vda1 / ext4 defaults 0 1\n# /dev/sdb none swap sw 0 0\n\
                   /dev/sdb none swap sw,pri=1 0 0\n/swapfile none swap sw 0 0\nUUID=AB /boot/efi vfat ro 0 0\n";
        assert_eq!(
            repair_text(old, Filesystem::Ext4, Some("UUID=s"), Some("UUID=12-34")),
            format!(
                "{ROOT} / ext4 defaults 0 1\n# /dev/sdb none swap sw 0 0\nUUID=s none swap sw 0 0\n\
                 /swapfile none swap sw 0 0\nUUID=12-34 /boot/efi vfat umask=0077,nofail 0 0\n"
            )
        );
        let swap_only = "/dev/sdb none swap sw 0 0\n/dev/sda1 / ext4 defaults 0 1\n";
        assert!(
            repair_text(swap_only, Filesystem::Ext4, None, None).starts_with("/dev/sdb none swap sw 0 0\n")
        );
    }
}
