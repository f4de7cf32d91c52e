//! verify: all that is wrong with an instance's OS parameters and variant, in one answer. Ganeti gives it no hypervisor,
//! no disk and no NIC, so what hangs on these is left to the plan of create.

use std::path::Path;

use anyhow::Result;

use super::{Outcome, warn};
use crate::bootstrap::{Bootstrapper, mmdebstrap};
use crate::report;
use crate::request::Context;
use crate::settings::{Judgement, Settings, Source};

/// Where the node's own timezones are.
const ZONES: &str = "/usr/share/zoneinfo";

/// Judges each setting by itself, then what cannot work together. `faults` are those of the environment.
pub fn verify(context: &Context, faults: &[String]) -> Result<Outcome> {
    let mut judgement = Settings::judge(context, "verify")?;
    if !faults.is_empty() {
        judgement.trust_parameters_only();
        judgement.problems.splice(0..0, faults.iter().cloned());
    }
    judgement.problems.extend(unknown_timezone(&judgement));
    judgement.problems.extend(unusable_source(&judgement));
    judgement.problems.extend(missing_mmdebstrap(&judgement));
    judgement.add_conflicts();
    let settings = judgement.into_settings()?;
    warn(&settings);
    Ok(Outcome::Done)
}

/// A file that this node does not have, or that create would not take: it is read here.
fn unusable_source(judgement: &Judgement) -> Option<String> {
    let Source::File(file) = &judgement.settings.source else { return None };
    if !judgement.is_certain("source") {
        return None;
    }
    let fault = match file.path.is_file() {
        true => judgement.settings.admin_files().open(&file.path).err()?,
        false => "this node does not have it".into(),
    };
    Some(format!("source names {}{}: {fault}", file.path.display(), judgement.settings.set_in("source")))
}

/// A program that is asked for by name and not installed.
fn missing_mmdebstrap(judgement: &Judgement) -> Option<String> {
    let wanted = judgement.settings.bootstrapper == Bootstrapper::Mmdebstrap;
    let error = (wanted && judgement.is_certain("bootstrapper")).then(mmdebstrap::refuse_missing)?.err()?;
    Some(format!(
        "bootstrapper is \"mmdebstrap\"{}, but {}; install it, or set bootstrapper to \"auto\"",
        judgement.settings.set_in("bootstrapper"),
        report::sentence(&error)
    ))
}

/// A timezone that does not exist, as far as this node can tell: the guest's own tzdata has the last word, and a node
/// without the list of all names says nothing.
fn unknown_timezone(judgement: &Judgement) -> Option<String> {
    let zone = judgement.settings.timezone.as_ref().filter(|_| judgement.is_certain("timezone"))?.to_string();
    let zones = Path::new(ZONES);
    // tzfile(5); beside zones lie lists and directories.
    let is_zone = std::fs::read(zones.join(&zone)).is_ok_and(|bytes| bytes.starts_with(b"TZif"));
    // Names that newer releases keep in tzdata-legacy stand in the list all the same.
    if is_zone || !std::fs::read_to_string(zones.join("tzdata.zi")).is_ok_and(|list| !names(&list, &zone)) {
        return None;
    }
    let origin = &judgement.settings.origin("timezone")?;
    let (zone, origin) = (report::quoted(&zone), origin.to_string());
    Some(format!(
        "timezone is {zone}, which the tzdata of this node does not know; expected one like \"Europe/Berlin\" (set in {origin})"
    ))
}

/// Whether tzdata.zi names a zone (zic(8): `Z NAME ...`) or a link to one (`L TARGET NAME`).
fn names(list: &str, zone: &str) -> bool {
    list.lines().any(|line| {
        let mut words = line.split(' ');
        match words.next() {
            Some("Z") => words.next() == Some(zone),
            Some("L") => words.nth(1) == Some(zone),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_named_by_itself_or_by_a_link() {
        let list = "# version 2025b\nR A 1 o - 3 1 0 1 -\nZ Europe/Berlin 0:53:28 - LMT 1893 Ap\nL America/Los_Angeles US/Pacific\n";
        for known in ["Europe/Berlin", "US/Pacific"] {
            assert!(names(list, known), "{known}");
        }
        for unknown in ["Europe", "Europe/Berlin ", "America/Los_Angeles", "version", "A", ""] {
            assert!(!names(list, unknown), "{unknown}");
        }
    }
}
