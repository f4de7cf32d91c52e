//! config: the settings shown and checked.

use anyhow::Result;

use super::{Outcome, answer, node_context};
use crate::cli::ConfigCommand;
use crate::report;
use crate::request::Env;
use crate::settings::{Settings, show};

/// Shows or checks the settings of this node.
pub fn config(command: &ConfigCommand, env: Env) -> Result<Outcome> {
    match command {
        ConfigCommand::Show { variant, origin, json } => {
            let settings = Settings::load(&node_context(&env, variant.as_deref())?, "config")?;
            super::warn(&settings);
            let text = if *json {
                format!("{}\n", serde_json::to_string_pretty(&show::as_json(&settings.layers))?)
            } else {
                show::as_text(&settings.layers, *origin)
            };
            answer(&text)?;
            Ok(Outcome::Done)
        }
        ConfigCommand::Check => check(&env),
    }
}

fn check(env: &Env) -> Result<Outcome> {
    let check = show::check(&node_context(env, None)?)?;
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
