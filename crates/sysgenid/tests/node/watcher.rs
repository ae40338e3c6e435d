// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting, and acknowledging.

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sysgenid::{Acknowledged, Error, Others, Tracking, Watcher};
use sysgenid_fixture::{Machine, PATIENCE, QUIET, acknowledge, tracked, untracked};

#[test]
#[ignore = "needs a node"]
fn everybody_waits_for_a_tracked_watcher_until_it_acknowledges() {
    let machine = Machine::new();
    let watcher = tracked();
    assert_eq!(watcher.tracking(), Tracking::Tracked);
    assert!(watcher.try_changed().unwrap().is_none());
    let generation = machine.bump();
    machine.assert_outdated(1);
    let change = watcher.wait().unwrap();
    assert_eq!(change.generation(), generation);
    machine.assert_outdated(1);
    assert!(matches!(
        change.acknowledge().unwrap(),
        Acknowledged::Current
    ));
    machine.assert_outdated(0);
    assert!(watcher.try_changed().unwrap().is_none());
}

#[test]
#[ignore = "needs a node"]
fn nobody_waits_for_an_untracked_watcher_which_is_told_of_each_change() {
    let machine = Machine::new();
    let watcher = untracked();
    assert_eq!(watcher.tracking(), Tracking::Untracked);
    for _ in 0..3 {
        assert!(watcher.wait_timeout(QUIET).unwrap().is_none());
        let generation = machine.bump();
        machine.assert_outdated(0);
        let change = watcher.wait_timeout(PATIENCE).unwrap().expect("a change");
        assert_eq!(change.generation(), generation);
        assert_eq!(watcher.generation().unwrap(), generation);
        assert!(matches!(
            change.acknowledge().unwrap(),
            Acknowledged::Current
        ));
    }
}

#[test]
#[ignore = "needs a node"]
fn a_wait_takes_its_time_and_ends_at_a_change() {
    let machine = Machine::new();
    for tracking in [Tracking::Tracked, Tracking::Untracked] {
        let watcher = Watcher::open(tracking).unwrap();
        let started = Instant::now();
        assert!(watcher.wait_timeout(QUIET).unwrap().is_none());
        assert!(started.elapsed() >= QUIET);
        let (ready, is_ready) = mpsc::channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                ready.send(()).unwrap();
                watcher.wait().unwrap().generation()
            });
            is_ready.recv().unwrap();
            let generation = machine.bump();
            assert_eq!(waiting.join().unwrap(), generation);
        });
    }
    // A time that no clock can show is for ever, not none at all.
    let watcher = tracked();
    machine.bump();
    assert!(watcher.wait_timeout(Duration::MAX).unwrap().is_some());
}

