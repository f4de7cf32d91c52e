//! A blank disk becomes one with a tree that may start by itself. Owns the steps and what is held between them. Must not
//! read a setting: the plan has decided.

pub mod base_tree;
mod boot_loader;
mod clone_template;
pub mod grub_from_cache;
pub mod target_disk;
pub mod teardown;
pub mod template;
pub mod tree;
pub mod unpack;
