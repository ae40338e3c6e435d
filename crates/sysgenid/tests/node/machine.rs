// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the tests share: the node that `SYSGENID_PATH` names, or the machine's.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sysgenid::{Error, Generation, Orchestrator, Settlement, Tracking, Watcher};

/// How long anything may take. Only ever waited for in full where something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long it is watched that nothing happens.
pub(crate) const QUIET: Duration = Duration::from_millis(50);

/// The node, for one test at a time: they all change the one generation.
pub(crate) struct Machine {
    orchestrator: Orchestrator,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Waits for its turn.
    pub(crate) fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let alone = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            orchestrator: Orchestrator::open().unwrap(),
            _alone: alone,
        }
    }

    /// The operator's side.
    pub(crate) fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    /// Stands for a restore.
    pub(crate) fn bump(&self) -> Generation {
        self.orchestrator.bump().unwrap()
    }

    /// Fails unless nobody is waited for.
    pub(crate) fn assert_settled(&self) {
        let settlement = self.orchestrator.settle(Some(PATIENCE)).unwrap();
        assert!(
            matches!(settlement, Settlement::Settled(_)),
            "{settlement:?}"
        );
    }

    /// Fails unless so many are waited for.
    pub(crate) fn assert_outdated(&self, expected: u32) {
        assert_eq!(self.orchestrator.outdated_watchers().unwrap(), expected);
    }
}

/// A watcher that others wait for.
pub(crate) fn tracked() -> Watcher {
    Watcher::open(Tracking::Tracked).unwrap()
}

/// A watcher that nobody waits for.
pub(crate) fn untracked() -> Watcher {
    Watcher::open(Tracking::Untracked).unwrap()
}

/// Deals with a change that there must be.
pub(crate) fn acknowledge(watcher: &Watcher) -> Generation {
    watcher
        .wait_timeout(PATIENCE)
        .unwrap()
        .expect("there is a change")
        .rebuild(|_| Ok::<_, Error>(()))
        .unwrap()
}
