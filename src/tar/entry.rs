//! Owns how an archive's blocks become entries: a header with the extended headers before it (pax
//! `x`, GNU `L` and `K`), whichever tar wrote them. Must not touch any file, nor believe a name.

use anyhow::{Context, Result, bail, ensure};

use super::acl::Acl;
use super::header::Header;
use super::input::Input;
use super::pax::{Attribute, Records, Time};
use super::sparse::Sparse;
use super::{PATH_BYTES_MAX, PAX_BYTES_MAX, shown};

/// Extended headers before one entry: each kind once is what tars write, and a few more where archives were joined. Without
/// a bound a small stream that repeats itself would be read for ever.
const EXTENDED_HEADERS_MAX: usize = 32;

/// About as much as one record of a pax header, or one entry of an ACL in it, takes at least.
const RECORD_BYTES: usize = 16;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Dir,
    Fifo,
}

/// One entry; the data of a file is what the input hands out next.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As the archive has it: not to be believed.
    pub(crate) path: Vec<u8>,
    /// Target of a hard or symbolic link, as the archive has it.
    pub(super) link: Vec<u8>,
    pub(super) owner: Owner,
    /// Major and minor number.
    pub(super) device: (u32, u32),
    pub(super) attributes: Vec<Attribute>,
    pub(super) acl_access: Option<Acl>,
    pub(super) acl_default: Option<Acl>,
    pub(crate) sparse: Option<Sparse>,
}

/// What every entry has, and is set in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) mtime: Time,
}

/// What extended headers say about the entry that follows them.
#[derive(Default)]
struct Extended {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// The next entry; `None` at the end of the archive.
pub(crate) fn next(input: &mut Input<'_>) -> Result<Option<Entry>> {
    let mut extended: Option<Extended> = None;
    for _ in 0..=EXTENDED_HEADERS_MAX {
        let Some(block) = input.header()? else {
            ensure!(extended.is_none(), "the archive ends behind an extended header, {}", input.place());
            return Ok(None);
        };
        let header =
            Header::from_block(block).with_context(|| format!("reading the header {}", input.place()))?;
        match header.kind() {
            kind @ (b'x' | b'X' | b'g' | b'L' | b'K') => {
                let payload = extension(&header, input)?;
                let extended = match kind {
                    b'g' => {
                        refuse_global(&payload)?;
                        continue;
                    }
                    _ => extended.get_or_insert_default(),
                };
                match kind {
                    b'L' => extended.long_name = Some(without_nul(payload)),
                    b'K' => extended.long_link = Some(without_nul(payload)),
                    _ => extended.records = Records::parse(&payload).with_context(|| context(input))?,
                }
            }
            _ => return entry(&header, extended.unwrap_or_default(), input).map(Some),
        }
    }
    bail!("more than {EXTENDED_HEADERS_MAX} extended headers follow each other {}", input.place())
}

fn context(input: &Input<'_>) -> String {
    format!("reading the extended header {}", input.place())
}

/// The data of an extended header. The name in errors stays that of the entry before it.
fn extension(header: &Header, input: &mut Input<'_>) -> Result<Vec<u8>> {
    let size = header.size().with_context(|| context(input))?;
    input.begin(None, size);
    let payload = input.whole(PAX_BYTES_MAX)?;
    input.look_at(payload.len() / RECORD_BYTES)?;
    Ok(payload)
}

/// A global header holds for all entries. Comments (git's commit) and the like do no harm; what
/// would change an entry is refused instead of passed over.
fn refuse_global(payload: &[u8]) -> Result<()> {
    let records = Records::parse(payload).context("reading a global extended header")?;
    ensure!(
        records == Records::default(),
        "a global extended header sets more than comments, which is not supported"
    );
    Ok(())
}

fn entry(header: &Header, extended: Extended, input: &mut Input<'_>) -> Result<Entry> {
    let Extended { mut records, long_name, long_link } = extended;
    let name = records.sparse.name.take().or(records.path.take()).or(long_name);
    let path = name.filter(|name| !name.is_empty()).unwrap_or_else(|| header.name());
    let link = records.link.take().or(long_link).unwrap_or_else(|| header.link().to_vec());
    ensure!(
        path.len() <= PATH_BYTES_MAX + 2,
        "a name of {} bytes {}, longer than any path",
        path.len(),
        input.place()
    );
    let reading = format!("reading {}", shown(&path));
    fields(header, path, link, records, input).context(reading)
}

/// The entry of that name and link, its data begun.
fn fields(
    header: &Header,
    path: Vec<u8>,
    link: Vec<u8>,
    records: Records,
    input: &mut Input<'_>,
) -> Result<Entry> {
    let kind = kind(header.kind(), &path)?;
    let owner = owner(header, &records)?;
    let size = match (kind, records.size) {
        // GNU tar's rule: some old writers gave a hard link the size of its file, but no data.
        (Kind::HardLink, _) => 0,
        (_, Some(size)) => size,
        (_, None) => header.size()?,
    };
    input.begin(Some(&path), size);
    let sparse = match (kind, header.kind()) {
        (Kind::File, b'S') => Some(Sparse::of_old_gnu(header, input)?),
        (Kind::File, _) => Sparse::of_records(records.sparse, input)?,
        _ => None,
    };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => header.device()?,
        _ => (0, 0),
    };
    Ok(Entry {
        kind,
        path,
        link,
        owner,
        device,
        attributes: records.attributes,
        acl_access: records.acl_access,
        acl_default: records.acl_default,
        sparse,
    })
}

fn kind(letter: u8, path: &[u8]) -> Result<Kind> {
    Ok(match letter {
        // Before POSIX a directory was a file whose name ends in a slash.
        b'0' | b'\0' if path.ends_with(b"/") => Kind::Dir,
        b'0' | b'\0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        _ => bail!("it is an entry of type \"{}\", which is not known here", letter.escape_ascii()),
    })
}

fn owner(header: &Header, records: &Records) -> Result<Owner> {
    let uid = records.uid.map_or_else(|| header.uid(), Ok)?;
    let gid = records.gid.map_or_else(|| header.gid(), Ok)?;
    // To chown(2) it means "as it is".
    ensure!(uid != u32::MAX && gid != u32::MAX, "its owner or group is {}, which is none", u32::MAX);
    let mtime = match records.mtime {
        Some(mtime) => mtime,
        None => Time { seconds: header.mtime()?, nanoseconds: 0 },
    };
    Ok(Owner { uid, gid, mode: header.mode()?, mtime })
}

fn without_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    text.truncate(end);
    text
}
