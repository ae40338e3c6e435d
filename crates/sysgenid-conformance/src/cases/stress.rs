// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many watchers, and many things at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Case, case};
use crate::call::Call;
use crate::node::{Control, Node, Watcher};
use crate::outcome::{Outcome, fail, holds, name_of, same, skip};
use crate::process::{Event, Process};

pub(super) const CASES: &[Case] = &[
    case(
        "a-thousand-watchers-are-woken-and-counted-one-by-one",
        &["count", "read-blocks", "poll-edge"],
        a_thousand_watchers,
    ),
    case(
        "the-accounts-are-exact-after-changes-deaths-and-acknowledgements-at-once",
        &["count", "death"],
        the_accounts_are_exact,
    ),
];

const THOUSAND: i32 = 1000;

fn a_thousand_watchers(node: &Node) -> Outcome {
    allow_descriptors(1200)?;
    let control = node.control()?;
    let poller = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let mut watchers = Vec::new();
    for number in 0..THOUSAND {
        let watcher = node.tracked()?;
        let data = EventData::new_u64(u64::from(number.unsigned_abs()));
        epoll::add(&*poller, &watcher, data, EventFlags::IN | EventFlags::ET)?;
        watchers.push(watcher);
    }
    let sleeper = Arc::clone(&poller);
    let expected = watchers.len();
    let woken = Call::blocked("epoll_wait", move || -> Outcome<usize> {
        let mut woken = vec![false; expected];
        let mut left = woken.len();
        // For long only if somebody is not woken.
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let mut first = true;
        while left > 0 {
            let mut events = Vec::with_capacity(128);
            let limit = if first { None } else { Some(&limit) };
            first = false;
            epoll::wait(
                &*sleeper,
                rustix::buffer::spare_capacity(&mut events),
                limit,
            )?;
            if events.is_empty() {
                break;
            }
            for event in events {
                let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                match woken.get_mut(number) {
                    Some(woken) if !*woken => {
                        *woken = true;
                        left -= 1;
                    }
                    _ => return fail(format!("watcher {number} was reported twice")),
                }
            }
        }
        Ok(woken.len() - left)
    })?;
    let generation = control.bump()?;
    same("watchers that were woken", woken.answer()??, expected)?;
    control.counts(THOUSAND, "after a change")?;
    for (watcher, left) in watchers.iter().zip((0..THOUSAND).rev()) {
        watcher.acknowledge(generation)?;
        control.counts(left, "after one more acknowledgement")?;
    }
    control.bump()?;
    for left in (0..THOUSAND).rev() {
        watchers.pop();
        control.counts(left, "after one more close")?;
    }
    Ok(())
}

/// Raises the limit of this process, if it must.
fn allow_descriptors(number: u64) -> Outcome {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= number) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(number),
        maximum: limit.maximum.map(|maximum| maximum.max(number)),
    };
    setrlimit(Resource::Nofile, raised).or_else(|errno| {
        skip(format!(
            "this process may not have {number} open files ({})",
            name_of(errno)
        ))
    })
}

/// How long a round of the stress takes, and how many there are.
const ROUND: Duration = Duration::from_millis(700);
const ROUNDS: u64 = 4;

fn the_accounts_are_exact(node: &Node) -> Outcome {
    let control = node.control()?;
    for round in 0..ROUNDS {
        let may_stop = Event::new()?;
        // It forks, so it starts while this process has no other thread.
        let nursery = Process::spawn(|| raise_and_kill_children(node, &may_stop))?;
        let over = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|number| Meddler::start(node, round * 4 + number, &over))
            .collect();
        let deadline = Instant::now() + ROUND;
        while Instant::now() < deadline {
            control.bump()?;
            holds("a count is never negative", control.outdated()? >= 0)?;
            thread::yield_now();
        }
        over.store(true, Ordering::SeqCst);
        let mut left = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(watchers) => left.extend(watchers?),
                Err(_) => return fail("a thread panicked"),
            }
        }
        may_stop.set()?;
        nursery.join("the process that raises and kills children")?;
        settle(&control, left)?;
    }
    Ok(())
}

