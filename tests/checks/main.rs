//! What needs no disk: settings, documents, the answers of verify, the fence between rooms. `make check` runs it; what is in
//! a module `as_root` only as root, and then also one disk there and back.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

#[path = "../common/mod.rs"]
mod common;
mod dependencies;
mod docs;
mod fence;
mod runner;
mod settings;
mod shell_settings;
mod smoke;
mod verify;