#[test]
#[ignore = "needs a node"]
fn a_change_that_comes_in_the_middle_is_reported_and_not_lost() {
    let machine = Machine::new();
    let watcher = tracked();
    machine.bump();
    let change = watcher.wait().unwrap();
    let latest = machine.bump();
    let Acknowledged::ChangedAgain(newer) = change.acknowledge().unwrap() else {
        panic!("the second change went unnoticed");
    };
    assert_eq!(newer.generation(), latest);
    machine.assert_outdated(1);
    assert!(matches!(
        newer.acknowledge().unwrap(),
        Acknowledged::Current
    ));
    machine.assert_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn an_untracked_watcher_is_told_of_a_change_in_the_middle_as_well() {
    let machine = Machine::new();
    let watcher = untracked();
    machine.bump();
    let change = watcher.wait().unwrap();
    let latest = machine.bump();
    let Acknowledged::ChangedAgain(newer) = change.acknowledge().unwrap() else {
        panic!("the second change went unnoticed");
    };
    assert_eq!(newer.generation(), latest);
    assert!(matches!(
        newer.acknowledge().unwrap(),
        Acknowledged::Current
    ));
    assert!(watcher.wait_timeout(QUIET).unwrap().is_none(), "told twice");
}

#[test]
#[ignore = "needs a node"]
fn a_rebuild_is_repeated_until_nothing_changed_meanwhile() {
    let machine = Machine::new();
    let watcher = tracked();
    let first = machine.bump();
    let mut seen = Vec::new();
    let acknowledged = watcher
        .wait()
        .unwrap()
        .rebuild(|generation| {
            seen.push(generation);
            if seen.len() < 3 {
                machine.bump();
            }
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(seen, [first, first.next(), first.next().next()]);
    assert_eq!(Some(&acknowledged), seen.last());
    machine.assert_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn a_rebuild_that_fails_acknowledges_nothing_and_the_change_comes_again() {
    let machine = Machine::new();
    let watcher = tracked();
    let generation = machine.bump();
    let failed = watcher
        .wait()
        .unwrap()
        .rebuild(|_| Err::<(), Box<dyn std::error::Error>>("no entropy".into()));
    assert_eq!(failed.unwrap_err().to_string(), "no entropy");
    machine.assert_outdated(1);
    assert_eq!(acknowledge(&watcher), generation);
    machine.assert_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn a_change_that_is_dropped_comes_again() {
    let machine = Machine::new();
    for tracking in [Tracking::Tracked, Tracking::Untracked] {
        let watcher = Watcher::open(tracking).unwrap();
        let generation = machine.bump();
        for _ in 0..2 {
            let change = watcher.wait_timeout(QUIET).unwrap().expect("a change");
            assert_eq!(change.generation(), generation);
            drop(change);
        }
        acknowledge(&watcher);
        assert!(watcher.wait_timeout(QUIET).unwrap().is_none());
    }
}

#[test]
#[ignore = "needs a node"]
fn the_generation_is_the_current_one_at_any_time() {
    let machine = Machine::new();
    let watcher = tracked();
    let before = watcher.generation().unwrap();
    assert_eq!(before, machine.orchestrator().generation().unwrap());
    let after = machine.bump();
    assert_ne!(before, after);
    assert_eq!(watcher.generation().unwrap(), after);
    acknowledge(&watcher);
    assert_eq!(watcher.generation().unwrap(), after);
    assert_eq!(tracked().generation().unwrap(), after);
}

#[test]
#[ignore = "needs a node"]
fn a_watcher_that_is_dropped_is_not_waited_for() {
    let machine = Machine::new();
    let watcher = tracked();
    machine.bump();
    machine.assert_outdated(1);
    drop(watcher);
    machine.assert_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn the_descriptor_is_readable_while_there_is_something_to_do() {
    fn is_readable(watcher: &Watcher) -> bool {
        let fd = watcher.as_fd();
        let mut files = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut files, Some(&Timespec::default())).unwrap();
        files[0].revents().contains(PollFlags::IN)
    }

    let machine = Machine::new();
    let (acknowledging, looking) = (tracked(), untracked());
    for _ in 0..2 {
        assert!(!is_readable(&acknowledging) && !is_readable(&looking));
        machine.bump();
        assert!(is_readable(&acknowledging) && is_readable(&looking));
        for watcher in [&acknowledging, &looking] {
            drop(watcher.try_changed().unwrap().expect("a change"));
            assert!(is_readable(watcher), "it has not acknowledged");
            let change = watcher.try_changed().unwrap().expect("a change");
            assert!(matches!(
                change.acknowledge().unwrap(),
                Acknowledged::Current
            ));
        }
    }
}

#[test]
#[ignore = "needs a node"]
fn all_threads_that_wait_on_one_watcher_are_told() {
    let machine = Machine::new();
    let watcher = tracked();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| watcher.wait().unwrap().generation()))
            .collect();
        let generation = machine.bump();
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), generation);
        }
    });
    acknowledge(&watcher);
}

#[test]
#[ignore = "needs a node"]
fn threads_that_acknowledge_one_watcher_at_once_leave_it_current() {
    let machine = Machine::new();
    let watcher = tracked();
    for _ in 0..20 {
        let generation = machine.bump();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if let Some(change) = watcher.try_changed().unwrap() {
                        assert_eq!(change.rebuild(|_| Ok::<_, Error>(())).unwrap(), generation);
                    }
                });
            }
        });
        machine.assert_outdated(0);
        assert_eq!(watcher.generation().unwrap(), generation);
    }
}

#[test]
#[ignore = "needs a node"]
fn whoever_waits_for_others_hears_of_another_change() {
    let machine = Machine::new();
    let (watcher, late) = (tracked(), tracked());
    machine.bump();
    let change = watcher.wait().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| change.acknowledge_and_wait(Some(PATIENCE)).unwrap());
        // Not before the first is acknowledged, else that is what reports the second.
        let started = Instant::now();
        while machine.orchestrator().outdated_watchers().unwrap() != 1 {
            assert!(started.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        let latest = machine.bump();
        let Others::ChangedAgain(change) = waiting.join().unwrap() else {
            panic!("the second change went unnoticed");
        };
        assert_eq!(change.generation(), latest);
        assert!(matches!(
            change.acknowledge().unwrap(),
            Acknowledged::Current
        ));
    });
    drop(late);
}

#[test]
#[ignore = "needs a node"]
fn whoever_shares_a_watcher_hears_that_the_other_acknowledged_a_newer_change() {
    let machine = Machine::new();
    let watcher = tracked();
    machine.bump();
    let slow = watcher.wait().unwrap();
    let latest = machine.bump();
    assert_eq!(acknowledge(&watcher), latest);
    let Acknowledged::ChangedAgain(newer) = slow.acknowledge().unwrap() else {
        panic!("it would keep the secrets of the first change");
    };
    assert_eq!(newer.generation(), latest);
    assert!(matches!(
        newer.acknowledge().unwrap(),
        Acknowledged::Current
    ));
}

#[test]
#[ignore = "needs a node"]
fn an_untracked_watcher_can_wait_for_others_too() {
    let machine = Machine::new();
    let (watcher, late) = (untracked(), tracked());
    machine.bump();
    let change = watcher.wait().unwrap();
    let Others::TimedOut {
        outdated: 1,
        waiting,
    } = change.acknowledge_and_wait(Some(QUIET)).unwrap()
    else {
        panic!("the late one was overlooked");
    };
    acknowledge(&late);
    assert!(matches!(
        waiting.wait(Some(PATIENCE)).unwrap(),
        Others::Settled
    ));
}
