//! What becomes of an export and of an import when the stream between them is cut, changed, or made to do harm, when a
//! disk is full or cannot be read, and when either side is killed: it ends with its reason, holds nothing, takes little
//! memory, and leaves nothing on the disk that anybody could take for a guest's. Needs root.

mod archive;
mod bench;
mod bombs;
mod claims;
mod full;
mod killed;

use crate::common::bytes::Numbers;
use crate::common::tool;
use archive::regions;
use bench::{Bench, MIB};

/// Where a stream is cut: at both ends of each of its parts, around them, and within.
fn cuts(bench: &Bench) -> Vec<(String, usize)> {
    let mut cuts = Vec::new();
    for region in regions(&bench.stream).into_iter().filter(|region| !region.range.is_empty()) {
        let (start, end) = (region.range.start, region.range.end);
        for at in [start, start + 1, (start + end) / 2, end - 1] {
            cuts.push((format!("cut in {} at {at}", region.name), at));
        }
    }
    let data = bench.region("the data");
    cuts.extend([10, 90].map(|percent| {
        let at = data.start + data.len() / 100 * percent;
        (format!("cut after {percent}% of the data, at {at}"), at)
    }));
    cuts.dedup_by_key(|(_, at)| *at);
    cuts
}

#[test]
fn a_stream_that_is_cut_leaves_nothing() {
    for bench in [Bench::bare(), Bench::divided()] {
        let cuts = cuts(&bench);
        assert!(cuts.len() >= 40, "{} cuts", cuts.len());
        for (what, at) in cuts {
            bench.assert_refused(&what, &bench.stream[..at], "error: ");
        }
    }
}

#[test]
fn a_failed_restore_is_wiped_unless_keep_failed_is_set() {
    let bench = Bench::divided();
    let cut = &bench.stream[..bench.region("the digest").start];
    // Of the btrfs: written before the failure, and within what a wipe removes.
    let range = 19 * MIB as usize..20 * MIB as usize;
    let restored = bench.reference[range.clone()].to_vec();
    assert!(restored.iter().any(|byte| *byte != 0));
    for (setting, kept, word) in [
        ("keep_failed = false\n", vec![0; range.len()], "the disk is wiped: nothing is installed on it"),
        ("keep_failed = true\n", restored, "keep_failed is set: the disk stays as it is"),
    ] {
        bench.node.config(setting);
        let target = bench.target();
        let ended = bench.import(&target, bench.feed(cut));
        bench.assert_failed(setting, &ended, &target, "error: ");
        assert!(ended.log.contains(word), "{}", ended.log);
        assert!(std::fs::read(&target).unwrap()[range.clone()] == kept, "{}", ended.log);
    }
}

/// Flips bits of a stream, the same ones each time, as many in each of its parts; says how many were not noticed.
fn flip_bits(bench: &Bench, of_each: u64, pack: impl Fn(&[u8]) -> Vec<u8>) {
    let mut numbers = Numbers(0x5eed);
    for region in regions(&bench.stream).into_iter().filter(|region| !region.range.is_empty()) {
        let refused = (0..of_each).filter(|_| {
            let at = region.range.start + numbers.below(region.range.len() as u64) as usize;
            let bit = 1 << numbers.below(8);
            let mut stream = bench.stream.clone();
            stream[at] ^= bit;
            bench.is_refused(&format!("bit {bit:#x} of byte {at}, in {}", region.name), &pack(&stream))
        });
        // Padding means nothing, behind a map neither, nor do two bytes of a header and a keyword that is not known.
        let free = match region.name {
            name if name.contains("padding") || name == "the map" => of_each,
            "the PAX records" => of_each.div_ceil(2),
            _ => of_each.div_ceil(4),
        };
        let refused = refused.count() as u64;
        assert!(refused + free >= of_each, "{}: {refused} of {of_each} are refused", region.name);
        assert!(!["the data", "the digest"].contains(&region.name) || refused == of_each, "{}", region.name);
    }
}

#[test]
fn a_changed_bit_is_refused_or_changes_nothing() {
    for bench in [Bench::bare(), Bench::divided()] {
        flip_bits(&bench, 2, <[u8]>::to_vec);
    }
}

#[test]
#[ignore = "run by make test-full"]
fn many_changed_bits_are_refused_or_change_nothing() {
    for bench in [Bench::bare(), Bench::divided()] {
        flip_bits(&bench, 20, <[u8]>::to_vec);
    }
}

/// The bytes as a tool packs them.
fn packed(bench: &Bench, with: &str, bytes: &[u8]) -> Vec<u8> {
    let path = bench.node.path().join("packed");
    std::fs::write(&path, bytes).unwrap();
    tool("sh", &["-c", &format!("{with} < {0} > {0}.out", path.display())]);
    std::fs::read(path.with_extension("out")).unwrap()
}

#[test]
fn a_packed_stream_is_refused_when_it_is_cut_or_changed_or_followed_by_anything() {
    let bench = Bench::bare();
    for with in ["gzip -1", "zstd -q -1", "xz -0"] {
        let whole = packed(&bench, with, &bench.stream);
        bench.assert_restored(with, &whole);
        // Where what is unpacked is right, and the frame around it is not.
        for cut in [1, 4, 9, whole.len() / 2, whole.len() - 7] {
            bench.assert_refused(
                &format!("{with} without {cut} bytes"),
                &whole[..whole.len() - cut],
                "error: ",
            );
        }
        let mut numbers = Numbers(0xbad);
        for _ in 0..6 {
            let (at, bit) = (numbers.below(whole.len() as u64) as usize, 1 << numbers.below(8));
            let mut changed = whole.clone();
            changed[at] ^= bit;
            bench.is_refused(&format!("{with}, bit {bit:#x} of byte {at}"), &changed);
        }
        for (what, more) in [("words", &b"more"[..]), ("a byte", b"\0"), ("itself", &whole)] {
            bench.assert_refused(&format!("{with}, followed by {what}"), &[&whole, more].concat(), "error: ");
        }
        // What is wrong inside is found through the packing.
        let at = bench.region("the data").start + 5000;
        let mut changed = bench.stream.clone();
        changed[at] ^= 1;
        bench.assert_refused(with, &packed(&bench, with, &changed), "the digest is wrong");
    }
}
