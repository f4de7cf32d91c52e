//! Input that means harm: guests, disks, archives, dumps. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod admin_files;
mod archives;
mod bootstrap;
#[path = "../common/mod.rs"]
mod common;
mod disks;
mod dumps;
mod foreign_text;
mod guests;
mod secrets;
mod work;
