// SPDX-License-Identifier: MIT OR Apache-2.0

//! Measures a node's calls, and the same work done with `eventfd` and `timerfd`; and the module's beside
//! those of a plain C driver.

mod drivers;
mod hold_off;
mod sleeper;
mod turns;

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::Result;
use anyhow::ensure;
use rustix::event::EventfdFlags;
use rustix::event::epoll;
use rustix::event::eventfd;
use rustix::io::Errno;
use rustix::time::Itimerspec;
use rustix::time::TimerfdClockId;
use rustix::time::TimerfdFlags;
use rustix::time::TimerfdTimerFlags;
use rustix::time::Timespec;
use rustix::time::timerfd_create;
use rustix::time::timerfd_settime;
use sysgenid_core::abi;

use crate::bench::sleeper::Reader;
use crate::bench::turns::Candidate;
use crate::bench::turns::Turns;
use crate::clock::monotonic_ns;
use crate::limits::allow_many_files;
use crate::node::Node;
use crate::node::Page;

pub(crate) use crate::bench::drivers::run as run_drivers;

/// How many short operations one sample is the average of.
const BATCH: u32 = 64;

/// The same for bumps, which take longer.
const BUMP_BATCH: u32 = 8;

/// How many watchers a bump is measured with.
const WATCHERS: [usize; 5] = [0, 10, 100, 1000, 10_000];

/// How many watchers one event loop serves.
const IN_ONE_LOOP: usize = 1000;

/// Measures a node, which is called `name` in the results, with up to so many watchers and so many samples
/// of short operations, and prints the results as JSON. The other node takes the same ways.
pub(crate) fn run(name: &str, node: &str, most_watchers: usize, samples: usize) -> Result<()> {
    allow_many_files()?;
    let mut bench = Bench {
        name,
        node,
        turns: Turns::new(samples),
    };
    bench.probe()?;
    bench.calls()?;
    bench.open_and_close()?;
    bench.wake_up()?;
    for watchers in WATCHERS.into_iter().filter(|&count| count <= most_watchers) {
        bench.bump(watchers)?;
        bench.everybody_done(watchers)?;
    }
    bench.event_loop_done()?;
    println!("{}", serde_json::to_string(&bench.turns.results)?);
    Ok(())
}

struct Bench<'a> {
    /// What to call the node among the candidates.
    name: &'a str,
    /// Its path.
    node: &'a str,
    turns: Turns,
}

