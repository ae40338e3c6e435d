// SPDX-License-Identifier: MIT OR Apache-2.0

//! The requests that sleep: which, for whom, and until when.

use std::collections::{BTreeSet, HashMap};

use crate::keeping::state::Handle;
use crate::protocol::Unique;

/// What a request that sleeps is waiting for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sleeper {
    /// A change.
    Read(Unique, Handle),
    /// That no tracked watcher is outdated.
    Wait(Wait),
}

/// A wait for all tracked watchers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub(super) unique: Unique,
    pub(super) handle: Handle,
    /// The calling thread, and the argument of its call.
    pub(super) tid: u32,
    pub(super) argument: u64,
    /// In nanoseconds of the monotonic clock; `None` is never.
    pub(super) deadline: Option<u64>,
}

impl Sleeper {
    pub(super) fn unique(&self) -> Unique {
        match *self {
            Self::Read(unique, _) | Self::Wait(Wait { unique, .. }) => unique,
        }
    }

    fn deadline(&self) -> Option<u64> {
        match self {
            Self::Read(..) => None,
            Self::Wait(wait) => wait.deadline,
        }
    }
}

/// All that sleep, by the identity of the request.
#[derive(Debug, Default)]
pub(super) struct Sleepers {
    all: HashMap<u64, Sleeper>,
    /// Those who have one.
    deadlines: BTreeSet<(u64, u64)>,
}

impl Sleepers {
    pub(super) fn add(&mut self, sleeper: Sleeper) {
        let identity = sleeper.unique().identity();
        if let Some(deadline) = sleeper.deadline() {
            self.deadlines.insert((deadline, identity));
        }
        self.all.insert(identity, sleeper);
    }

    pub(super) fn take(&mut self, identity: u64) -> Option<Sleeper> {
        let sleeper = self.all.remove(&identity)?;
        if let Some(deadline) = sleeper.deadline() {
            self.deadlines.remove(&(deadline, identity));
        }
        Some(sleeper)
    }

    /// One whose time has run out.
    pub(super) fn take_late(&mut self, now: u64) -> Option<Sleeper> {
        let &(deadline, identity) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.take(identity)
    }

    /// When the next one's time runs out.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The identities of all, those who read first: they wait for a change, and the others only end by it.
    pub(super) fn identities(&self) -> Vec<u64> {
        let mut all: Vec<_> = self
            .all
            .iter()
            .map(|(identity, sleeper)| (matches!(sleeper, Sleeper::Wait(_)), *identity))
            .collect();
        all.sort_unstable();
        all.into_iter().map(|(_, identity)| identity).collect()
    }

    /// The identities of those who wait for others.
    pub(super) fn waits(&self) -> Vec<u64> {
        self.all
            .iter()
            .filter(|(_, sleeper)| matches!(sleeper, Sleeper::Wait(_)))
            .map(|(identity, _)| *identity)
            .collect()
    }

    /// All of them, who sleep no longer.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Sleeper> {
        self.deadlines.clear();
        std::mem::take(&mut self.all).into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(identity: u64, deadline: Option<u64>) -> Sleeper {
        Sleeper::Wait(Wait {
            unique: Unique::new(identity),
            handle: Handle::new(1),
            tid: 1,
            argument: 0,
            deadline,
        })
    }

    fn identity(sleeper: Option<Sleeper>) -> Option<u64> {
        sleeper.map(|sleeper| sleeper.unique().identity())
    }

    #[test]
    fn time_runs_out_in_its_order_and_once() {
        let mut sleepers = Sleepers::default();
        for (request, deadline) in [(2, Some(30)), (4, Some(10)), (6, None), (8, Some(20))] {
            sleepers.add(wait(request, deadline));
        }
        sleepers.add(Sleeper::Read(Unique::new(10), Handle::new(2)));
        assert_eq!(sleepers.next_deadline(), Some(10));
        assert_eq!(identity(sleepers.take(8)), Some(8));
        assert_eq!(identity(sleepers.take_late(25)), Some(4));
        assert_eq!(identity(sleepers.take_late(25)), None);
        assert_eq!(identity(sleepers.take_late(30)), Some(2));
        assert_eq!(sleepers.next_deadline(), None);
        assert_eq!(sleepers.identities(), [10, 6]);
        assert_eq!(sleepers.waits(), [6]);
        assert_eq!(sleepers.drain().count(), 2);
        assert!(sleepers.identities().is_empty());
    }
}
