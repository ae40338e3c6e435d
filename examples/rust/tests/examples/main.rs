// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs each example as a user would, and bumps the generation of the node under it.
//!
//! They need a node that they may bump, at the path in `SYSGENID_PATH` or at `/dev/sysgenid`, and have it for
//! themselves: one test at a time (`--ignored --test-threads=1`). `examples/README.md` says how to get one.

#![forbid(unsafe_code)]
// The helpers of tests are tests, which clippy cannot know.
#![allow(clippy::unwrap_used)]

mod program;
mod tls;
mod web;
mod workflows;

use std::time::Duration;

use sysgenid::{Generation, Orchestrator, Settlement};

/// No step of a test takes longer, unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bumps, and waits until all tracked watchers, which are those of the programs under test, have acknowledged.
fn bump_and_settle() -> Generation {
    let orchestrator = Orchestrator::open().unwrap();
    let generation = orchestrator.bump().unwrap();
    let settlement = orchestrator.settle(Some(PATIENCE)).unwrap();
    assert_eq!(settlement, Settlement::Settled(generation));
    generation
}
