// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the tests of the library and of the command line run on: a node, whoever serves it, and a daemon that they may
//! end. All of it panics where something is wrong, for that fails the test.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "what fails here fails a test"
)]

mod daemon;
mod machine;

use std::time::{Duration, Instant};

use sysgenid::Orchestrator;

pub use crate::daemon::Daemon;
pub use crate::machine::{Machine, acknowledge, tracked, untracked};

/// How long anything may take. Only ever waited for in full where something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long it is watched that nothing happens.
pub const QUIET: Duration = Duration::from_millis(50);

/// How long something is looked at again that tells nobody when it changes.
const GLANCE: Duration = Duration::from_millis(10);

/// Waits until so many hold up those who wait for all.
fn await_outdated(orchestrator: &Orchestrator, expected: u32) {
    eventually(&format!("{expected} are outdated"), || {
        orchestrator.outdated_watchers().unwrap() == expected
    });
}

/// Waits for what tells nobody that it has come.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "it does not come to it that {what}"
        );
        std::thread::sleep(GLANCE);
    }
}
