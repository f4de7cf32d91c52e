//! qcow2 images whose tables lead to one cluster again and again, and disks' archives in tiny pieces.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use ganeti_instance_debootstrap::backup::disk_archive::Manifest;
use ganeti_instance_debootstrap::backup::qcow2::{Piece, Qcow2};

use super::MIB;

/// The smallest clusters that there are.
const CLUSTER_BITS: u32 = 9;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const COMPRESSED: u64 = 1 << 62;

/// An image with clusters of 512 bytes, with one table for all of them, and what its entries are: one after the other.
fn image(size: u64, zstd: bool, entries: &[u64], data: &[u8]) -> File {
    let clusters = size / CLUSTER;
    let tables = clusters / (CLUSTER / 8);
    let mut bytes = vec![0; CLUSTER as usize];
    let header = [(4, 3), (20, CLUSTER_BITS), (36, tables as u32), (96, 4), (100, 112)];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    header.into_iter().for_each(|(at, number)| bytes[at..at + 4].copy_from_slice(&number.to_be_bytes()));
    bytes[24..32].copy_from_slice(&size.to_be_bytes());
    bytes[40..48].copy_from_slice(&(3 * CLUSTER).to_be_bytes());
    if zstd {
        bytes[72..80].copy_from_slice(&8u64.to_be_bytes());
        bytes[104] = 1;
    }
    // The table of all, what its entries lead to, and the table of tables.
    let table = entries.iter().cycle().take(CLUSTER as usize / 8);
    bytes.extend(table.flat_map(|entry| entry.to_be_bytes()));
    bytes.extend(data);
    bytes.resize(3 * CLUSTER as usize, 0);
    bytes.extend(CLUSTER.to_be_bytes().repeat(tables as usize));
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

/// How many pieces an image has, and how many of their bytes are data.
fn pieces(file: &File) -> (u64, u64) {
    let (mut pieces, mut data_bytes) = (0, 0);
    let image = Qcow2::open(file).unwrap();
    let mut end = 0;
    image
        .pieces(|offset, piece| {
            assert_eq!(offset, end, "a gap");
            pieces += 1;
            end += match piece {
                Piece::Data(bytes) => {
                    data_bytes += bytes.len() as u64;
                    bytes.len() as u64
                }
                Piece::Zeros(length) => length,
            };
            Ok(())
        })
        .unwrap();
    assert_eq!(end, image.size_bytes());
    (pieces, data_bytes)
}

/// 512 bytes, deflated and as a frame of zstd that claims a large window.
fn packed() -> [Vec<u8>; 2] {
    let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    deflated.write_all(&[7; CLUSTER as usize]).unwrap();
    let mut frame = zstd::Encoder::new(Vec::new(), 3).unwrap();
    frame.window_log(25).unwrap();
    frame.include_contentsize(false).unwrap();
    frame.write_all(&[7; CLUSTER as usize]).unwrap();
    [deflated.finish().unwrap(), frame.finish().unwrap()]
}

#[test]
fn an_image_has_no_more_pieces_than_clusters_and_no_short_runs_of_zeros() {
    let clusters = 4 * MIB / CLUSTER;
    let [deflated, frame] = packed();
    let (plain, far) = (2 * CLUSTER, COMPRESSED | (2 * CLUSTER));
    for (what, zstd, entries, data, expected) in [
        ("one cluster for all", false, vec![plain], &[7; 512][..], (clusters, 4 * MIB)),
        ("a cluster, and none", false, vec![plain, 0], &[7; 512], (clusters, 4 * MIB)),
        ("nothing", false, vec![0], &[7; 512], (1, 0)),
        ("one deflated cluster for all", false, vec![far], &deflated, (clusters, 4 * MIB)),
        ("one packed by zstd", true, vec![far], &frame, (clusters, 4 * MIB)),
    ] {
        assert_eq!(pieces(&image(4 * MIB, zstd, &entries, data)), expected, "{what}");
    }
}

#[test]
fn a_disk_has_no_more_ranges_of_zeros_than_sectors() {
    let manifest = |count: u64| {
        let ranges: String = (0..count).map(|n| format!("[{n}, 1],")).collect();
        format!(
            "format = 1\nprogram = \"\"\n[disk]\nindex = 0\nsize_bytes = 4194304\nsector_bytes = 512\n\
             layout = \"none\"\nused_bytes = 0\nzero = [{ranges}]\n"
        )
    };
    assert!(Manifest::parse(manifest(8192).as_bytes()).is_ok());
    let refused = Manifest::parse(manifest(8193).as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("too many ranges of zeros"), "{refused}");
}
