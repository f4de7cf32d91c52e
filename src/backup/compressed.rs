//! Owns how a stream is compressed: gzip, zstd and xz, told by their magic, read to their end, in
//! bounded memory. Must not know what is inside.

use std::io::{self, BufReader, Cursor, Read};

use anyhow::{Context, Result};

use crate::sys::signals;

/// What is read at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// The largest window, as a power of two: 32 MiB. zstd goes up to that without `--ultra` or
/// `--long`, xz up to its preset 8.
pub(super) const WINDOW_LOG_MAX: u32 = 25;

const WINDOW_BYTES_MAX: u64 = 1 << WINDOW_LOG_MAX;

/// What liblzma may take for itself: the window and its tables.
const XZ_BYTES_MAX: u64 = WINDOW_BYTES_MAX + 2 * 1024 * 1024;

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const XZ: &[u8] = b"\xfd7zXZ\0";

/// The plain bytes of `input`: as they are, or unpacked, told by the first bytes.
///
/// Several gzip members, zstd frames or xz streams one after the other are one stream. What is cut
/// short, damaged, or followed by anything else is an error of a later read, and so is a window
/// above 32 MiB.
pub fn plain(mut input: Box<dyn Read>) -> Result<Box<dyn Read>> {
    let first = peek(&mut input, XZ.len()).context("reading the start of the backup")?;
    let all = Cursor::new(first.clone()).chain(Heeding(input));
    let buffered = |all| BufReader::with_capacity(BUFFER_BYTES, all);
    Ok(if first.starts_with(GZIP) {
        Box::new(Explained { decoder: flate2::bufread::MultiGzDecoder::new(buffered(all)), format: "gzip" })
    } else if first.starts_with(ZSTD) {
        let mut decoder = zstd::Decoder::with_buffer(buffered(all)).context("preparing to unpack zstd")?;
        decoder.window_log_max(WINDOW_LOG_MAX).context("limiting the memory of zstd")?;
        Box::new(Explained { decoder, format: "zstd" })
    } else if first.starts_with(XZ) {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_BYTES_MAX, liblzma::stream::CONCATENATED)
            .context("preparing to unpack xz")?;
        let decoder = liblzma::bufread::XzDecoder::new_stream(buffered(all), stream);
        Box::new(Explained { decoder, format: "xz" })
    } else {
        Box::new(all)
    })
}

/// The first `length` bytes, or all if there are fewer.
pub(super) fn peek(input: &mut dyn Read, length: usize) -> io::Result<Vec<u8>> {
    let mut first = Vec::new();
    input.take(length as u64).read_to_end(&mut first)?;
    Ok(first)
}

/// Ends at a signal: a decoder reads on for as long as what comes unpacks to nothing.
struct Heeding<R>(R);

impl<R: Read> Read for Heeding<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        signals::check().map_err(io::Error::other)?;
        self.0.read(buffer)
    }
}

/// Adds to the errors of a decoder what they are about.
struct Explained<R> {
    decoder: R,
    format: &'static str,
}

impl<R: Read> Read for Explained<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind if wants_memory(&error) => {
                let limit =
                    format!("its window is larger than {} MiB, which is refused", WINDOW_BYTES_MAX >> 20);
                io::Error::new(kind, format!("unpacking {}: {limit}", self.format))
            }
            kind => io::Error::new(kind, format!("unpacking {}: {error}", self.format)),
        })
    }
}

/// Whether a decoder gave up at the limit that it was given. zstd's errors are texts only.
fn wants_memory(error: &io::Error) -> bool {
    let xz = error.get_ref().and_then(|inner| inner.downcast_ref::<liblzma::stream::Error>());
    matches!(xz, Some(liblzma::stream::Error::MemLimit)) || error.to_string().contains("too much memory")
}
