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
mod permission;
mod place;
mod status;
mod trigger;
mod wait;
mod watch;
mod watchers;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::{Cli, Patience, Task};
use crate::events::is_away;
use crate::place::Place;

/// Something failed, or the answer is no.
const FAILURE: ExitCode = ExitCode::FAILURE;
/// The time is over. (2 is clap's, for a command line that is wrong.)
const TIMED_OUT: u8 = 3;
/// Nothing serves a node.
const NO_NODE: u8 = 4;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| with_tip(error).exit());
    match run(cli) {
        Ok(code) => code,
        // Whoever read what is printed has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&words_of(&error));
            code_of(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let place = Place::new(cli.node);
    match cli.task {
        Task::Status { format } => status::run(&place, format.json),
        Task::Watch { format } => watch::run(&place, format.json),
        Task::Wait { patience, format } => wait::run(&place, &patience, format.json),
        Task::Trigger {
            min,
            wait,
            timeout,
            hooks_state,
            format,
        } => {
            let patience = Patience {
                timeout,
                hooks_state,
            };
            trigger::run(&place, min, wait.then_some(&patience), format.json)
        }
        Task::Watchers { outdated, format } => watchers::run(&place, outdated, format.json),
        Task::Exec(options) => exec::run(&place, &options),
        Task::RunHooks(options) => hooks::run(&place, &options),
        Task::Doctor { format } => doctor::run(&place, format.json),
    }
}

fn words_of(error: &anyhow::Error) -> String {
    error
        .downcast_ref()
        .map_or_else(|| format!("{error:#}"), permission::explain)
}

fn code_of(error: &anyhow::Error) -> ExitCode {
    let of_node = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<sysgenid::Error>());
    match of_node {
        Some(error) if is_away(error) => ExitCode::from(NO_NODE),
        _ => FAILURE,
    }
}

/// Tells whoever has left out the `--` of `exec` to put it there.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let is_of_exec = matches!(
        error.get(ContextKind::Usage),
        Some(ContextValue::StyledStr(usage)) if usage.to_string().contains("sysgenctl exec")
    );
    let command = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if !word.starts_with('-') => word,
        _ => return error,
    };
    if is_of_exec && error.kind() == ErrorKind::UnknownArgument {
        let tip = format!("put '--' before the command: 'sysgenctl exec [OPTIONS] -- {command}'");
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![tip.into()]),
        );
    }
    error
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(arguments: &[&str]) -> String {
        let arguments = [&["sysgenctl"], arguments].concat();
        let error = Cli::try_parse_from(arguments).unwrap_err();
        with_tip(error).to_string()
    }

    #[test]
    fn whoever_leaves_out_the_dashes_of_exec_is_told_to_put_them_there() {
        let text = refusal(&["exec", "--grace", "5", "true"]);
        let tip = "put '--' before the command: 'sysgenctl exec [OPTIONS] -- true'";
        assert!(text.contains(tip), "{text}");
        for other in [
            &["exec", "--frobnicate", "--", "true"][..],
            &["status", "true"],
        ] {
            let text = refusal(other);
            assert!(!text.contains("put '--'"), "{text}");
        }
    }
}
