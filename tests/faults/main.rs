//! Nodes that break, and runs that are killed. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

#[path = "../common/mod.rs"]
mod common;
mod kill;
mod runner;
mod table;
