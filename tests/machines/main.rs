//! Whole machines: guests in QEMU and under Xen, and a Ganeti cluster. Needs root.
#![allow(clippy::disallowed_methods, reason = "tests run real tools")]

mod boot;
#[path = "../common/mod.rs"]
mod common;
mod devices;
mod ganeti;
mod steps;
mod xen;
