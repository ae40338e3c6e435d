// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of a time-out.

use std::time::{Duration, Instant};

/// A moment after which nobody waits any more, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The moment when a time-out is over. One that no clock can show is as good as none.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// How long it is until then; nothing if it never comes.
    pub(crate) fn left(self) -> Option<Duration> {
        self.0
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether it has come.
    pub(crate) fn is_over(self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}
