//! A qcow2 image: all of its disk in order and without a gap, and the table on it.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use ganeti_instance_debootstrap::backup::qcow2::{Piece, Qcow2};
use ganeti_instance_debootstrap::partition_table;
use ganeti_instance_debootstrap::reader::{Budget, ReadAt, Region};
use libfuzzer_sys::fuzz_target;

/// Of the disk that it would come on.
const DISK_BYTES: u64 = 8 << 20;
const SECTOR: u64 = 512;

fuzz_target!(|input: &[u8]| {
    let file = file_of(input);
    let image = match Qcow2::open(&file) {
        Ok(image) => image,
        Err(refusal) => return assert!(!format!("{refusal:#}").is_empty()),
    };
    let size = image.size_bytes();
    if size > DISK_BYTES {
        return;
    }
    let (mut end, mut pieces) = (0, 0);
    let read = image.pieces(|offset, piece| {
        assert_eq!(offset, end, "no gap");
        end += match piece {
            Piece::Data(bytes) => {
                assert!(!bytes.is_empty());
                compare(&image, offset, bytes);
                bytes.len() as u64
            }
            Piece::Zeros(length) => length,
        };
        assert!(end <= size, "a piece lies on the disk");
        pieces += 1;
        Ok(())
    });
    assert!(read.is_err() || end == size, "all of the disk");
    assert!(pieces <= size.div_ceil(SECTOR), "{pieces} pieces of {size} bytes");
    let budget = Budget::of_disk(size);
    let _ = partition_table::read(&Region::new(&image, &budget, 0, size));
});

/// What is read anywhere is what comes in order.
fn compare(image: &Qcow2<'_>, offset: u64, bytes: &[u8]) {
    let within = bytes.len() / 2;
    let mut some = vec![0; (bytes.len() - within).min(700)];
    image.read_into(&mut some, offset + within as u64).expect("what was read before");
    assert!(some == bytes[within..within + some.len()]);
}

/// Without a name, in memory.
fn file_of(input: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("fuzz-qcow2-{}", std::process::id()));
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("a file without a name");
    file.write_all_at(input, 0).expect("its content");
    file
}
