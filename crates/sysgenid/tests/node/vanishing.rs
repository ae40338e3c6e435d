// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node whose server ends, and comes back.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sysgenid::{Acknowledged, Probe, Tracking, Watcher};
use sysgenid_fixture::{Daemon, PATIENCE};

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
        }
    }
}

#[test]
#[ignore = "needs a daemon"]
fn a_watcher_goes_on_with_a_change_once_the_node_is_back() {
    let mut daemon = Daemon::start();
    let mut watcher = Watcher::open_at(daemon.node(), Tracking::Tracked).unwrap();
    daemon.stop();
    let error = watcher
        .reconnect(Some(Duration::from_millis(50)))
        .unwrap_err();
    assert!(error.is_absent() || error.is_gone(), "{error}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| watcher.reconnect(Some(PATIENCE)).unwrap());
        daemon.start_again();
        let change = waiting.join().unwrap();
        assert!(matches!(
            change.acknowledge().unwrap(),
            Acknowledged::Current
        ));
    });
    let orchestrator = daemon.orchestrator();
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
    let orchestrator = daemon.orchestrator();
    daemon.stop();
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
            daemon.stop();
        });
        let error = error.unwrap().unwrap_err();
        assert!(error.is_gone(), "{error}");
        let (change, ()) = tokio::join!(watcher.reconnect(Some(PATIENCE)), async {
            tokio::task::yield_now().await;
            daemon.start_again();
        });
        assert!(matches!(
            change.unwrap().acknowledge().unwrap(),
            Acknowledged::Current
        ));
        drop(watcher);
    }
}
