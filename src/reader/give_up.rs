//! Why a reader of a stranger's bytes stops before their end.

use anyhow::{Error, anyhow};

use crate::report;

/// What remains to do with a backup that is whole, and asks for too much work.
const BY_HAND: &str = "if you trust who made it, unpack it by hand into a new instance";

/// The end of a reader that stops early.
#[derive(Debug)]
pub enum GiveUp {
    /// What is there does not hold together, or is of a kind that is not known here.
    NotUnderstood(String),
    /// It asks for more work than it is worth.
    TooMuchWork(String),
    /// The device cannot be read, or a signal stops the work.
    Failed(Error),
}

/// Not by [`std::error::Error`]: the causes of a failure are to be found in the chain of what it becomes.
impl From<GiveUp> for Error {
    fn from(why: GiveUp) -> Error {
        match why {
            GiveUp::NotUnderstood(reason) => anyhow!(reason),
            GiveUp::TooMuchWork(reason) => report::with_hint(anyhow!(reason), BY_HAND),
            GiveUp::Failed(error) => error,
        }
    }
}

/// What a reader found, unless it gave up.
pub type Parsed<T> = Result<T, GiveUp>;

/// The end of a reader that does not understand what it reads.
pub fn give_up<T>(reason: impl Into<String>) -> Parsed<T> {
    Err(GiveUp::NotUnderstood(reason.into()))
}
