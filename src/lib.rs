//! The OS definition that installs Debian guests on a Ganeti cluster.
//!
//! Ganeti's node daemon runs one binary under five names. Each run turns an environment into a typed
//! [`request`], the request plus layered [`settings`] into a [`plan`], and the plan into a disk. The verbs in
//! [`verbs`] read as stories; ARCHITECTURE.md holds the map of the house and the invariants.

pub mod admin_file;
pub mod allocation;
pub mod backup;
pub mod bootstrap;
pub mod cache;
pub mod cli;
pub mod command;
pub mod debian;
pub mod disk;
pub mod filesystem;
pub mod guest;
pub mod hooks;
pub mod install;
pub mod partition_table;
pub mod plan;
pub mod presence;
pub mod probe;
pub mod reader;
pub mod report;
pub mod request;
pub mod restore;
pub mod rootdir;
pub mod settings;
pub mod sys;
pub mod tar;
pub mod verbs;

/// The program's name: in messages, in paths, as the binary.
pub const PROGRAM: &str = "ganeti-instance-debootstrap";
/// The program's version, from Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
