//! Shell settings as the predecessor's bash read them: a file can do to its shell what it likes,
//! and no value imitates what bash reports. Needs no root.
#![allow(clippy::disallowed_methods, reason = "tests run the program")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ganeti_instance_debootstrap::disk::Medium;
use ganeti_instance_debootstrap::plan::{DiskFacts, Inputs, Plan, TreeSource};
use ganeti_instance_debootstrap::report;
use ganeti_instance_debootstrap::request::{Api5Flags, Context, Env, Instance, Request, Task, Verb};
use ganeti_instance_debootstrap::settings::{Origin, Settings};

use crate::common::{Node, log_of, text};

/// What the files of a node say to a create.
struct Create {
    settings: Settings,
    plan: Plan,
    dir: tempfile::TempDir,
}

/// A create of the variant `web` on a node with these files, and these variables beside those of
/// Ganeti.
fn create(default_file: &str, conf: &str, more: &[(&str, &str)]) -> Result<Create, String> {
    let node = Node::bare();
    fs::write(node.legacy_defaults(), default_file).unwrap();
    node.variant("web.conf", conf);
    create_on(&node, more)
}

fn create_on(node: &Node, more: &[(&str, &str)]) -> Result<Create, String> {
    let (context, instance) = request(node, more);
    let settings = Settings::load(&context, "create").map_err(|error| report::sentence(&error))?;
    let inputs = Inputs { context: &context, instance: &instance, settings: &settings };
    let facts = DiskFacts { size_bytes: 2 << 30, medium: Medium::File };
    let plan = Plan::for_create(inputs, facts, TreeSource::Recipe);
    let plan = plan.map_err(|error| report::sentence(&error))?;
    Ok(Create { settings, plan, dir: tempfile::tempdir().unwrap() })
}

