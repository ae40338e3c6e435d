// SPDX-License-Identifier: MIT OR Apache-2.0

//! Measures the module beside a plain C driver of the same contract.
//!
//! The driver is `xtask/kernels/yardstick`. It has two nodes, for the contract has a change that software
//! asks for preceded by a reseed of the kernel's random number generator, which costs more than the rest:
//! one does so, and is what the module is held against; the other shows what that costs.

use std::os::fd::OwnedFd;

use anyhow::Result;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use sysgenid_core::abi;
use sysgenid_guest::measurement::C_DRIVER;
use sysgenid_guest::measurement::C_DRIVER_WITHOUT_RESEED;
use sysgenid_guest::measurement::MODULE;

use crate::bench::BATCH;
use crate::bench::BUMP_BATCH;
use crate::bench::expect_again;
use crate::bench::hold_off;
use crate::bench::open_watchers;
use crate::bench::register;
use crate::bench::sleeper::Reader;
use crate::bench::turns::Candidate;
use crate::bench::turns::Turns;
use crate::clock::monotonic_ns;
use crate::limits::allow_many_files;
use crate::node::Node;
use crate::node::Page;
use crate::node::UNTRACKED_NODE;

/// The node of the C driver that only bumps.
const PLAIN: &str = "/dev/yardstick";

/// The one that reseeds before, if software asks.
const RESEEDING: &str = "/dev/yardstick-reseeding";

/// The ioctl of the C driver that changes a generation as a backend does: from within the kernel.
const BUMP_AS_BACKEND: u32 = 0xe480;

/// How many times a node is opened and closed in one sample: it takes as long as a change.
const OPEN_BATCH: u32 = BUMP_BATCH;

/// How many watchers a bump is measured with.
const WATCHERS: [usize; 5] = [0, 1, 100, 1000, 10_000];

/// How many watchers acknowledge.
const ACKNOWLEDGING: [usize; 2] = [1, 100];

/// A driver that is measured.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    /// What it is called in the results.
    pub(super) name: &'static str,
    /// Its node.
    pub(super) path: &'static str,
}

/// Those that do the same for every call but a trigger.
pub(super) const DRIVERS: [Driver; 2] = [
    Driver {
        name: C_DRIVER,
        path: PLAIN,
    },
    Driver {
        name: MODULE,
        path: UNTRACKED_NODE,
    },
];

/// Those that a trigger is measured with.
const TRIGGERED: [Driver; 3] = [
    Driver {
        name: C_DRIVER,
        path: RESEEDING,
    },
    DRIVERS[1],
    Driver {
        name: C_DRIVER_WITHOUT_RESEED,
        path: PLAIN,
    },
];

/// How a generation is changed.
#[derive(Clone, Copy)]
enum Way {
    /// A program asks for it.
    Ioctl,
    /// A backend has noticed a restore, and the kernel has been reseeded.
    Backend,
}

impl Way {
    const BOTH: [Self; 2] = [Way::Ioctl, Way::Backend];

    fn name(self) -> &'static str {
        match self {
            Way::Ioctl => "by ioctl",
            Way::Backend => "by a backend",
        }
    }

    fn drivers(self) -> &'static [Driver] {
        match self {
            Way::Ioctl => &TRIGGERED,
            Way::Backend => &DRIVERS,
        }
    }
}

/// What changes the generation of one driver.
pub(super) struct Trigger {
    node: Node,
    request: u32,
    argument: usize,
}

impl Trigger {
    fn new(driver: Driver, way: Way) -> Result<Self> {
        match way {
            Way::Ioctl => Ok(Self {
                node: Node::open(driver.path)?,
                request: abi::VMGENID_FORCE_GEN_UPDATE,
                argument: 0,
            }),
            Way::Backend => Self::as_backend(driver),
        }
    }

    /// One that goes by the C driver, which calls either from within the kernel.
    pub(super) fn as_backend(driver: Driver) -> Result<Self> {
        Ok(Self {
            node: Node::open(PLAIN)?,
            request: BUMP_AS_BACKEND,
            argument: usize::from(driver.path == UNTRACKED_NODE),
        })
    }

