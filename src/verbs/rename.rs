//! rename: a guest that lives already gets its instance's new name. Layout and filesystem are found on the disk itself.

use anyhow::{Context as _, Result};

use super::{Outcome, answer, warn};
use crate::disk::Disk;
use crate::guest::found_root::GuestRoot;
use crate::guest::network::{self, Mode};
use crate::guest::{self, Network, Renaming, Resolver, Workspace};
use crate::plan::disk_path;
use crate::probe::Survey;
use crate::report;
use crate::request::{Context, Instance, InstanceName};
use crate::settings::Settings;

/// Renames the guest on the instance's first disk from `old`.
pub fn rename(context: &Context, instance: &Instance, old: &InstanceName, dry_run: bool) -> Result<Outcome> {
    let settings = Settings::load(context, "rename")?;
    let address = &instance.disks.first().context("an instance without disks")?.address;
    let disk = Disk::open(&disk_path(address)?)?;
    let renaming = plan(instance, &settings, old)?;
    if dry_run {
        let Survey { table, parts } = disk.survey()?;
        let table = table.map_or("none".to_owned(), |table| table.to_string());
        let parts: String = parts.iter().map(|part| format!("            {part}\n")).collect();
        let path = disk.path.display();
        answer(&format!(
            "instance    {old} -> {}\ndisk        {path}\nlayout      {table}\n{parts}",
            renaming.new
        ))?;
        return Ok(Outcome::Done);
    }
    warn(&settings);
    let workspace = Workspace::enter()?;
    on_disk(&disk, &workspace, &renaming)
        .with_context(|| format!("renaming the guest of {old} to {}", renaming.new))?;
    Ok(Outcome::Done)
}

fn plan(instance: &Instance, settings: &Settings, old: &InstanceName) -> Result<Renaming> {
    // Without a NIC that Ganeti knows, or with a network that is left alone, there is nothing to write.
    let known = instance.nics_are_known && !instance.nics.is_empty() && settings.network != Mode::Manual;
    let network = match known {
        true => network::decide(&instance.nics, settings.network, &instance.hypervisor)
            .context("setting up the guest's network")?,
        false => Network::none(),
    };
    let search = instance.name.domain().map(str::to_owned);
    Ok(Renaming {
        old: old.clone(),
        new: settings.guest_name(instance).clone(),
        network,
        resolver: Resolver { servers: settings.dns.clone(), search },
    })
}

fn on_disk(disk: &Disk, workspace: &Workspace, renaming: &Renaming) -> Result<()> {
    let guest = report::step("mounting the guest's root", || GuestRoot::find(disk, workspace))?;
    let table = guest.table.map_or("no table".to_owned(), |table| format!("a {table} table"));
    report::line(&format!("{:>10}  {table}, {}", "found", guest.part));
    let renamed = match guest::called(guest.tree(), &renaming.old, &renaming.new) {
        Ok(Some(called)) => report::step("renaming", || guest::rename(guest.tree(), renaming, called)),
        Ok(None) => {
            report::warning("the guest has no /etc/hostname; it stays as it is");
            Ok(false)
        }
        Err(error) => Err(error),
    };
    let finished = report::step("flushing", || guest.finish(disk));
    if renamed? {
        report::line(&format!("{:>10}  the guest's network is that of the new NICs", ""));
    }
    finished
}
