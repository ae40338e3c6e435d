// SPDX-License-Identifier: MIT OR Apache-2.0

//! When the latest changes happened.

use super::Epoch;

/// When the latest `KEPT` changes happened, in whatever unit and by whatever clock the front end has.
///
/// A front end that says since when a watcher is outdated keeps one beside its
/// [`Registry`](super::Registry), under the same lock, and notes each change in it. That takes constant
/// time and no memory, and touches no watcher: [`WatcherRecord::first_missed`] says which change to ask
/// for.
///
/// ```
/// use sysgenid_core::{Access, History, Node, Registry};
///
/// let mut registry = Registry::new();
/// let mut history = History::<64>::new();
/// let watcher = registry.open(Node::Sysgenid, Access::ReadWrite);
/// for time in [1000, 2000] {
///     let _ = registry.bump();
///     history.note(registry.epoch(), time);
/// }
/// let missed = watcher.record().first_missed(registry.epoch()).unwrap();
/// assert_eq!(history.time(missed), Some(1000));
/// assert_eq!(history.time(registry.epoch()), Some(2000));
/// ```
///
/// # Invariants
///
/// The time of each of the latest `KEPT` changes until `latest` is at its [`place`](Self::place), and no
/// change has an earlier time than the one before it.
///
/// [`WatcherRecord::first_missed`]: super::WatcherRecord::first_missed
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<const KEPT: usize> {
    times: [u64; KEPT],
    latest: Epoch,
}

impl<const KEPT: usize> History<KEPT> {
    /// The history of a registry that has not changed.
    pub const fn new() -> Self {
        Self {
            times: [0; KEPT],
            latest: Epoch::START,
        }
    }

    /// Notes when a change happened. Each must be noted, in their order. A time before that of the
    /// change before counts as that.
    pub fn note(&mut self, epoch: Epoch, time: u64) {
        let earliest = self.time(self.latest).unwrap_or(0);
        self.times[Self::place(epoch, epoch)] = time.max(earliest);
        self.latest = epoch;
    }

    /// When a change happened, or, where that is no longer known, the oldest time that is: the change
    /// had happened by then. `None` if there was no such change.
    pub fn time(&self, epoch: Epoch) -> Option<u64> {
        if epoch == Epoch::START || epoch > self.latest {
            return None;
        }
        Some(self.times[Self::place(epoch, self.latest)])
    }

    /// Where in an array of `KEPT` times that of a change is, or, where that has been overwritten, the
    /// oldest one. For a front end that keeps the array in storage of its own.
    #[allow(clippy::cast_possible_truncation)] // It is less than `KEPT`.
    pub fn place(epoch: Epoch, latest: Epoch) -> usize {
        const { assert!(KEPT > 0, "a history must keep at least one time") };
        let kept = KEPT as u64;
        // There is no change before the first.
        let oldest = latest.get().saturating_sub(kept - 1).max(1);
        (epoch.get().max(oldest) % kept) as usize
    }
}

impl<const KEPT: usize> Default for History<KEPT> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of this many changes, each of which happened at ten times its epoch.
    fn after<const KEPT: usize>(changes: u64) -> History<KEPT> {
        let mut history = History::new();
        for epoch in 1..=changes {
            history.note(Epoch::new(epoch), 10 * epoch);
        }
        history
    }

    #[test]
    fn what_has_not_happened_has_no_time() {
        for changes in 0..10 {
            let history = after::<4>(changes);
            assert_eq!(history.time(Epoch::START), None);
            assert_eq!(history.time(Epoch::new(changes + 1)), None);
            assert_eq!(history.time(Epoch::new(u64::MAX)), None);
        }
    }

    #[test]
    fn a_change_of_long_ago_has_the_oldest_time_that_is_known() {
        for changes in 1..20 {
            let (one, four) = (after::<1>(changes), after::<4>(changes));
            for epoch in 1..=changes {
                let oldest = changes.saturating_sub(3).max(1);
                let known = epoch.max(oldest);
                assert_eq!(four.time(Epoch::new(epoch)), Some(10 * known));
                assert_eq!(one.time(Epoch::new(epoch)), Some(10 * changes));
            }
        }
    }

    #[test]
    fn no_change_is_earlier_than_the_one_before() {
        let mut history = History::<4>::new();
        for (epoch, time) in (1..).zip([50, 40, 60, 0, 70]) {
            history.note(Epoch::new(epoch), time);
        }
        let times = [2, 3, 4, 5].map(|epoch| history.time(Epoch::new(epoch)));
        assert_eq!(times, [50, 60, 60, 70].map(Some));
    }

    #[test]
    fn the_last_epoch_has_a_place() {
        let last = Epoch::new(u64::MAX);
        assert_eq!(History::<64>::place(last, last), 63);
        assert_eq!(History::<64>::place(Epoch::START, last), 0);
        assert_eq!(History::<960>::place(Epoch::START, Epoch::START), 1);
    }
}
