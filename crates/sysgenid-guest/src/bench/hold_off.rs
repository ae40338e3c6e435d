// SPDX-License-Identifier: MIT OR Apache-2.0

//! Measures how long a change with very many watchers takes, and for how long it holds interrupts off.
//!
//! The kernel walks a wait queue with interrupts off. A timer of the C driver, which fires in an
//! interrupt on the CPU that it is asked about, says how late it was at most.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use anyhow::Context;
use anyhow::Result;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;
use rustix::thread::CpuSet;
use rustix::thread::Pid;
use rustix::thread::gettid;
use rustix::thread::sched_getaffinity;
use rustix::thread::sched_setaffinity;
use sysgenid_guest::measurement::Measurement;

use crate::bench::drivers::DRIVERS;
use crate::bench::drivers::Trigger;
use crate::bench::drivers::each;
use crate::bench::open_watchers;
use crate::bench::register;
use crate::bench::sleeper::wait_until_asleep;
use crate::clock::monotonic_ns;
use crate::limits::allow_files;
use crate::node::Node;

/// The ioctl of the C driver that starts and stops the timer.
const LATENESS: u32 = 0xe481;

/// How often the timer fires, in microseconds. It seems late by up to so much less than it is.
const PERIOD_US: usize = 100;

/// How many changes are measured of each kind.
const CHANGES: usize = 10;

/// The CPU that changes the generation, and another.
const SAME: usize = 0;
const OTHER: usize = 1;

/// What is looked at: how long the change takes its caller, and how late the timers are.
const LOOKS: [&str; 3] = ["the change", "a timer of its CPU", "a timer of another CPU"];

/// How much stack a thread has that only sleeps.
const STACK: usize = 64 << 10;

