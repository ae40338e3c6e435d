// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon is killed again and again while many use its nodes in every way: nothing is lost, nothing
//! counts twice, nobody gets an error, and nobody becomes unkillable.
//!
//! `SYSGENIDD_KILL_ROUNDS` says how often it is killed in each test.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::daemon::{Daemon, RESTART, Setup, Supervision};
use common::watcher::{Page, Watcher};
use common::{PATIENCE, eventually, process};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;

/// How often the daemon dies in one test unless the environment says so; handing over takes longer.
const ROUNDS: usize = 200;
const ROUNDS_OF_HANDING_OVER: usize = 50;

/// How many points the daemon passes at most before it dies.
const WITHIN: u64 = 200;

/// How long those who wait do so, in milliseconds, and how much later they may return.
const WAIT: u64 = 20;
const LATE: Duration = Duration::from_secs(5);

/// How the daemon ends.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// By its own hand, at any point at which the order of two steps matters.
    AtPoints,
    /// Killed from outside, at any instruction.
    Killed,
    /// It hands over to the next, as for an upgrade.
    HandsOver,
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn dying_at_points_under_load_loses_nothing() {
    survive(Death::AtPoints, true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn dying_at_points_under_load_loses_nothing_where_mappings_are_copies() {
    survive(Death::AtPoints, false);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn being_killed_under_load_loses_nothing() {
    survive(Death::Killed, true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn being_killed_under_load_loses_nothing_where_mappings_are_copies() {
    survive(Death::Killed, false);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_upgrade_under_load_loses_nothing() {
    survive(Death::HandsOver, true);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_upgrade_under_load_loses_nothing_where_mappings_are_copies() {
    survive(Death::HandsOver, false);
}

fn survive(death: Death, passthrough: bool) {
    let rounds = match std::env::var("SYSGENIDD_KILL_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("a number of rounds"),
        Err(_) if matches!(death, Death::HandsOver) => ROUNDS_OF_HANDING_OVER,
        Err(_) => ROUNDS,
    };
    let mut environment = Vec::new();
    if matches!(death, Death::AtPoints) {
        environment.push(("SYSGENIDD_DIE_WITHIN", WITHIN.to_string()));
    }
    let daemon = Daemon::start(&Setup {
        supervision: Supervision::Supervised { limit: usize::MAX },
        passthrough,
        published: false,
        environment,
    });
    let start = Instant::now();
    let load = Load::start(&daemon, passthrough);
    end_again_and_again(&daemon, death, rounds);
    let took = start.elapsed();
    let summary = load.finish(&daemon);
    eprintln!(
        "{death:?}: {} deaths in {:.1} s, {summary}",
        daemon.log().count(RESTART),
        took.as_secs_f64()
    );
    daemon.stop();
}

fn end_again_and_again(daemon: &Daemon, death: Death, rounds: usize) {
    let mut last = None;
    for round in 1..=rounds {
        match death {
            Death::AtPoints => {}
            Death::Killed => {
                // Long enough for some of them to get something done.
                thread::sleep(short_time() * 3);
                let victim = eventually("there is another process", || {
                    let child = process::child_of(daemon.id()).filter(|pid| Some(*pid) != last);
                    child.ok_or_else(|| daemon.log().tail())
                });
                rustix::process::kill_process(victim, Signal::KILL).unwrap();
                last = Some(victim);
            }
            Death::HandsOver => {
                thread::sleep(short_time());
                daemon.signal(Signal::USR1);
            }
        }
        daemon.log().wait(RESTART, round);
    }
}

/// Some milliseconds, so that no two rounds are alike.
fn short_time() -> Duration {
    Duration::from_micros(rand::random_range(0..10_000))
}

/// Everything that uses the nodes.
struct Load {
    shared: Arc<Shared>,
    /// Opened and mapped before anything else.
    page: Page,
    first: Watcher,
    follower: Watcher,
    busy: Crew,
    last_reader: Crew,
    victims: JoinHandle<Victims>,
}

/// What those who use the nodes know of each other.
struct Shared {
    host: PathBuf,
    /// Whether those who never wait for a change shall end.
    enough: AtomicBool,
    /// How many triggers have returned.
    triggered: AtomicU32,
    /// The last generation that there will be, once it is known; those who wait for changes end with it.
    last: AtomicU32,
    page: Page,
    follower: Option<Page>,
}

impl Shared {
    fn sysgenid(&self) -> PathBuf {
        self.host.join("sysgenid")
    }

    fn vmgenid(&self) -> PathBuf {
        self.host.join("vmgenid")
    }

    fn is_last(&self, generation: u32) -> bool {
        generation == self.last.load(Ordering::SeqCst)
    }

    fn is_enough(&self) -> bool {
        self.enough.load(Ordering::SeqCst)
    }
}

impl Load {
    fn start(daemon: &Daemon, passthrough: bool) -> Self {
        let first = Watcher::open(&daemon.file("sysgenid")).unwrap();
        let follower = daemon.directory().join("follower/vmgenid");
        let follower = Watcher::open_with(&follower, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        let shared = Arc::new(Shared {
            host: daemon.directory().join("host"),
            enough: AtomicBool::new(false),
            triggered: AtomicU32::new(0),
            last: AtomicU32::new(0),
            page: first.map().unwrap(),
            // Where mappings are copies, those of other instances are renewed a little later.
            follower: passthrough.then(|| follower.map().unwrap()),
        });
        let mut busy = Crew::new(&shared);
        for _ in 0..2 {
            busy.add("who triggers", trigger);
        }
        busy.add("who opens and closes", open_and_close);
        busy.add("who maps", map);
        let mut last_reader = Crew::new(&shared);
        last_reader.add("a reader of sysgenid", |shared| {
            let watcher = Watcher::open(&shared.sysgenid())?;
            watcher.track(true)?;
            read_and_acknowledge(shared, watcher)
        });
        last_reader.add("a reader of vmgenid", |shared| {
            let watcher = Watcher::open(&shared.vmgenid())?;
            read_and_acknowledge(shared, watcher)
        });
        last_reader.add("a reader that opens anew", read_anew);
        last_reader.add("a waiter that is tracked", |shared| {
            let watcher = Watcher::open(&shared.vmgenid())?;
            acknowledge_and_wait(shared, watcher)
        });
        last_reader.add("a waiter that is not tracked", |shared| {
            let watcher = Watcher::open(&shared.sysgenid())?;
            acknowledge_and_wait(shared, watcher)
        });
        last_reader.add("an epoll of levels", |shared| {
            poll(shared, EventFlags::IN, true)
        });
        last_reader.add("an epoll of edges", |shared| {
            poll(shared, EventFlags::IN | EventFlags::ET, true)
        });
        last_reader.add("an epoll of edges that never acknowledges", |shared| {
            poll(shared, EventFlags::IN | EventFlags::ET, false)
        });
        let page = first.map().unwrap();
        let for_victims = Arc::clone(&shared);
        Self {
            shared,
            page,
            first,
            follower,
            busy,
            last_reader,
            victims: thread::spawn(move || Victims::kill(&for_victims)),
        }
    }

    /// Ends everybody, and checks the accounts.
    fn finish(self, daemon: &Daemon) -> String {
        let Self { shared, first, .. } = self;
        shared.enough.store(true, Ordering::SeqCst);
        self.busy.finish();
        let victims = self.victims.join().unwrap();

        // Everybody who waits for a change hears of the last one.
        let last = shared.triggered.load(Ordering::SeqCst) + 1;
        shared.last.store(last, Ordering::SeqCst);
        first.trigger(0).unwrap();
        assert_eq!(first.read(), Ok(last));
        assert_eq!(self.page.generation(), last);
        let watchers = self.last_reader.finish();

        let follower = &self.follower;
        assert_eq!(follower.read(), Ok(last));
        assert_eq!(follower.outdated(), Ok(1));
        follower.acknowledge(last).unwrap();
        assert_eq!(follower.outdated(), Ok(0));
        let stranger = daemon.directory().join("stranger/sysgenid");
        let stranger = Watcher::open(&stranger).unwrap();
        assert_eq!(stranger.map().unwrap().generation(), 0);

        // The one that never acknowledges is still outdated, and those that were killed count no more.
        let count = |expected| {
            eventually("the count is what is known", || {
                let outdated = first.outdated().unwrap();
                if outdated == expected {
                    Ok(())
                } else {
                    let list = std::fs::read_to_string(daemon.file("watchers")).unwrap();
                    Err(format!("{outdated} instead of {expected}:\n{list}"))
                }
            });
        };
        count(1);
        first.acknowledge(last).unwrap();
        assert_eq!(first.wait(1), Err(Errno::TIME));
        for watcher in &watchers {
            watcher.acknowledge(last).unwrap();
        }
        assert_eq!(first.outdated(), Ok(0));
        assert_eq!(first.wait(0), Ok(()));

        // A copy keeps its watcher for as long as it is mapped, as the page of the module does.
        drop((watchers, first, shared, self.page, self.follower));
        eventually("nobody watches any more", || {
            let list = std::fs::read_to_string(daemon.file("watchers")).unwrap();
            if list.lines().count() == 1 {
                Ok(())
            } else {
                Err(list)
            }
        });
        format!(
            "{last} changes, {} clients killed within {:.0} ms",
            victims.killed,
            victims.slowest.as_secs_f64() * 1000.0
        )
    }
}

/// Threads that each report when they are done.
struct Crew {
    shared: Arc<Shared>,
    report: Sender<Report>,
    reports: mpsc::Receiver<Report>,
    working: BTreeSet<&'static str>,
    members: usize,
}

type Report = (&'static str, Result<Option<Watcher>, Errno>);

impl Crew {
    fn new(shared: &Arc<Shared>) -> Self {
        let (report, reports) = mpsc::channel();
        Self {
            shared: Arc::clone(shared),
            report,
            reports,
            working: BTreeSet::new(),
            members: 0,
        }
    }

    fn add(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&Shared) -> Result<Option<Watcher>, Errno> + Send + 'static,
    ) {
        self.working.insert(name);
        self.members += 1;
        let (shared, report) = (Arc::clone(&self.shared), self.report.clone());
        thread::spawn(move || {
            let outcome = work(&shared);
            drop(shared);
            // Nobody hears it if the test has failed.
            let _ = report.send((name, outcome));
        });
    }

    /// Waits for all, and returns the watchers that they leave open.
    fn finish(mut self) -> Vec<Watcher> {
        // Whoever panics does not report.
        drop(self.report);
        let mut watchers = Vec::new();
        for _ in 0..self.members {
            let Ok((name, outcome)) = self.reports.recv_timeout(PATIENCE) else {
                panic!(
                    "some of these do not return, or panicked: {:?}",
                    self.working
                );
            };
            self.working.remove(name);
            match outcome {
                Ok(watcher) => watchers.extend(watcher),
                Err(errno) => panic!("{name} got {errno}"),
            }
        }
        watchers
    }
}

fn trigger(shared: &Shared) -> Result<Option<Watcher>, Errno> {
    let watcher = Watcher::open(&shared.sysgenid())?;
    while !shared.is_enough() {
        watcher.trigger(0)?;
        let triggered = shared.triggered.fetch_add(1, Ordering::SeqCst) + 1;
        // Whoever returns from a trigger finds the new generation in the page.
        let seen = shared.page.generation();
        assert!(seen >= triggered, "{seen} after {triggered} triggers");
        if let Some(follower) = &shared.follower {
            let seen = follower.generation();
            assert!(seen >= triggered, "a follower is at {seen} of {triggered}");
        }
        thread::sleep(short_time() / 4);
    }
    Ok(None)
}

fn open_and_close(shared: &Shared) -> Result<Option<Watcher>, Errno> {
    while !shared.is_enough() {
        let vmgenid = Watcher::open(&shared.vmgenid())?;
        let sysgenid = Watcher::open(&shared.sysgenid())?;
        sysgenid.track(true)?;
        vmgenid.is_readable()?;
        assert!(sysgenid.outdated()? >= 0);
        vmgenid.track(false)?;
        drop(sysgenid);
        vmgenid.track(true)?;
    }
    Ok(None)
}

fn map(shared: &Shared) -> Result<Option<Watcher>, Errno> {
    let mut before = 0;
    while !shared.is_enough() {
        let at_least = shared.triggered.load(Ordering::SeqCst).max(before);
        let page = Watcher::open_with(&shared.sysgenid(), OFlags::RDONLY)?.map()?;
        before = page.generation();
        assert!(before >= at_least, "{before} after {at_least}");
        thread::sleep(short_time() / 10);
    }
    Ok(None)
}

fn read_and_acknowledge(shared: &Shared, watcher: Watcher) -> Result<Option<Watcher>, Errno> {
    let mut before = 0;
    loop {
        let generation = watcher.read()?;
        assert!(generation >= before, "{generation} after {before}");
        before = generation;
        match watcher.acknowledge(generation) {
            Ok(()) if shared.is_last(generation) => return Ok(Some(watcher)),
            // There was another change.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn read_anew(shared: &Shared) -> Result<Option<Watcher>, Errno> {
    loop {
        let watcher = Watcher::open_with(&shared.sysgenid(), OFlags::RDONLY)?;
        // If it is not known yet, the last change comes after this watcher.
        if shared.last.load(Ordering::SeqCst) != 0 || shared.is_last(watcher.read()?) {
            return Ok(None);
        }
    }
}

fn acknowledge_and_wait(shared: &Shared, watcher: Watcher) -> Result<Option<Watcher>, Errno> {
    loop {
        let start = Instant::now();
        let outcome = watcher.wait(usize::try_from(WAIT).unwrap());
        let waited = start.elapsed();
        match outcome {
            Ok(()) => {}
            Err(Errno::TIME) => assert!(
                (Duration::from_millis(WAIT)..LATE).contains(&waited),
                "timed out after {waited:?}"
            ),
            // It is outdated itself.
            Err(Errno::INTR) => {
                let generation = watcher.read()?;
                match watcher.acknowledge(generation) {
                    Ok(()) if shared.is_last(generation) => return Ok(Some(watcher)),
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
        thread::sleep(short_time() / 10);
    }
}

fn poll(shared: &Shared, flags: EventFlags, acknowledges: bool) -> Result<Option<Watcher>, Errno> {
    let watcher = Watcher::open_with(&shared.vmgenid(), OFlags::RDWR | OFlags::NONBLOCK)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &watcher, EventData::new_u64(0), flags)?;
    loop {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(1);
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        let flags = events[0].flags;
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            return Err(Errno::IO);
        }
        let generation = match watcher.read() {
            Ok(generation) => generation,
            // A notice may come once too often.
            Err(Errno::AGAIN) => continue,
            Err(errno) => return Err(errno),
        };
        let is_last = shared.is_last(generation);
        if !acknowledges {
            if is_last {
                return Ok(Some(watcher));
            }
            continue;
        }
        match watcher.acknowledge(generation) {
            Ok(()) if is_last => return Ok(Some(watcher)),
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What became of the processes that are killed in the middle of a call.
#[derive(Default)]
struct Victims {
    killed: usize,
    slowest: Duration,
}

/// What a victim does. It is a process of this very program.
const PART: &str = "SYSGENIDD_TEST_PART";
const PARTS: [&str; 4] = ["open", "read", "wait", "poll"];

/// How many of them there are at once.
const VICTIMS: usize = 3;

impl Victims {
    fn kill(shared: &Shared) -> Self {
        let mut victims = Self::default();
        let mut living: Vec<(&str, Child)> = Vec::new();
        while !shared.is_enough() || !living.is_empty() {
            if !shared.is_enough() && living.len() < VICTIMS {
                let part = PARTS[rand::random_range(0..PARTS.len())];
                living.push((part, start_victim(&shared.host, part)));
                continue;
            }
            let (part, mut victim) = living.swap_remove(0);
            let stderr = victim.stderr.as_mut().unwrap();
            // It is about to make the call; at which moment of it it dies is left to chance.
            stderr.read_exact(&mut [0]).unwrap();
            for _ in 0..rand::random_range(0..3) {
                process::signal(&victim, Signal::USR1);
                thread::sleep(short_time() / 10);
            }
            thread::sleep(short_time() / 10);
            // A process that has found an error has ended, and said which.
            if let Some(status) = victim.try_wait().unwrap() {
                let mut said = String::new();
                let stderr = victim.stderr.as_mut().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                panic!("a victim ended in {part}: {status}: {said}");
            }
            let what = format!("a victim in {part}");
            victims.slowest = victims.slowest.max(process::kill(&mut victim, &what));
            victims.killed += 1;
        }
        victims
    }
}

fn start_victim(host: &Path, part: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "part_victim", "--ignored", "--nocapture", "-q"])
        .arg("--test-threads=1")
        .env(PART, part)
        .current_dir(host)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// It does nothing unless a test starts it.
#[test]
#[ignore = "a part of other tests"]
fn part_victim() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    // A signal that is handled ends a call; one that is not would end the process.
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::default()).unwrap();
    let is_fine = |outcome: Result<(), Errno>| match outcome {
        Ok(()) | Err(Errno::INTR | Errno::INVAL) => {}
        Err(errno) => {
            eprintln!("{errno}");
            std::process::exit(1);
        }
    };
    let watcher = Watcher::open(Path::new("vmgenid")).unwrap();
    eprint!(".");
    loop {
        match part.as_str() {
            "open" => is_fine(Watcher::open(Path::new("sysgenid")).map(drop)),
            "read" => {
                let outcome = watcher.read();
                is_fine(outcome.and_then(|generation| watcher.acknowledge(generation)));
            }
            "wait" => {
                is_fine(watcher.wait(0));
                let generation = watcher.read();
                is_fine(generation.and_then(|generation| watcher.acknowledge(generation)));
            }
            _ => is_fine(watcher.is_readable().map(drop)),
        }
    }
}
