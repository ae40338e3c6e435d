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
use sysgenid::{Generation, Orchestrator, Resumption, Settlement, Tracking, Watcher};

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
    println!("ready");
    loop {
        let change = watcher.wait()?;
        let mut end = Orchestrator::pause_and_resume(change, Some(patience), pause, resume)?;
        // Whatever comes meanwhile, it stays paused until everybody is done with the latest change.
        while let Resumption::TimedOut { outdated, waiting } = end {
            let generation = waiting.generation();
            println!("generation {generation}: {outdated} watchers are late, not serving");
            end = Orchestrator::resume(waiting, Some(patience), pause, resume)?;
        }
    }
}

/// Here a service stops accepting, ends its connections and draws new keys. It must do no harm twice.
fn pause(generation: Generation) -> Result<()> {
    println!("generation {generation}: paused and rebuilt");
    Ok(())
}

/// Here it accepts again.
fn resume(generation: Generation) -> Result<()> {
    println!("generation {generation}: everybody is done, resumed");
    Ok(())
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
