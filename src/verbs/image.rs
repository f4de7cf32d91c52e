//! image: the same pipeline as create, onto a file on this machine.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Outcome, create};
use crate::cli::{Format, ImageArgs};
use crate::command::{self, Tool};
use crate::disk::{Disk, Medium};
use crate::guest::Workspace;
use crate::plan::{DiskFacts, Inputs};
use crate::report::{self, WithHint, size};
use crate::request::{self, Context, DiskAddress, Env, Instance, InstanceName};
use crate::settings::{Settings, table};
use crate::sys::tmpfile;

/// More than any parameter needs.
const PARAM_MAX_BYTES: u64 = 1 << 20;

/// Makes a disk image; the file appears when it is complete.
pub fn image(args: &ImageArgs, env: Env) -> Result<Outcome> {
    if args.output.exists() && !args.force {
        return Err(anyhow::anyhow!("{} exists", args.output.display())).hint("--force replaces it");
    }
    if args.output.exists() && !args.output.is_file() {
        bail!("{} is no regular file; an image replaces nothing else", args.output.display());
    }
    let dir = match args.output.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if !dir.is_dir() {
        bail!("the directory {} does not exist", dir.display());
    }
    if args.format == Format::Qcow2 {
        command::require("qemu-img")?;
    }
    let params = args.params.iter().map(given_parameter).collect::<Result<Vec<_>>>()?;
    let (name, variant) = (&args.name, args.variant.as_deref());
    let wanted = Wanted { name, variant, size_bytes: args.size, output: &args.output, params: &params };
    let (context, instance) = request(&wanted, &env)?;
    let settings = Settings::load(&context, "create")?;
    let inputs = Inputs { context: &context, instance: &instance, settings: &settings };
    if args.dry_run {
        let facts = DiskFacts { size_bytes: args.size, medium: Medium::File };
        return create::show(inputs, facts);
    }
    // First: a name can only be given in the mount namespace where the file was made.
    let workspace = Workspace::enter()?;
    let file = tmpfile::create(dir)?;
    file.set_len(args.size).with_context(|| format!("making a file of {} bytes", args.size))?;
    let disk = Disk::of_new_file(file.try_clone()?, &args.output)?;
    create::on_disk(inputs, &disk, &workspace)?;
    publish(args, file, dir)?;
    report::line(&format!("{:>10}  {}", "image", args.output.display()));
    Ok(Outcome::Done)
}

/// A parameter as the command line gives it: `@FILE` stands for what a file holds, `@-` for standard input, `@@` for a value that
/// begins with @. A line break at the end is left out.
fn given_parameter((name, value): &(String, String)) -> Result<(String, String)> {
    let is_secret = table::find(name).is_some_and(|key| key.kind.is_secret());
    let read = |input: &mut dyn Read| -> Result<String> {
        let mut bytes = Vec::new();
        input.take(PARAM_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= PARAM_MAX_BYTES, "a parameter has {} at most", size(PARAM_MAX_BYTES));
        let text = String::from_utf8(bytes).ok().context("it is no UTF-8 text")?;
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    };
    let text = match value.strip_prefix('@') {
        Some("-") => read(&mut std::io::stdin()).context("reading standard input")?,
        Some(rest) if rest.starts_with('@') => rest.to_owned(),
        Some(path) => {
            let mut file = File::open(path).with_context(|| format!("opening {path}"))?;
            read(&mut file).with_context(|| format!("reading {path}"))?
        }
        None => {
            if is_secret && !value.is_empty() {
                report::warning(&format!(
                    "every user of this node can see {name} among the processes; --param {name}=@FILE keeps it to root"
                ));
            }
            value.clone()
        }
    };
    Ok((name.clone(), text))
}

/// An instance that Ganeti does not know.
pub struct Wanted<'a> {
    pub name: &'a str,
    pub variant: Option<&'a str>,
    pub size_bytes: u64,
    pub output: &'a Path,
    pub params: &'a [(String, String)],
}

/// The request for such an instance under KVM. Its environment is what a node daemon's would be: shell files of settings and
/// hooks look at it.
pub fn request(wanted: &Wanted<'_>, env: &Env) -> Result<(Context, Instance)> {
    let instance = instance(wanted)?;
    let mut context = super::node_context(env, wanted.variant)?;
    let places = env.iter().filter(|(name, _)| name.to_string_lossy().starts_with("GANETI_DEBOOTSTRAP_"));
    context.env.extend(places.map(|(n, v)| (n.clone(), v.clone())));
    let size_mib = (wanted.size_bytes >> 20).to_string();
    let output = wanted.output.to_string_lossy();
    let facts = [
        ("OS_API_VERSION", "20"),
        ("OS_NAME", "debootstrap"),
        ("OS_VARIANT", wanted.variant.unwrap_or("")),
        ("INSTANCE_NAME", wanted.name),
        ("HYPERVISOR", instance.hypervisor.as_str()),
        ("DISK_COUNT", "1"),
        ("DISK_0_ACCESS", "rw"),
        ("DISK_0_PATH", &output),
        ("DISK_0_SIZE", &size_mib),
        ("DISK_0_BACKEND_TYPE", "file:loop"),
        ("NIC_COUNT", "0"),
        ("INSTANCE_HV_serial_console", "True"),
        ("INSTANCE_HV_serial_speed", "115200"),
    ];
    context.env.extend(facts.map(|(name, value)| (name.into(), value.into())));
    for (key, value) in wanted.params {
        context.env.insert(format!("OSP_{}", key.to_uppercase()).into(), value.into());
        if !value.is_empty() {
            context.parameters.insert(key.to_lowercase(), value.clone());
        }
    }
    Ok((context, instance))
}

fn instance(wanted: &Wanted<'_>) -> Result<Instance> {
    let name = InstanceName::parse(wanted.name)
        .with_context(|| format!("the name is {}; expected a host name", report::quoted(wanted.name)))?;
    let disk = request::Disk {
        address: DiskAddress::Path(wanted.output.to_owned()),
        size_mib: Some(wanted.size_bytes >> 20),
        read_only: false,
        name: None,
        frontend: None,
    };
    Ok(Instance {
        name,
        hypervisor: "kvm".into(),
        disks: vec![disk],
        nics: Vec::new(),
        nics_are_known: false,
        reinstall: false,
        swap: None,
        pygrub: false,
        serial_console: true,
        serial_speed: Some(115_200),
        device_types: Vec::new(),
    })
}

/// Gives the finished disk its name, in one step where it replaces another. Until then it has none, and only root reads it: it
/// holds the guest's shadow file and host keys.
fn publish(args: &ImageArgs, disk: File, dir: &Path) -> Result<()> {
    let image = match args.format {
        Format::Raw => disk,
        Format::Qcow2 => {
            let image = tmpfile::create(dir)?;
            let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            report::long_step("converting to qcow2", || {
                let convert = ["convert", "-f", "raw", "-O", "qcow2"];
                Tool::new("qemu-img").args(convert).arg(path(&disk)).arg(path(&image)).run()
            })?;
            image
        }
    };
    image.sync_all().context("flushing the image")?;
    if !args.output.exists() {
        return tmpfile::link(&image, &args.output);
    }
    // A run that was killed here left it.
    let name = args.output.file_name().context("naming the image")?.to_string_lossy().into_owned();
    let staged = dir.join(format!(".{name}.new"));
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", staged.display()));
        }
        _ => tmpfile::link(&image, &staged)?,
    }
    std::fs::rename(&staged, &args.output).with_context(|| format!("publishing {}", args.output.display()))
}
