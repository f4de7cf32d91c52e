//! Files of a guest's tree that name its disks, when it becomes another guest. Parts are separated by lines `%%`: the first line
//! of each is the path of a file, the rest its content.
#![no_main]

#[path = "../common/tree.rs"]
mod tree;

use std::cell::Cell;
use std::path::{Component, Path};

use ganeti_instance_debootstrap::disk::Reidentify;
use ganeti_instance_debootstrap::filesystem::Filesystem;
use ganeti_instance_debootstrap::guest::references;
use ganeti_instance_debootstrap::partition_table::TableKind;
use ganeti_instance_debootstrap::probe::{Content, Fat, Part, Survey, Volume};
use ganeti_instance_debootstrap::rootdir::RootDir;
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// What is read of all of them together.
const READ_BYTES_MAX: usize = 8 << 20;
/// The root of the seeds, and the signature of their table.
const ROOT: Uuid = Uuid::from_u128(0xb5a7_0c8f_0000_4000_8000_0123_4567_89ab);
const SIGNATURE: [u8; 4] = 0x1234_abcd_u32.to_le_bytes();
const VOLUME: u32 = 0x00ab_12cd;

fuzz_target!(|input: &[u8]| {
    let renewal = renewal();
    tree::with_tree(|root| {
        let files = written(root, input);
        let read_bytes = Cell::new(0);
        let rewritten = references::rewrite(root, |text, mounts| {
            read_bytes.set(read_bytes.get() + text.len());
            let new = renewal.text(text, mounts);
            assert_eq!(new.len(), text.len(), "an identifier keeps its length");
            let root = ROOT.to_string();
            assert!(!new.windows(root.len()).any(|word| word.eq_ignore_ascii_case(root.as_bytes())));
            new
        });
        assert!(read_bytes.get() <= READ_BYTES_MAX, "{} bytes were read", read_bytes.get());
        if let Err(refusal) = rewritten {
            assert!(!format!("{refusal:#}").is_empty());
        }
        for (path, length) in files {
            let file = root.read(&path, MIB).expect("a file that was written").expect("it");
            assert_eq!(file.len(), length, "{path}");
        }
    });
});

/// A disk with an MBR, a root and an EFI system partition.
fn renewal() -> Reidentify {
    let file = tempfile();
    let mut renewal = Reidentify::new("web.example.com", false);
    let part = |number: u32, content: Content| {
        let start_bytes = u64::from(number) * MIB;
        Part { number: Some(number), start_bytes, size_bytes: MIB, content }
    };
    let root = Volume { filesystem: Filesystem::Ext4, uuid: ROOT, metadata_uuid: None };
    let esp = Fat { volume: VOLUME, volume_at: 0x43, copy_at: None };
    let parts = vec![part(1, Content::Filesystem(root)), part(2, Content::Fat(esp))];
    let survey = Survey { table: Some(TableKind::Msdos), parts };
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&SIGNATURE);
    renewal.table(&file, 4 * MIB, &survey, &mut sector).expect("a table");
    survey.parts.iter().for_each(|part| renewal.part(&file, part).expect("a part"));
    renewal
}

fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("fuzz-references-{}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .expect("a file");
    std::fs::remove_file(&path).expect("a file without a name");
    file.set_len(4 * MIB).expect("its size");
    file
}

/// Writes what can be written; paths and lengths, the last ones of each path.
fn written(root: &RootDir, input: &[u8]) -> Vec<(String, usize)> {
    let mut files: Vec<(String, usize)> = Vec::new();
    for part in parts(input) {
        let mut lines = part.splitn(2, |byte| *byte == b'\n');
        let (path, content) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let Ok(path) = std::str::from_utf8(path) else { continue };
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || path.contains('\0') {
            continue;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            if root.create_dir_all(parent, 0o755).is_err() {
                continue;
            }
        }
        if root.write(path, content, 0o644).is_ok() {
            files.retain(|(other, _)| Path::new(other) != Path::new(path));
            files.push((path.to_owned(), content.len()));
        }
    }
    files
}

fn parts(input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(4).position(|window| window == b"\n%%\n") {
        parts.push(&rest[..at]);
        rest = &rest[at + 4..];
    }
    parts.push(rest);
    parts
}
