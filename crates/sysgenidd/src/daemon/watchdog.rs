// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether all threads look up from their work, as the service manager wants to know.
//!
//! A daemon that hangs leaves everybody in calls that cannot be killed. The manager kills it if it hears
//! nothing, and nothing is lost by that: a successor goes on. A thread that sleeps is well; nobody wakes it to
//! ask.

use std::time::Duration;

/// Tells when to tell the manager that all is well.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// In nanoseconds; `None` where nobody wants to know.
    interval: Option<u64>,
    next: u64,
}

impl Watchdog {
    /// `interval` is how often the manager is to hear of it.
    pub(super) fn new(interval: Option<Duration>) -> Self {
        let interval =
            interval.map(|interval| u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX));
        Self { interval, next: 0 }
    }

    /// When to look next, in nanoseconds of the monotonic clock.
    pub(super) fn next(&self) -> Option<u64> {
        self.interval.map(|_| self.next)
    }

    pub(super) fn is_due(&self, now: u64) -> bool {
        self.interval.is_some() && self.next <= now
    }

    /// Whether all threads are well, by those who are at work and since when.
    pub(super) fn all_well<'a>(
        &mut self,
        now: u64,
        busy: impl Iterator<Item = (&'a str, u64)>,
    ) -> bool {
        let Some(interval) = self.interval else {
            return true;
        };
        self.next = now.saturating_add(interval);
        let mut well = true;
        for (who, since) in busy {
            if now.saturating_sub(since) > interval {
                tracing::error!(
                    thread = who,
                    "has not looked up for {} s: the service manager will restart the daemon unless it does",
                    now.saturating_sub(since) / 1_000_000_000
                );
                well = false;
            }
        }
        well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_in_time_and_only_while_everybody_looks_up() {
        let mut watchdog = Watchdog::new(Some(Duration::from_nanos(10)));
        assert!(watchdog.is_due(0));
        assert!(watchdog.all_well(100, [("a", 95), ("b", 90)].into_iter()));
        assert_eq!(watchdog.next(), Some(110));
        assert!(!watchdog.is_due(109));
        assert!(watchdog.is_due(110));
        assert!(!watchdog.all_well(110, [("a", 110), ("b", 99)].into_iter()));
        assert!(watchdog.all_well(120, std::iter::empty()));
    }

    #[test]
    fn where_nobody_wants_to_know_there_is_nothing_to_do() {
        let watchdog = Watchdog::new(None);
        assert_eq!(watchdog.next(), None);
        assert!(!watchdog.is_due(u64::MAX));
    }
}
