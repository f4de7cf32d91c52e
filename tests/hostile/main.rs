//! Input that means harm: guests, disks, archives, dumps. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod archives;
#[path = "../common/mod.rs"]
mod common;
mod disks;
mod dumps;
mod guests;
mod work;