fn request(node: &Node, more: &[(&str, &str)]) -> (Context, Instance) {
    let mut env: Env = node.recorded("create-kvm", Path::new("/none")).into_iter().map(os).collect();
    let places = [
        ("CONFIG_DIR", node.etc()),
        ("LEGACY_DEFAULTS", node.legacy_defaults()),
        ("CACHE_DIR", node.cache()),
    ];
    env.extend(places.map(|(name, path)| (format!("GANETI_DEBOOTSTRAP_{name}").into(), path.into())));
    env.insert("OS_VARIANT".into(), "web".into());
    env.extend(more.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    let request = Request::read(Verb::Create, env, &Api5Flags::default()).unwrap();
    let Task::Create(instance) = request.task else { panic!("no create") };
    let mut context = request.context;
    context.places.os_dir = node.path().join("os");
    (context, instance)
}

fn os((name, value): (String, String)) -> (std::ffi::OsString, std::ffi::OsString) {
    (name.into(), value.into())
}

impl Create {
    /// Text, and file name and line: `sid default-file:2`.
    fn setting(&self, name: &str) -> String {
        let at = match self.settings.origin(name) {
            Some(Origin::File { path, line }) => {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                line.map_or(format!(" {file}"), |line| format!(" {file}:{line}"))
            }
            _ => String::new(),
        };
        format!("{}{at}", self.settings.text(name))
    }

    fn hooks_environment(&self) -> BTreeMap<String, String> {
        let text = |text: &std::ffi::OsString| text.to_string_lossy().into_owned();
        self.plan.hooks.environment.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    /// What a hook finds in a variable after `. common.sh`.
    fn in_a_hook(&self, variable: &str) -> String {
        let settings = self.dir.path().join("settings.sh");
        fs::write(&settings, &self.plan.hooks.shell_settings).unwrap();
        let script = format!("set -e; . '{}'; printf %s \"${variable}\"", settings.display());
        let output = Command::new("bash").args(["-c", &script]).env_clear().output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
        text(&output.stdout)
    }
}

/// Name, defaults file, the variant's file, and settings with their origins.
type Row = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const SID: (&str, &str) = ("suite", "sid default-file:2");
const VIM: (&str, &str) = ("extra_pkgs", "vim,sid web.conf:1");
const CONF: &str = "EXTRA_PKGS=\"vim,$SUITE\"\n";

/// Files that the predecessor honours.
const ROWS: &[Row] = &[
    ("IFS of a line break", "IFS=$'\\n'\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("IFS of a comma", "IFS=,\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("IFS of a colon", "IFS=:\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("IFS of an underscore", "IFS=_\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("IFS of what is in the script", "IFS='=S1_$'\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("empty IFS", "IFS=\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("readonly IFS", "readonly IFS=,\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("IFS of the variant's file", "\nSUITE=sid\n", "EXTRA_PKGS=\"vim,$SUITE\"\nIFS=,\n", &[SID, VIM]),
    ("arguments of words", "set -- $(echo one two)\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("no arguments", "set --\nSUITE=sid\n", CONF, &[SID, VIM]),
    (
        "arguments go on",
        "set -- less\nSUITE=sid\n",
        "EXTRA_PKGS=\"vim,$SUITE,$1\"\n",
        &[SID, ("extra_pkgs", "vim,sid,less web.conf:1")],
    ),
    (
        "shift without an argument",
        "shift || :\n",
        CONF,
        &[("suite", "trixie"), ("extra_pkgs", "vim,trixie web.conf:1")],
    ),
    (
        "an argument that is none of ours",
        "EXTRA_PKGS=less$*$@$1\n[ $# = 0 ] && SUITE=sid\n",
        "",
        &[SID, ("extra_pkgs", "less default-file:1")],
    ),
    ("a control byte in a value", "FOO=$'a\\x02b'; [[ $FOO ]]\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("set -u", "set -u\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("set -u in the variant's file", "\nSUITE=sid\n", "EXTRA_PKGS=\"vim,$SUITE\"; set -u\n", &[SID, VIM]),
    ("set -f -C -a", "set -f -C -a\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("POSIX mode", "set -o posix\nSUITE=sid\n", CONF, &[SID, VIM]),
    ("what $0 is", "case \"$0\" in */create)\nSUITE=sid;; esac\n", CONF, &[SID, VIM]),
    ("where the cache is", "\nSUITE=sid\n", "EXTRA_PKGS=\"${CACHE_DIR:+vim},$SUITE\"\n", &[SID, VIM]),
    ("a readonly name", "readonly name=x __name=x __pair=x __file=x\nSUITE=sid\n", CONF, &[SID, VIM]),
    (
        "a readonly setting",
        "# above config.toml\nreadonly SUITE=sid ARCH=amd64\n",
        CONF,
        &[SID, VIM, ("arch", "i386 config.toml:1")],
    ),
    (
        "functions with the names of builtins",
        "printf() { :; }; declare() { :; }; builtin() { :; }; trap() { :; }; unset() { :; }; compgen() { :; }\nSUITE=sid\n\
         set() { :; }; exec() { :; }; local() { :; }; shift() { :; }; command() { :; }; shopt() { :; }; export() { :; }\n\
         exit() { :; }; eval() { :; }; echo() { :; }; read() { :; }; mapfile() { :; }; /usr/bin/env() { :; }; env() { :; }\n",
        CONF,
        &[SID, VIM],
    ),
    (
        "readonly functions",
        "printf() { :; }; set() { :; }; readonly -f printf set\nSUITE=sid\n",
        CONF,
        &[SID, VIM],
    ),
    (
        "an alias",
        "shopt -s expand_aliases; alias set=false unset=false printf=false builtin=false\nSUITE=sid\n",
        CONF,
        &[SID, VIM],
    ),
    ("descriptors 10 and 11", "exec 10>/dev/null 11>/dev/null\nSUITE=sid\n", CONF, &[SID, VIM]),
    (
        "descriptors that are used by habit",
        "for n in {3..255}; do eval \"exec $n>/dev/null\"; done; exec >/dev/null\nSUITE=sid\n",
        CONF,
        &[SID, VIM],
    ),
    ("a variable of 3 MB", "BIG=$(head -c 3000000 /dev/zero | tr '\\0' x)\nSUITE=sid\n", CONF, &[SID, VIM]),
    (
        "a trace of its own",
        "set -x; exec 11>/dev/null; BASH_XTRACEFD=11\nSUITE=sid\n",
        CONF,
        &[("suite", "sid default-file"), ("extra_pkgs", "vim,sid web.conf")],
    ),
    ("a trace that ends", "set -x; set +x\nSUITE=sid\n", CONF, &[("suite", "sid default-file"), VIM]),
    ("traps", "trap 'echo err' ERR; trap 'echo debug' DEBUG; set -TE\nSUITE=sid\n", CONF, &[SID, VIM]),
];

#[test]
fn a_file_can_do_to_its_shell_what_it_likes() {
    let mut wrong = Vec::new();
    for (name, default_file, conf, expected) in ROWS {
        let node = Node::bare();
        fs::write(node.legacy_defaults(), default_file).unwrap();
        node.variant("web.conf", conf);
        if *name == "a readonly setting" {
            node.config("arch = \"i386\"\n");
        }
        match create_on(&node, &[]) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(create) => {
                let all = expected.iter().map(|(setting, expected)| (create.setting(setting), expected));
                wrong.extend(
                    all.filter(|(found, e)| found != *e).map(|(f, e)| format!("{name}: {f}, not {e}")),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file of which each line counts, and one that looks at an OS parameter.
const TRACED: &str = "SUITE=sid\nPARTITION_STYLE=none\n[[ $OSP_ROLE == db ]] && EXTRA_PKGS=postgresql || true\n\
                      CUSTOMIZE_DIR=/srv/hooks\nMARK=$OSP_ROLE\nexport SHOWN=\"$OSP_ROLE\"\n";
const TRACED_CONF: &str =
    "[[ $OSP_ROLE == db ]] || COMPONENTS=main\n(( ${#OSP_ROLE} )) && PROXY=http://p.example.org:1\n";

#[test]
fn no_value_breaks_or_imitates_what_bash_reports() {
    let control = (1..=31).chain([127]).map(|byte: u8| format!("web{}x", char::from(byte)));
    let all: String = (1..=31).chain([127]).map(char::from).collect();
    let shaped = [
        all,
        "\u{2}env\u{3}".into(),
        "x\n\u{2}variant\u{3}\n".into(),
        "x\n+\u{1}/evil\u{1}7\u{1}SUITE=evil\n+\u{1}/evil\u{1}8\u{1}CUSTOMIZE_DIR=/evil".into(),
        "x\n+__0123456789abcdef0123456789abcdef\u{1}/evil\u{1}7\u{1}SUITE=evil".into(),
        "x\n\nvariant\n__0123456789abcdef0123456789abcdef\u{1}variant\n".into(),
        "' \"$(exit 1)`exit 1`\\".into(),
        "done".into(),
    ];
    for role in control.chain(shaped) {
        let create =
            create(TRACED, TRACED_CONF, &[("OSP_ROLE", &role)]).unwrap_or_else(|e| panic!("{role:?}: {e}"));
        for (name, expected) in [
            ("suite", "sid default-file:1"),
            ("partition_style", "none default-file:2"),
            ("customize_dir", "/srv/hooks default-file:4"),
            ("components", "main web.conf:1"),
            ("proxy", "http://p.example.org:1 web.conf:2"),
            ("extra_pkgs", ""),
        ] {
            assert_eq!(create.setting(name), expected, "{role:?}");
        }
        assert_eq!(create.hooks_environment()["SHOWN"], role);
        assert_eq!(create.in_a_hook("MARK"), role);
        assert_eq!(create.plan.hooks.dir.as_deref(), Some(Path::new("/srv/hooks")));
    }
}

#[test]
fn what_bash_cannot_report_is_an_error_that_names_the_file() {
    let table = [
        (
            "exit 0\n",
            "",
            "default-file ended the shell that reads it, or took its descriptors (does it call exit",
        ),
        ("exec true\n", "", "default-file ended the shell"),
        ("set -n\n", "", "default-file ended the shell"),
        ("", "SUITE=sid\nexit 0\n", "web.conf ended the shell"),
        ("kill -9 $$\n", "", "default-file, "),
        (
            "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || eval \"exec $fd>&-\"; done\n",
            "",
            "must not close descriptors",
        ),
        ("", "for n in {200..999}; do eval \"exec $n>/dev/null\"; done\n", "or took its descriptors"),
        (
            "export BIG=$(head -c 300000 /dev/zero | tr '\\0' x)\n",
            "",
            "an exported variable has 128 KiB at most",
        ),
        ("builtin() { :; }; readonly -f builtin\n", "", "could not report what "),
        ("", "enable -n printf\n", "could not report what "),
        ("ulimit -f 0\n", "", "by signal 25"),
        ("CUSTOMIZE_DIR=$'/srv/caf\\351'\n", "", "customize_dir holds bytes that are not UTF-8"),
        ("SUITE=sid\nfalse\n", "", "default-file:2: this command failed"),
        ("", "SUITE=sid\n[ -n \"\" ] && X=1\n", "web.conf: its last command failed"),
        ("set -u\nSUITE=$UNKNOWN\n", "", "UNKNOWN: unbound variable"),
        ("", "readonly CACHE_DIR=/x; CACHE_DIR=/y\n", "CACHE_DIR: readonly variable"),
    ];
    for (default_file, conf, expected) in table {
        let node = Node::bare();
        fs::write(node.legacy_defaults(), default_file).unwrap();
        node.variant("web.conf", conf);
        let output = node.command(&["config", "show", "--variant", "web"]).output().unwrap();
        let log = log_of(&output);
        assert_eq!(output.status.code(), Some(1), "{default_file}{conf}: {log}");
        let error = log.split("error: ").nth(1).unwrap_or_default();
        assert!(error.contains(expected), "{default_file}{conf}: {log}");
        assert!(error.contains("default-file") || error.contains("web.conf"), "{log}");
    }
}

#[test]
fn hooks_see_what_the_files_leave() {
    let node = Node::bare();
    let shell = "set -a\nFOO=$'a\\x02b'\nSUITE=sid\nHELPER() { echo helped; }\nLIST=(a 'b c')\nreadonly FIXED=x\nBIG=$(head -c 3000000 /dev/zero | tr '\\0' y)\n";
    fs::write(node.legacy_defaults(), shell.replacen("BIG", "set +a; BIG", 1)).unwrap();
    node.variant("web.conf", "printf() { echo mine; }\nbuiltin() { echo mine; }\nlate=1\n");
    let create = create_on(&node, &[]).unwrap();
    let environment = create.hooks_environment();
    assert_eq!(environment["FOO"], "a\u{2}b");
    for (name, _) in environment {
        let ours = name.starts_with("__") || ["BASH_XTRACEFD", "PS4", "POSIXLY_CORRECT"].contains(&&*name);
        assert!(!ours, "{name} is ours");
    }
    let settings = create.dir.path().join("settings.sh");
    fs::write(&settings, &create.plan.hooks.shell_settings).unwrap();
    let script = format!(
        ". '{}'; echo \"$(HELPER) ${{LIST[1]}} $FIXED $late ${{#BIG}} $SUITE\"; printf; builtin",
        settings.display()
    );
    let output = Command::new("bash").args(["-c", &script]).env_clear().output().unwrap();
    assert_eq!(text(&output.stdout), "helped b c x 1 3000000 sid\nmine\nmine\n", "{}", log_of(&output));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn another_variant_is_what_the_defaults_file_says() {
    let node = Node::bare();
    fs::write(node.legacy_defaults(), "OS_VARIANT=other\n").unwrap();
    node.variant("web.conf", "SUITE=bookworm\n");
    node.variant("web.toml", "components = [\"contrib\"]\n");
    node.variant("other.conf", "SUITE=sid\n");
    node.variant("other.toml", "components = [\"main\"]\n");
    let create = create_on(&node, &[]).unwrap();
    assert_eq!(create.setting("suite"), "sid other.conf:1");
    assert_eq!(create.setting("components"), "main other.toml:1");
    assert_eq!(create.hooks_environment()["OS_VARIANT"], "other");

    fs::write(node.legacy_defaults(), "OS_VARIANT=\n").unwrap();
    let create = create_on(&node, &[]).unwrap();
    assert_eq!(create.setting("suite"), "trixie");
    assert_eq!(create.hooks_environment()["OS_VARIANT"], "");

    let refused = |default_file: &str| {
        fs::write(node.legacy_defaults(), default_file).unwrap();
        create_on(&node, &[]).map(|create| create.setting("suite")).unwrap_err()
    };
    assert!(refused("OS_VARIANT=nonsense\n").contains("Unofficial variant nonsense is unsupported"));
    let error = refused("\nOS_VARIANT=../web\n");
    assert!(error.contains("OS_VARIANT is \"../web\"; expected the name of a variant"), "{error}");
    assert!(error.contains("default-file:2)"), "{error}");

    // The variant's own file is read already: hooks see what it says.
    fs::write(node.legacy_defaults(), "").unwrap();
    node.variant("web.conf", "OS_VARIANT=other\n");
    let create = create_on(&node, &[]).unwrap();
    assert_eq!(create.setting("components"), "contrib web.toml:1");
    assert_eq!(create.hooks_environment()["OS_VARIANT"], "other");
}

#[test]
fn the_guest_has_the_name_that_the_files_give_it() {
    // Defaults file, the variant's file, the guest's name, INSTANCE_NAME as hooks see it.
    let table = [
        ("", "", "lk.example.com", "lk.example.com"),
        ("INSTANCE_NAME=${INSTANCE_NAME%%.*}\n", "", "lk", "lk"),
        ("", "instance=${instance%%.*}-new\n", "lk-new", "lk.example.com"),
        ("INSTANCE_NAME=a\n", "instance=$instance-b\n", "a-b", "a"),
        // The predecessor set `instance` after the defaults file, and did not look at INSTANCE_NAME
        // after the variant's file.
        ("instance=other\n", "INSTANCE_NAME=other\n", "lk.example.com", "other"),
    ];
    for (default_file, conf, guest, seen) in table {
        let create = create(default_file, conf, &[]).unwrap();
        assert_eq!(create.plan.guest_config.name.full(), guest, "{default_file}{conf}");
        assert_eq!(create.in_a_hook("instance"), guest);
        assert_eq!(create.hooks_environment()["INSTANCE_NAME"], seen);
        // The search domain stays that of Ganeti's name.
        assert_eq!(create.plan.guest_config.resolver.search.as_deref(), Some("example.com"));
    }
    let error = create("INSTANCE_NAME='a b'\n", "", &[]).map(|_| ()).unwrap_err();
    assert!(error.contains("the instance's name is \"a b\"; expected a host name (set in "), "{error}");
    assert!(error.contains("default-file:1)"), "{error}");
    let error = create("", "\ninstance=\n", &[]).map(|_| ()).unwrap_err();
    assert!(error.contains("web.conf:2)"), "{error}");
}

#[test]
fn a_variants_file_moves_the_cache() {
    let node = Node::bare();
    let moved = node.path().join("moved");
    fs::write(node.legacy_defaults(), "CACHE_DIR=/ignored/as/ever\n").unwrap();
    let create = create_on(&node, &[("OS_VARIANT", "default")]).unwrap();
    assert_eq!(
        (create.plan.base.cache_dir.clone(), create.in_a_hook("CACHE_DIR")),
        (node.cache(), node.cache().display().to_string())
    );

    node.variant("web.conf", &format!("CACHE_DIR={}\n", moved.display()));
    let create = create_on(&node, &[]).unwrap();
    assert_eq!(
        (create.plan.base.cache_dir.clone(), create.in_a_hook("CACHE_DIR")),
        (moved.clone(), moved.display().to_string())
    );

    // The commands for the cache know of it.
    for (dir, suite) in [(node.cache(), "sid"), (moved.clone(), "bookworm")] {
        fs::create_dir_all(&dir).unwrap();
        let file = fs::File::create(dir.join(format!("cache-{suite}-amd64.tar"))).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(40 * 24 * 3600))
            .unwrap();
    }
    let run = |args: &[&str]| {
        let output = node.command(args).output().unwrap();
        assert!(output.status.success(), "{}", log_of(&output));
        log_of(&output)
    };
    let old = moved.join("cache-bookworm-amd64.tar").display().to_string();
    let listed = run(&["cache", "list"]);
    assert!(listed.contains(&old) && listed.contains("  cache-sid-amd64.tar"), "{listed}");
    assert!(run(&["cache", "verify"]).contains(&old));
    assert!(run(&["cache", "seal", &old]).contains("is sealed"));
    let pruned = run(&["cache", "prune"]);
    assert!(pruned.contains("/cache-sid-amd64.tar") && !pruned.contains(&old), "{pruned}");
    fs::remove_file(moved.join("cache-bookworm-amd64.toml")).unwrap();
    assert!(run(&["cache", "prune"]).contains(&format!("removed {old}")));

    for wrong in ["relative", "''"] {
        node.variant("web.conf", &format!("\nCACHE_DIR={wrong}\n"));
        let error = create_on(&node, &[]).map(|_| ()).unwrap_err();
        assert!(error.contains("CACHE_DIR is \"") && error.contains("expected an absolute path"), "{error}");
        assert!(error.contains("web.conf:2)"), "{error}");
    }
}

#[test]
fn days_are_what_find_took_and_hooks_directories_are_absolute() {
    for (written, days) in [("+3", 3), ("1.5", 1), ("99999999999", 36_500), ("' 7'", 7), ("0", 0)] {
        let create = create(&format!("CLEAN_CACHE={written}\n"), "", &[]).unwrap();
        assert_eq!(create.plan.base.clean_days, Some(days), "{written}");
    }
    for (assignment, expected) in [
        (
            "CLEAN_CACHE=-1",
            "clean_cache is \"-1\"; expected a number of days from 0 to 36500, or nothing for never",
        ),
        ("CLEAN_CACHE=soon", "expected a number of days from 0 to 36500"),
        ("CUSTOMIZE_DIR=hooks", "customize_dir is \"hooks\"; expected an absolute path"),
        ("CUSTOMIZE_DIR='~/hooks'", "customize_dir is \"~/hooks\"; expected an absolute path"),
    ] {
        let error = create(&format!("\n{assignment}\n"), "", &[]).map(|_| ()).unwrap_err();
        assert!(error.contains(expected) && error.contains("default-file:2)"), "{error}");
    }
}

/// What nobody may see in the log, as a mirror's password in a file.
const PASSWORD: &str = "hunter2";

#[test]
fn what_bash_prints_repeats_no_value() {
    let mirror = format!("http://me:{PASSWORD}@mirror.example.org/debian");
    // A defaults file, the variant's, and a word of the log that must stay.
    let table = [
        ("a trace in the log", format!("unset BASH_XTRACEFD\nMIRROR={mirror}\necho shown\n"), "", "| shown"),
        (
            "of its own form",
            format!("unset BASH_XTRACEFD; PS4='+ '\nMIRROR={mirror}\necho shown\n"),
            "",
            "| shown",
        ),
        (
            "to another descriptor",
            format!("BASH_XTRACEFD=2\nMIRROR={mirror}\n[[ $MIRROR ]]\n"),
            "SUITE=sid\n",
            "",
        ),
        (
            "of several lines",
            format!("MIRROR={mirror}; X=$'a\\n{PASSWORD}\\nb'\nunset BASH_XTRACEFD\n[[ $X ]]\necho shown\n"),
            "",
            "| shown",
        ),
        ("lines as they are read", format!("set -v\nMIRROR={mirror}\necho shown\n"), "", "| shown"),
        ("of both files", "set -v\n".into(), "SECRET='a\nhunter2 b'\n", ""),
        (
            "an assignment that fails",
            format!("MIRROR={mirror}$(exit 3)\n"),
            "",
            "default-file:1: this command failed",
        ),
        ("a command that fails", format!("test {PASSWORD} = x\n"), "", "default-file:1: this command failed"),
        ("a line that is no shell", format!("MIRROR={mirror}(\n"), "", "default-file: line 1: syntax error"),
        (
            "a number that is none",
            format!("X='3 {PASSWORD}'\n[ \"$X\" -gt 1 ]\n"),
            "",
            "default-file: line 2: [: ...: integer",
        ),
        (
            "a sum that is none",
            format!("X='3 {PASSWORD}'\nY=$((X))\n"),
            "",
            "default-file: line 2: ...: syntax error",
        ),
        ("an unset variable", format!("set -u\nMIRROR={mirror}$X\n"), "", "X: unbound variable"),
        (
            "its own words",
            format!("MIRROR={mirror}\necho \"shown: $MIRROR\"\n"),
            "",
            "| shown: http...@mirror.example.org",
        ),
        (
            "a parameter",
            "unset BASH_XTRACEFD; PS4='+ '\n[[ $OSP_PASSWORD_HASH ]]\necho shown\n".into(),
            "",
            "| shown",
        ),
    ];
    for (name, default_file, conf, expected) in table {
        let node = Node::bare();
        fs::write(node.legacy_defaults(), &default_file).unwrap();
        fs::set_permissions(node.legacy_defaults(), PermissionsExt::from_mode(0o600)).unwrap();
        node.variant("web.conf", conf);
        let mut env = node.recorded("verify", Path::new("/none"));
        env.insert("OS_VARIANT".into(), "web".into());
        let hash = format!("$6$salt${}", PASSWORD.repeat(12)) + "xx";
        env.insert("OSP_PASSWORD_HASH".into(), hash);
        let log = log_of(&node.verb("verify", &env).output().unwrap());
        assert!(!log.contains(PASSWORD), "{name}: {log}");
        assert!(log.contains(expected), "{name}: {log}");
    }
}
