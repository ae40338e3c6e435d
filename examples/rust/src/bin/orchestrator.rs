// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fourth workflow: to wait until every tracked watcher has dealt with a restore.
//!
//! As a service that must not be seen before all others are done, a gateway or a load balancer's agent:
//!
//! ```console
//! $ orchestrator serve 5
//! ready
//! generation 1: paused and rebuilt
//! generation 1: 1 watchers are late, not serving
//! generation 1: everybody is done, resumed
//! ```
//!
//! As the restore hook of a container, which is told the generation that the snapshot was taken at and makes the change
//! itself (`CAP_CHECKPOINT_RESTORE`). Its exit status is 0 when everybody is done, 1 when some are late:
//!
//! ```console
//! # orchestrator restored 7 5
//! generation 8: everybody is done
//! ```
//!
//! The last argument of each is the patience, in seconds.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sysgenid::{Change, Generation, Orchestrator, Settlement, Tracking, Watcher};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", patience] => serve(seconds(patience)?),
        ["restored", in_snapshot, patience] => {
            let in_snapshot = in_snapshot
                .parse()
                .context("the generation of the snapshot is not a number")?;
            restored(Generation::new(in_snapshot), seconds(patience)?)
        }
        _ => bail!("usage: orchestrator serve SECONDS | orchestrator restored GENERATION SECONDS"),
    }
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().context("the patience is not a number")?;
    Ok(Duration::from_secs(seconds))
}

fn serve(patience: Duration) -> Result<ExitCode> {
    let watcher = Watcher::open(Tracking::Tracked)?;
    let orchestrator = Orchestrator::open()?;
    println!("ready");
    loop {
        let mut change = Some(watcher.wait()?);
        // Until everybody is done with the latest change. Whatever comes meanwhile, it stays paused.
        while let Some(latest) = change.take() {
            let paused_in = pause(latest, patience)?;
            if let Some(paused_in) = paused_in {
                change = wait_for_the_late(&watcher, &orchestrator, paused_in, patience)?;
            }
        }
    }
}

/// Pauses, and resumes if everybody else is done in time. If not, the generation that it is paused in.
fn pause(change: Change, patience: Duration) -> Result<Option<Generation>> {
    let mut paused_in = change.generation();
    let settlement = Orchestrator::pause_and_resume(
        change,
        Some(patience),
        |generation| -> Result<()> {
            // Here a service stops accepting, ends its connections and draws new keys. It must do no harm twice.
            println!("generation {generation}: paused and rebuilt");
            paused_in = generation;
            Ok(())
        },
        |generation| {
            println!("generation {generation}: everybody is done, resumed");
            Ok(())
        },
    )?;
    Ok(match settlement {
        Settlement::Settled(_) => None,
        Settlement::TimedOut { outdated } => {
            println!("generation {paused_in}: {outdated} watchers are late, not serving");
            Some(paused_in)
        }
    })
}

/// This change is acknowledged, so the watcher is not told of it again: wait on for the others. Returns the next change
/// if that comes first.
fn wait_for_the_late(
    watcher: &Watcher,
    orchestrator: &Orchestrator,
    paused_in: Generation,
    patience: Duration,
) -> Result<Option<Change>> {
    loop {
        if let Some(change) = watcher.try_changed()? {
            return Ok(Some(change));
        }
        // Everybody includes this service, so this is the generation that it is paused in.
        if let Settlement::Settled(_) = orchestrator.settle(Some(patience))? {
            println!("generation {paused_in}: everybody is done, resumed");
            return Ok(None);
        }
    }
}

fn restored(in_snapshot: Generation, patience: Duration) -> Result<ExitCode> {
    let orchestrator = Orchestrator::open()?;
    Ok(
        match orchestrator.bump_and_settle(in_snapshot.next(), Some(patience))? {
            Settlement::Settled(generation) => {
                println!("generation {generation}: everybody is done");
                ExitCode::SUCCESS
            }
            Settlement::TimedOut { outdated } => {
                println!("{outdated} watchers are late");
                ExitCode::FAILURE
            }
        },
    )
}
