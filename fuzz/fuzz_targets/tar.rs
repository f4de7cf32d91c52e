//! A tar of a root tree, unpacked to a real one. Checksums of headers are made right first.
#![no_main]

#[path = "../common/tree.rs"]
mod tree;

use ganeti_instance_debootstrap::reader::Budget;
use ganeti_instance_debootstrap::tar;
use libfuzzer_sys::fuzz_target;

const BLOCK_BYTES: usize = 512;
const CHECKSUM_AT: usize = 148;
const MAGIC_AT: usize = 257;

fuzz_target!(|input: &[u8]| {
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(BLOCK_BYTES) {
        if block[MAGIC_AT..].starts_with(b"ustar") {
            make_checksum_right(block);
        }
    }
    let budget = Budget::of_stream(tree::SIZE_BYTES);
    let mut left = archive.as_slice();
    tree::with_tree(|root| match tar::unpack(&mut left, root, &budget) {
        Ok(stats) => assert!(stats.entries <= (archive.len() / BLOCK_BYTES) as u64),
        Err(refusal) => assert!(!format!("{refusal:#}").is_empty()),
    });
    let (spent, limit) = (budget.spent(), budget.limit());
    assert_eq!(spent.bytes, (archive.len() - left.len()) as u64, "what is read is spent");
    assert!(spent.bytes <= limit.bytes && spent.records <= limit.records, "{spent:?} of {limit:?}");
});

fn make_checksum_right(header: &mut [u8]) {
    header[CHECKSUM_AT..CHECKSUM_AT + 8].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
