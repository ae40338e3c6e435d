// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl trigger`: changes the generation.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use sysgenid::Generation;

use crate::output;
use crate::place::Place;
use crate::wait;

/// The answer, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    generation: u32,
}

/// With `wait`, it waits for everybody as well, for at most the time in it.
pub(crate) fn run(
    place: &Place,
    min: Option<u32>,
    wait: Option<Option<Duration>>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let orchestrator = place.orchestrator()?;
    let minimum = min.map_or(Generation::START, Generation::new);
    let generation = orchestrator.bump_at_least(minimum)?;
    if let Some(timeout) = wait {
        if !json {
            output::line(&format!("generation {generation}"))?;
        }
        return wait::settle(orchestrator, timeout, json);
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
