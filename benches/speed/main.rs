//! `make bench`: this program beside the predecessor of Debian's archive, and beside what the disk alone takes.
//!
//! A Debian tree, entered as if it were a machine (tests/upgrade), has both installed; what is measured runs in it, in
//! mount and PID namespaces that end with it. Both do the same work: the same tree, onto the same kind of disk, flushed.
//! They take turns, and medians are compared. All raw runs go to target/bench.json.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark drives the programs from outside: it starts them and prints what it measured"
)]

mod cases;
mod floor;
mod machine;
mod measure;
mod proxy;
mod sides;
mod table;

// What stands for a machine with the predecessor on it is that of tests/upgrade.
#[path = "../../tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/upgrade/held.rs"]
mod held;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/upgrade/node.rs"]
mod node;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/upgrade/trees.rs"]
mod trees;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/upgrade/tuned.rs"]
mod tuned;

const PACKAGE: &str = "ganeti-instance-debootstrap";
const OS_DIR: &str = "/usr/share/ganeti/os/debootstrap";
const LEGACY: &str = "/etc/default/ganeti-instance-debootstrap";
const ETC: &str = "/etc/ganeti/instance-debootstrap";
const CACHE: &str = "/var/cache/ganeti-instance-debootstrap";
/// All that is only here for the sake of the benchmark, on the machine.
const BENCH: &str = "/srv/bench";
const DISK: &str = "/srv/disk.img";
const DISK_BYTES: u64 = 1 << 30;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::floor::Floor;

#[derive(Parser)]
struct Arguments {
    /// How often each side does each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Cases by their names, or by how these begin; all, if none is named
    cases: Vec<String>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program starts itself for.
#[derive(Subcommand)]
enum Part {
    /// On the machine: measures the cases and writes what came out
    #[command(hide = true)]
    Inside { into: PathBuf, rounds: usize, cases: Vec<String> },
    /// Runs what a file describes, and writes what it took
    #[command(hide = true)]
    Measure { spec: PathBuf, into: PathBuf },
    /// What the disk alone takes
    #[command(hide = true, subcommand)]
    Floor(Floor),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.part {
        None => {
            let cases = cases::named(&arguments.cases)?;
            let report = machine::measured(arguments.rounds, &cases)?;
            print!("{}", table::of(&report));
            Ok(())
        }
        Some(Part::Inside { into, rounds, cases }) => cases::run(&into, rounds, &cases::named(&cases)?),
        Some(Part::Measure { spec, into }) => measure::child(&spec, &into),
        Some(Part::Floor(floor)) => floor.run(),
    }
}
