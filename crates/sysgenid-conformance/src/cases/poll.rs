// SPDX-License-Identifier: MIT OR Apache-2.0

//! `poll` and `epoll`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::call::Call;
use crate::node::{Node, Watcher};
use crate::outcome::{Outcome, gives, same};

pub(super) const CASES: &[Case] = &[
    case(
        "poll-says-EPOLLIN-and-EPOLLRDNORM-exactly-while-outdated",
        &["poll-outdated"],
        poll_says_in_and_rdnorm,
    ),
    case(
        "poll-says-EPOLLOUT-and-EPOLLWRNORM-always",
        &["poll-writable"],
        poll_says_out_and_wrnorm,
    ),
    case(
        "a-change-ends-a-blocked-poll",
        &["poll-outdated"],
        a_change_ends_a_blocked_poll,
    ),
    case(
        "level-triggered-epoll-reports-an-outdated-watcher-until-it-acknowledges",
        &["poll-level"],
        level_triggered,
    ),
    case(
        "edge-triggered-epoll-reports-every-change-once",
        &["poll-edge"],
        edge_triggered,
    ),
    case(
        "epoll-registered-while-outdated-reports-later-changes",
        &["poll-registers"],
        registered_while_outdated,
    ),
    case(
        "a-blocked-epoll-registered-while-outdated-is-woken-by-a-change",
        &["poll-registers"],
        registered_while_outdated_and_blocked,
    ),
];

fn poll_says_in_and_rdnorm(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    for _ in 0..2 {
        same("when current", others(&watcher)?, PollFlags::empty())?;
        let generation = control.bump()?;
        let expected = PollFlags::IN | PollFlags::RDNORM;
        same("when outdated", others(&watcher)?, expected)?;
        watcher.generation()?;
        same("after a read", others(&watcher)?, expected)?;
        watcher.acknowledge(generation)?;
    }
    Ok(())
}

/// A write never blocks.
const WRITABLE: PollFlags = PollFlags::OUT.union(PollFlags::WRNORM);

/// What `poll` says besides.
fn others(watcher: &Watcher) -> Result<PollFlags, Errno> {
    Ok(watcher.events()?.difference(WRITABLE))
}

fn poll_says_out_and_wrnorm(node: &Node) -> Outcome {
    let control = node.control()?;
    for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::RDONLY] {
        let watcher = node.open(flags)?;
        let writable = || Ok::<_, Errno>(watcher.events()?.intersection(WRITABLE));
        same("when current", writable()?, WRITABLE)?;
        control.bump()?;
        same("when outdated", writable()?, WRITABLE)?;
        let asked = [PollFd::new(&watcher, PollFlags::OUT)];
        gives("a poll for it", poll(&mut { asked }, None), 1)?;
    }
    Ok(())
}

fn a_change_ends_a_blocked_poll(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let polls = Call::blocked("poll", move || {
        poll(&mut [PollFd::new(&watcher, PollFlags::IN)], None)
    })?;
    control.bump()?;
    gives("the blocked poll", polls.answer()?, 1)
}

fn level_triggered(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let epoll = registered(&watcher, EventFlags::IN)?;
    for _ in 0..2 {
        gives("when current", events(&epoll, NOW), 0)?;
        let generation = control.bump()?;
        for _ in 0..3 {
            gives("when outdated", events(&epoll, NOW), 1)?;
        }
        watcher.acknowledge(generation)?;
    }
    gives("after the acknowledgement", events(&epoll, NOW), 0)
}

fn edge_triggered(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let epoll = registered(&watcher, EventFlags::IN | EventFlags::ET)?;
    gives("when current", events(&epoll, NOW), 0)?;
    // Each change is a new edge, whether the one before it was acknowledged or not.
    for acknowledges in [true, false, false, true, true] {
        let generation = control.bump()?;
        gives("after a change", events(&epoll, SOON), 1)?;
        gives("without another change", events(&epoll, NOW), 0)?;
        if acknowledges {
            watcher.acknowledge(generation)?;
            gives("after an acknowledgement", events(&epoll, NOW), 0)?;
        }
    }
    Ok(())
}

fn registered_while_outdated(node: &Node) -> Outcome {
    for flags in [EventFlags::IN, EventFlags::IN | EventFlags::ET] {
        let control = node.control()?;
        let watcher = node.open(OFlags::RDWR)?;
        let first = control.bump()?;
        let epoll = registered(&watcher, flags)?;
        gives("when registered", events(&epoll, SOON), 1)?;
        if !flags.contains(EventFlags::ET) {
            watcher.acknowledge(first)?;
            gives("after the acknowledgement", events(&epoll, NOW), 0)?;
        }
        for _ in 0..2 {
            control.bump()?;
            gives("after a later change", events(&epoll, SOON), 1)?;
        }
    }
    Ok(())
}

fn registered_while_outdated_and_blocked(node: &Node) -> Outcome {
    for flags in [EventFlags::IN, EventFlags::IN | EventFlags::ET] {
        let control = node.control()?;
        let watcher = node.open(OFlags::RDWR)?;
        let first = control.bump()?;
        let epoll = Arc::new(registered(&watcher, flags)?);
        gives("when registered", events(&epoll, SOON), 1)?;
        watcher.acknowledge(first)?;
        let sleeper = Arc::clone(&epoll);
        let wait = Call::blocked("epoll_wait", move || events(&sleeper, None))?;
        control.bump()?;
        gives("the blocked epoll_wait", wait.answer()?, 1)?;
    }
    Ok(())
}

/// Does not wait.
const NOW: Option<Timespec> = Some(Timespec {
    tv_sec: 0,
    tv_nsec: 0,
});

/// Waits for something that has happened already: for long only if the node is wrong.
const SOON: Option<Timespec> = Some(Timespec {
    tv_sec: 10,
    tv_nsec: 0,
});

fn registered(watcher: &Watcher, flags: EventFlags) -> Result<OwnedFd, Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, watcher, EventData::new_u64(0), flags)?;
    Ok(epoll)
}

/// How many events epoll reports.
fn events(epoll: &OwnedFd, limit: Option<Timespec>) -> Result<usize, Errno> {
    let mut events = Vec::with_capacity(4);
    epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(&mut events),
        limit.as_ref(),
    )?;
    Ok(events.len())
}