    pub(super) fn bump(&self) -> Result<()> {
        self.node.ioctl(self.request, self.argument)?;
        Ok(())
    }
}

/// Measures with up to so many watchers and so many samples of short operations, then what so many
/// descriptors and so many sleepers do to interrupts, and prints the results as JSON.
pub(crate) fn run(
    most_watchers: usize,
    samples: usize,
    descriptors: usize,
    sleepers: usize,
) -> Result<()> {
    allow_many_files()?;
    let mut bench = Bench {
        turns: Turns::new(samples),
    };
    bench.calls()?;
    bench.open_and_close()?;
    for way in Way::BOTH {
        bench.wake_up(way)?;
        for watchers in WATCHERS.into_iter().filter(|&count| count <= most_watchers) {
            bench.bump(way, watchers)?;
        }
        for watchers in ACKNOWLEDGING {
            bench.acknowledged(way, watchers)?;
        }
    }
    let mut results = bench.turns.results;
    results.extend(hold_off::measure(descriptors, sleepers)?);
    println!("{}", serde_json::to_string(&results)?);
    Ok(())
}

struct Bench {
    turns: Turns,
}

impl Bench {
    /// Compares a short call of a description that was opened before.
    fn call(&mut self, work: &str, call: impl Fn(&Node) -> Result<()>) -> Result<()> {
        let nodes = each(&DRIVERS, |driver| Ok(Node::open_nonblocking(driver.path)?))?;
        self.call_on(work, &nodes, call)
    }

    fn call_on(
        &mut self,
        work: &str,
        nodes: &[(Driver, Node)],
        call: impl Fn(&Node) -> Result<()>,
    ) -> Result<()> {
        let call = &call;
        let candidates = nodes
            .iter()
            .map(|(driver, node)| Candidate::new(driver.name, BATCH, move || call(node)))
            .collect();
        self.turns
            .compare(work, self.turns.samples, BATCH, candidates)
    }

    fn calls(&mut self) -> Result<()> {
        self.call("ioctl GET_OUTDATED_WATCHERS", |node| {
            node.outdated_watchers()?;
            Ok(())
        })?;
        self.call("non-blocking read, nothing new", |node| {
            expect_again(node.read().map(drop))
        })?;
        self.call("poll, nothing new", look)?;
        // A wait is refused to a caller that is outdated itself.
        self.call("ioctl WAIT_WATCHERS, nobody outdated", |node| {
            Ok(node.wait_for_everybody(1)?)
        })?;

        // Outdated once and for all: every read returns the generation until it is acknowledged.
        let outdated = each(&DRIVERS, |driver| {
            let node = Node::open_nonblocking(driver.path)?;
            node.bump()?;
            Ok(node)
        })?;
        self.call_on("non-blocking read, something new", &outdated, |node| {
            node.read()?;
            Ok(())
        })?;
        self.call_on("poll, something new", &outdated, look)?;

        // The generations cannot change meanwhile: nobody else is here.
        let acknowledging = each(&DRIVERS, |driver| {
            let node = Node::open_nonblocking(driver.path)?;
            Ok((node, Page::map(driver.path)?.generation()))
        })?;
        let candidates = acknowledging
            .iter()
            .map(|(driver, (node, generation))| {
                Candidate::new(driver.name, BATCH, move || {
                    Ok(node.acknowledge(*generation)?)
                })
            })
            .collect();
        self.turns
            .compare("acknowledge (write)", self.turns.samples, BATCH, candidates)
    }

    fn open_and_close(&mut self) -> Result<()> {
        let candidates = DRIVERS
            .iter()
            .map(|driver| {
                Candidate::new(driver.name, OPEN_BATCH, move || {
                    drop(Node::open(driver.path)?);
                    Ok(())
                })
            })
            .collect();
        self.turns
            .compare("open and close", self.turns.samples, OPEN_BATCH, candidates)
    }

