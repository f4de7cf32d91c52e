//! Why a reader of a stranger's bytes stops before their end.

use anyhow::{Error, anyhow};

/// The end of a reader that stops early.
#[derive(Debug)]
pub enum GiveUp {
    /// What is there does not hold together, is of a kind that is not known here, or asks for more work than it is worth.
    NotUnderstood(String),
    /// The device cannot be read, or a signal stops the work.
    Failed(Error),
}

/// Not by [`std::error::Error`]: the causes of a failure are to be found in the chain of what it becomes.
impl From<GiveUp> for Error {
    fn from(why: GiveUp) -> Error {
        match why {
            GiveUp::NotUnderstood(reason) => anyhow!(reason),
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
