//! The cases, what each wants to reach, and what both sides and the floor do in it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::common::BlockDevice;
use crate::floor::Floor;
use crate::measure::PageCache::{self, Cold, Warm};
use crate::measure::{self, Invocation, Pipe, Run, in_bench, new_disk};
use crate::sides::{BOOTABLE_TREES, PROXY, SUITE, Settings, Side, TREES, write_settings};

const GIB: u64 = 1 << 30;
/// Of the guest that is exported and renamed, and of disks that it is imported to.
const GUEST_BYTES: u64 = 20 * GIB;

/// One row of the table.
pub struct Case {
    pub name: &'static str,
    /// How many times faster than the predecessor it is to be.
    pub times_faster: f64,
    /// Or how long it may take, where that is too short for anybody to wait for.
    pub or_within_s: Option<f64>,
    /// How many times the floor it may take.
    pub times_floor: Option<f64>,
    /// Less often where each run takes minutes.
    rounds_max: usize,
    /// One run of a side, or several, one after the other; none where there is no such side.
    take: fn(Side) -> Result<Vec<Run>>,
}

pub const CASES: [Case; 16] = [
    case("export-warm", 10.0, Some(1.5), |side| export(side, Warm)),
    case("export-cold", 4.0, Some(1.5), |side| export(side, Cold)),
    case("import-warm", 4.5, Some(1.2), |side| import(side, Warm)),
    case("import-cold", 4.5, Some(1.2), |side| import(side, Cold)),
    short("rename-warm", 0.030, |side| rename(side, Warm)),
    short("rename-cold", 0.030, |side| rename(side, Cold)),
    short("verify-warm", 0.010, |side| verify(side, Warm)),
    short("verify-cold", 0.010, |side| verify(side, Cold)),
    case("create-2G", 5.5, Some(1.15), |side| create(side, 2 * GIB, 1, Warm)),
    case("create-20G", 5.5, Some(1.15), |side| create(side, 20 * GIB, 1, Warm)),
    case("create-1T", 5.5, Some(1.15), |side| create(side, 1024 * GIB, 1, Warm)),
    case("create-cold", 3.0, None, |side| create(side, 20 * GIB, 1, Cold)),
    case("create-five", 4.5, Some(1.3), |side| create(side, 20 * GIB, 5, Warm)),
    case("create-dirty", 5.0, Some(1.4), create_on_dirty_device),
    case("create-bootable", 5.0, Some(1.3), create_bootable),
    Case { rounds_max: 2, ..case("bootstrap", 3.0, Some(1.2), bootstrap) },
];

const fn case(
    name: &'static str,
    times_faster: f64,
    times_floor: Option<f64>,
    take: fn(Side) -> Result<Vec<Run>>,
) -> Case {
    Case { name, times_faster, or_within_s: None, times_floor, rounds_max: usize::MAX, take }
}

/// What is done before one looks.
const fn short(name: &'static str, or_within_s: f64, take: fn(Side) -> Result<Vec<Run>>) -> Case {
    Case {
        name,
        times_faster: 1.0,
        or_within_s: Some(or_within_s),
        times_floor: None,
        rounds_max: usize::MAX,
        take,
    }
}

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
    write_settings(Settings::SameWork)?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let mut report = Report { rounds, kernel, runs: Vec::new() };
    for case in cases {
        if case.name.starts_with("create") {
            // The first disk of a size also makes the template that the others are copied from.
            (case.take)(Side::Program).with_context(|| format!("{}, once before", case.name))?;
        }
        for round in 0..rounds.min(case.rounds_max) {
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
        measure::run(
            vec![Side::Predecessor.verb("create", "create", &disk)?],
            Pipe::None,
            std::slice::from_ref(&disk),
        )?;
    }
    Ok(disk)
}

