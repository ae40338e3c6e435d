// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ten thousand watchers and a hundred changes a second: memory stays flat, and the accounts exact.
//!
//! `SYSGENIDD_SOAK_SECONDS` says for how long.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Setup, Supervision};
use common::process::status_field;
use common::watcher::Watcher;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Resource, Rlimit};

const WATCHERS: usize = 10_000;

/// How many of them acknowledge each change.
const ACKNOWLEDGING: usize = 20;

/// The time between two changes.
const PERIOD: Duration = Duration::from_millis(10);

/// For how long unless the environment says so, in seconds.
const SECONDS: u64 = 5;

/// By how much the memory may differ after the warm-up, in KiB: what an allocator does on its own.
const SLACK: u64 = 64;

/// What the daemon may take without and with a watcher, in bytes.
const BASE: u64 = 4 << 20;
const PER_WATCHER: u64 = 200;

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn ten_thousand_watchers_and_a_hundred_changes_a_second_leave_memory_flat_and_accounts_exact() {
    let seconds = std::env::var("SYSGENIDD_SOAK_SECONDS")
        .map_or(SECONDS, |seconds| seconds.parse().expect("seconds"));
    let limit = Some(u64::try_from(2 * WATCHERS).unwrap());
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    let daemon = Daemon::start(&Setup {
        supervision: Supervision::None,
        passthrough: true,
        published: false,
        environment: Vec::new(),
    });
    let resident = || status_field(daemon.id(), "VmRSS:");

    let trigger = Watcher::open(&daemon.file("sysgenid")).unwrap();
    trigger.trigger(0).unwrap();
    let empty = resident();
    let path = daemon.file("vmgenid");
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|_| Watcher::open(&path).unwrap())
        .collect();
    let watchers = Arc::new(watchers);
    let full = resident();
    let each = (full - empty) * 1024 / u64::try_from(WATCHERS).unwrap();
    eprintln!(
        "resident: {empty} KiB without, {full} KiB with {WATCHERS} watchers: {each} bytes each"
    );
    assert!(each < PER_WATCHER, "{each} bytes a watcher");

    let enough = Arc::new(AtomicBool::new(false));
    let poller = {
        let (watchers, enough) = (Arc::clone(&watchers), Arc::clone(&enough));
        thread::spawn(move || poll(&watchers, &enough))
    };
    let mut changes = 1;
    let mut warm = None;
    let mut late = Duration::ZERO;
    let before = processor_time(daemon.id());
    let start = Instant::now();
    for tick in 1..=u32::try_from(seconds).unwrap() * 100 {
        let due = start + PERIOD * tick;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        late = late.max(due.elapsed());
        trigger.trigger(0).unwrap();
        changes += 1;
        assert_eq!(trigger.outdated(), Ok(count(WATCHERS)));
        let first = usize::try_from(tick).unwrap() * ACKNOWLEDGING % WATCHERS;
        for watcher in &watchers[first..first + ACKNOWLEDGING] {
            watcher.acknowledge(changes).unwrap();
        }
        assert_eq!(trigger.outdated(), Ok(count(WATCHERS - ACKNOWLEDGING)));
        if tick == 100 {
            warm = Some(resident());
        }
    }
    let took = start.elapsed();
    let busy = processor_time(daemon.id()) - before;
    enough.store(true, Ordering::SeqCst);
    let notices = poller.join().unwrap();
    // A last change, with everybody.
    trigger.trigger(0).unwrap();
    changes += 1;
    for (done, watcher) in watchers.iter().enumerate() {
        assert_eq!(trigger.outdated(), Ok(count(WATCHERS - done)));
        assert_eq!(watcher.read(), Ok(changes));
        watcher.acknowledge(changes).unwrap();
    }
    assert_eq!(trigger.outdated(), Ok(0));
    trigger.acknowledge(changes).unwrap();
    assert_eq!(trigger.wait(0), Ok(()));
    let (warm, end) = (warm.unwrap(), resident());
    eprintln!(
        "{changes} changes in {:.1} s, at most {:.1} ms late, {notices} notices; the daemon was busy for \
         {busy} of its ticks; resident: {warm} KiB warm, {end} KiB at the end",
        took.as_secs_f64(),
        late.as_secs_f64() * 1000.0,
    );
    // A busy machine may lag behind for a moment.
    let limit = Duration::from_secs(seconds + seconds / 10 + 2);
    assert!(took < limit, "{changes} changes took {took:?}");
    assert!(end <= warm + SLACK, "memory grew from {warm} to {end} KiB");
    // What the optimiser does not remove is as large as all the rest.
    if !cfg!(debug_assertions) {
        let limit = BASE + PER_WATCHER * u64::try_from(WATCHERS).unwrap();
        assert!(end * 1024 < limit, "{end} KiB is more than {limit} bytes");
    }
    daemon.stop();
}

fn count(watchers: usize) -> i32 {
    i32::try_from(watchers).unwrap()
}

/// Waits with epoll, and returns how often it told of a watcher.
fn poll(watchers: &[Watcher], enough: &AtomicBool) -> usize {
    let mut notices = 0;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for watcher in watchers {
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, watcher, EventData::new_u64(0), flags).unwrap();
    }
    let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
    let timeout = Timespec::try_from(PERIOD).unwrap();
    while !enough.load(Ordering::SeqCst) {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&timeout)).unwrap();
        notices += events.len();
    }
    notices
}

/// How long a process has kept a processor busy, in ticks of a hundredth of a second.
fn processor_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields = rest.split_ascii_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}
