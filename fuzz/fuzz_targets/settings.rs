//! The layers of settings: config.toml, the file of a variant, and OS parameters as NAME=VALUE, each a line and more
//! where a line `%%` ends the part before. The files are real ones; no shell takes part. What is right is planned with.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ganeti_instance_debootstrap::disk::Medium;
use ganeti_instance_debootstrap::filesystem::PartitionStyle;
use ganeti_instance_debootstrap::plan::{DiskFacts, Inputs, Plan, TreeSource};
use ganeti_instance_debootstrap::request::{Api5Flags, Env, Instance, Request, Task, Verb};
use ganeti_instance_debootstrap::settings::table::KEYS;
use ganeti_instance_debootstrap::settings::{Settings, show};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut parts = parts(input).into_iter();
    let dir = node();
    std::fs::write(dir.join("config.toml"), parts.next().unwrap_or_default()).expect("config.toml");
    std::fs::write(dir.join("variants/web.toml"), parts.next().unwrap_or_default()).expect("web.toml");
    let parameters = parts.filter_map(|part| {
        let text = std::str::from_utf8(part).ok()?;
        let (name, value) = text.split_once('=')?;
        Some((format!("OSP_{name}").into(), value.into()))
    });
    let request = request(dir, parameters);
    let Task::Create(instance) = &request.task else { unreachable!("a create") };

    let mut judgement = Settings::judge(&request.context, "create").expect("a node that has all it needs");
    // The predecessor's words are several lines, with a directory that may be anything.
    for problem in judgement.problems.iter().filter(|problem| !problem.starts_with("Unofficial variant")) {
        let printable = problem.chars().all(|c| !c.is_control());
        assert!(printable && problem.len() < 5000, "{problem:?}");
    }
    let layers = &judgement.settings.layers;
    assert!(KEYS.iter().all(|key| layers.values.contains_key(key.name)), "each setting has a value");
    assert!(show::as_text(layers, true).lines().count() > KEYS.len());
    show::as_json(layers);
    judgement.add_conflicts();
    if let Ok(settings) = judgement.into_settings() {
        assert!((1..=1 << 20).contains(&settings.partition_alignment_sectors) && settings.templates <= 64);
        plan(&request, instance, &settings);
    }
});

fn parts(input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(4).position(|window| window == b"\n%%\n") {
        parts.push(&rest[..at]);
        rest = &rest[at + 4..];
    }
    parts.push(rest);
    parts
}

/// A directory of settings of this process, where tests/fuzz gives it room.
fn node() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("fuzz-settings-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("variants")).expect("a directory of settings");
        dir
    })
}

fn request(
    dir: &Path,
    parameters: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Request {
    let facts = [
        ("OS_API_VERSION", "20"),
        ("OS_VARIANT", "web"),
        ("INSTANCE_NAME", "web.example.com"),
        ("HYPERVISOR", "kvm"),
        ("DISK_COUNT", "2"),
        ("DISK_0_PATH", "/disk0"),
        ("DISK_1_PATH", "/disk1"),
        ("NIC_COUNT", "1"),
        ("NIC_0_MAC", "aa:00:00:00:00:01"),
        ("NIC_0_IP", "192.0.2.2"),
        ("NIC_0_NETWORK_SUBNET", "192.0.2.0/24"),
        ("GANETI_DEBOOTSTRAP_LEGACY_DEFAULTS", "/nonexistent"),
    ];
    let mut env: Env = parameters.collect();
    env.extend(facts.map(|(name, value)| (name.into(), value.into())));
    env.insert("GANETI_DEBOOTSTRAP_CONFIG_DIR".into(), dir.into());
    Request::read(Verb::Create, env, &Api5Flags::default()).expect("a good request")
}

/// Every layout lies on its disk, in order, where it may begin.
fn plan(request: &Request, instance: &Instance, settings: &Settings) {
    let inputs = Inputs { context: &request.context, instance, settings };
    for size_bytes in [1 << 29, (4 << 30) + 512, (2 << 40) - 512, 3 << 40] {
        let disk = DiskFacts { size_bytes, medium: Medium::File };
        let plan = Plan::for_create(inputs, disk, TreeSource::Recipe);
        let Ok(plan) = plan else { continue };
        let mut free_from = 1;
        for partition in &plan.layout.partitions {
            assert!(partition.start_sector >= free_from && partition.sectors > 0, "{plan}");
            assert_eq!(partition.start_sector % settings.partition_alignment_sectors, 0, "{plan}");
            free_from = partition.start_sector + partition.sectors;
        }
        let tail = if plan.layout.style == PartitionStyle::Gpt { 33 } else { 0 };
        assert!(free_from + tail <= size_bytes / 512, "{plan}");
        assert!(plan.layout.root_extent().1 >= 500 << 20, "{plan}");
    }
}