    /// From the change to the return of a reader that slept in `read`.
    fn wake_up(&mut self, way: Way) -> Result<()> {
        let nodes = each(way.drivers(), |driver| {
            Ok((Node::open(driver.path)?, Trigger::new(driver, way)?))
        })?;
        std::thread::scope(|scope| {
            let candidates = nodes
                .iter()
                .map(|(driver, (node, trigger))| {
                    let mut reader = Reader::spawn(scope, move || {
                        let generation = node.read()?;
                        Ok(node.acknowledge(generation)?)
                    });
                    Candidate::timed(driver.name, move || reader.wake(|| trigger.bump()))
                })
                .collect();
            let work = format!("change {}, wake-up of one sleeping reader", way.name());
            let result = self.turns.compare(&work, self.turns.samples, 1, candidates);
            if result.is_err() {
                // A reader may sleep that nobody was going to wake, and it is waited for.
                for (_, (_, trigger)) in &nodes {
                    let _ = trigger.bump();
                }
            }
            result
        })
    }

    /// A change with so many watchers: open ones, and ones that are registered with an epoll instance.
    fn bump(&mut self, way: Way, watchers: usize) -> Result<()> {
        let triggers = each(way.drivers(), |driver| Trigger::new(driver, way))?;
        let samples = self.turns.samples_for(watchers);
        let open = each(way.drivers(), |driver| open_watchers(driver.path, watchers))?;
        let work = format!("change {}, {watchers} watchers open", way.name());
        self.turns
            .compare(&work, samples, BUMP_BATCH, changing(&triggers))?;
        if watchers == 0 {
            return Ok(());
        }
        let _events = open
            .iter()
            .map(|(_, nodes)| register(nodes))
            .collect::<Result<Vec<OwnedFd>>>()?;
        let work = format!("change {}, {watchers} watchers in one epoll", way.name());
        self.turns
            .compare(&work, samples, BUMP_BATCH, changing(&triggers))
    }

    /// From a change until a wait for everybody returns: each of the watchers reads and acknowledges, one
    /// after the other, and so does the one who waits.
    fn acknowledged(&mut self, way: Way, watchers: usize) -> Result<()> {
        let parts = each(way.drivers(), |driver| {
            let tracked = open_watchers(driver.path, watchers)?;
            for watcher in &tracked {
                watcher.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, 1)?;
            }
            let waiting = Node::open_nonblocking(driver.path)?;
            Ok((tracked, waiting, Trigger::new(driver, way)?))
        })?;
        let candidates = parts
            .iter()
            .map(|(driver, (tracked, waiting, trigger))| {
                Candidate::timed(driver.name, move || {
                    let start = monotonic_ns();
                    trigger.bump()?;
                    for watcher in tracked {
                        watcher.acknowledge(watcher.read()?)?;
                    }
                    waiting.acknowledge(waiting.read()?)?;
                    waiting.wait_for_everybody(0)?;
                    Ok(monotonic_ns() - start)
                })
            })
            .collect();
        let work = format!(
            "change {}, until all of {watchers} have acknowledged",
            way.name()
        );
        let samples = self.turns.samples_for(watchers);
        self.turns.compare(&work, samples, 1, candidates)
    }
}

/// Those that change the generation of each driver.
fn changing(triggers: &[(Driver, Trigger)]) -> Vec<Candidate<'_>> {
    triggers
        .iter()
        .map(|(driver, trigger)| Candidate::new(driver.name, BUMP_BATCH, move || trigger.bump()))
        .collect()
}

/// Something of each driver.
pub(super) fn each<T>(
    drivers: &[Driver],
    mut make: impl FnMut(Driver) -> Result<T>,
) -> Result<Vec<(Driver, T)>> {
    drivers
        .iter()
        .map(|driver| Ok((*driver, make(*driver)?)))
        .collect()
}

/// Asks `poll` without sleeping.
fn look(node: &Node) -> Result<()> {
    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(node, PollFlags::IN)], Some(&AT_ONCE))?;
    Ok(())
}
