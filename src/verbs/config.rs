//! config: the settings shown and checked.

use anyhow::Result;

use super::{Outcome, answer, answer_json, node_context};
use crate::admin_file::AdminFiles;
use crate::cache::{Judgement, Store};
use crate::cli::ConfigCommand;
use crate::plan::BasePlan;
use crate::report;
use crate::request::{Context, Env};
use crate::settings::{Settings, Source, show};

/// Shows or checks the settings of this node.
pub fn config(command: &ConfigCommand, env: Env) -> Result<Outcome> {
    match command {
        ConfigCommand::Show { variant, origin, json } => {
            let settings = Settings::load(&node_context(&env, variant.as_deref())?, "config")?;
            super::warn(&settings);
            match *json {
                true => answer_json(&show::as_json(&settings.layers))?,
                false => answer(&show::as_text(&settings.layers, *origin))?,
            }
            Ok(Outcome::Done)
        }
        ConfigCommand::Check => check(&env),
    }
}

/// Why no instance could be made of these settings on this node, now or when the cache has their tree no more.
fn refused(context: &Context, settings: &Settings) -> Option<String> {
    if let Source::File(sealed) = &settings.source {
        return AdminFiles::new(true)
            .open(&sealed.path)
            .err()
            .map(|fault| format!("source{}: {fault}", settings.set_in("source")));
    }
    let plan = BasePlan::new(context, settings, None);
    let store = Store::open(&plan.cache_dir, Judgement::Strict);
    let found = store.and_then(|store| store.find(&plan.recipe, plan.clean_days)).ok().flatten();
    if let Some(error) = found.as_ref().and_then(|entry| entry.open().err()) {
        return Some(report::sentence(&error));
    }
    let never_expires = found.is_some_and(|entry| !entry.expired(Some(0)));
    if settings.source != Source::Bootstrap || never_expires {
        return None;
    }
    let error = plan.recipe.program().err()?;
    Some(format!("{}{}", report::sentence_with_remedy(&error), settings.set_in("suite")))
}

fn check(env: &Env) -> Result<Outcome> {
    let context = node_context(env, None)?;
    let check = show::check(&context, &|settings| refused(&context, settings))?;
    for warning in &check.warnings {
        report::warning(warning);
    }
    for problem in &check.problems {
        report::line(&format!("error: {problem}"));
    }
    if check.problems.is_empty() {
        answer(&format!("the settings of {} variants are right\n", check.variants.len()))?;
        return Ok(Outcome::Done);
    }
    Ok(Outcome::No)
}
