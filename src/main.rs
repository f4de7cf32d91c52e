//! The entry: which verb it is, what the process is set up with, and how it ends. Alone chooses the exit status.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use ganeti_instance_debootstrap::cli::{Cli, complaint};
use ganeti_instance_debootstrap::command::init;
use ganeti_instance_debootstrap::request::{Verb, process_env};
use ganeti_instance_debootstrap::sys;
use ganeti_instance_debootstrap::sys::signals::{self, Interrupted};
use ganeti_instance_debootstrap::verbs::{self, Outcome};
use ganeti_instance_debootstrap::{PROGRAM, report};

/// Done.
const DONE: u8 = 0;
/// The verb failed; its log says why.
const FAILED: u8 = 1;
/// It was called in a way that means nothing.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    sys::cloexec_inherited();
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if name == init::ARGV0 {
        return init::main(args);
    }
    // noded's umask is 0077; it must not leak into a guest. Hooks have always run with 022: run-parts set it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Err(error) = signals::catch() {
        report::error(&error);
        return ExitCode::from(FAILED);
    }
    let args = as_subcommand(name, args);
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Of what was typed nothing is in it.
            let _ = error.print();
            return ExitCode::from(DONE);
        }
        Err(error) => {
            report::line(&complaint(&error, &args));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let status = match verbs::run(&cli.command, process_env()) {
        Ok(Outcome::Done) => return ExitCode::from(DONE),
        Ok(Outcome::No) => FAILED,
        Ok(Outcome::Usage) => WRONG_USAGE,
        Err(error) => {
            report::error(&error);
            FAILED
        }
    };
    // Whatever became of the error on its way: what a signal stopped ends by that signal.
    if let Some(Interrupted(signal)) = signals::caught() {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    ExitCode::from(status)
}

/// Called as `create` and the like, the name is the verb.
fn as_subcommand(name: OsString, args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let verb = Path::new(&name).file_name().and_then(Verb::from_name);
    let mut argv = vec![PROGRAM.into()];
    argv.extend(verb.map(|verb| verb.name().into()));
    argv.extend(args);
    argv
}
