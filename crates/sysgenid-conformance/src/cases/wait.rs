// SPDX-License-Identifier: MIT OR Apache-2.0

//! `VMGENID_WAIT_WATCHERS` and `SYSGENID_WAIT_WATCHERS`, which are the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::abi::WAITS;
use crate::call::Call;
use crate::node::{Control, Node, Watcher};
use crate::outcome::{Outcome, fails, gives, holds, same};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    case(
        "wait-returns-0-at-once-where-no-tracked-watcher-is-outdated",
        &["wait"],
        wait_returns_at_once,
    ),
    case(
        "wait-returns-0-once-the-last-outdated-watcher-acknowledges",
        &["wait"],
        wait_returns_once_the_last_acknowledges,
    ),
    case(
        "wait-returns-0-once-the-last-outdated-watcher-closes",
        &["wait", "close"],
        wait_returns_once_the_last_closes,
    ),
    case(
        "all-waiters-are-released-by-one-acknowledgement",
        &["wait"],
        all_waiters_are_released,
    ),
    case(
        "wait-with-0-waits-for-ever",
        &["wait-for-ever"],
        wait_with_0_waits_for_ever,
    ),
    case(
        "wait-with-a-huge-time-out-does-not-return-at-once",
        &["wait-overflow"],
        wait_with_a_huge_time_out,
    ),
    case(
        "wait-times-out-with-ETIME-not-before-and-soon-after-its-time",
        &["wait-time-out"],
        wait_times_out,
    ),
    case(
        "wait-by-an-outdated-caller-is-EINTR-at-once",
        &["wait-caller-outdated"],
        wait_by_an_outdated_caller,
    ),
    case(
        "wait-is-EINTR-once-its-caller-becomes-outdated",
        &["wait-caller-outdated"],
        wait_by_a_caller_that_becomes_outdated,
    ),
    case(
        "a-signal-ends-a-wait-with-EINTR-even-with-SA_RESTART",
        &["wait-interrupted"],
        a_signal_ends_a_wait,
    ),
];

/// Ample for something that happens at once, and never waited for by a node that is right.
const AMPLE: u64 = 30_000;

/// Someone who is waited for.
struct Laggard {
    watcher: Watcher,
    generation: u32,
}

impl Laggard {
    /// From here on one watcher is outdated.
    fn new(node: &Node, control: &Control) -> Outcome<Self> {
        let watcher = node.tracked()?;
        let generation = control.bump()?;
        Ok(Self {
            watcher,
            generation,
        })
    }

    fn acknowledge(&self) -> Outcome {
        self.watcher.acknowledge(self.generation)?;
        Ok(())
    }
}

fn wait_returns_at_once(node: &Node) -> Outcome {
    let control = node.control()?;
    let tracked = node.tracked()?;
    let outdated_but_untracked = node.untracked()?;
    let generation = control.bump()?;
    tracked.acknowledge(generation)?;
    same(
        "it is outdated",
        outdated_but_untracked.is_readable()?,
        true,
    )?;
    let read_only = node.open(OFlags::RDONLY)?;
    for (name, request) in WAITS {
        for timeout in [0, 1, AMPLE, u64::MAX] {
            gives(name, tracked.ioctl(request, timeout), 0)?;
            gives(name, read_only.ioctl(request, timeout), 0)?;
        }
    }
    Ok(())
}

fn wait_returns_once_the_last_acknowledges(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        for timeout in [0, AMPLE] {
            let control = node.control()?;
            let first = node.tracked()?;
            let last = Laggard::new(node, &control)?;
            let waiter = node.tracked()?;
            let wait = Call::blocked(name, move || waiter.ioctl(request, timeout))?;
            first.acknowledge(last.generation)?;
            control.counts(1, "after the first of two has acknowledged")?;
            wait.wait_until_blocked()?;
            last.acknowledge()?;
            gives(name, wait.answer()?, 0)?;
        }
    }
    Ok(())
}

fn wait_returns_once_the_last_closes(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        let control = node.control()?;
        let laggard = Laggard::new(node, &control)?;
        let waiter = node.open(OFlags::RDONLY)?;
        let wait = Call::blocked(name, move || waiter.ioctl(request, 0))?;
        drop(laggard);
        gives(name, wait.answer()?, 0)?;
    }
    Ok(())
}

fn all_waiters_are_released(node: &Node) -> Outcome {
    let control = node.control()?;
    let laggard = Laggard::new(node, &control)?;
    let shared = Arc::new(node.tracked()?);
    let mut waits = Vec::new();
    for number in 0..8 {
        let (name, request) = WAITS[number % 2];
        let own = node.untracked()?;
        waits.push(Call::blocked(name, move || own.ioctl(request, 0))?);
        let shared = Arc::clone(&shared);
        waits.push(Call::blocked(name, move || shared.ioctl(request, AMPLE))?);
    }
    laggard.acknowledge()?;
    for wait in waits {
        gives("the wait", wait.answer()?, 0)?;
    }
    Ok(())
}

