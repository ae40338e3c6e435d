// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo's cast: the workflows of the 2020 proposal, and a server that hands out tokens.
//!
//! Each takes its times first and reports once it has nothing urgent left to do.

use std::cell::Cell;
use std::ffi::CString;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use clap::ValueEnum;
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::event::epoll;
use sysgenid::Error;
use sysgenid::Generation;
use sysgenid::Orchestrator;
use sysgenid::Probe;
use sysgenid::Resumption;
use sysgenid::SnapSafeRng;
use sysgenid::Tracking;
use sysgenid::Watcher;
use sysgenid_guest::event::Event;
use sysgenid_guest::event::What;

use crate::clock::monotonic_ns;

/// How often the mapper looks, as a library does before each use.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// How often a token is handed out.
const TOKEN_INTERVAL: Duration = Duration::from_millis(20);

/// How long the orchestrator waits for everybody before it says that it still does.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program of the cast.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    /// A thread that sleeps in `read`, does what has to be done, and acknowledges
    Watchdog,
    /// An event loop with a node among its files
    EventLoop,
    /// A library that maps the generation and closes the node
    Mapper,
    /// Hands out tokens; reseeds its generator when the generation moved, if it can see it
    TokenServer,
    /// Waits until everybody has acknowledged
    Orchestrator,
}

/// Plays a role for ever.
pub(crate) fn play(role: Role) -> Result<()> {
    let name = role
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    // What the kernel's tracing calls this program.
    rustix::thread::set_name(&CString::new(name.clone())?)?;
    let reporter = Reporter { program: name };
    let result = match role {
        Role::Watchdog => watchdog(&reporter),
        Role::EventLoop => event_loop(&reporter),
        Role::Mapper => mapper(&reporter),
        Role::TokenServer => token_server(&reporter),
        Role::Orchestrator => orchestrator(&reporter),
    };
    if let Err(error) = &result {
        let reason = format!("{error:#}");
        reporter.report(
            Generation::START,
            [(What::Failed { reason }, monotonic_ns())],
        )?;
    }
    result
}

struct Reporter {
    program: String,
}

impl Reporter {
    fn report(
        &self,
        generation: Generation,
        events: impl IntoIterator<Item = (What, u64)>,
    ) -> Result<()> {
        let mut lines = String::new();
        for (what, monotonic_ns) in events {
            let event = Event {
                program: self.program.clone(),
                what,
                monotonic_ns,
                generation: generation.get(),
            };
            writeln!(lines, "{}", serde_json::to_string(&event)?)?;
        }
        print!("{lines}");
        Ok(())
    }

    fn started(&self, watches: bool) -> Result<()> {
        self.report(
            Generation::START,
            [(What::Started { watches }, monotonic_ns())],
        )
    }
}

fn open_tracked() -> Result<Watcher, Error> {
    Watcher::open(Tracking::Tracked)
}

fn watchdog(reporter: &Reporter) -> Result<()> {
    let watcher = open_tracked()?;
    reporter.started(true)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_name(&CString::new(reporter.program.clone())?)?;
            loop {
                let change = watcher.wait()?;
                let noticed = monotonic_ns();
                let mut reseeded = 0;
                let generation = change.rebuild(|_| {
                    rand::rng().reseed().context("cannot reseed")?;
                    reseeded = monotonic_ns();
                    anyhow::Ok(())
                })?;
                let events = [
                    (What::Noticed, noticed),
                    (What::Reseeded, reseeded),
                    (What::Acknowledged, monotonic_ns()),
                ];
                reporter.report(generation, events)?;
            }
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn event_loop(reporter: &Reporter) -> Result<()> {
    let watcher = open_tracked()?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &events,
        &watcher,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    )?;
    reporter.started(true)?;
    let mut ready = Vec::with_capacity(1);
    loop {
        ready.clear();
        epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), None)?;
        let noticed = monotonic_ns();
        let Some(change) = watcher.try_changed()? else {
            continue;
        };
        let generation = change.rebuild(|_| Ok::<_, Error>(()))?;
        let events = [
            (What::Noticed, noticed),
            (What::Acknowledged, monotonic_ns()),
        ];
        reporter.report(generation, events)?;
    }
}

fn mapper(reporter: &Reporter) -> Result<()> {
    let probe = Probe::open()?;
    let mut stamp = probe.stamp();
    reporter.started(true)?;
    loop {
        if probe.has_changed(&stamp) {
            let noticed = monotonic_ns();
            stamp = probe.stamp_for_rebuild(&stamp);
            reporter.report(stamp.generation(), [(What::Noticed, noticed)])?;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn token_server(reporter: &Reporter) -> Result<()> {
    // Where there is no node the server runs as it always did.
    let probe = Probe::open_or_never()?;
    let mut stamp = probe.stamp();
    let mut rng = SnapSafeRng::<StdRng>::new(probe.clone())?;
    reporter.started(probe.is_live())?;
    for number in 0.. {
        // Each draw looks by itself; this is to report when.
        if probe.has_changed(&stamp) {
            let noticed = monotonic_ns();
            stamp = probe.stamp_for_rebuild(&stamp);
            rng.refresh()?;
            let events = [(What::Noticed, noticed), (What::Reseeded, monotonic_ns())];
            reporter.report(stamp.generation(), events)?;
        }
        let value = format!("{:032x}", rng.random::<u128>());
        reporter.report(
            stamp.generation(),
            [(What::Token { number, value }, monotonic_ns())],
        )?;
        std::thread::sleep(TOKEN_INTERVAL);
    }
    Ok(())
}

fn orchestrator(reporter: &Reporter) -> Result<()> {
    let watcher = open_tracked()?;
    reporter.started(true)?;
    loop {
        let change = watcher.wait()?;
        let noticed = monotonic_ns();
        let acknowledged = Cell::new(noticed);
        let end = Orchestrator::pause_and_resume(
            change,
            Some(PATIENCE),
            |_| {
                // It has nothing to rebuild, so this is when it acknowledges.
                acknowledged.set(monotonic_ns());
                anyhow::Ok(())
            },
            |generation| {
                let events = [
                    (What::Noticed, noticed),
                    (What::Acknowledged, acknowledged.get()),
                    (What::EverybodyDone, monotonic_ns()),
                ];
                reporter.report(generation, events)
            },
        )?;
        if let Resumption::TimedOut { outdated, waiting } = end {
            let reason = format!("{outdated} watchers have not acknowledged");
            reporter.report(
                waiting.generation(),
                [(What::Failed { reason }, monotonic_ns())],
            )?;
        }
    }
}
