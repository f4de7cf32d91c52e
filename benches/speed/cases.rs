//! The cases, what each wants to reach, and what both sides and the floor do in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::floor::Floor;
use crate::measure::{self, Invocation, PageCache, Pipe, Run, in_bench, new_disk};
use crate::sides::{Side, write_settings};

const GIB: u64 = 1 << 30;
/// Of the guest that is exported and renamed, and of disks that it is imported to.
const GUEST_BYTES: u64 = 20 * GIB;

/// One row of the table.
pub struct Case {
    pub name: &'static str,
    /// How many times faster than the predecessor it is to be.
    pub times_faster: f64,
    /// How many times the floor it may take.
    pub times_floor: Option<f64>,
    /// One run of a side, or several, one after the other; none where there is no such side.
    take: fn(Side) -> Result<Vec<Run>>,
}

pub const CASES: [Case; 8] = [
    Case {
        name: "export-warm",
        times_faster: 10.0,
        times_floor: Some(1.5),
        take: |s| export(s, PageCache::Warm),
    },
    Case {
        name: "export-cold",
        times_faster: 4.0,
        times_floor: Some(1.5),
        take: |s| export(s, PageCache::Cold),
    },
    Case {
        name: "import-warm",
        times_faster: 4.5,
        times_floor: Some(1.2),
        take: |s| import(s, PageCache::Warm),
    },
    Case {
        name: "import-cold",
        times_faster: 4.5,
        times_floor: Some(1.2),
        take: |s| import(s, PageCache::Cold),
    },
    Case { name: "rename-warm", times_faster: 1.0, times_floor: None, take: |s| rename(s, PageCache::Warm) },
    Case { name: "rename-cold", times_faster: 1.0, times_floor: None, take: |s| rename(s, PageCache::Cold) },
    Case { name: "verify-warm", times_faster: 1.0, times_floor: None, take: |s| verify(s, PageCache::Warm) },
    Case { name: "verify-cold", times_faster: 1.0, times_floor: None, take: |s| verify(s, PageCache::Cold) },
];

/// Raw runs of all cases.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    pub rounds: usize,
    pub kernel: String,
    pub runs: Vec<Measured>,
}

#[derive(Serialize, Deserialize)]
pub struct Measured {
    pub case: String,
    pub side: Side,
    pub round: usize,
    #[serde(flatten)]
    pub run: Run,
}

/// The cases that have such names, or whose names begin so; all, if none is given.
pub fn named(names: &[String]) -> Result<Vec<&'static Case>> {
    let is = |case: &Case, name: &str| case.name == name || case.name.starts_with(&format!("{name}-"));
    for name in names {
        let all: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        ensure!(
            CASES.iter().any(|case| is(case, name)),
            "no case is named {name}; there are {}",
            all.join(", ")
        );
    }
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| is(case, name));
    Ok(CASES.iter().filter(wanted).collect())
}

/// On the machine: all rounds of all cases; the sides take turns.
pub fn run(into: &Path, rounds: usize, cases: &[&'static Case]) -> Result<()> {
    write_settings()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let mut report = Report { rounds, kernel, runs: Vec::new() };
    for case in cases {
        for round in 0..rounds {
            for side in [Side::Predecessor, Side::Program, Side::Floor] {
                let runs = (case.take)(side).with_context(|| format!("{}, {side:?}", case.name))?;
                for run in runs {
                    eprintln!(
                        "{:24} {side:?} {:.3} s, {:.3} s of processor",
                        case.name, run.wall_s, run.cpu_s
                    );
                    report.runs.push(Measured { case: case.name.into(), side, round, run });
                }
            }
        }
        fs::write(into, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// A guest that is there once for all; the predecessor made it.
fn guest() -> Result<PathBuf> {
    let disk = in_bench("guest.img");
    if !disk.exists() {
        new_disk(&disk, GUEST_BYTES)?;
        measure::run(vec![Side::Predecessor.verb("create", "create", &disk)?], Pipe::None, &[&disk])?;
    }
    Ok(disk)
}

fn export(side: Side, page_cache: PageCache) -> Result<Vec<Run>> {
    let disk = guest()?;
    page_cache.prepare(&[&disk])?;
    let shown = disk.display().to_string();
    let one = match side {
        Side::Floor => Floor::invocation(&["read", &shown]),
        _ => side.verb("export", "export", &disk)?,
    };
    Ok(vec![measure::run(vec![one], Pipe::Into(Path::new("/dev/null")), &[])?])
}

/// Each reads what it exported itself; the floor what this program exported.
fn import(side: Side, page_cache: PageCache) -> Result<Vec<Run>> {
    let exporter = if side == Side::Predecessor { side } else { Side::Program };
    let backup = in_bench(&format!("{exporter:?}.backup"));
    if !backup.exists() {
        let one = exporter.verb("export", "export", &guest()?)?;
        measure::run(vec![one], Pipe::Into(&backup), &[])?;
    }
    let disk = in_bench("imported.img");
    new_disk(&disk, GUEST_BYTES)?;
    page_cache.prepare(&[&backup])?;
    let shown = disk.display().to_string();
    let one = match side {
        Side::Floor => Floor::invocation(&["receive", &shown]),
        _ => side.verb("import", "import", &disk)?,
    };
    Ok(vec![measure::run(vec![one], Pipe::From(&backup), &[&disk])?])
}

/// There and back again.
fn rename(side: Side, page_cache: PageCache) -> Result<Vec<Run>> {
    if side == Side::Floor {
        return Ok(Vec::new());
    }
    let disk = guest()?;
    let mut runs = Vec::new();
    for back in [false, true] {
        let mut one = side.verb("rename", "rename", &disk)?;
        if back {
            swap_names(&mut one)?;
        }
        page_cache.prepare(&[&disk])?;
        runs.push(measure::run(vec![one], Pipe::None, &[&disk])?);
    }
    Ok(runs)
}

fn swap_names(rename: &mut Invocation) -> Result<()> {
    let mut taken = |name: &str| rename.environment.remove(name).with_context(|| format!("no {name}"));
    let (old, new) = (taken("OLD_INSTANCE_NAME")?, taken("INSTANCE_NAME")?);
    rename.environment.insert("OLD_INSTANCE_NAME".into(), new);
    rename.environment.insert("INSTANCE_NAME".into(), old);
    Ok(())
}

fn verify(side: Side, page_cache: PageCache) -> Result<Vec<Run>> {
    if side == Side::Floor {
        return Ok(Vec::new());
    }
    page_cache.prepare(&[])?;
    Ok(vec![measure::run(vec![side.verb("verify", "verify", Path::new("/nonexistent"))?], Pipe::None, &[])?])
}