impl Bench<'_> {
    fn probe(&mut self) -> Result<()> {
        /// A load takes less than a nanosecond, so this many are one operation.
        const LOADS: u32 = 1000;
        /// A system call takes so much longer that fewer are enough.
        const CALLS: u32 = 10;
        let page = Page::map(self.node)?;
        let own = AtomicU32::new(0);
        let counter = eventfd(0, EventfdFlags::NONBLOCK)?;
        let mine = Candidate::new(self.name, BATCH, || {
            for _ in 0..LOADS {
                std::hint::black_box(page.generation());
            }
            Ok(())
        });
        let plain = Candidate::new("load of own memory", BATCH, || {
            for _ in 0..LOADS {
                std::hint::black_box(std::hint::black_box(&own).load(Ordering::Acquire));
            }
            Ok(())
        });
        let call = Candidate::timed("eventfd read", || {
            let start = monotonic_ns();
            for _ in 0..CALLS {
                expect_again(read_counter(&counter))?;
            }
            Ok((monotonic_ns() - start) * u64::from(LOADS / CALLS * BATCH))
        });
        self.turns.compare(
            "1000 probes: has it changed? (mapped loads)",
            200,
            BATCH,
            vec![call, plain, mine],
        )
    }

    fn calls(&mut self) -> Result<()> {
        let node = Node::open_nonblocking(self.node)?;
        let counter = eventfd(0, EventfdFlags::NONBLOCK)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        let read = Candidate::new(self.name, BATCH, || expect_again(node.read().map(drop)));
        self.turns.compare(
            "non-blocking read, nothing new",
            self.turns.samples,
            BATCH,
            beside_reads(&counter, &timer, read),
        )?;

        // Outdated once and for all: every read returns the generation until it is acknowledged.
        let outdated = Node::open_nonblocking(self.node)?;
        outdated.bump()?;
        let full = eventfd(u32::MAX, EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE)?;
        self.turns.compare(
            "non-blocking read, something new",
            self.turns.samples,
            BATCH,
            vec![
                Candidate::new("eventfd read", BATCH, || Ok(read_counter(&full)?)),
                Candidate::new(self.name, BATCH, || {
                    outdated.read()?;
                    Ok(())
                }),
            ],
        )?;
        drop(outdated);

        let quick: [(&str, u32, usize); 4] = [
            (
                "ioctl GET_OUTDATED_WATCHERS",
                abi::VMGENID_GET_OUTDATED_WATCHERS,
                0,
            ),
            (
                "ioctl VMGENID_WAIT_WATCHERS, nobody outdated",
                abi::VMGENID_WAIT_WATCHERS,
                1,
            ),
            (
                "ioctl SYSGENID_WAIT_WATCHERS, nobody outdated",
                abi::SYSGENID_WAIT_WATCHERS,
                1,
            ),
            (
                "ioctl SET_WATCHER_TRACKING, as it is",
                abi::SYSGENID_SET_WATCHER_TRACKING,
                0,
            ),
        ];
        // A wait is refused to a caller that is outdated itself.
        let fresh = Node::open_nonblocking(self.node)?;
        for (work, request, argument) in quick {
            let fresh = &fresh;
            let candidate = Candidate::new(self.name, BATCH, move || {
                fresh.ioctl(request, argument)?;
                Ok(())
            });
            let candidates = beside_reads(&counter, &timer, candidate);
            self.turns
                .compare(work, self.turns.samples, BATCH, candidates)?;
        }
        for (work, request) in [
            ("ioctl FORCE_GEN_UPDATE", abi::VMGENID_FORCE_GEN_UPDATE),
            ("ioctl TRIGGER_GEN_UPDATE", abi::SYSGENID_TRIGGER_GEN_UPDATE),
        ] {
            self.turns.compare(
                work,
                self.turns.samples,
                BUMP_BATCH,
                vec![
                    Candidate::new("eventfd write", BUMP_BATCH, || signal(&counter)),
                    Candidate::new("timerfd settime", BUMP_BATCH, || expire(&timer)),
                    Candidate::new(self.name, BUMP_BATCH, || {
                        node.ioctl(request, 0)?;
                        Ok(())
                    }),
                ],
            )?;
        }
        // The generation cannot change meanwhile: nobody else is here.
        let acknowledging = Node::open_nonblocking(self.node)?;
        let generation = Page::map(self.node)?.generation();
        self.turns.compare(
            "acknowledge (write)",
            self.turns.samples,
            BATCH,
            vec![
                Candidate::new("eventfd write", BATCH, || signal(&counter)),
                Candidate::new(self.name, BATCH, || {
                    Ok(acknowledging.acknowledge(generation)?)
                }),
            ],
        )
    }

    fn open_and_close(&mut self) -> Result<()> {
        let candidates = vec![
            Candidate::new("eventfd", BATCH, || {
                drop(eventfd(0, EventfdFlags::CLOEXEC)?);
                Ok(())
            }),
            Candidate::new("timerfd", BATCH, || {
                drop(timerfd_create(
                    TimerfdClockId::Monotonic,
                    TimerfdFlags::CLOEXEC,
                )?);
                Ok(())
            }),
            Candidate::new(self.name, BATCH, || {
                drop(Node::open(self.node)?);
                Ok(())
            }),
        ];
        self.turns.compare(
            "open and close (a node has a path to look up)",
            self.turns.samples,
            BATCH,
            candidates,
        )
    }

    /// From the signal to the return of a reader that slept in `read`.
    fn wake_up(&mut self) -> Result<()> {
        let node = Node::open(self.node)?;
        let trigger = Node::open(self.node)?;
        let counter = eventfd(0, EventfdFlags::empty())?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty())?;
        std::thread::scope(|scope| {
            let mut counter_reader = Reader::spawn(scope, || Ok(read_counter(&counter)?));
            let mut timer_reader = Reader::spawn(scope, || Ok(read_counter(&timer)?));
            let mut node_reader = Reader::spawn(scope, || {
                let generation = node.read()?;
                // The time is taken after this; an acknowledgement is part of neither yardstick, but
                // small beside a wake-up.
                Ok(node.acknowledge(generation)?)
            });
            let candidates = vec![
                Candidate::timed("eventfd", || counter_reader.wake(|| signal(&counter))),
                Candidate::timed("timerfd", || timer_reader.wake(|| expire(&timer))),
                Candidate::timed(self.name, || node_reader.wake(|| Ok(trigger.bump()?))),
            ];
            let result = self.turns.compare(
                "wake-up of one sleeping reader",
                self.turns.samples,
                1,
                candidates,
            );
            if result.is_err() {
                // A reader may sleep that nobody was going to wake, and it is waited for.
                let _ = signal(&counter);
                let _ = expire(&timer);
                let _ = trigger.bump();
            }
            result
        })
    }

    /// A bump with so many watchers: open ones, and ones that are registered with an epoll instance
    /// each time. With an eventfd the same: so many descriptors of one, registered alike.
    fn bump(&mut self, watchers: usize) -> Result<()> {
        let trigger = Node::open(self.node)?;
        let samples = self.turns.samples_for(watchers);
        {
            let _open = open_watchers(self.node, watchers)?;
            let counter = eventfd(0, EventfdFlags::NONBLOCK)?;
            let _copies = copies(&counter, watchers)?;
            let candidates = vec![
                Candidate::new("eventfd write", BUMP_BATCH, || signal(&counter)),
                Candidate::new(self.name, BUMP_BATCH, || Ok(trigger.bump()?)),
            ];
            let work = format!("bump, {watchers} watchers open");
            self.turns.compare(&work, samples, BUMP_BATCH, candidates)?;
        }
        if watchers == 0 {
            return Ok(());
        }
        let open = open_watchers(self.node, watchers)?;
        let _node_events = register(&open)?;
        let counter = eventfd(0, EventfdFlags::NONBLOCK)?;
        let copies = copies(&counter, watchers)?;
        let _counter_events = register(&copies)?;
        let candidates = vec![
            Candidate::new("eventfd write", 1, || signal(&counter)),
            Candidate::new(self.name, 1, || Ok(trigger.bump()?)),
        ];
        let work = format!("bump, {watchers} watchers in one epoll");
        self.turns.compare(&work, samples, 1, candidates)
    }

    /// From a bump until a wait for everybody returns: each of the watchers reads and acknowledges, one
    /// after the other. With eventfds: each of as many is signalled and read.
    fn everybody_done(&mut self, watchers: usize) -> Result<()> {
        let trigger = Node::open_nonblocking(self.node)?;
        let tracked = open_watchers(self.node, watchers)?;
        for watcher in &tracked {
            watcher.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, 1)?;
        }
        let counters = (0..watchers)
            .map(|_| eventfd(0, EventfdFlags::NONBLOCK))
            .collect::<rustix::io::Result<Vec<_>>>()?;
        let candidates = vec![
            Candidate::timed("eventfd write, read", || {
                let start = monotonic_ns();
                for counter in &counters {
                    signal(counter)?;
                    read_counter(counter)?;
                }
                Ok(monotonic_ns() - start)
            }),
            Candidate::timed(self.name, || {
                let start = monotonic_ns();
                trigger.bump()?;
                for watcher in &tracked {
                    watcher.acknowledge(watcher.read()?)?;
                }
                trigger.acknowledge(trigger.read()?)?;
                trigger.wait_for_everybody(0)?;
                Ok(monotonic_ns() - start)
            }),
        ];
        let work = format!("bump until all of {watchers} have acknowledged");
        self.turns
            .compare(&work, self.turns.samples_for(watchers), 1, candidates)
    }

    /// The same, where one event loop serves all the watchers as each becomes ready.
    fn event_loop_done(&mut self) -> Result<()> {
        let trigger = Node::open_nonblocking(self.node)?;
        let tracked = open_watchers(self.node, IN_ONE_LOOP)?;
        for watcher in &tracked {
            watcher.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, 1)?;
        }
        let node_events = register(&tracked)?;
        let counters = (0..IN_ONE_LOOP)
            .map(|_| eventfd(0, EventfdFlags::NONBLOCK))
            .collect::<rustix::io::Result<Vec<_>>>()?;
        let counter_events = register(&counters)?;
        let candidates = vec![
            Candidate::timed("eventfd write, read", || {
                let start = monotonic_ns();
                for counter in &counters {
                    signal(counter)?;
                }
                serve(&counter_events, counters.len(), |index| {
                    Ok(read_counter(&counters[index])?)
                })?;
                Ok(monotonic_ns() - start)
            }),
            Candidate::timed(self.name, || {
                let start = monotonic_ns();
                trigger.bump()?;
                serve(&node_events, tracked.len(), |index| {
                    let watcher = &tracked[index];
                    Ok(watcher.acknowledge(watcher.read()?)?)
                })?;
                trigger.acknowledge(trigger.read()?)?;
                trigger.wait_for_everybody(0)?;
                Ok(monotonic_ns() - start)
            }),
        ];
        let work = format!("bump until an event loop has acknowledged for {IN_ONE_LOOP}");
        self.turns
            .compare(&work, self.turns.samples_for(IN_ONE_LOOP), 1, candidates)
    }
}

