//! A backup in its parts: where they lie in a stream, and streams put together of others that an honest program would not
//! write. Of docs/backup-format.md and GNU tar's manual alone, by no code of the program.

use std::ops::Range;

const BLOCK: usize = 512;

/// An honest backup, taken apart.
#[derive(Clone)]
pub struct Backup {
    pub manifest: String,
    pub size_bytes: u64,
    /// Offset and length of each run with data.
    pub runs: Vec<(u64, u64)>,
    pub data: Vec<u8>,
}

/// A part of a stream.
pub struct Region {
    pub name: &'static str,
    pub range: Range<usize>,
}

/// What a stream consists of, in order.
pub fn regions(stream: &[u8]) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    let mut at = 0;
    let mut take = |name, length: usize| {
        regions.push(Region { name, range: at..at + length });
        at += length;
        &stream[at - length..at]
    };
    let padding = |length: usize| length.next_multiple_of(BLOCK) - length;
    let text = size_of_member(take("the header of instance.toml", BLOCK));
    take("instance.toml", text);
    take("the padding of instance.toml", padding(text));
    let records = size_of_member(take("the header of the PAX records", BLOCK));
    take("the PAX records", records);
    take("the padding of the PAX records", padding(records));
    let stored = size_of_member(take("the header of disk.img", BLOCK));
    let first = take("the map", BLOCK);
    let count: usize = line(first).parse().unwrap();
    // The rest of the map, block by block.
    let (mut lines, mut map_bytes) = (newlines(first), BLOCK);
    while lines < 1 + 2 * count {
        lines += newlines(take("the map", BLOCK));
        map_bytes += BLOCK;
    }
    take("the data", stored - map_bytes);
    take("the padding of the data", padding(stored));
    let digest = size_of_member(take("the header of the digest", BLOCK));
    take("the digest", digest);
    take("the padding of the digest", padding(digest));
    take("the end blocks", 2 * BLOCK);
    assert_eq!(at, stream.len());
    regions
}

fn size_of_member(header: &[u8]) -> usize {
    usize::from_str_radix(std::str::from_utf8(&header[124..135]).unwrap(), 8).unwrap()
}

fn newlines(block: &[u8]) -> usize {
    block.iter().filter(|byte| **byte == b'\n').count()
}

fn line(block: &[u8]) -> &str {
    std::str::from_utf8(block).unwrap().split('\n').next().unwrap()
}

impl Backup {
    pub fn of(stream: &[u8]) -> Backup {
        let part = |name: &str| -> Vec<u8> {
            let parts = regions(stream).into_iter().filter(|region| region.name == name);
            parts.flat_map(|region| stream[region.range].to_vec()).collect()
        };
        let manifest = String::from_utf8(part("instance.toml")).unwrap();
        let facts: toml::Table = toml::from_str(&manifest).unwrap();
        let size_bytes = facts["disk"]["size_bytes"].as_integer().unwrap() as u64;
        let map = String::from_utf8(part("the map")).unwrap();
        let numbers: Vec<u64> = map.lines().skip(1).map_while(|line| line.parse().ok()).collect();
        let pairs = numbers.chunks(2).map(|pair| (pair[0], pair[1]));
        let runs = pairs.filter(|(_, length)| *length > 0).collect();
        Backup { manifest, size_bytes, runs, data: part("the data") }
    }

    pub fn with_manifest(&self, from: &str, to: &str) -> Backup {
        let manifest = self.manifest.replacen(from, to, 1);
        assert_ne!(manifest, self.manifest, "{from} is not there");
        Backup { manifest, ..self.clone() }
    }

    /// The digest that belongs to it.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.manifest.as_bytes());
        for (offset, length) in &self.runs {
            hasher.update(&offset.to_le_bytes()).update(&length.to_le_bytes());
        }
        format!("blake3:{}\n", hasher.update(&self.data).finalize().to_hex())
    }

    /// The three members, the disk's in a notation.
    pub fn members(&self, notation: Notation) -> Vec<Member> {
        let mut runs: Vec<(String, String)> = self.runs.iter().map(decimal).collect();
        runs.push(decimal(&(self.size_bytes, 0)));
        vec![
            Member::new("instance.toml", self.manifest.as_bytes()),
            notation.disk(&runs, &self.size_bytes.to_string(), &self.data),
            Member::new("digest", self.digest().as_bytes()),
        ]
    }

    pub fn stream(&self) -> Vec<u8> {
        archive(&self.members(Notation::Pax10))
    }
}

pub fn decimal((offset, length): &(u64, u64)) -> (String, String) {
    (offset.to_string(), length.to_string())
}

/// A member of an archive, with all that can be wrong about one.
#[derive(Clone)]
pub struct Member {
    pub name: String,
    pub kind: u8,
    pub link: String,
    /// PAX records of its own.
    pub records: Vec<u8>,
    /// Extended headers that stand before it.
    pub before: Vec<u8>,
    pub data: Vec<u8>,
    /// What the header says instead of the data's length.
    pub claimed_size: Option<u64>,
    /// Bytes that go into the header as they are.
    pub raw: Vec<(usize, Vec<u8>)>,
    /// Blocks between the header and the data.
    pub extensions: Vec<u8>,
}

