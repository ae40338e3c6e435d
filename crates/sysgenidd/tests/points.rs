// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon dies at every point of every operation, and those who use its nodes do not notice.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use common::PATIENCE;
use common::daemon::{Daemon, RESTART, Setup, Supervision};
use common::watcher::Watcher;
use common::{eventually, process};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::gettid;

/// At how many of its first points the successor dies as well.
const RECOVERY: u64 = 3;

/// The daemon's supervisor; see [`common::daemon::Supervision::Script`].
#[test]
#[ignore = "a part of other tests"]
fn part_supervisor() {
    common::daemon::supervise_by_script();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_death_at_any_point_changes_nothing_for_anybody_who_maps_the_page_itself() {
    die_at_every_point(true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_death_at_any_point_changes_nothing_for_anybody_who_maps_a_copy() {
    die_at_every_point(false);
}

fn die_at_every_point(passthrough: bool) {
    let mut point = 0;
    let mut deaths = 0;
    loop {
        point += 1;
        // Once its successor survives, and once it dies at each of its first points.
        for again in 0..=RECOVERY {
            let died = die_at(passthrough, &[point, again]);
            deaths += died;
            if died == 0 {
                eprintln!("{} points, {deaths} deaths", point - 1);
                // What is known to be there: 3 of an open, 2 of an acknowledgement, 4 of a change.
                assert!(point > 20, "the daemon passed {} points only", point - 1);
                return;
            }
        }
    }
}

/// Returns how often the daemon died.
fn die_at(passthrough: bool, points: &[u64]) -> usize {
    eprintln!("{points:?}");
    let daemon = Daemon::start(&Setup {
        supervision: Supervision::Script {
            points,
            limit: usize::MAX,
        },
        passthrough,
        published: false,
        environment: Vec::new(),
    });
    use_everything(&daemon);
    let deaths = daemon.log().count(RESTART);
    daemon.stop();
    deaths
}

/// Does everything that a node can, and checks every answer.
fn use_everything(daemon: &Daemon) {
    let (sysgenid, vmgenid) = (daemon.file("sysgenid"), daemon.file("vmgenid"));
    let is_nobody_left = || {
        eventually("nobody watches any more", || {
            let watchers = std::fs::read_to_string(daemon.file("watchers")).unwrap();
            if watchers.lines().count() == 1 {
                Ok(())
            } else {
                Err(watchers)
            }
        });
    };

    // One watcher of each kind.
    let one = Watcher::open(&sysgenid).unwrap();
    let page = one.map().unwrap();
    let other = Watcher::open(&vmgenid).unwrap();
    let follower = daemon.directory().join("follower/vmgenid");
    let follower = Watcher::open_with(&follower, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    assert_eq!(follower.read(), Err(Errno::AGAIN));
    assert_eq!(one.outdated(), Ok(0));
    assert!(!one.is_readable().unwrap());
    one.track(true).unwrap();
    one.trigger(0).unwrap();
    assert_eq!(page.generation(), 1);
    // Whoever changed the generation finds that its followers have changed too.
    assert_eq!(follower.read(), Ok(1));
    assert_eq!(one.outdated(), Ok(2));
    assert!(one.is_readable().unwrap());
    assert_eq!(one.read(), Ok(1));
    assert_eq!(one.acknowledge(7), Err(Errno::INVAL));
    assert_eq!(other.wait(0), Err(Errno::INTR));
    one.acknowledge(1).unwrap();
    assert_eq!(one.outdated(), Ok(1));
    assert_eq!(one.wait(1), Err(Errno::TIME));
    one.track(false).unwrap();
    one.track(true).unwrap();
    other.acknowledge(1).unwrap();
    assert_eq!(one.outdated(), Ok(0));
    assert_eq!(one.wait(0), Ok(()));

    // Everybody who can sleep does.
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let edge = EventFlags::IN | EventFlags::ET;
    epoll::add(&edges, &other, EventData::new_u64(0), edge).unwrap();
    let (reported, reports) = mpsc::channel();
    let reader = {
        let reported = reported.clone();
        sleeper(move || {
            let outcome = one.read();
            reported.send(("the reader", outcome)).unwrap();
            one
        })
    };
    let waiting = Watcher::open(&vmgenid).unwrap();
    let late = Watcher::open(&vmgenid).unwrap();
    late.trigger(10).unwrap();
    // After a raise as after a bump, it is one more.
    assert_eq!(follower.read(), Ok(2));
    let one = reader(&reports, ("the reader", Ok(10)));
    assert_eq!(page.generation(), 10);
    assert!(is_new_edge(&edges));
    // A successor tells everybody again, so there may be more.
    while is_new_edge(&edges) {}
    late.trigger(0).unwrap();
    assert!(is_new_edge(&edges));
    assert_eq!(follower.read(), Ok(3));
    assert_eq!(late.outdated(), Ok(4));
    assert_eq!(one.acknowledge(10), Err(Errno::INVAL));
    for watcher in [&one, &other, &waiting] {
        watcher.acknowledge(11).unwrap();
    }
    let waiter = sleeper(move || {
        let outcome = waiting.wait(0).map(|()| 0);
        reported.send(("the waiter", outcome)).unwrap();
        waiting
    });
    // The last one goes instead of acknowledging.
    drop(late);
    let waiting = waiter(&reports, ("the waiter", Ok(0)));
    assert_eq!(other.outdated(), Ok(0));
    assert_eq!(page.generation(), 11);

    one.trigger(0).unwrap();
    assert_eq!(follower.read(), Ok(4));
    assert_eq!(page.generation(), 12);
    drop((one, page, other, waiting, edges, follower));
    is_nobody_left();
}

/// Runs what sleeps in a thread, and returns once it does. What it returns waits for its report.
fn sleeper<T: Send + 'static>(
    sleep: impl FnOnce() -> T + Send + 'static,
) -> impl FnOnce(&mpsc::Receiver<Report>, Report) -> T {
    let (known, tid) = mpsc::channel();
    let thread = thread::spawn(move || {
        known.send(gettid()).unwrap();
        sleep()
    });
    process::wait_until_asleep(tid.recv().unwrap());
    move |reports, expected| {
        let report = reports.recv_timeout(PATIENCE);
        assert_eq!(report, Ok(expected), "expected {expected:?}");
        thread.join().unwrap()
    }
}

type Report = (&'static str, Result<u32, Errno>);

/// Whether there has been an edge since the last call.
fn is_new_edge(edges: impl AsFd) -> bool {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(1);
    let now = Timespec::default();
    epoll::wait(edges, spare_capacity(&mut events), Some(&now)).unwrap() > 0
}
