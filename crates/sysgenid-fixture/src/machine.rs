// SPDX-License-Identifier: MIT OR Apache-2.0

//! The node that `SYSGENID_PATH` names, or the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sysgenid::{Error, Generation, Orchestrator, Settlement, Tracking, Watcher};
use tempfile::TempDir;

use crate::{PATIENCE, await_outdated, eventually};

/// The node, for one test at a time, because they all change the one generation; and a folder of the test's own.
#[derive(Debug)]
pub struct Machine {
    orchestrator: Orchestrator,
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Waits for its turn.
    #[allow(clippy::new_without_default, reason = "it waits")]
    pub fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let alone = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = Self {
            orchestrator: Orchestrator::open().unwrap(),
            folder: tempfile::tempdir().unwrap(),
            _alone: alone,
        };
        // A watcher of the test before may take a moment to end.
        machine.await_outdated(0);
        machine
    }

    /// The operator's side.
    pub fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    /// Stands for a restore.
    pub fn bump(&self) -> Generation {
        self.orchestrator.bump().unwrap()
    }

    /// The generation that there is.
    pub fn generation(&self) -> Generation {
        self.orchestrator.generation().unwrap()
    }

    /// How many hold up those who wait for all.
    pub fn outdated(&self) -> u32 {
        self.orchestrator.outdated_watchers().unwrap()
    }

    /// Fails unless so many do.
    pub fn assert_outdated(&self, expected: u32) {
        assert_eq!(self.outdated(), expected);
    }

    /// Waits until so many do.
    pub fn await_outdated(&self, expected: u32) {
        await_outdated(&self.orchestrator, expected);
    }

    /// Fails unless a wait for all ends well.
    pub fn assert_settled(&self) {
        let settlement = self.orchestrator.settle(Some(PATIENCE)).unwrap();
        assert!(
            matches!(settlement, Settlement::Settled(_)),
            "{settlement:?}"
        );
    }

    /// The path of a file of this test's own.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes such a file, and makes the folders that it is in.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The lines of such a file, none if it is not there.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until such a file has so many lines.
    pub fn await_lines(&self, name: &str, number: usize) -> Vec<String> {
        eventually(&format!("{name} has {number} lines"), || {
            self.lines(name).len() >= number
        });
        self.lines(name)
    }
}

/// A watcher that others wait for.
pub fn tracked() -> Watcher {
    Watcher::open(Tracking::Tracked).unwrap()
}

/// A watcher that nobody waits for.
pub fn untracked() -> Watcher {
    Watcher::open(Tracking::Untracked).unwrap()
}

/// Deals with a change that there must be.
pub fn acknowledge(watcher: &Watcher) -> Generation {
    watcher
        .wait_timeout(PATIENCE)
        .unwrap()
        .expect("there is a change")
        .rebuild(|_| Ok::<_, Error>(()))
        .unwrap()
}
