// SPDX-License-Identifier: MIT OR Apache-2.0

//! The watcher for tasks of tokio, on a real node.

use std::sync::Arc;

use sysgenid::{Acknowledged, AsyncWatcher, Error, Tracking};
use sysgenid_fixture::{Machine, PATIENCE, QUIET};
use tokio::time::timeout;
use tokio_stream::StreamExt;

#[tokio::test]
#[ignore = "needs a node"]
async fn a_task_is_told_of_each_change() {
    let machine = Machine::new();
    for tracking in [Tracking::Tracked, Tracking::Untracked] {
        let watcher = AsyncWatcher::open(tracking).unwrap();
        for _ in 0..3 {
            assert!(timeout(QUIET, watcher.changed()).await.is_err());
            let generation = machine.bump();
            let change = timeout(PATIENCE, watcher.changed()).await.unwrap().unwrap();
            assert_eq!(change.generation(), generation);
            assert!(matches!(
                change.acknowledge().unwrap(),
                Acknowledged::Current
            ));
            machine.assert_outdated(0);
        }
    }
}

#[tokio::test]
#[ignore = "needs a node"]
async fn a_future_that_is_cancelled_loses_nothing() {
    let machine = Machine::new();
    for tracking in [Tracking::Tracked, Tracking::Untracked] {
        let watcher = AsyncWatcher::open(tracking).unwrap();
        // Polled once, so that it sleeps, and then dropped.
        assert!(timeout(QUIET, watcher.changed()).await.is_err());
        let generation = machine.bump();
        // Dropped without being polled.
        drop(watcher.changed());
        let change = timeout(PATIENCE, watcher.changed()).await.unwrap().unwrap();
        assert_eq!(change.generation(), generation);
    }
}

#[tokio::test]
#[ignore = "needs a node"]
async fn a_tracked_change_that_is_dropped_comes_again() {
    let machine = Machine::new();
    let watcher = AsyncWatcher::open(Tracking::Tracked).unwrap();
    let generation = machine.bump();
    for _ in 0..2 {
        let change = timeout(PATIENCE, watcher.changed()).await.unwrap().unwrap();
        assert_eq!(change.generation(), generation);
    }
    machine.assert_outdated(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node"]
async fn tasks_on_several_threads_are_all_told() {
    let machine = Machine::new();
    let watcher = Arc::new(AsyncWatcher::open(Tracking::Tracked).unwrap());
    let (ready, mut is_ready) = tokio::sync::mpsc::channel(8);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (watcher, ready) = (Arc::clone(&watcher), ready.clone());
            tokio::spawn(async move {
                ready.send(()).await.unwrap();
                watcher.changed().await.unwrap().generation()
            })
        })
        .collect();
    for _ in 0..8 {
        is_ready.recv().await.unwrap();
    }
    let generation = machine.bump();
    for task in tasks {
        assert_eq!(timeout(PATIENCE, task).await.unwrap().unwrap(), generation);
    }
}

#[tokio::test]
#[ignore = "needs a node"]
async fn a_stream_yields_each_change_that_is_acknowledged_in_time() {
    let machine = Machine::new();
    let mut changes = AsyncWatcher::open(Tracking::Tracked).unwrap().into_stream();
    for _ in 0..3 {
        let generation = machine.bump();
        let change = timeout(PATIENCE, changes.next()).await.unwrap();
        let acknowledged = change
            .unwrap()
            .unwrap()
            .rebuild_async(async |_| Ok::<_, Error>(()))
            .await
            .unwrap();
        assert_eq!(acknowledged, generation);
        machine.assert_outdated(0);
    }
    assert!(timeout(QUIET, changes.next()).await.is_err());
}
