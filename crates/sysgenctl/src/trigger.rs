// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl trigger`: changes the generation.

use std::process::ExitCode;

use serde::Serialize;
use sysgenid::Generation;

use crate::cli::Patience;
use crate::output;
use crate::place::Place;
use crate::wait;

/// The answer, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    generation: u32,
}

/// With `wait`, it waits for everybody as well, with the patience in it.
pub(crate) fn run(
    place: &Place,
    min: Option<u32>,
    wait: Option<&Patience>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let orchestrator = place.orchestrator()?;
    let minimum = min.map_or(Generation::START, Generation::new);
    let generation = orchestrator.bump_at_least(minimum)?;
    if let Some(patience) = wait {
        if !json {
            output::line(&format!("generation {generation}"))?;
        }
        return wait::settle(orchestrator, patience, json);
    }
    if json {
        output::json(&Answer {
            generation: generation.get(),
        })?;
    } else {
        output::line(&format!("generation {generation}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
