// SPDX-License-Identifier: MIT OR Apache-2.0

//! What tests of the running daemon share: the daemon itself, in a mount namespace of its own, and those
//! who use its nodes.

// Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod crowd;
pub(crate) mod daemon;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod watcher;

use std::time::{Duration, Instant};

/// How long anything may take that must happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is the case that no event announces, and says what was not if it never is.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) if Instant::now() > until => panic!("{what}: {instead}"),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