impl Member {
    pub fn new(name: &str, data: &[u8]) -> Member {
        Member {
            name: name.into(),
            kind: b'0',
            link: String::new(),
            records: Vec::new(),
            before: Vec::new(),
            data: data.into(),
            claimed_size: None,
            raw: Vec::new(),
            extensions: Vec::new(),
        }
    }

    pub fn of_kind(mut self, kind: u8) -> Member {
        self.kind = kind;
        self
    }

    pub fn record(mut self, key: &str, value: &str) -> Member {
        self.records.extend(pax_record(key, value.as_bytes()));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.before.clone();
        if !self.records.is_empty() {
            bytes.extend(Member::new("x", &self.records).of_kind(b'x').bytes());
        }
        let mut header = [0; BLOCK];
        let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
        let name = &self.name.as_bytes()[..self.name.len().min(100)];
        put(0, name);
        put(100, b"0000600\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        let size = self.claimed_size.unwrap_or(self.data.len() as u64);
        match size < 1 << 33 {
            true => put(124, format!("{size:011o}\0").as_bytes()),
            false => put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat()),
        }
        put(136, b"00000000000\0");
        put(156, &[self.kind]);
        put(157, self.link.as_bytes());
        put(257, b"ustar\x0000");
        for (at, field) in &self.raw {
            put(*at, field);
        }
        put(148, b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(&self.extensions);
        bytes.extend(&self.data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// The members, and the end.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.iter().flat_map(Member::bytes).collect();
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..rest + 10).find(|length| rest + length.to_string().len() == *length).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// How a member says where its data belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// As export writes it: in the data.
    Pax10,
    /// In one record.
    Pax01,
    /// In two records a run.
    Pax00,
    /// In the header and blocks behind it.
    OldGnu,
}

impl Notation {
    pub const ALL: [Notation; 4] = [Notation::Pax10, Notation::Pax01, Notation::Pax00, Notation::OldGnu];

    /// disk.img with that map, whatever it says.
    pub fn disk(self, runs: &[(String, String)], real_size: &str, data: &[u8]) -> Member {
        let disk = Member::new("disk.img", data);
        let count = runs.len().to_string();
        match self {
            Notation::Pax10 => {
                let mut map = format!("{count}\n");
                runs.iter().for_each(|(offset, length)| map += &format!("{offset}\n{length}\n"));
                Notation::with_map(map.as_bytes(), real_size, data)
            }
            Notation::Pax01 => {
                let numbers: Vec<String> = runs.iter().map(|(at, length)| format!("{at},{length}")).collect();
                disk.record("GNU.sparse.size", real_size)
                    .record("GNU.sparse.numblocks", &count)
                    .record("GNU.sparse.map", &numbers.join(","))
            }
            Notation::Pax00 => {
                let mut disk =
                    disk.record("GNU.sparse.size", real_size).record("GNU.sparse.numblocks", &count);
                for (offset, length) in runs {
                    let run = [("GNU.sparse.offset", offset), ("GNU.sparse.numbytes", length)];
                    run.iter()
                        .for_each(|(key, value)| disk.records.extend(pax_record(key, value.as_bytes())));
                }
                disk
            }
            Notation::OldGnu => {
                let mut disk = disk.of_kind(b'S');
                let entry =
                    |(offset, length): &(String, String)| [base_256(offset), base_256(length)].concat();
                let (inside, behind) = runs.split_at(runs.len().min(4));
                let mut map: Vec<u8> = inside.iter().flat_map(entry).collect();
                map.resize(4 * 24, 0);
                map.push(u8::from(!behind.is_empty()));
                map.extend(base_256(real_size));
                disk.raw.push((257, b"ustar  \0".to_vec()));
                disk.raw.push((386, map));
                for (number, runs) in behind.chunks(21).enumerate() {
                    let mut block: Vec<u8> = runs.iter().flat_map(entry).collect();
                    block.resize(504, 0);
                    block.push(u8::from((number + 1) * 21 < behind.len()));
                    block.resize(BLOCK, 0);
                    disk.extensions.extend(block);
                }
                disk
            }
        }
    }

    /// disk.img in format 1.0 with a map as it is.
    pub fn with_map(map: &[u8], real_size: &str, data: &[u8]) -> Member {
        let mut stored = map.to_vec();
        stored.resize(map.len().next_multiple_of(BLOCK), 0);
        stored.extend(data);
        Member::new("GNUSparseFile.0/disk.img", &stored)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", "disk.img")
            .record("GNU.sparse.realsize", real_size)
    }
}

/// Twelve bytes; a number that is negative or has more than 63 bits, as one has it who wants to do harm.
fn base_256(number: &str) -> Vec<u8> {
    let number: i128 = number.parse().unwrap();
    let mut field = number.to_be_bytes()[4..].to_vec();
    field[0] |= 0x80;
    field
}
