// SPDX-License-Identifier: GPL-2.0-only

//! What can be said of the accounts without their lock.
//!
//! These are copies, written under the lock. A change begins here, then comes the page, and then the
//! rest: who has seen the change in the page finds it here as well, or finds that it is going on and takes
//! the lock; and who finds it here finds it in the page.

use crate::sysgenid_core::{
    Epoch,
    Registry, //
};
use kernel::sync::{
    atomic::{
        ordering::{
            Acquire,
            Relaxed,
            Release, //
        },
        Atomic, //
    },
    SpinLockIrqGuard, //
};

/// Copies of a part of the accounts.
pub(crate) struct Glance {
    /// The number of changes so far, or [`CHANGING`].
    epoch: Atomic<u64>,
    outdated_watchers: Atomic<usize>,
}

/// No epoch: a change has begun and not ended. So many changes there will never be.
const CHANGING: u64 = u64::MAX;

impl Glance {
    /// Of accounts in which nothing has happened.
    pub(crate) fn new() -> Self {
        Self {
            epoch: Atomic::new(Epoch::START.get()),
            outdated_watchers: Atomic::new(0),
        }
    }

    /// The number of changes so far; `None` if only the lock can tell.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        // Pairs with the release in `end_change`.
        let epoch = self.epoch.load(Acquire);
        (epoch != CHANGING).then(|| Epoch::new(epoch))
    }

    /// The number of tracked watchers that have not acknowledged; `None` if only the lock can tell.
    pub(crate) fn outdated_watchers(&self) -> Option<usize> {
        self.epoch()?;
        // Pairs with the release in `set_outdated_watchers`: who counts those that a change outdated finds
        // it in the page.
        Some(self.outdated_watchers.load(Acquire))
    }

    /// The accounts have changed, and the page is about to, which is a store with release.
    pub(crate) fn begin_change(&self, _locked: &SpinLockIrqGuard<'_, Registry>) {
        self.epoch.store(CHANGING, Relaxed);
    }

    /// The page has changed.
    pub(crate) fn end_change(&self, registry: &SpinLockIrqGuard<'_, Registry>) {
        self.set_outdated_watchers(registry);
        self.epoch.store(registry.epoch().get(), Release);
    }

    /// To be called with the lock when the number may have changed.
    pub(crate) fn set_outdated_watchers(&self, registry: &SpinLockIrqGuard<'_, Registry>) {
        self.outdated_watchers
            .store(registry.outdated_watchers(), Release);
    }
}
