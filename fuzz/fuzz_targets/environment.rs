//! A request of any verb from any environment, as execve(2) has it: NAME=VALUE, each ended by a zero byte. Names `-i`,
//! `-b`, `-s` and `-o` stand for the flags of version 5 of the OS interface. What is understood becomes a plan.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use ganeti_instance_debootstrap::disk::Medium;
use ganeti_instance_debootstrap::plan::{DiskFacts, Inputs, Plan, TreeSource};
use ganeti_instance_debootstrap::request::{Api5Flags, Env, Refusal, Request, Task, Verb};
use ganeti_instance_debootstrap::settings::Settings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut env = Env::new();
    let mut flags = Api5Flags::default();
    for entry in input.split(|byte| *byte == 0) {
        let Some(equals) = entry.iter().position(|byte| *byte == b'=') else { continue };
        let value = OsString::from_vec(entry[equals + 1..].to_vec());
        match &entry[..equals] {
            b"-i" => flags.instance = value.into_string().ok(),
            b"-o" => flags.old_name = value.into_string().ok(),
            b"-b" => flags.device = Some(value.into()),
            b"-s" => flags.swap = Some(value.into()),
            name => drop(env.insert(OsString::from_vec(name.to_vec()), value)),
        }
    }
    for verb in Verb::ALL {
        match Request::read(verb, env.clone(), &flags) {
            Ok(request) => understood(verb, request),
            Err(Refusal::ByHand) => {}
            Err(Refusal::Faults(faults)) => are_sentences(&faults),
        }
    }
});

fn are_sentences(faults: &[String]) {
    assert!(!faults.is_empty(), "a refusal without a reason");
    for fault in faults {
        let printable = fault.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        assert!(printable && fault.len() < 2000, "{fault:?}");
    }
}

fn understood(verb: Verb, request: Request) {
    assert!(request.context.parameters.values().all(|value| !value.is_empty()));
    let instance = match (verb, request.task) {
        (Verb::Create, Task::Create(instance)) | (Verb::Rename, Task::Rename(instance, _)) => instance,
        (Verb::Export, Task::Export { instance, .. }) | (Verb::Import, Task::Import { instance, .. }) => {
            instance
        }
        (Verb::Verify, Task::Verify { faults }) => {
            return if !faults.is_empty() {
                are_sentences(&faults)
            };
        }
        (_, task) => panic!("{verb:?} became {task:?}"),
    };
    assert!((1..=64).contains(&instance.disks.len()) && instance.nics.len() <= 64);
    let full = instance.name.full();
    assert!(!full.is_empty() && full.len() <= 253 && !full.contains(['/', '\0', '\n', ' ', '\'']));
    let disk = DiskFacts { size_bytes: 8 << 30, medium: Medium::Block };
    let inputs = Inputs { context: &request.context, instance: &instance, settings: plain_settings() };
    match Plan::for_create(inputs, disk, TreeSource::Recipe) {
        Ok(plan) => assert!(plan.to_string().contains(full)),
        Err(refusal) => assert!(!format!("{refusal:#}").is_empty()),
    }
}

/// Those of a node on which nothing is set.
fn plain_settings() -> &'static Settings {
    static PLAIN: OnceLock<Settings> = OnceLock::new();
    PLAIN.get_or_init(|| {
        let nowhere = ["CONFIG_DIR", "CACHE_DIR", "LEGACY_DEFAULTS"]
            .map(|place| (format!("GANETI_DEBOOTSTRAP_{place}").into(), "/nonexistent".into()));
        let env = nowhere.into_iter().chain([("OS_API_VERSION".into(), "20".into())]).collect();
        let request = Request::read(Verb::Verify, env, &Api5Flags::default()).expect("a request");
        Settings::load(&request.context, "verify").expect("the built-in defaults")
    })
}
