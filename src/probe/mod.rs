//! A disk that somebody else wrote: what is on it, read by bounded readers of our own, so that the node's kernel parses
//! no table of a guest, and no filesystem that reaches for other devices of the node.

mod layers;
mod superblocks;

use std::fmt;

use anyhow::Result;

pub use superblocks::{Content, Fat, Volume, probe};

use crate::partition_table::{self, Partition, TableKind};
use crate::reader::Region;

/// A part of a disk, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// None: the whole disk, without a table.
    pub number: Option<u32>,
    pub start_bytes: u64,
    pub size_bytes: u64,
    pub content: Content,
}

impl Part {
    /// Its entry in the table; None for the bare disk.
    pub fn partition(&self) -> Option<Partition> {
        let Part { number, start_bytes, size_bytes, .. } = *self;
        number.map(|number| Partition { number, start_bytes, size_bytes })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "partition {number}: {}", self.content),
            None => write!(f, "the bare disk: {}", self.content),
        }
    }
}

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// None: there is no table, or it is that of an array which the disk is a member of. The bare disk is the only part.
    pub table: Option<TableKind>,
    /// In the order of their numbers.
    pub parts: Vec<Part>,
}

/// Reads what a disk holds. An error if its table is damaged.
pub fn survey(disk: &Region<'_>) -> Result<Survey> {
    let part = |number, start_bytes, size_bytes| -> Result<Part> {
        let content = probe(&disk.part(start_bytes, size_bytes))?;
        Ok(Part { number, start_bytes, size_bytes, content })
    };
    let Some(table) = partition_table::read(disk)? else {
        return Ok(Survey { table: None, parts: vec![part(None, 0, disk.size_bytes())?] });
    };
    if let Some(layer) = layers::of_divided_disk(disk, &table.partitions)? {
        let content = Content::Other(layer.into());
        let whole = Part { number: None, start_bytes: 0, size_bytes: disk.size_bytes(), content };
        return Ok(Survey { table: None, parts: vec![whole] });
    }
    let parts = table.partitions.iter().map(|p| part(Some(p.number), p.start_bytes, p.size_bytes));
    Ok(Survey { table: Some(table.kind), parts: parts.collect::<Result<_>>()? })
}
