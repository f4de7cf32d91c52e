//! A backup by dump(8), restored to a real tree. Checksums of headers are made right first.
#![no_main]

#[path = "../common/tree.rs"]
mod tree;

use ganeti_instance_debootstrap::backup::dump;
use ganeti_instance_debootstrap::reader::Budget;
use libfuzzer_sys::fuzz_target;

const RECORD_BYTES: usize = 1024;
const MAGIC_AT: usize = 24;
const CHECKSUM_AT: usize = 28;
const MAGIC: [u8; 4] = 60012_u32.to_le_bytes();
/// What the words of a header add up to.
const CHECKSUM: u32 = 84446;

fuzz_target!(|input: &[u8]| {
    let mut stream = input.to_vec();
    for record in stream.chunks_exact_mut(RECORD_BYTES) {
        if record[MAGIC_AT..MAGIC_AT + 4] == MAGIC {
            make_checksum_right(record);
        }
    }
    let budget = Budget::of_stream(tree::SIZE_BYTES);
    tree::with_tree(|root| {
        if let Err(refusal) = dump::restore(&mut stream.as_slice(), root, &budget) {
            assert!(!format!("{refusal:#}").is_empty());
        }
    });
    let (spent, limit) = (budget.spent(), budget.limit());
    assert!(spent.bytes <= limit.bytes && spent.records <= limit.records, "{spent:?} of {limit:?}");
});

fn make_checksum_right(record: &mut [u8]) {
    record[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let words = record.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
    let sum = words.fold(0_u32, u32::wrapping_add);
    record[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&CHECKSUM.wrapping_sub(sum).to_le_bytes());
}
