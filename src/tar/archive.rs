//! The tar format itself, for those who put other things than trees into one: members in and out, and files with holes.

pub(crate) use super::entry::{Entry, Kind as EntryKind, next};
pub(crate) use super::input::Input;
pub(crate) use super::output::{Member, Output};
pub(crate) use super::padding;
pub(crate) use super::pax::Time;
pub(crate) use super::sparse::{Extent, Sparse, announced as sparse_name};