fn wait_with_0_waits_for_ever(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        let control = node.control()?;
        let laggard = Laggard::new(node, &control)?;
        let waiter = node.tracked()?;
        let wait = Call::blocked(name, move || waiter.ioctl(request, 0))?;
        wait.stays_blocked(Duration::from_millis(500))?;
        laggard.acknowledge()?;
        gives(name, wait.answer()?, 0)?;
    }
    Ok(())
}

fn wait_with_a_huge_time_out(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        for timeout in [
            u64::MAX,
            // The smallest that overflow when they are made nanoseconds, as u64, i64 and u32.
            u64::MAX / 1_000_000 + 1,
            i64::MAX.unsigned_abs() / 1_000_000 + 1,
            u64::from(u32::MAX) / 1_000_000 + 1,
            // The smallest that are too long or negative for other types on the way.
            1 << 63,
            i64::MAX.unsigned_abs(),
            1 << 32,
            u64::from(u32::MAX),
        ] {
            let control = node.control()?;
            let laggard = Laggard::new(node, &control)?;
            let waiter = node.tracked()?;
            let what = format!("{name} for {timeout} ms");
            let wait = Call::blocked(&*what, move || waiter.ioctl(request, timeout))?;
            wait.stays_blocked(Duration::from_millis(50))?;
            laggard.acknowledge()?;
            gives(&what, wait.answer()?, 0)?;
        }
    }
    Ok(())
}

fn wait_times_out(node: &Node) -> Outcome {
    // An emulated machine is slow to wake a thread, but not so slow.
    const LATE: Duration = Duration::from_millis(80);
    let control = node.control()?;
    let laggard = Laggard::new(node, &control)?;
    let waiter = node.tracked()?;
    for (name, request) in WAITS {
        for milliseconds in [1, 200] {
            let timeout = Duration::from_millis(milliseconds);
            let mut took = Vec::new();
            for _ in 0..5 {
                let started = Instant::now();
                let result = waiter.ioctl(request, milliseconds);
                took.push(started.elapsed());
                fails(name, result, Errno::TIME)?;
            }
            took.sort();
            let what = format!("{name} for {timeout:?} takes at least that long: {took:?}");
            holds(&what, took[0] >= timeout)?;
            let what = format!("half of the times it takes at most {LATE:?} more: {took:?}");
            holds(&what, took[2] <= timeout + LATE)?;
        }
    }
    // Time outs change nothing.
    control.counts(1, "after all of them")?;
    laggard.acknowledge()?;
    gives("wait", waiter.ioctl(WAITS[0].1, 1), 0)
}

fn wait_by_an_outdated_caller(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        for timeout in [0, 1, AMPLE, u64::MAX] {
            let control = node.control()?;
            let untracked = node.untracked()?;
            let generation = control.bump()?;
            control.counts(0, "with an untracked watcher only")?;
            // Nobody is waited for.
            fails(
                &format!("{name} by the only one who is outdated, untracked"),
                untracked.ioctl(request, timeout),
                Errno::INTR,
            )?;
            let tracked = node.tracked()?;
            let _other = node.tracked()?;
            let generation_after = control.bump()?;
            holds("it changed", generation_after != generation)?;
            for (who, watcher) in [("tracked", &tracked), ("untracked", &untracked)] {
                fails(
                    &format!("{name} by an outdated watcher that is {who}"),
                    watcher.ioctl(request, timeout),
                    Errno::INTR,
                )?;
            }
        }
    }
    Ok(())
}

fn wait_by_a_caller_that_becomes_outdated(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        for timeout in [0, AMPLE] {
            let control = node.control()?;
            let _laggard = Laggard::new(node, &control)?;
            let mut waits = Vec::new();
            for waiter in [
                node.tracked()?,
                node.untracked()?,
                node.open(OFlags::RDONLY)?,
            ] {
                waits.push(Call::blocked(name, move || waiter.ioctl(request, timeout))?);
            }
            control.bump()?;
            for wait in waits {
                fails(name, wait.answer()?, Errno::INTR)?;
            }
        }
    }
    Ok(())
}

fn a_signal_ends_a_wait(node: &Node) -> Outcome {
    let control = node.control()?;
    let laggard = Laggard::new(node, &control)?;
    for (name, request) in WAITS {
        for restart in [false, true] {
            sys::handle_signal(restart)?;
            for timeout in [0, AMPLE] {
                let handled = sys::signals_handled();
                let waiter = node.tracked()?;
                let wait = Call::blocked(name, move || waiter.ioctl(request, timeout))?;
                wait.signal()?;
                let what = format!("{name} with {timeout}, SA_RESTART {restart}");
                fails(&what, wait.answer()?, Errno::INTR)?;
                same("signals handled", sys::signals_handled(), handled + 1)?;
            }
        }
    }
    control.counts(1, "after all of them")?;
    laggard.acknowledge()
}
