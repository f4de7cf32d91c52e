//! A disk's archive as export writes it, or anything else that a backup can be: opened, and what is an archive read to its
//! end. Checksums of headers are made right first.
#![no_main]

use std::io::Cursor;

use ganeti_instance_debootstrap::backup::disk_archive::Image;
use ganeti_instance_debootstrap::backup::{self, Source};
use ganeti_instance_debootstrap::reader::Budget;
use libfuzzer_sys::fuzz_target;

const BLOCK_BYTES: usize = 512;
const CHECKSUM_AT: usize = 148;
const MAGIC_AT: usize = 257;
/// Of the disk that it would come on.
const DISK_BYTES: u64 = 64 << 20;

fuzz_target!(|input: &[u8]| {
    let mut stream = input.to_vec();
    for block in stream.chunks_exact_mut(BLOCK_BYTES) {
        if block[MAGIC_AT..].starts_with(b"ustar") {
            make_checksum_right(block);
        }
    }
    let length = stream.len() as u64;
    let mut source = match backup::open(Box::new(Cursor::new(stream))) {
        Ok(Source::Image(source)) => source,
        Ok(_) => return,
        Err(refusal) => return assert!(!format!("{refusal:#}").is_empty()),
    };
    let budget = Budget::of_stream(DISK_BYTES);
    let Ok(mut image) = Image::open(&mut source, &budget) else { return };
    let size = image.manifest.disk.size_bytes;
    let runs: Vec<(u64, u64)> = image.runs().collect();
    let mut end = 0;
    for (offset, length) in &runs {
        assert!(*offset >= end && *length > 0, "runs ascend");
        end = offset + length;
    }
    assert!(end <= size, "runs lie on the disk");
    let (mut pieces, mut room) = (0, vec![0; 10_000]);
    let wanted: u64 = runs.iter().map(|(_, length)| length).sum();
    let read = loop {
        if pieces == wanted {
            break Ok(());
        }
        let most = (wanted - pieces).min(room.len() as u64) as usize;
        match image.read(&mut room[..most]) {
            Ok(count) => {
                assert!((1..=most).contains(&count), "some of what is there, and no more");
                pieces += count as u64;
            }
            Err(refusal) => break Err(refusal),
        }
    };
    // What is packed can hold more than its bytes, what is not can not.
    assert!(pieces <= length || !input.starts_with(b"instance.toml"), "data is what was read");
    if read.is_ok() {
        let _ = image.finish();
    }
    let (spent, limit) = (budget.spent(), budget.limit());
    assert!(spent.bytes <= limit.bytes && spent.records <= limit.records, "{spent:?} of {limit:?}");
});

fn make_checksum_right(header: &mut [u8]) {
    header[CHECKSUM_AT..CHECKSUM_AT + 8].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
