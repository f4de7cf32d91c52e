//! Owns the byte stream that is packed: headers with the extended headers that they need, data
//! padded to blocks, one large buffer that files are read into directly. Must not know where the
//! data comes from.

use std::io::{ErrorKind, Write};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::{Errno, read};

use super::header::Header;
use super::pax::{Time, push_mtime};
use super::pax_record::{push, push_number};
use super::{BUFFER_BYTES, CHECKPOINT_BYTES, Checkpoint, PAX_BYTES_MAX, padding, shown};

/// The fields of one entry.
pub(crate) struct Member<'a> {
    /// The type flag of its header.
    pub(crate) kind: u8,
    pub(crate) path: &'a [u8],
    /// Target of a hard or symbolic link, else empty.
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Bytes that follow in the archive, before padding.
    pub(crate) size_bytes: u64,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
}

/// An archive being written.
pub(crate) struct Output<'a> {
    sink: &'a mut dyn Write,
    checkpoint: Checkpoint<'a>,
    unchecked_bytes: u64,
    written_bytes: u64,
    buffer: Vec<u8>,
    filled: usize,
}

impl<'a> Output<'a> {
    pub(crate) fn new(sink: &'a mut dyn Write, checkpoint: Checkpoint<'a>) -> Output<'a> {
        let buffer = vec![0; BUFFER_BYTES];
        Output { sink, checkpoint, unchecked_bytes: 0, written_bytes: 0, buffer, filled: 0 }
    }

    /// Writes the header of `member`; `records` are pax records that it needs besides those for its
    /// fields.
    pub(crate) fn member(&mut self, member: &Member<'_>, records: &[u8]) -> Result<()> {
        let mut header = Header::new(member.kind);
        let mut extended = Vec::new();
        // Names that are no ASCII mean bytes to us, but UTF-8 to a pax reader: it is told which
        // ones are not.
        let unicode = [member.path, member.link].iter().all(|name| std::str::from_utf8(name).is_ok());
        if !unicode {
            push(&mut extended, b"hdrcharset", b"BINARY");
        }
        if !header.set_name(member.path) || !member.path.is_ascii() {
            push(&mut extended, b"path", member.path);
        }
        if !header.set_link(member.link) || !member.link.is_ascii() {
            push(&mut extended, b"linkpath", member.link);
        }
        if !header.set_size(member.size_bytes) {
            push_number(&mut extended, "size", member.size_bytes);
        }
        if !header.set_uid(member.uid) {
            push_number(&mut extended, "uid", member.uid.into());
        }
        if !header.set_gid(member.gid) {
            push_number(&mut extended, "gid", member.gid.into());
        }
        if !header.set_mtime(member.mtime.seconds) || member.mtime.nanoseconds != 0 {
            push_mtime(&mut extended, member.mtime);
        }
        header.set_mode(member.mode);
        header.set_device(member.device.0, member.device.1);
        extended.extend_from_slice(records);
        if !extended.is_empty() {
            self.extended(member.path, &extended)?;
        }
        self.bytes(&header.finish())
    }

    /// Appends `bytes` as they are.
    pub(crate) fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let length = room.len().min(bytes.len());
            room[..length].copy_from_slice(&bytes[..length]);
            self.add(length)?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Appends `length_bytes` of the open file `file` from where it stands; an error if it ends
    /// before.
    pub(crate) fn file(&mut self, file: BorrowedFd<'_>, length_bytes: u64) -> Result<()> {
        let mut left = length_bytes;
        while left > 0 {
            let room = self.room()?;
            let wanted = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match read(file, &mut room[..wanted]) {
                Ok(0) => bail!("it became shorter while it was read"),
                Ok(length) => {
                    self.add(length)?;
                    left -= length as u64;
                }
                Err(Errno::INTR) => (self.checkpoint)()?,
                Err(error) => return Err(error).context("reading its data"),
            }
        }
        Ok(())
    }

    /// Fills up the last block of `size_bytes` of data.
    pub(crate) fn pad(&mut self, size_bytes: u64) -> Result<()> {
        const ZEROS: [u8; super::BLOCK] = [0; super::BLOCK];
        self.bytes(&ZEROS[..padding(size_bytes) as usize])
    }

    /// Ends the archive, and says how long it is.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.bytes(&[0; 2 * super::BLOCK])?;
        self.flush()?;
        self.sink.flush().context("writing the archive")?;
        Ok(self.written_bytes)
    }

    /// The extended header of the entry `path`.
    fn extended(&mut self, path: &[u8], records: &[u8]) -> Result<()> {
        let size = records.len() as u64;
        ensure!(
            size <= PAX_BYTES_MAX,
            "the attributes of {} are more than {PAX_BYTES_MAX} bytes",
            shown(path)
        );
        let mut header = Header::new(b'x');
        let last = path.split(|&byte| byte == b'/').rfind(|part| !part.is_empty());
        let mut name = [b"./PaxHeaders/", last.unwrap_or(b".")].concat();
        name.truncate(100);
        header.set_name(&name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        self.bytes(&header.finish())?;
        self.bytes(records)?;
        self.pad(size)
    }

    /// What is free in the buffer: never nothing.
    fn room(&mut self) -> Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn add(&mut self, length: usize) -> Result<()> {
        self.filled += length;
        self.unchecked_bytes += length as u64;
        if self.unchecked_bytes >= CHECKPOINT_BYTES {
            self.unchecked_bytes = 0;
            (self.checkpoint)()?;
        }
        Ok(())
    }

    /// Hands everything to the sink.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let mut left = &self.buffer[..self.filled];
        while !left.is_empty() {
            match self.sink.write(left) {
                Ok(0) => bail!("writing the archive: the other side takes no more"),
                Ok(length) => left = &left[length..],
                // A signal that means the end must not wait for a reader that has stalled.
                Err(error) if error.kind() == ErrorKind::Interrupted => (self.checkpoint)()?,
                Err(error) => return Err(error).context("writing the archive"),
            }
        }
        self.written_bytes += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::{Member, Output, Time};
    use crate::reader::Budget;
    use crate::tar::entry;
    use crate::tar::input::Input;

    #[test]
    fn what_does_not_fit_into_a_header_comes_back_from_the_extended_header() {
        let (path, link) = ("p/".repeat(200) + "\u{e9}\n", "l".repeat(3000));
        let member = Member {
            kind: b'0',
            path: path.as_bytes(),
            link: link.as_bytes(),
            mode: 0o104755,
            uid: u32::MAX - 1,
            gid: 2_097_152,
            mtime: Time { seconds: -5_000_000_000, nanoseconds: 1 },
            size_bytes: 9 << 30,
            device: (0, 0),
        };
        let mut archive = Vec::new();
        let mut output = Output::new(&mut archive, &|| Ok(()));
        output.member(&member, b"").unwrap();
        output.finish().unwrap();
        let (mut archive, budget) = (Cursor::new(archive), Budget::unlimited());
        let mut input = Input::new(&mut archive, &budget);
        let read = entry::next(&mut input).unwrap().unwrap();
        assert_eq!((read.path.as_slice(), read.link.as_slice()), (member.path, member.link));
        assert_eq!((read.owner.uid, read.owner.gid, read.owner.mode), (member.uid, member.gid, 0o4755));
        assert_eq!((read.owner.mtime, input.data_left()), (member.mtime, member.size_bytes));
    }
}
