// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl watch`: a line at each change.

use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use sysgenid::Tracking;

use crate::clock;
use crate::events::{Event, Events, is_away};
use crate::output::{self, DOUBTFUL, FAINT};
use crate::place::Place;

/// A line, for programs.
#[derive(Debug, Serialize)]
struct Line {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
}

pub(crate) fn run(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let watcher = place.watcher(Tracking::Untracked)?;
    let path = watcher.path().display().to_string();
    let generation = watcher.generation()?;
    let mut events = Events::new(watcher, &[Signal::INT, Signal::TERM])?;
    output::note(FAINT, &format!("{path} is in generation {generation}"));
    if json {
        // From here on no change is missed.
        print(json, "start", Some(generation.get()))?;
    }
    loop {
        match events.next(None)? {
            Event::Changed(change) => {
                // Until nothing has changed meanwhile. Nobody waits for this acknowledgement.
                let told: anyhow::Result<_> =
                    change.rebuild(|generation| print(json, "changed", Some(generation.get())));
                // That the server has gone is found out where events come from, too.
                if let Err(error) = told
                    && !error.downcast_ref().is_some_and(is_away)
                {
                    return Err(error);
                }
            }
            Event::Gone => {
                output::note(
                    DOUBTFUL,
                    &format!("the server of {path} has gone; waiting until it is back"),
                );
                if json {
                    print(json, "gone", None)?;
                }
            }
            Event::Hindered(text) => output::note(DOUBTFUL, &text),
            Event::Back(change) => {
                output::note(
                    DOUBTFUL,
                    &format!("{path} is back; what happened meanwhile is not known"),
                );
                print(json, "back", Some(change.generation().get()))?;
            }
            Event::Signal(_) => return Ok(ExitCode::SUCCESS),
            Event::TimeOut => {}
        }
    }
}

fn print(json: bool, event: &'static str, generation: Option<u32>) -> anyhow::Result<()> {
    if json {
        return output::json_line(&Line {
            time: clock::timestamp(Duration::ZERO),
            event,
            generation,
        });
    }
    let time = clock::local_time(Duration::ZERO);
    let generation = generation.map_or_else(String::new, |number| number.to_string());
    output::line(&format!("{time}  generation {generation}"))?;
    Ok(())
}
