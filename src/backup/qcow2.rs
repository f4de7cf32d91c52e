//! Reads a qcow2 image, version 2 or 3, as QEMU's docs/interop/qcow2 specifies it: a disk on its own, without a backing file,
//! encryption or a data file beside it. Bounded, whoever made it.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

use super::compressed::WINDOW_LOG_MAX;
use crate::reader::ReadAt;
use crate::reader::integers::{be32, be64};
use crate::sys::signals;

pub const MAGIC: &[u8] = b"QFI\xfb";

const HEADER_BYTES: usize = 112;
/// Version 2 has no more.
const SHORT_HEADER_BYTES: usize = 72;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU has no more either: they are looked at one by one.
const L1_ENTRIES_MAX: u64 = 4 << 20;
/// Of an L1 or L2 entry: where it points to.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const SECTOR_BYTES: u64 = 512;
/// Fewer zeros are data: what they are written to is asked for each run of zeros.
const FEW_ZEROS_BYTES: u64 = 64 << 10;
/// Incompatible features that only say how well it was closed or packed: dirty, compression type.
const FEATURES_HARMLESS: u64 = 1 | 1 << 3;
/// Those that are refused, by their bits.
const FEATURES_REFUSED: [(u32, &str); 3] = [
    (1, "it is marked as corrupt; `qemu-img check -r all` may repair it"),
    (2, "its data lie in another file; `qemu-img convert` joins them"),
    (4, "it has subclusters (extended L2 entries); `qemu-img convert -O qcow2` makes one without"),
];

/// An image that is open.
pub struct Qcow2<'a> {
    file: &'a File,
    version: u32,
    cluster_bits: u32,
    size_bytes: u64,
    l1_at: u64,
    compression: Compression,
    inflate: RefCell<Decompress>,
    zstd: RefCell<zstd::stream::raw::Decoder<'static>>,
    /// The L2 table that was read last, by its index.
    l2: RefCell<(Option<u64>, Vec<u8>)>,
    /// The same of the cluster of which a part was read last: the next one is mostly of the same.
    last: RefCell<(Option<u64>, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

/// Where the bytes of a cluster are.
enum Cluster {
    Zero,
    At(u64),
    Compressed { at: u64, length: usize },
}

/// Some of the disk's bytes.
pub enum Piece<'p> {
    Data(&'p [u8]),
    /// So many zeros, 64 KiB at least.
    Zeros(u64),
}

impl Piece<'_> {
    fn zeros(length: u64) -> Piece<'static> {
        static ZEROS: [u8; FEW_ZEROS_BYTES as usize] = [0; FEW_ZEROS_BYTES as usize];
        if length < FEW_ZEROS_BYTES { Piece::Data(&ZEROS[..length as usize]) } else { Piece::Zeros(length) }
    }
}