/// Waits until every descriptor of an epoll instance was ready once, and does something for each.
fn serve(events: &OwnedFd, count: usize, mut each: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let mut ready = Vec::with_capacity(count);
    let mut served = 0;
    while served < count {
        ready.clear();
        epoll::wait(events, rustix::buffer::spare_capacity(&mut ready), None)?;
        for event in &ready {
            each(usize::try_from(event.data.u64())?)?;
            served += 1;
        }
    }
    Ok(())
}

/// A short call of the node, beside the cheapest calls of the yardsticks.
fn beside_reads<'a>(
    counter: &'a OwnedFd,
    timer: &'a OwnedFd,
    candidate: Candidate<'a>,
) -> Vec<Candidate<'a>> {
    vec![
        Candidate::new("eventfd read", BATCH, || {
            expect_again(read_counter(counter))
        }),
        Candidate::new("timerfd read", BATCH, || expect_again(read_counter(timer))),
        candidate,
    ]
}

fn open_watchers(node: &str, count: usize) -> Result<Vec<Node>> {
    (0..count)
        .map(|_| Ok(Node::open_nonblocking(node)?))
        .collect()
}

fn copies(fd: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>> {
    (0..count).map(|_| Ok(rustix::io::dup(fd)?)).collect()
}

fn register(fds: &[impl AsFd]) -> Result<OwnedFd> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, fd) in (0..).zip(fds) {
        epoll::add(
            &events,
            fd,
            epoll::EventData::new_u64(index),
            epoll::EventFlags::IN,
        )?;
    }
    Ok(events)
}

fn read_counter(fd: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::read(fd, &mut [0; 8]).map(drop)
}

fn signal(counter: &OwnedFd) -> Result<()> {
    rustix::io::write(counter, &1_u64.to_ne_bytes())?;
    Ok(())
}

/// Makes a timer expire at once.
fn expire(timer: &OwnedFd) -> Result<()> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let soon = Timespec {
        tv_sec: 0,
        tv_nsec: 1,
    };
    let once = Itimerspec {
        it_interval: zero,
        it_value: soon,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

fn expect_again(result: rustix::io::Result<()>) -> Result<()> {
    ensure!(
        result == Err(Errno::AGAIN),
        "expected EAGAIN, got {result:?}"
    );
    Ok(())
}
