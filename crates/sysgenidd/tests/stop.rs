// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon ends, and everybody hears of it: nobody is left in a call that never returns.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use common::daemon::{Daemon, RESTART, Setup, Supervision};
use common::watcher::Watcher;
use common::{PATIENCE, eventually, process};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::gettid;

/// The daemon's supervisor; see [`common::daemon::Supervision::Script`].
#[test]
#[ignore = "a part of other tests"]
fn part_supervisor() {
    common::daemon::supervise_by_script();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_daemon_that_stops_wakes_everybody_and_leaves_nothing() {
    stop(Supervision::None, true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_supervised_daemon_that_stops_wakes_everybody_and_leaves_nothing() {
    stop(Supervision::Supervised { limit: 5 }, true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_daemon_that_stops_wakes_everybody_also_where_mappings_are_copies() {
    stop(Supervision::None, false);
}

fn stop(supervision: Supervision<'_>, passthrough: bool) {
    let daemon = start(supervision, passthrough);
    let sleepers = Sleepers::start(&daemon);
    daemon.stop();
    assert_eq!(sleepers.reader(), Err(Errno::NODEV));
    assert_eq!(sleepers.waiter(), Err(Errno::NODEV));
    assert!(
        sleepers
            .events()
            .intersects(EventFlags::ERR | EventFlags::HUP)
    );
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_crash_loop_ends_in_an_aborted_connection() {
    let limit = 5;
    let mut daemon = start(Supervision::Script { points: &[], limit }, true);
    let sleepers = Sleepers::start(&daemon);
    // From now on a change is too much for it: each process dies in the middle of the same one.
    daemon.set_points(&[1; 100]);
    let child = process::child_of(daemon.id()).unwrap();
    rustix::process::kill_process(child, Signal::KILL).unwrap();
    let trigger = Watcher::open(&daemon.file("sysgenid")).map(|watcher| watcher.trigger(0));
    assert!(is_abort(trigger.and_then(|outcome| outcome)));
    assert!(is_abort(sleepers.reader()));
    assert!(is_abort(sleepers.waiter()));
    assert!(
        sleepers
            .events()
            .intersects(EventFlags::ERR | EventFlags::HUP)
    );
    assert_eq!(daemon.end().code(), Some(1));
    // The last end is not followed by a start.
    eventually("the log is complete", || {
        let restarts = daemon.log().count(RESTART);
        if restarts == limit + 1 {
            Ok(())
        } else {
            Err(format!("{restarts} restarts"))
        }
    });
    daemon.assert_nothing_leads_to_it();
}

fn is_abort(outcome: Result<(), Errno>) -> bool {
    matches!(
        outcome,
        Err(Errno::CONNABORTED | Errno::NOTCONN | Errno::NOENT)
    )
}

fn start(supervision: Supervision<'_>, passthrough: bool) -> Daemon {
    let daemon = Daemon::start(&Setup {
        supervision,
        passthrough,
        published: true,
        environment: Vec::new(),
    });
    // The usual path leads to a node that works.
    assert!(
        Watcher::open("/dev/sysgenid".as_ref())
            .unwrap()
            .map()
            .is_ok()
    );
    daemon
}

/// One of each kind that can sleep, asleep.
struct Sleepers {
    reads: Receiver<Result<(), Errno>>,
    waits: Receiver<Result<(), Errno>>,
    polls: Receiver<EventFlags>,
}

impl Sleepers {
    fn start(daemon: &Daemon) -> Self {
        let open = || Watcher::open(&daemon.file("vmgenid")).unwrap();
        let (reader, waiter, poller, outdated) = (open(), open(), open(), open());
        outdated.trigger(0).unwrap();
        for watcher in [&reader, &waiter, &poller] {
            watcher.acknowledge(1).unwrap();
        }
        Self {
            reads: asleep(move || reader.read().map(drop)),
            waits: asleep(move || {
                let outcome = waiter.wait(0);
                // Until now it kept the waiter waiting.
                drop(outdated);
                outcome
            }),
            polls: asleep(move || {
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
                epoll::add(&epoll, &poller, EventData::new_u64(0), EventFlags::IN).unwrap();
                let mut events: Vec<epoll::Event> = Vec::with_capacity(1);
                epoll::wait(&epoll, spare_capacity(&mut events), None).unwrap();
                events[0].flags
            }),
        }
    }

    fn reader(&self) -> Result<(), Errno> {
        self.reads
            .recv_timeout(PATIENCE)
            .expect("the reader returns")
    }

    fn waiter(&self) -> Result<(), Errno> {
        self.waits
            .recv_timeout(PATIENCE)
            .expect("the waiter returns")
    }

    fn events(&self) -> EventFlags {
        self.polls.recv_timeout(PATIENCE).expect("epoll returns")
    }
}

/// Runs what sleeps in a thread, and returns once it does.
fn asleep<T: Send + 'static>(sleep: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (result, results) = mpsc::channel();
    let (known, tid): (Sender<Pid>, _) = mpsc::channel();
    thread::spawn(move || {
        known.send(gettid()).unwrap();
        let _ = result.send(sleep());
    });
    process::wait_until_asleep(tid.recv().unwrap());
    results
}