fn export(side: Side, page_cache: PageCache) -> Result<Vec<Run>> {
    let disk = guest()?;
    page_cache.prepare(std::slice::from_ref(&disk))?;
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
    page_cache.prepare(std::slice::from_ref(&backup))?;
    let shown = disk.display().to_string();
    let one = match side {
        Side::Floor => Floor::invocation(&["receive", &shown]),
        _ => side.verb("import", "import", &disk)?,
    };
    Ok(vec![measure::run(vec![one], Pipe::From(&backup), &[disk])?])
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
        page_cache.prepare(std::slice::from_ref(&disk))?;
        runs.push(measure::run(vec![one], Pipe::None, std::slice::from_ref(&disk))?);
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

/// On sparse files, one or several at once.
fn create(side: Side, size_bytes: u64, count: usize, page_cache: PageCache) -> Result<Vec<Run>> {
    let disks: Vec<PathBuf> = (0..count).map(|number| in_bench(&format!("disk{number}.img"))).collect();
    for disk in &disks {
        new_disk(disk, size_bytes)?;
    }
    page_cache.prepare(&files_of(TREES)?)?;
    let bytes = tree_bytes()?;
    let create = |disk: &PathBuf| match side {
        Side::Floor => Ok(Floor::invocation(&["write", &disk.display().to_string(), &bytes])),
        _ => side.verb("create", "create", disk),
    };
    let at_once = disks.iter().map(create).collect::<Result<_>>()?;
    let run = measure::run(at_once, Pipe::None, &disks)?;
    for disk in disks {
        fs::remove_file(disk)?;
    }
    Ok(vec![run])
}

/// On a block device that was something else all over.
fn create_on_dirty_device(side: Side) -> Result<Vec<Run>> {
    let file = in_bench("dirty.img");
    let mut dirt = File::create(&file)?;
    for _ in 0..2048 {
        dirt.write_all(&[0xa5; 1 << 20])?;
    }
    let device = BlockDevice::over(&file, &["--direct-io=on"]);
    Warm.prepare(&files_of(TREES)?)?;
    let one = match side {
        Side::Floor => Floor::invocation(&["write", &device.0.display().to_string(), &tree_bytes()?]),
        _ => side.verb("create", "create", &device.0)?,
    };
    let run = measure::run(vec![one], Pipe::None, std::slice::from_ref(&device.0))?;
    drop(device);
    fs::remove_file(file)?;
    Ok(vec![run])
}

/// With kernel and loader, against what hooks do by hand: the predecessor makes none.
fn create_bootable(side: Side) -> Result<Vec<Run>> {
    let disk = in_bench("bootable.img");
    new_disk(&disk, GUEST_BYTES)?;
    write_settings(Settings::Bootable)?;
    let trees = files_of(BOOTABLE_TREES)?;
    Warm.prepare(&trees)?;
    let shown = disk.display().to_string();
    let tree = trees.iter().find(|path| path.extension().is_some_and(|extension| extension == "tar"));
    let tree = tree.context("a tree that boots")?.display().to_string();
    let one = match side {
        Side::Predecessor => Invocation::of(&[in_bench("by-hand").display().to_string(), shown, tree]),
        Side::Program => side.verb("create", "create-kvm", &disk)?,
        Side::Floor => Floor::invocation(&["write", &shown, &fs::metadata(tree)?.len().to_string()]),
    };
    let run = measure::run(vec![one], Pipe::None, &[disk])?;
    write_settings(Settings::SameWork)?;
    Ok(vec![run])
}

/// Without a tree in the cache; the packages are on this machine. The floor is mmdebstrap alone.
fn bootstrap(side: Side) -> Result<Vec<Run>> {
    let disk = in_bench("disk.img");
    write_settings(Settings::NoCache)?;
    let once = || {
        new_disk(&disk, GUEST_BYTES)?;
        rustix::fs::sync();
        let one = match side {
            Side::Floor => mmdebstrap_alone(&disk)?,
            _ => side.verb("create", "create", &disk)?,
        };
        measure::run(vec![one], Pipe::None, std::slice::from_ref(&disk))
    };
    // The first of all fetches what the proxy does not have.
    let fetched = in_bench(&format!("{side:?}.fetched"));
    if !fetched.exists() {
        once()?;
        File::create(fetched)?;
    }
    let run = once()?;
    write_settings(Settings::SameWork)?;
    Ok(vec![run])
}

/// A tar of such a tree; the file that is flushed.
fn mmdebstrap_alone(tar: &Path) -> Result<Invocation> {
    let options = ["mmdebstrap", "--mode=root", "--format=tar", "--variant=debootstrap", SUITE];
    let mut alone = Invocation::of(&options.map(str::to_owned));
    alone.argv.push(tar.display().to_string());
    alone.environment.insert("http_proxy".into(), fs::read_to_string(PROXY)?);
    Ok(alone)
}

/// What of a guest's tree must get to a disk.
fn tree_bytes() -> Result<String> {
    Ok((fs::metadata(guest()?)?.blocks() * 512).to_string())
}

fn files_of(dir: &str) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}
