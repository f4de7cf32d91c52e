//! What can be typed: clap's types, nothing else.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// The OS definition that installs Debian instances on a Ganeti cluster.
#[derive(Debug, Parser)]
#[command(name = crate::PROGRAM, version, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install an instance (called by Ganeti; its environment says which).
    Create(OsArgs),
    /// Restore a disk from stdin (called by Ganeti).
    Import(OsArgs),
    /// Write a disk's backup to stdout (called by Ganeti).
    Export(OsArgs),
    /// Give an instance's disk its new name (called by Ganeti).
    Rename(OsArgs),
    /// Check an instance's OS parameters (called by Ganeti).
    Verify(VerifyArgs),
    /// Make a disk image on this machine.
    Image(ImageArgs),
    /// Look after the cache of root trees.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Show and check the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Flags of version 5 of the OS interface; later versions use the environment alone.
#[derive(Debug, Args)]
pub struct OsArgs {
    /// The instance's name.
    #[arg(short = 'i', short_alias = 'n', value_name = "NAME")]
    pub instance: Option<String>,
    /// The root disk.
    #[arg(short = 'b', value_name = "DEVICE")]
    pub device: Option<PathBuf>,
    /// The device for swap.
    #[arg(short = 's', value_name = "DEVICE")]
    pub swap: Option<PathBuf>,
    /// The old name, for rename.
    #[arg(short = 'o', value_name = "NAME")]
    pub old_name: Option<String>,
    /// Print the plan and touch nothing.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// What is to be checked.
    #[arg(value_name = "WHAT", value_enum)]
    pub what: Vec<Checked>,
}

/// What the OS interface knows to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Checked {
    /// The OS parameters and the variant.
    Parameters,
}

/// A disk image's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Raw,
    Qcow2,
}

#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The guest's full host name.
    #[arg(long, value_name = "FQDN")]
    pub name: String,
    /// The disk's size: a number with K, M, G or T.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: u64,
    /// The file to write; it must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub force: bool,
    /// The variant whose settings hold.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// An OS parameter, as gnt-instance add -O takes it; may be repeated.
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = Param)]
    pub params: Vec<(String, String)>,
    #[arg(long, value_enum, default_value = "raw")]
    pub format: Format,
    /// Print the plan and touch nothing.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the cache files.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make what creates of a variant need, unless it is there.
    Build {
        /// The variant; without it the plain settings.
        variant: Option<String>,
        /// Also a template for disks of this size: 20G
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
    },
    /// Make the tree of every published variant anew; the old one serves until the new one is there.
    Refresh,
    /// Remove what has expired, and what belongs to nothing.
    Prune,
    /// Compare every file with its manifest.
    Verify,
    /// Trust a file as it is now: it never expires, and is checked at every use.
    Seal { file: PathBuf },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting.
    Show {
        /// The variant whose settings hold.
        #[arg(long, value_name = "NAME")]
        variant: Option<String>,
        /// Name the file and line of each value.
        #[arg(long)]
        origin: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Report all that is wrong in all files.
    Check,
}

/// Bytes from `4G`, `512M`, `1.5T` or a plain number.
fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text} is no size; expected a number with K, M, G or T, like 4G");
    let (number, factor) = match text.trim_end_matches(['i', 'B']) {
        t if t.ends_with(['K', 'k']) => (&t[..t.len() - 1], 1u64 << 10),
        t if t.ends_with(['M', 'm']) => (&t[..t.len() - 1], 1 << 20),
        t if t.ends_with(['G', 'g']) => (&t[..t.len() - 1], 1 << 30),
        t if t.ends_with(['T', 't']) => (&t[..t.len() - 1], 1 << 40),
        t => (t, 1),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    let bytes = number * factor as f64;
    if !(1.0..=(1u64 << 60) as f64).contains(&bytes) {
        return Err(bad());
    }
    // Whole sectors.
    Ok((bytes as u64).div_ceil(512) * 512)
}

/// Reads KEY=VALUE. clap itself would repeat what is wrong, and that may be a secret.
#[derive(Debug, Clone)]
struct Param;

impl TypedValueParser for Param {
    type Value = (String, String);

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        parse_param(value).map_err(|fault| {
            clap::Error::raw(ErrorKind::ValueValidation, format!("--param: {fault}\n")).with_cmd(command)
        })
    }
}

fn parse_param(text: &OsStr) -> Result<(String, String), String> {
    let text = text.to_str().ok_or("a value that is not UTF-8")?;
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let known =
        crate::settings::table::KEYS.iter().filter(|k| k.is_parameter()).map(|k| k.name).collect::<Vec<_>>();
    if !known.contains(&key) {
        // A name of ours that was misspelt, and nothing else.
        let is_name = key.len() <= 40 && key.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
        let shown = if is_name { key } else { "what stands before =" };
        return Err(format!("{shown} is no OS parameter; there are {}", known.join(", ")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// What clap says of arguments that mean nothing, without the values in them: after each `=` it says `...`.
pub fn complaint(error: &clap::Error, args: &[OsString]) -> String {
    let mut text = error.to_string();
    for arg in args {
        let mut arg = &*arg.to_string_lossy();
        while let Some((name, value)) = arg.split_once('=') {
            if !value.is_empty() {
                text = text.replace(arg, &format!("{name}=..."));
            }
            arg = value;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_value_is_not_repeated_whatever_is_wrong() {
        let image = ["ganeti-instance-debootstrap", "image"];
        let cases: &[(&[&str], &str)] = &[
            (&["--param", "pasword_hash=$6$hunter2"], "pasword_hash is no OS parameter; there are suite"),
            (&["--param=pasword_hash=$6$hunter2"], "pasword_hash is no OS parameter"),
            (&["--param", "$6$hunter2"], "expected KEY=VALUE"),
            (&["--param", "$6$hunter2=="], "what stands before = is no OS parameter"),
            (&["password_hash=$6$hunter2"], "'password_hash=...'"),
            (&["--parm", "password_hash=$6$hunter2"], "'--parm'"),
            (&["--parm=password_hash=$6$hunter2"], "'--parm"),
            (&["--size", "password_hash=$6$hunter2"], "'password_hash=...' for '--size"),
        ];
        for (args, expected) in cases {
            let args: Vec<OsString> = image.iter().chain(*args).map(OsString::from).collect();
            let text = complaint(&Cli::try_parse_from(&args).unwrap_err(), &args);
            assert!(text.contains(expected) && !text.contains("hunter2"), "{args:?}: {text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let table =
            [("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("1T", 1 << 40), ("1000", 1024)];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "-1G", "x", "1e30"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
