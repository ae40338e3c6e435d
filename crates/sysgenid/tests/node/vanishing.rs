// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node whose server ends, and comes back: a daemon of the test's own, by the program that `SYSGENIDD` names.
//!
//! It needs root and a mount namespace of its own, as `cargo xtask test` makes one.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sysgenid::{Acknowledged, Orchestrator, Probe, Tracking, Watcher};
use tempfile::TempDir;

use crate::machine::PATIENCE;

struct Daemon {
    folder: TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(&folder);
        Self { folder, child }
    }

    fn spawn(folder: &TempDir) -> Child {
        let program = std::env::var_os("SYSGENIDD").expect("SYSGENIDD names the daemon");
        let mut child = Command::new(program)
            .arg("--foreground")
            .arg("--directory")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended");
        }
        // What else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        child
    }

    fn node(&self) -> PathBuf {
        self.folder.path().join("host/sysgenid")
    }

    fn end(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it and starts another one, which knows nothing of it.
    fn start_again(&mut self) {
        self.end(Signal::INT);
        self.child = Self::spawn(&self.folder);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end(Signal::INT);
        }
    }
}

#[test]
#[ignore = "needs a daemon"]
fn a_watcher_is_told_that_its_server_has_gone() {
    for signal in [Signal::INT, Signal::KILL] {
        for tracking in [Tracking::Tracked, Tracking::Untracked] {
            let mut daemon = Daemon::start();
            let watcher = Watcher::open_at(daemon.node(), tracking).unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| watcher.wait());
                daemon.end(signal);
                let error = waiting.join().unwrap().unwrap_err();
                assert!(error.is_gone(), "{signal:?}: {error}");
            });
            let error = watcher.wait_timeout(PATIENCE).unwrap_err();
            assert!(error.is_gone(), "{error}");
            drop(watcher);
            // What a killed one leaves mounted.
            let _ = rustix::mount::unmount(
                daemon.folder.path().join("host"),
                rustix::mount::UnmountFlags::DETACH,
            );
            let _ =
                rustix::mount::unmount(daemon.folder.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
#[ignore = "needs a daemon"]
fn a_watcher_goes_on_with_a_change_once_the_node_is_back() {
    let mut daemon = Daemon::start();
    let mut watcher = Watcher::open_at(daemon.node(), Tracking::Tracked).unwrap();
    daemon.end(Signal::INT);
    let error = watcher
        .reconnect(Some(Duration::from_millis(50)))
        .unwrap_err();
    assert!(error.is_absent() || error.is_gone(), "{error}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| watcher.reconnect(Some(PATIENCE)).unwrap());
        daemon.child = Daemon::spawn(&daemon.folder);
        let change = waiting.join().unwrap();
        assert!(matches!(
            change.acknowledge().unwrap(),
            Acknowledged::Current
        ));
    });
    let orchestrator = Orchestrator::open_at(daemon.node()).unwrap();
    let generation = orchestrator.bump().unwrap();
    assert_eq!(watcher.wait().unwrap().generation(), generation);
    drop((watcher, orchestrator));
}

#[test]
#[ignore = "needs a daemon"]
fn a_probe_says_that_it_is_not_live_any_more() {
    let mut daemon = Daemon::start();
    let probe = Probe::open_at(daemon.node()).unwrap();
    assert!(probe.is_live().unwrap());
    daemon.start_again();
    assert!(!probe.is_live().unwrap());
    assert!(Probe::open_at(daemon.node()).unwrap().is_live().unwrap());
    // Without passthrough a look at it would be the end of this process, so there is none.
    drop(probe);
}

#[test]
#[ignore = "needs a daemon"]
fn an_orchestrator_says_that_the_server_has_gone() {
    let mut daemon = Daemon::start();
    let orchestrator = Orchestrator::open_at(daemon.node()).unwrap();
    daemon.end(Signal::INT);
    let started = Instant::now();
    assert!(orchestrator.generation().unwrap_err().is_gone());
    let error = orchestrator.bump().unwrap_err();
    assert!(error.is_gone(), "{error}");
    let error = orchestrator.settle(Some(PATIENCE)).unwrap_err();
    assert!(error.is_absent() || error.is_gone(), "{error}");
    assert!(started.elapsed() < PATIENCE);
}

#[cfg(feature = "tokio")]
#[tokio::test]
#[ignore = "needs a daemon"]
async fn a_task_is_told_that_the_server_has_gone_and_goes_on_when_it_is_back() {
    use sysgenid::AsyncWatcher;
    use tokio::time::timeout;

    for tracking in [Tracking::Tracked, Tracking::Untracked] {
        let mut daemon = Daemon::start();
        let mut watcher = AsyncWatcher::open_at(daemon.node(), tracking).unwrap();
        let (error, ()) = tokio::join!(timeout(PATIENCE, watcher.changed()), async {
            // After the other one has been polled.
            tokio::task::yield_now().await;
            daemon.end(Signal::INT);
        });
        let error = error.unwrap().unwrap_err();
        assert!(error.is_gone(), "{error}");
        let (change, ()) = tokio::join!(watcher.reconnect(Some(PATIENCE)), async {
            tokio::task::yield_now().await;
            daemon.child = Daemon::spawn(&daemon.folder);
        });
        assert!(matches!(
            change.unwrap().acknowledge().unwrap(),
            Acknowledged::Current
        ));
        drop(watcher);
    }
}
