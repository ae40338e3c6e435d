// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl`: the operator's command line for the system generation counter.

#![forbid(unsafe_code)]

mod child;
mod cli;
mod clock;
mod doctor;
mod events;
mod exec;
mod front_end;
mod hooks;
mod machine;
mod output;
mod place;
mod status;
mod trigger;
mod wait;
mod watch;
mod watchers;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Task};
use crate::place::Place;

/// Something failed, or the answer is no.
const FAILURE: ExitCode = ExitCode::FAILURE;
/// The time is over. (2 is clap's, for a command line that is wrong.)
const TIMED_OUT: u8 = 3;
/// Nothing serves a node.
const NO_NODE: u8 = 4;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        // Whoever read what is printed has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            code_of(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let place = Place::new(cli.node);
    match cli.task {
        Task::Status { format } => status::run(&place, format.json),
        Task::Watch { format } => watch::run(&place, format.json),
        Task::Wait { patience, format } => wait::run(&place, patience.timeout, format.json),
        Task::Trigger {
            min,
            wait,
            timeout,
            format,
        } => trigger::run(&place, min, wait.then_some(timeout), format.json),
        Task::Watchers { outdated, format } => watchers::run(&place, outdated, format.json),
        Task::Exec(options) => exec::run(&place, &options),
        Task::RunHooks(options) => hooks::run(&place, &options),
        Task::Doctor { format } => doctor::run(&place, format.json),
    }
}

fn code_of(error: &anyhow::Error) -> ExitCode {
    let of_node = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<sysgenid::Error>());
    match of_node {
        Some(error) if error.is_absent() || matches!(error, sysgenid::Error::Gone { .. }) => {
            ExitCode::from(NO_NODE)
        }
        _ => FAILURE,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
