//! The verbs: each reads as a story and composes the other rooms.

mod cache;
mod config;
mod create;
mod export;
mod image;
mod import;
mod rename;
mod verify;

use std::ffi::{OsStr, OsString};
use std::io::Write;

use anyhow::{Context as _, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command, OsArgs};
use crate::report::{self, WithHint};
use crate::request::{Api5Flags, Context, Env, Refusal, Request, Task, VariantName, Verb};
use crate::settings::Settings;

/// How a run ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Called in a way that means nothing: usage was printed.
    Usage,
    /// An answer that is no.
    No,
}

/// Runs a command.
pub fn run(command: &Command, env: Env) -> Result<Outcome> {
    let debug = env.get(OsStr::new("DEBUG_LEVEL")).is_some_and(|level| level != "0" && !level.is_empty());
    report::set_debug(debug);
    match command {
        Command::Create(args) => os_verb(Verb::Create, args, env),
        Command::Import(args) => os_verb(Verb::Import, args, env),
        Command::Export(args) => os_verb(Verb::Export, args, env),
        Command::Rename(args) => os_verb(Verb::Rename, args, env),
        Command::Verify(args) if args.what.is_empty() => Ok(usage(Verb::Verify)),
        Command::Verify(_) => {
            let none = OsArgs { instance: None, device: None, swap: None, old_name: None, dry_run: false };
            os_verb(Verb::Verify, &none, env)
        }
        Command::Image(args) => image::image(args, env),
        Command::Cache(command) => cache::cache(command, env),
        Command::Config(command) => config::config(command, env),
    }
}

fn os_verb(verb: Verb, args: &OsArgs, env: Env) -> Result<Outcome> {
    let flags = Api5Flags {
        instance: args.instance.clone(),
        device: args.device.clone(),
        swap: args.swap.clone(),
        old_name: args.old_name.clone(),
    };
    let request = match Request::read(verb, env, &flags) {
        Ok(request) => request,
        Err(Refusal::ByHand) => return Ok(usage(verb)),
        Err(Refusal::Faults(faults)) => {
            return Err(anyhow::anyhow!("{}", faults.join("\n  ")))
                .context(format!("reading the request for {}", verb.name()))
                .hint("these come from Ganeti's environment; see ganeti-os-interface(7)");
        }
    };
    match &request.task {
        Task::Create(instance) => create::create(&request.context, instance, args.dry_run),
        Task::Verify { faults } => verify::verify(&request.context, faults),
        Task::Rename(instance, old) => rename::rename(&request.context, instance, old, args.dry_run),
        Task::Export { instance, disk, index, size_fd } => {
            export::export(instance, disk, *index, *size_fd, args.dry_run)
        }
        Task::Import { instance, disk, index } => {
            import::import(&request.context, instance, disk, *index, args.dry_run)
        }
    }
}

/// By hand, without Ganeti's environment, a verb touches nothing.
fn usage(verb: Verb) -> Outcome {
    let mut cli = Cli::command();
    let help = cli.find_subcommand_mut(verb.name()).map(|sub| sub.render_long_help().to_string());
    report::line(&help.unwrap_or_default());
    report::line(match verb {
        Verb::Verify => {
            "Ganeti calls this verb with an environment that holds OS parameters; by hand use `config check`."
        }
        _ => "Ganeti calls this verb with an environment that names the instance; by hand use `image`.",
    });
    Outcome::Usage
}

fn warn(settings: &Settings) {
    for warning in settings.layers.exposed.iter().chain(&settings.layers.warnings) {
        report::warning(warning);
    }
}

/// What a command that Ganeti does not call knows of the node: no instance, and of the environment only what a
/// program needs, and what Ganeti would give a shell file to look at (`HYPERVISOR=kvm ... config show`); a variable
/// of an admin's shell is not taken for a setting.
fn node_context(env: &Env, variant: Option<&str>) -> Result<Context> {
    let parse =
        |name| VariantName::parse(name).with_context(|| format!("\"{name}\" is no name for a variant"));
    let keep = ["PATH", "HOME", "TERM", "LANG", "LC_ALL", "TMPDIR", "HYPERVISOR"];
    let of_ganeti = ["OS_", "INSTANCE_", "DISK_", "NIC_"];
    let kept = |name: &OsString| {
        let name = name.to_string_lossy();
        keep.iter().any(|k| name == *k) || of_ganeti.iter().any(|prefix| name.starts_with(prefix))
    };
    Ok(Context {
        api: crate::request::Api::V20,
        os_name: "debootstrap".into(),
        variant: variant.map(parse).transpose()?,
        parameters: std::collections::BTreeMap::new(),
        debug_level: 0,
        env: env.iter().filter(|(name, _)| kept(name)).map(|(n, v)| (n.clone(), v.clone())).collect(),
        places: crate::request::Places::from_env(env),
    })
}

/// An answer on stdout, in printable ASCII; line breaks stay. Text of strangers has become a word before
/// ([`report::Foreign`]).
fn answer(text: &str) -> Result<()> {
    print(&report::printable(text))
}

/// The same as JSON, whose own escapes say all that is not printable.
fn answer_json(value: &serde_json::Value) -> Result<()> {
    print(&json_ascii(&serde_json::to_string_pretty(value)?))
}

/// JSON with `\uXXXX` in the place of all that is neither printable ASCII nor a line break: outside of strings it has nothing
/// else.
fn json_ascii(json: &str) -> String {
    let mut text = String::new();
    for c in json.chars() {
        match c {
            ' '..='~' | '\n' => text.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text += &format!("\\u{unit:04x}")),
        }
    }
    text + "\n"
}

fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing the answer")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_the_same_in_printable_ascii() {
        let value = serde_json::json!({"a\u{1b}": "\u{7f}\u{9b}\u{202e}\u{1f600}\u{e9}\n\\\""});
        let text = json_ascii(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