/// Measures with so many descriptors of each driver, and so many threads that sleep in `read`.
pub(super) fn measure(descriptors: usize, sleepers: usize) -> Result<Vec<Measurement>> {
    allow_files(2 * u64::try_from(descriptors.max(sleepers))? + 1000)?;
    let [first, second] = DRIVERS;
    let triggers = [Trigger::as_backend(first)?, Trigger::as_backend(second)?];
    let mut results = Vec::new();
    let mut measured = |watchers: &str, settle: &dyn Fn() -> Result<()>| -> Result<()> {
        results.extend(changes(&triggers, watchers, settle)?);
        // Whoever watches the output sees that it goes on.
        eprintln!("interrupts, {watchers}");
        Ok(())
    };
    measured("nobody", &|| Ok(()))?;
    if descriptors > 0 {
        let watchers = format!("{descriptors} descriptors in one epoll");
        let _open = each(&DRIVERS, |driver| {
            let nodes = open_watchers(driver.path, descriptors)?;
            Ok((register(&nodes)?, nodes))
        })?;
        measured(&watchers, &|| Ok(()))?;
    }
    if descriptors > 0 {
        let watchers = format!("{descriptors} descriptors in one poll");
        let open = [
            open_watchers(first.path, descriptors)?,
            open_watchers(second.path, descriptors)?,
        ];
        let blocks: [&Block<'_>; 2] = [&|_| poll_all(&open[0]), &|_| poll_all(&open[1])];
        both_asleep(&triggers, 1, blocks, |settle| measured(&watchers, settle))?;
    }
    if sleepers > 0 {
        let watchers = format!("{sleepers} threads asleep in read");
        let readers = each(&DRIVERS, |driver| {
            (0..sleepers)
                .map(|_| Ok(Node::open(driver.path)?))
                .collect::<Result<Vec<_>>>()
        })?;
        let read = |driver: usize, reader: usize| -> Result<()> {
            let node = &readers[driver].1[reader];
            Ok(node.acknowledge(node.read()?)?)
        };
        let blocks: [&Block<'_>; 2] = [&|reader| read(0, reader), &|reader| read(1, reader)];
        both_asleep(&triggers, sleepers, blocks, |settle| {
            measured(&watchers, settle)
        })?;
    }
    Ok(results)
}

/// What a thread does that is to sleep; each has a number.
type Block<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// What is done while threads sleep. It is handed what waits until all of them do again.
type Settle<'a> = dyn Fn() -> Result<()> + 'a;

/// Does something while so many threads sleep for either driver.
fn both_asleep(
    [first, second]: &[Trigger; 2],
    count: usize,
    blocks: [&Block<'_>; 2],
    work: impl FnOnce(&Settle<'_>) -> Result<()>,
) -> Result<()> {
    while_asleep(first, count, blocks[0], |settle_first| {
        while_asleep(second, count, blocks[1], |settle_second| {
            work(&|| {
                settle_first()?;
                settle_second()
            })
        })
    })
}

/// Sleeps until any of these is outdated, and acknowledges for all.
fn poll_all(nodes: &[Node]) -> Result<()> {
    let mut asked: Vec<PollFd<'_>> = nodes
        .iter()
        .map(|node| PollFd::new(node, PollFlags::IN))
        .collect();
    poll(&mut asked, None)?;
    for node in nodes {
        node.acknowledge(node.read()?)?;
    }
    Ok(())
}

/// Does something while so many threads are asleep in `block`, or are about to be again. It is handed what
/// waits until all of them sleep.
fn while_asleep(
    trigger: &Trigger,
    count: usize,
    block: &Block<'_>,
    work: impl FnOnce(&Settle<'_>) -> Result<()>,
) -> Result<()> {
    let done = AtomicBool::new(false);
    let (announce, announced) = mpsc::channel();
    std::thread::scope(|scope| {
        let start = || -> Result<Vec<Pid>> {
            for index in 0..count {
                let (announce, done) = (announce.clone(), &done);
                std::thread::Builder::new()
                    .stack_size(STACK)
                    .spawn_scoped(scope, move || {
                        if announce.send(gettid()).is_err() {
                            return Ok(());
                        }
                        while !done.load(Ordering::Acquire) {
                            block(index)?;
                        }
                        anyhow::Ok(())
                    })
                    .context("cannot start a thread")?;
            }
            Ok(announced.iter().take(count).collect())
        };
        let result = start().and_then(|threads| {
            work(&|| {
                for thread in &threads {
                    wait_until_asleep(*thread)?;
                }
                Ok(())
            })
        });
        done.store(true, Ordering::Release);
        // They are waited for. One that looked before and has not slept yet is outdated, and does not.
        trigger.bump()?;
        result
    })
}

/// Keeps this thread on a CPU.
fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("cannot run on CPU {cpu}"))
}

/// Changes both generations often, in turns, on one CPU, and looks at the timers of both CPUs.
fn changes(
    triggers: &[Trigger; 2],
    watchers: &str,
    settle: &Settle<'_>,
) -> Result<Vec<Measurement>> {
    let clock = Node::open(DRIVERS[0].path)?;
    let anywhere = sched_getaffinity(None)?;
    let mut taken = [const { [const { Vec::new() }; 3] }; 2];
    for cpu in [SAME, OTHER] {
        for _ in 0..CHANGES {
            for (trigger, taken) in triggers.iter().zip(&mut taken) {
                settle()?;
                stay_on(cpu)?;
                clock.ioctl(LATENESS, PERIOD_US)?;
                stay_on(SAME)?;
                let start = monotonic_ns();
                trigger.bump()?;
                let took = monotonic_ns() - start;
                let late_us = u64::try_from(clock.ioctl(LATENESS, 0)?)?;
                if cpu == SAME {
                    taken[0].push(took);
                }
                taken[1 + cpu].push(late_us * 1000);
            }
        }
    }
    // Threads that are started later are to be anywhere, too.
    sched_setaffinity(None, &anywhere)?;
    let mut results = Vec::new();
    for (driver, taken) in DRIVERS.iter().zip(taken) {
        for (look, mut taken) in LOOKS.iter().zip(taken) {
            taken.sort_unstable();
            results.push(Measurement {
                work: format!("interrupts, {watchers}: {look}"),
                candidate: driver.name.to_owned(),
                samples: taken.len(),
                batch: 1,
                median_ns: taken[taken.len() / 2],
                p99_ns: taken[taken.len() * 99 / 100],
            });
        }
    }
    Ok(results)
}
