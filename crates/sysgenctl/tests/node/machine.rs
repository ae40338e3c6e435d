// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the tests share: the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sysgenid::{Error, Generation, Orchestrator, Tracking, Watcher};

/// How long anything may take. Only ever waited for in full where something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long something is looked at again that tells nobody when it changes.
const GLANCE: Duration = Duration::from_millis(10);

/// The node, for one test at a time: they all change the one generation.
pub(crate) struct Machine {
    orchestrator: Orchestrator,
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Waits for its turn.
    pub(crate) fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let alone = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let orchestrator = Orchestrator::open().unwrap();
        // A watcher of the test before may take a moment to end.
        eventually("nobody is late", || {
            orchestrator.outdated_watchers().unwrap() == 0
        });
        Self {
            orchestrator,
            folder: tempfile::tempdir().unwrap(),
            _alone: alone,
        }
    }

    /// Stands for a restore.
    pub(crate) fn bump(&self) -> Generation {
        self.orchestrator.bump().unwrap()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.orchestrator.generation().unwrap()
    }

    /// How many hold up those who wait for all.
    pub(crate) fn outdated(&self) -> u32 {
        self.orchestrator.outdated_watchers().unwrap()
    }

    /// Waits until so many do.
    pub(crate) fn await_outdated(&self, expected: u32) {
        eventually(&format!("{expected} are outdated"), || {
            self.outdated() == expected
        });
    }

    /// A file of this test's own.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The lines of a file, none if it is not there.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file has so many lines.
    pub(crate) fn await_lines(&self, name: &str, number: usize) -> Vec<String> {
        eventually(&format!("{name} has {number} lines"), || {
            self.lines(name).len() >= number
        });
        self.lines(name)
    }
}

/// A watcher that others wait for.
pub(crate) fn tracked() -> Watcher {
    Watcher::open(Tracking::Tracked).unwrap()
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

/// Waits for what tells nobody that it has come.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "it does not come to it that {what}"
        );
        std::thread::sleep(GLANCE);
    }
}

/// Whether a process is there and not only waits to be reaped.
pub(crate) fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    // The name before it, in parentheses, may have any character.
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