/// Checks the accounts of the watchers that are left, now that nothing moves any more.
fn settle(control: &Control, left: Vec<(Watcher, bool)>) -> Outcome {
    let mut outdated = 0;
    let mut tracked = 0;
    for (watcher, is_tracked) in &left {
        outdated += i32::from(*is_tracked && watcher.is_readable()?);
        tracked += i32::from(*is_tracked);
    }
    control.counts(outdated, "as poll shows it of each")?;
    let generation = control.bump()?;
    control.counts(tracked, "after one more change")?;
    let mut half = tracked;
    for (watcher, is_tracked) in left.iter().step_by(2) {
        watcher.acknowledge(generation)?;
        half -= i32::from(*is_tracked);
    }
    control.counts(half, "after every other one has acknowledged")?;
    drop(left);
    control.counts(0, "after all have closed")?;
    control.bump()?;
    control.counts(0, "after a change with nobody there")
}

/// Until told to stop: starts children that hold watchers and block, and kills them.
fn raise_and_kill_children(node: &Node, may_stop: &Event) -> Outcome {
    while !may_stop.has_happened()? {
        let mut children = Vec::new();
        for number in 0..3 {
            let ready = Event::new()?;
            let child = Process::spawn(|| {
                let watchers: Result<Vec<Watcher>, Errno> =
                    (0..=number).map(|_| node.tracked()).collect();
                ready.set()?;
                let watchers = watchers?;
                loop {
                    for watcher in &watchers {
                        let generation = watcher.generation()?;
                        // It may have changed since.
                        let _ = watcher.acknowledge(generation);
                    }
                }
            })?;
            children.push((child, ready));
        }
        for (child, ready) in children {
            ready.wait("the child's opens")?;
            child.kill()?;
        }
    }
    Ok(())
}

/// A thread that does everything a watcher can do, in an order of its own.
struct Meddler {
    node: Node,
    random: u64,
    watchers: Vec<(Watcher, bool)>,
}

impl Meddler {
    /// How many watchers one has at most.
    const MOST: usize = 24;

    /// Starts it. It ends when it is over, with the watchers that it has, and whether each is tracked.
    fn start(
        node: &Node,
        seed: u64,
        over: &Arc<AtomicBool>,
    ) -> JoinHandle<Outcome<Vec<(Watcher, bool)>>> {
        let mut meddler = Self {
            node: node.clone(),
            random: 0x9e37_79b9_7f4a_7c15 ^ (seed + 1),
            watchers: Vec::new(),
        };
        let over = Arc::clone(over);
        thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                meddler.step()?;
            }
            Ok(meddler.watchers)
        })
    }

    fn step(&mut self) -> Outcome {
        let choice = self.below(8);
        if self.watchers.is_empty() || (choice < 2 && self.watchers.len() < Self::MOST) {
            let watcher = self.node.open(OFlags::RDWR | OFlags::NONBLOCK)?;
            let tracked = choice == 0;
            watcher.track(tracked)?;
            self.watchers.push((watcher, tracked));
            return Ok(());
        }
        let which = self.below(self.watchers.len());
        match choice {
            2 => drop(self.watchers.swap_remove(which)),
            3 => {
                let (watcher, tracked) = &mut self.watchers[which];
                *tracked = !*tracked;
                watcher.track(*tracked)?;
            }
            _ => {
                let (watcher, _) = &self.watchers[which];
                match watcher.generation() {
                    Ok(generation) => match watcher.acknowledge(generation) {
                        // It has changed since.
                        Ok(()) | Err(Errno::INVAL) => {}
                        Err(errno) => return Err(errno.into()),
                    },
                    Err(Errno::AGAIN) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    /// A number below `limit`, by xorshift: the same run after run.
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(self.random % limit).unwrap_or_default()
    }
}
