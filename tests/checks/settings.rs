//! Layers of settings, their origins, and what is said of wrong ones. Needs no root.
#![allow(clippy::disallowed_methods, reason = "tests run the program")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::{Node, log_of, text};

fn show(node: &Node, variant: Option<&str>) -> serde_json::Value {
    let mut command = node.command(&["config", "show", "--json"]);
    if let Some(variant) = variant {
        command.args(["--variant", variant]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// value, file name, line
fn value(shown: &serde_json::Value, key: &str) -> (String, String, u64) {
    let row = shown.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
    let file = row["file"].as_str().unwrap_or("").rsplit('/').next().unwrap().to_owned();
    (row["value"].as_str().unwrap().to_owned(), file, row["line"].as_u64().unwrap_or(0))
}

fn expect(shown: &serde_json::Value, key: &str, text: &str, file: &str, line: u64) {
    assert_eq!(value(shown, key), (text.to_owned(), file.to_owned(), line), "{key}");
}

/// A node with every layer, each of which says something that another says otherwise.
fn layered_node() -> Node {
    let node = Node::bare();
    fs::write(
        node.legacy_defaults(),
        "# tuned\nSUITE=\"bookworm\"\nEXTRA_PKGS=vim\nARCH=i386\nPROXY=http://p.example.org:1\n",
    )
    .unwrap();
    node.config("# above the shell file\narch = \"amd64\"\nclean_cache = 3\n");
    node.variant("web.conf", "case $HYPERVISOR in\n  kvm) EXTRA_PKGS=\"$EXTRA_PKGS,acpid-$SUITE\";;\n  *) EXTRA_PKGS=\"$EXTRA_PKGS,less\";;\nesac\nFOO=bar\n");
    node.variant("web.toml", "filesystem = \"ext3\"\n");
    node
}

#[test]
fn each_layer_stands_above_the_one_before() {
    let node = layered_node();
    let shown = show(&node, Some("web"));
    expect(&shown, "suite", "bookworm", "default-file", 2);
    expect(&shown, "proxy", "http://p.example.org:1", "default-file", 5);
    expect(&shown, "arch", "amd64", "config.toml", 2);
    expect(&shown, "clean_cache", "3", "config.toml", 3);
    expect(&shown, "extra_pkgs", "vim,less", "web.conf", 3);
    expect(&shown, "filesystem", "ext3", "web.toml", 1);
    expect(&shown, "partition_style", "msdos", "", 0);
    assert_eq!(value(&shown, "defaults").0, "0.17");
    let verbose = node.command(&["config", "show", "--variant", "web", "--origin"]).output().unwrap();
    assert!(text(&verbose.stdout).contains("web.conf:3"));
}

mod as_root {
    use super::*;

    /// What a create of that variant under KVM gets.
    #[test]
    fn a_create_gets_what_all_layers_say() {
        let node = layered_node();
        let mut env = node.recorded("create-kvm", &node.disk("d", 2 << 30));
        env.insert("OS_VARIANT".into(), "web".into());
        env.insert("OSP_FILESYSTEM".into(), "xfs".into());
        let plan = node.verb("create", &env).arg("--dry-run").output().unwrap();
        let plan = log_of(&plan);
        assert!(plan.contains("packages    acpid-bookworm,vim"), "{plan}");
        assert!(plan.contains("filesystem  xfs"), "{plan}");
    }
}

#[test]
fn what_the_cache_keeps_is_said_by_the_nodes_own_files_alone() {
    let node = Node::bare();
    fs::write(node.legacy_defaults(), "TEMPLATES=7\nSUITE=sid\n").unwrap();
    expect(&show(&node, None), "templates", "4", "", 0);
    node.variant("web.toml", "templates = 2\n");
    node.config("templates = 0\n");
    expect(&show(&node, None), "templates", "0", "config.toml", 1);
    expect(&show(&node, Some("web")), "templates", "2", "web.toml", 1);
    let mut env = node.recorded("create", &node.disk("d", 2 << 30));
    env.insert("OSP_TEMPLATES".into(), "7".into());
    for wrong in ["65", "-1"] {
        node.config(&format!("templates = {wrong}\n"));
        let output = node.verb("create", &env).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("templates is \"{wrong}\"; expected a number from 0 to 64");
        assert!(log_of(&output).contains(&expected), "{}", log_of(&output));
    }
}

#[test]
fn whose_defaults_hold_is_one_rule() {
    let node = Node::bare();
    assert_eq!(
        (value(&show(&node, None), "defaults").0, value(&show(&node, None), "partition_style").0),
        ("1".into(), "gpt".into())
    );
    fs::write(node.legacy_defaults(), "GENERATE_CACHE=\"yes\"\nCLEAN_CACHE=\"14\"\n").unwrap();
    assert_eq!(value(&show(&node, None), "partition_style").0, "msdos");
    node.config("defaults = \"1\"\n");
    assert_eq!(value(&show(&node, None), "partition_style").0, "gpt");
    node.config("defaults = \"0.17\"\n");
    fs::remove_file(node.legacy_defaults()).unwrap();
    assert_eq!(value(&show(&node, None), "partition_style").0, "msdos");
    node.config("defaults = \"2\"\n");
    let output = node.command(&["config", "show"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log_of(&output).contains("defaults is \"2\"; expected \"1\" or \"0.17\""), "{}", log_of(&output));
}

#[test]
fn shell_files_mean_what_they_always_meant() {
    let node = Node::bare();
    // An empty value means the default, but for CLEAN_CACHE, where it is documented to mean never.
    fs::write(
        node.legacy_defaults(),
        "SUITE=\nCLEAN_CACHE=\"\"\nGENERATE_CACHE=no\nexport RELAY=mail.example.org\necho a settings file may print\n\
         MIRROR=\"http://mirror.example.org/debian sid\"\n",
    )
    .unwrap();
    let shown = show(&node, None);
    assert_eq!(value(&shown, "suite").0, "trixie");
    expect(&shown, "clean_cache", "", "default-file", 2);
    expect(&shown, "generate_cache", "false", "default-file", 3);
    expect(&shown, "mirror", "http://mirror.example.org/debian sid", "default-file", 6);

    // VARIANTS_DIR may move the variants.
    let elsewhere = node.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("moved.conf"), "SUITE=sid\n").unwrap();
    fs::write(node.legacy_defaults(), format!("VARIANTS_DIR={}\n", elsewhere.display())).unwrap();
    expect(&show(&node, Some("moved")), "suite", "sid", "moved.conf", 1);

    // As it may in config.toml, also beside the settings.
    let beside = Node::bare();
    beside.config("variants_dir = \"CONFIG_DIR/hooks\"\n");
    fs::write(beside.etc().join("hooks/moved.toml"), "suite = \"sid\"\n").unwrap();
    expect(&show(&beside, Some("moved")), "suite", "sid", "moved.toml", 1);

    // A file that needs its instance stops a create, not the check of parameters, which has none.
    fs::write(node.legacy_defaults(), "case $HYPERVISOR in kvm) SUITE=sid;; *) exit 1;; esac\n").unwrap();
    let verify = node.recorded("verify", std::path::Path::new("/none"));
    let output = node.verb("verify", &verify).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
    assert!(log_of(&output).contains("warning: "), "{}", log_of(&output));
    let output = node.command(&["config", "show"]).env("HYPERVISOR", "kvm").output().unwrap();
    assert!(output.status.success() && text(&output.stdout).contains("\"sid\""), "{}", log_of(&output));

    // A file that fails names itself; so does one that leaves.
    fs::write(node.legacy_defaults(), "SUITE=sid\nfalse\n").unwrap();
    let output = node.command(&["config", "show"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log_of(&output).contains("default-file:2: this command failed"), "{}", log_of(&output));
    fs::write(node.legacy_defaults(), "exit 0\n").unwrap();
    let output = node.command(&["config", "show"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log_of(&output).contains("call exit"), "{}", log_of(&output));
}

#[test]
fn variants_need_a_file_or_the_name_of_a_suite() {
    let node = Node::bare();
    assert_eq!(value(&show(&node, Some("bookworm")), "suite").0, "bookworm");
    assert_eq!(value(&show(&node, Some("default")), "suite").0, "trixie");
    node.variant("sid.toml", "extra_pkgs = [\"vim\"]\n");
    assert_eq!(value(&show(&node, Some("sid")), "suite").0, "sid", "the name still says which release");
    let refused = |variant: &str| {
        let output = node.command(&["config", "show", "--variant", variant]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        log_of(&output)
    };
    let unofficial = refused("nonsense");
    assert!(unofficial.contains("Unofficial variant nonsense is unsupported"), "{unofficial}");
    fs::write(node.etc().join("variants.list"), "default\nweb\n").unwrap();
    let published = refused("web");
    for line in [
        "ERROR: instance-debootstrap configuration error",
        "Published variant web is missing its config file",
        "unpublish the variant",
        "(by removing web from variants.list)",
    ] {
        assert!(published.contains(line), "{published}");
    }
    assert!(refused("../etc/x").contains("is no name for a variant"));
}

#[test]
fn check_reports_all_that_is_wrong_in_all_files_at_once() {
    let node = Node::bare();
    fs::write(node.etc().join("variants.list"), "default\nweb\nmissing\n").unwrap();
    node.config("sutie = \"x\"\npartition_style = \"gtp\"\n");
    node.variant("web.toml", "filesystem = \"ntfs\"\nclean_cache = \"soon\"\n");
    node.variant("web.conf", "SUITE=sid\n");
    node.variant("other.conf", "if then\n");
    node.variant("hooks.toml", "customize_dir = \"/nonexistent/hooks\"\n");
    node.variant("sid.toml", "boot = \"uefi\"\npartition_style = \"none\"\n");
    let output = node.command(&["config", "check"]).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    for part in [
        "config.toml:1: unknown key \"sutie\"; the nearest known one is \"suite\"",
        "partition_style is \"gtp\"; expected \"gpt\", \"msdos\" or \"none\" (set in ",
        "config.toml:2)",
        "filesystem is \"ntfs\"",
        "web.toml:1)",
        "web.toml:2: clean_cache is of the wrong type",
        "other.conf",
        "Published variant missing is missing its config file",
        "both exist",
        "customize_dir is /nonexistent/hooks, which is no directory: no hook would run (from ",
        "hooks.toml:1)",
    ] {
        assert!(log.contains(part), "{part} is not in\n{log}");
    }
    assert!(!log.contains("room for a loader"), "what config.toml meant is not known: {log}");
    node.config("");
    let output = node.command(&["config", "check"]).output().unwrap();
    assert!(log_of(&output).contains("partition_style none has no room for a loader"), "{}", log_of(&output));

    let good = Node::bare();
    fs::remove_dir(good.etc().join("hooks")).unwrap();
    let output = good.command(&["config", "check"]).output().unwrap();
    assert!(output.status.success(), "{}", log_of(&output));
}

#[test]
fn settings_that_others_can_write_are_warned_of_or_refused() {
    let node = Node::bare();
    let open = |path: &std::path::Path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    fs::write(node.legacy_defaults(), "SUITE=sid\n").unwrap();
    open(&node.legacy_defaults());
    let output = node.command(&["config", "show"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log_of(&output).contains("default-file is not run"), "{}", log_of(&output));
    fs::set_permissions(node.legacy_defaults(), fs::Permissions::from_mode(0o664)).unwrap();
    let output = node.command(&["config", "show"]).output().unwrap();
    assert!(output.status.success());
    assert!(
        text(&output.stderr).contains("can be written by its group (mode 0664): chmod g-w"),
        "{}",
        log_of(&output)
    );
    node.config("suite = \"sid\"\n");
    open(&node.etc().join("config.toml"));
    let output = node.command(&["config", "show"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log_of(&output).contains("config.toml is not read"), "{}", log_of(&output));
}

#[test]
fn verify_answers_for_parameters_and_variants() {
    let node = Node::bare();
    let recorded = |name: &str| node.recorded(name, std::path::Path::new("/none"));
    assert!(node.verb("verify", &recorded("verify")).output().unwrap().status.success());
    let full = node.verb("verify", &recorded("verify-full")).output().unwrap();
    assert!(full.status.success(), "{}", log_of(&full));
    let mut env = recorded("verify");
    env.insert("OSP_PARTITION_STYLE".into(), "gtp".into());
    env.insert("OSP_DNS".into(), "resolver".into());
    // Whoever may set parameters need not be root of the node: no script, no path, nothing a shell would read.
    env.insert("OSP_MIRROR".into(), "http://mirror.example.org/debian /tmp/script".into());
    env.insert("OSP_PROXY".into(), "http://proxy.example.org:1;id".into());
    let output = node.verb("verify", &env).output().unwrap();
    let answer = log_of(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        answer.contains("partition_style is \"gtp\"; expected \"gpt\", \"msdos\" or \"none\""),
        "{answer}"
    );
    assert!(answer.contains("may be set in the node's own files only"), "{answer}");
    assert!(answer.contains("proxy is \"http://proxy.example.org:1;id\""), "{answer}");
    assert!(answer.contains("dns is \"resolver\"; expected IP addresses"), "both at once: {answer}");
    // Values that are right alone, and cannot work together.
    for (settings, refusal) in [
        (&[("BOOT", "uefi"), ("PARTITION_STYLE", "msdos")][..], "UEFI wants partition_style gpt, not msdos"),
        (&[("BOOT", "bios"), ("PARTITION_STYLE", "none")], "partition_style none has no room for a loader"),
        (&[("BOOT", "bios"), ("ARCH", "arm64")], "a loader is known for amd64 only, not for arm64"),
        (
            &[("SWAP", "1G"), ("PARTITION_STYLE", "none"), ("FILESYSTEM", "btrfs")],
            "a swap file cannot lie on btrfs (from the OS parameter swap)",
        ),
    ] {
        let mut env = recorded("verify");
        env.extend(settings.iter().map(|(name, value)| (format!("OSP_{name}"), (*value).to_owned())));
        let output = node.verb("verify", &env).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{settings:?}");
        assert!(log_of(&output).contains(refusal), "{}", log_of(&output));
    }
}

#[test]
fn by_hand_each_verb_prints_its_usage_and_touches_nothing() {
    let node = Node::bare();
    for verb in ["create", "import", "export", "rename", "verify"] {
        for how in [node.command(&[verb]), node.verb(verb, &std::collections::BTreeMap::new())] {
            let mut how = how;
            let output = how.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{verb}: {}", log_of(&output));
            assert!(text(&output.stderr).contains("Usage: "), "{verb}: {}", log_of(&output));
            assert!(output.stdout.is_empty());
        }
    }
    assert_eq!(node.command(&[]).output().unwrap().status.code(), Some(2));
    assert_eq!(node.command(&["--version"]).output().unwrap().status.code(), Some(0));
    assert_eq!(fs::read_dir(node.cache()).unwrap().count(), 0);
}

#[test]
fn a_request_with_many_faults_is_answered_once() {
    let node = Node::bare();
    let mut env = node.recorded("create", std::path::Path::new("/none"));
    env.remove("INSTANCE_NAME");
    env.remove("HYPERVISOR");
    env.insert("DISK_COUNT".into(), "many".into());
    let output = node.verb("create", &env).output().unwrap();
    let log = log_of(&output);
    assert_eq!(output.status.code(), Some(1));
    for fault in ["INSTANCE_NAME is missing", "HYPERVISOR is missing", "DISK_COUNT is \"many\""] {
        assert!(log.contains(fault), "{log}");
    }
    assert!(log.lines().last().unwrap().starts_with("hint: "), "{log}");
}

#[test]
fn every_recorded_environment_is_understood() {
    use ganeti_instance_debootstrap::request::{Api5Flags, Env, Request, Verb};
    let dir = crate::common::project().join("tests/ganeti-env");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let verb = Verb::ALL.into_iter().find(|verb| name.starts_with(verb.name())).unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let env: Env =
            text.lines().filter_map(|l| l.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect();
        let request = Request::read(verb, env, &Api5Flags::default());
        assert!(request.is_ok(), "{name}: {request:?}");
        seen += 1;
    }
    assert_eq!(seen, 18);
}