impl<'a> Qcow2<'a> {
    /// Reads the header; an image that needs anything but itself is refused with what it needs.
    pub fn open(file: &'a File) -> Result<Qcow2<'a>> {
        let mut header = [0; HEADER_BYTES];
        let read = read_up_to(file, &mut header, 0).context("reading the header of the qcow2 image")?;
        ensure!(read >= SHORT_HEADER_BYTES && header.starts_with(MAGIC), "it is no whole qcow2 image");
        let (u32_at, u64_at) = (|at| be32(&header, at), |at| be64(&header, at));
        let version = u32_at(4);
        ensure!((2..=3).contains(&version), "the qcow2 image has version {version}; 2 and 3 are read");
        let features = if version == 3 { u64_at(72) } else { 0 };
        for (bit, why) in FEATURES_REFUSED {
            ensure!(features >> bit & 1 == 0, "the qcow2 image cannot be read: {why}");
        }
        let known = FEATURES_REFUSED.iter().fold(FEATURES_HARMLESS, |known, (bit, _)| known | 1 << bit);
        ensure!(features & !known == 0, "the qcow2 image has unknown features ({features:#x})");
        ensure!(
            u64_at(8) == 0,
            "the qcow2 image is a difference to a backing file; `qemu-img convert` makes a whole one"
        );
        ensure!(u32_at(32) == 0, "the qcow2 image is encrypted; `qemu-img convert` decrypts it");
        let has_compression_type = version == 3 && u32_at(100) > 104;
        let compression = match header[104] {
            _ if !has_compression_type => Compression::Deflate,
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            other => bail!("the qcow2 image has compression type {other}; 0 (zlib) and 1 (zstd) are read"),
        };
        let (cluster_bits, size_bytes) = (u32_at(20), u64_at(24));
        ensure!(
            CLUSTER_BITS.contains(&cluster_bits),
            "the qcow2 image has clusters of 2^{cluster_bits} bytes"
        );
        ensure!(size_bytes <= i64::MAX as u64, "the qcow2 image says that it has {size_bytes} bytes");
        let clusters = size_bytes.div_ceil(1 << cluster_bits);
        let l1_needed = clusters.div_ceil(1 << (cluster_bits - 3));
        ensure!(
            l1_needed <= L1_ENTRIES_MAX,
            "the qcow2 image has too small clusters for its size; `qemu-img convert` makes one with larger ones"
        );
        ensure!(u64::from(u32_at(36)) >= l1_needed, "the qcow2 image has too small a table for its size");
        let mut zstd = zstd::stream::raw::Decoder::new().context("preparing to unpack zstd")?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .context("limiting the memory of zstd")?;
        Ok(Qcow2 {
            file,
            version,
            cluster_bits,
            size_bytes,
            l1_at: u64_at(40),
            compression,
            inflate: RefCell::new(Decompress::new(false)),
            zstd: RefCell::new(zstd),
            l2: RefCell::new((None, Vec::new())),
            last: RefCell::new((None, Vec::new())),
        })
    }

    /// The size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Hands all of the disk to `take`, in its order and without a gap: offset and bytes.
    pub fn pieces(&self, mut take: impl FnMut(u64, Piece) -> Result<()>) -> Result<()> {
        let cluster_bytes = 1u64 << self.cluster_bits;
        let mut buffer = vec![0; cluster_bytes as usize];
        let mut zeros_from = None;
        let mut at = 0;
        while at < self.size_bytes {
            let mut length = cluster_bytes.min(self.size_bytes - at);
            match self.cluster(at >> self.cluster_bits)? {
                Cluster::Zero => {
                    zeros_from.get_or_insert(at);
                    if self.l2.borrow().1.is_empty() {
                        // All that the table would have told of is zeros.
                        let told_bytes = cluster_bytes << (self.cluster_bits - 3);
                        length = (told_bytes - at % told_bytes).min(self.size_bytes - at);
                    }
                }
                cluster => {
                    if let Some(from) = zeros_from.take() {
                        take(from, Piece::zeros(at - from))?;
                    }
                    self.read_cluster(&cluster, &mut buffer)
                        .with_context(|| format!("reading the qcow2 image's byte {at}"))?;
                    take(at, Piece::Data(&buffer[..length as usize]))?;
                }
            }
            at += length;
        }
        match zeros_from {
            Some(from) => take(from, Piece::zeros(at - from)),
            None => Ok(()),
        }
    }

    /// Where a cluster of the disk is.
    fn cluster(&self, index: u64) -> Result<Cluster> {
        let entries = 1u64 << (self.cluster_bits - 3);
        let (l1_index, l2_index) = (index / entries, index % entries);
        let mut cached = self.l2.borrow_mut();
        if cached.0 != Some(l1_index) {
            signals::check()?;
            let context = "reading the tables of the qcow2 image";
            let mut entry = [0; 8];
            let at = self.l1_at.checked_add(l1_index * 8).context(context)?;
            self.file.read_exact_at(&mut entry, at).context(context)?;
            let l2_at = be64(&entry, 0) & OFFSET_MASK;
            cached.0 = None;
            cached.1.clear();
            if l2_at != 0 {
                cached.1.resize(1 << self.cluster_bits, 0);
                self.file.read_exact_at(&mut cached.1, l2_at).context(context)?;
            }
            cached.0 = Some(l1_index);
        }
        if cached.1.is_empty() {
            return Ok(Cluster::Zero);
        }
        let at = l2_index as usize * 8;
        let entry = be64(&cached.1, at);
        if entry & COMPRESSED != 0 {
            // The low bits are the offset, those above count the sectors behind the first one.
            let offset_bits = 62 - (self.cluster_bits - 8);
            let at = entry & ((1 << offset_bits) - 1);
            let more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
            let length = (more_sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES;
            return Ok(Cluster::Compressed { at, length: length as usize });
        }
        Ok(match entry & OFFSET_MASK {
            _ if self.version == 3 && entry & ZERO != 0 => Cluster::Zero,
            0 => Cluster::Zero,
            at => Cluster::At(at),
        })
    }

    /// Fills a buffer of one cluster.
    fn read_cluster(&self, cluster: &Cluster, buffer: &mut [u8]) -> io::Result<()> {
        match *cluster {
            Cluster::Zero => buffer.fill(0),
            Cluster::At(at) => {
                // The last cluster of the file may be cut at the end of the disk.
                let read = read_up_to(self.file, buffer, at)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer[read..].fill(0);
            }
            Cluster::Compressed { at, length } => {
                let mut packed = vec![0; length];
                let read = read_up_to(self.file, &mut packed, at)?;
                match self.compression {
                    Compression::Deflate => self.inflate(&packed[..read], buffer)?,
                    Compression::Zstd => self.decompress_zstd(&packed[..read], buffer)?,
                }
            }
        }
        Ok(())
    }

    /// Fills a buffer from the start of a deflated stream, by the one decoder that there is: to make one costs more than a
    /// small cluster.
    fn inflate(&self, packed: &[u8], buffer: &mut [u8]) -> io::Result<()> {
        let mut inflate = self.inflate.borrow_mut();
        inflate.reset(false);
        let (mut taken, mut filled) = (0, 0);
        while filled < buffer.len() {
            let before = (taken, filled);
            inflate.decompress(&packed[taken..], &mut buffer[filled..], FlushDecompress::None)?;
            (taken, filled) = (inflate.total_in() as usize, inflate.total_out() as usize);
            if before == (taken, filled) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// The same from the start of a frame of zstd.
    fn decompress_zstd(&self, packed: &[u8], buffer: &mut [u8]) -> io::Result<()> {
        let mut zstd = self.zstd.borrow_mut();
        zstd.reinit()?;
        let length = buffer.len();
        let (mut input, mut output) = (InBuffer::around(packed), OutBuffer::around(buffer));
        while output.pos() < length {
            let before = (input.pos(), output.pos());
            let is_over = zstd.run(&mut input, &mut output)? == 0;
            let stands_still = before == (input.pos(), output.pos());
            if output.pos() < length && (is_over || stands_still) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

impl ReadAt for Qcow2<'_> {
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size_bytes);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let cluster_bytes = 1usize << self.cluster_bits;
        let mut last = self.last.borrow_mut();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = at as usize & (cluster_bytes - 1);
            let count = (cluster_bytes - within).min(buffer.len() - done);
            let index = at >> self.cluster_bits;
            if last.0 != Some(index) {
                let cluster = self.cluster(index).map_err(io::Error::other)?;
                last.0 = None;
                last.1.resize(cluster_bytes, 0);
                self.read_cluster(&cluster, &mut last.1)?;
                last.0 = Some(index);
            }
            buffer[done..done + count].copy_from_slice(&last.1[within..within + count]);
            done += count;
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
