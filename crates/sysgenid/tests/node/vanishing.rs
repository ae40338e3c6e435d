// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node whose server ends, and comes back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sysgenid::{Acknowledged, Generation, Guarded, Probe, Tracking, Watcher};
use sysgenid_fixture::{Daemon, PATIENCE, eventually};

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
fn the_change_of_a_node_that_is_back_comes_again_until_it_is_acknowledged() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let is_readable = |watcher: &Watcher| {
        let mut files = [PollFd::new(watcher, PollFlags::IN)];
        poll(&mut files, Some(&Timespec::default())).unwrap() == 1
    };
    for tracking in [Tracking::Tracked, Tracking::Untracked] {
        let mut daemon = Daemon::start();
        let mut watcher = Watcher::open_at(daemon.node(), tracking).unwrap();
        daemon.start_again();
        drop(watcher.reconnect(Some(PATIENCE)).unwrap());
        for _ in 0..2 {
            assert!(is_readable(&watcher));
            let change = watcher.wait_timeout(Duration::ZERO).unwrap();
            let failed = change.expect("it comes again").rebuild(|_| {
                let error = std::io::Error::other("the database is not up yet");
                Err::<(), _>(Box::<dyn std::error::Error>::from(error))
            });
            failed.unwrap_err();
        }
        let change = watcher.try_changed().unwrap().unwrap();
        assert!(matches!(
            change.acknowledge().unwrap(),
            Acknowledged::Current
        ));
        assert!(!is_readable(&watcher));
        assert!(watcher.try_changed().unwrap().is_none());
        let generation = daemon.orchestrator().bump().unwrap();
        assert!(is_readable(&watcher));
        assert_eq!(watcher.wait().unwrap().generation(), generation);
    }
}

/// The two ways in which a daemon has its page mapped: by the kernel, which goes on without it, and by copies.
const WAYS: [&str; 2] = ["passthrough = true\n", "passthrough = false\n"];

/// Drops what the kernel keeps of files and nobody holds.
fn drop_caches() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

#[test]
#[ignore = "needs a daemon"]
fn what_is_built_on_a_probe_follows_a_node_that_goes_and_comes() {
    for way in WAYS {
        let mut daemon = Daemon::with(way);
        let probe = Probe::open_at(daemon.node()).unwrap();
        let made = AtomicU32::new(0);
        let made: &'static AtomicU32 = Box::leak(Box::new(made));
        let guarded = Guarded::new(probe.clone(), |_| made.fetch_add(1, Ordering::Relaxed) + 1);
        assert!(probe.is_live() && *guarded.get() == 1 && guarded.get().is_current());
        for round in 0..3 {
            let before = probe.stamp();
            let value = *guarded.get();
            daemon.stop();
            // The end is a change, as far as anybody knows. To look at a page without a server kills nobody.
            drop_caches();
            assert!(
                !probe.is_live() && probe.has_changed(&before),
                "round {round}"
            );
            let ended = probe.stamp();
            assert!(!probe.has_changed(&ended), "an end is one change");
            assert_eq!(*guarded.get(), value + 1);
            assert_eq!(*guarded.get(), value + 1);
            daemon.start_again();
            eventually("a clone looks at the node that has come back", || {
                guarded.probe().has_changed(&ended)
            });
            assert!(probe.is_live() && probe.has_changed(&before));
            assert_eq!(*guarded.get(), value + 2);
            let orchestrator = daemon.orchestrator();
            let generation = orchestrator.bump().unwrap();
            assert_eq!(probe.generation(), generation);
            assert_eq!(*guarded.get(), value + 3);
            assert!(guarded.get().is_current());
        }
    }
}

#[test]
#[ignore = "needs a daemon"]
fn a_page_that_was_mapped_stays_in_memory() {
    for way in WAYS {
        let mut daemon = Daemon::with(way);
        // Nobody looks before there is no server that the page could come from.
        let probe = Probe::open_at(daemon.node()).unwrap();
        drop_caches();
        daemon.end(Signal::KILL);
        assert_eq!(probe.stamp().generation(), Generation::START);
    }
}

#[test]
#[ignore = "needs a daemon"]
fn a_probe_that_was_there_before_the_node_finds_it() {
    for way in WAYS {
        let mut daemon = Daemon::with(way);
        daemon.stop();
        assert!(Probe::open_at(daemon.node()).unwrap_err().is_absent());
        let probe = Probe::open_at_or_never(daemon.node()).unwrap();
        assert!(probe.can_change() && !probe.is_live() && probe.path().is_none());
        let before = probe.stamp();
        assert!(!probe.has_changed(&before));
        daemon.start_again();
        eventually("the probe finds the node", || probe.has_changed(&before));
        assert!(probe.is_live() && probe.path().unwrap() == daemon.node());
        let stamp = probe.stamp();
        daemon.orchestrator().bump().unwrap();
        assert!(probe.has_changed(&stamp));
    }
}

#[test]
#[ignore = "needs a daemon"]
fn a_probe_that_is_told_to_looks_for_a_node_whose_server_was_killed() {
    for way in WAYS {
        let mut daemon = Daemon::with(way);
        let probe = Probe::open_at(daemon.node()).unwrap();
        assert!(!probe.look_for_node().unwrap(), "it is there");
        let stamp = probe.stamp();
        daemon.end(Signal::KILL);
        drop_caches();
        let _ = probe.has_changed(&stamp);
        assert!(probe.look_for_node().is_err());
        daemon.start_again();
        // With passthrough the next server goes on with the same page, and nothing has to be looked for.
        probe.look_for_node().unwrap();
        assert!(probe.is_live() && probe.has_changed(&stamp));
        let stamp = probe.stamp();
        daemon.orchestrator().bump().unwrap();
        assert!(probe.has_changed(&stamp));
    }
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
        drop(change.unwrap());
        let again = timeout(PATIENCE, watcher.changed()).await.unwrap();
        assert!(matches!(
            again.unwrap().acknowledge().unwrap(),
            Acknowledged::Current
        ));
        let quiet = timeout(Duration::from_millis(20), watcher.changed()).await;
        assert!(quiet.is_err(), "it was acknowledged");
        drop(watcher);
    }
}
