//! Disks that are made: create, image, hooks, the cache and its templates; and rename. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod cache;
mod cold;
#[path = "../common/mod.rs"]
mod common;
mod create;
mod examples;
mod hooks;
mod media;
mod network;
mod rename;
mod source;
mod steps;
mod templates;
mod umask;
