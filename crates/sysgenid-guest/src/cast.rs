// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo's cast: the workflows of the 2020 proposal, and a server that hands out tokens.
//!
//! Each takes its times first and reports once it has nothing urgent left to do.

use std::ffi::CString;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use clap::ValueEnum;
use rand::RngExt;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::epoll;
use rustix::event::poll;
use rustix::io::Errno;
use sysgenid_guest::event::Event;
use sysgenid_guest::event::What;

use crate::clock::monotonic_ns;
use crate::node::Node;
use crate::node::Page;
use crate::node::TRACKED_NODE;
use crate::node::UNTRACKED_NODE;

/// How often the mapper looks, as a library does before each use.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// How often a token is handed out.
const TOKEN_INTERVAL: Duration = Duration::from_millis(20);

/// How long the orchestrator waits for everybody before it says that it still does.
const PATIENCE_MS: usize = 10_000;

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
        reporter.report(0, [(What::Failed { reason }, monotonic_ns())])?;
    }
    result
}

struct Reporter {
    program: String,
}

impl Reporter {
    fn report(&self, generation: u32, events: impl IntoIterator<Item = (What, u64)>) -> Result<()> {
        let mut lines = String::new();
        for (what, monotonic_ns) in events {
            let event = Event {
                program: self.program.clone(),
                what,
                monotonic_ns,
                generation,
            };
            writeln!(lines, "{}", serde_json::to_string(&event)?)?;
        }
        print!("{lines}");
        Ok(())
    }

    fn started(&self, watches: bool) -> Result<()> {
        self.report(0, [(What::Started { watches }, monotonic_ns())])
    }
}

fn open_tracked() -> Result<Node> {
    Node::open(TRACKED_NODE).with_context(|| format!("cannot open {TRACKED_NODE}"))
}

fn watchdog(reporter: &Reporter) -> Result<()> {
    let node = open_tracked()?;
    reporter.started(true)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_name(&CString::new(reporter.program.clone())?)?;
            loop {
                let generation = node.read()?;
                let noticed = monotonic_ns();
                rand::rng().reseed().context("cannot reseed")?;
                let reseeded = monotonic_ns();
                acknowledge(&node, generation)?;
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
    let node = open_tracked()?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &events,
        &node,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    )?;
    reporter.started(true)?;
    let mut ready = Vec::with_capacity(1);
    loop {
        ready.clear();
        epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), None)?;
        let noticed = monotonic_ns();
        let generation = node.read()?;
        acknowledge(&node, generation)?;
        let events = [
            (What::Noticed, noticed),
            (What::Acknowledged, monotonic_ns()),
        ];
        reporter.report(generation, events)?;
    }
}

/// A change may come between the read and the acknowledgement; then the next read brings it.
fn acknowledge(node: &Node, generation: u32) -> Result<()> {
    match node.acknowledge(generation) {
        Err(Errno::INVAL) => Ok(()),
        result => result.context("cannot acknowledge"),
    }
}

fn mapper(reporter: &Reporter) -> Result<()> {
    let page = Page::map(UNTRACKED_NODE)
        .with_context(|| format!("cannot open and map {UNTRACKED_NODE}"))?;
    let mut known = page.generation();
    reporter.started(true)?;
    loop {
        let generation = page.generation();
        if generation != known {
            known = generation;
            reporter.report(generation, [(What::Noticed, monotonic_ns())])?;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn token_server(reporter: &Reporter) -> Result<()> {
    // Where there is no node the server runs as it always did.
    let page = match Page::map(UNTRACKED_NODE) {
        Ok(page) => Some(page),
        Err(Errno::NOENT) => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open and map {UNTRACKED_NODE}"));
        }
    };
    let mut known = page.as_ref().map_or(0, Page::generation);
    reporter.started(page.is_some())?;
    for number in 0.. {
        let generation = page.as_ref().map_or(0, Page::generation);
        if generation != known {
            let noticed = monotonic_ns();
            known = generation;
            rand::rng().reseed().context("cannot reseed")?;
            let events = [(What::Noticed, noticed), (What::Reseeded, monotonic_ns())];
            reporter.report(generation, events)?;
        }
        let value = format!("{:032x}", rand::rng().random::<u128>());
        reporter.report(
            generation,
            [(What::Token { number, value }, monotonic_ns())],
        )?;
        std::thread::sleep(TOKEN_INTERVAL);
    }
    Ok(())
}

fn orchestrator(reporter: &Reporter) -> Result<()> {
    let node = open_tracked()?;
    reporter.started(true)?;
    loop {
        poll(&mut [PollFd::new(&node, PollFlags::IN)], None)?;
        let noticed = monotonic_ns();
        let generation = node.read()?;
        acknowledge(&node, generation)?;
        let acknowledged = monotonic_ns();
        match node.wait_for_everybody(PATIENCE_MS) {
            Ok(()) => {
                let events = [
                    (What::Noticed, noticed),
                    (What::Acknowledged, acknowledged),
                    (What::EverybodyDone, monotonic_ns()),
                ];
                reporter.report(generation, events)?;
            }
            // Outdated by another change; the loop begins again with that.
            Err(Errno::INTR) => {}
            Err(Errno::TIME) => {
                let count = node.outdated_watchers()?;
                let reason =
                    format!("{count} watchers have not acknowledged generation {generation}");
                reporter.report(generation, [(What::Failed { reason }, monotonic_ns())])?;
            }
            Err(error) => return Err(error).context("cannot wait for everybody"),
        }
    }
}
