// SPDX-License-Identifier: MIT OR Apache-2.0

//! `SYSGENID_SET_WATCHER_TRACKING`.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::abi::{self, WAITS};
use crate::call::Call;
use crate::node::Node;
use crate::outcome::{Outcome, fails, gives};

pub(super) const CASES: &[Case] = &[
    case(
        "tracking-is-on-for-an-argument-other-than-0",
        &["tracking"],
        tracking_is_on_for_an_argument_other_than_0,
    ),
    case(
        "tracking-switched-on-while-outdated-counts-at-once",
        &["tracking-on-outdated"],
        tracking_on_while_outdated_counts_at_once,
    ),
    case(
        "tracking-switched-on-while-current-counts-from-the-next-change",
        &["tracking"],
        tracking_on_while_current_counts_later,
    ),
    case(
        "tracking-switched-off-stops-counting-at-once",
        &["tracking-off"],
        tracking_off_stops_counting,
    ),
    case(
        "tracking-switched-off-releases-waiters",
        &["tracking-off"],
        tracking_off_releases_waiters,
    ),
    case(
        "tracking-switched-twice-is-switched-once",
        &["tracking-again"],
        tracking_twice_is_once,
    ),
    case(
        "tracking-of-a-read-only-watcher-is-EBADF",
        &["tracking-read-only"],
        tracking_of_a_read_only_watcher_is_ebadf,
    ),
    case(
        "tracking-of-a-read-only-watcher-can-be-switched-off",
        &["tracking-read-only"],
        tracking_of_a_read_only_watcher_can_be_switched_off,
    ),
];

fn tracking_is_on_for_an_argument_other_than_0(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.untracked()?;
    let set = |argument| watcher.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, argument);
    // Some have no bit in their lower half.
    for argument in [1, 2, 0x8000_0000, 1 << 32, 1 << 63, u64::MAX] {
        let what = format!("with argument {argument:#x}");
        gives(&what, set(argument), 0)?;
        control.bump()?;
        control.counts(1, &what)?;
        gives("with argument 0", set(0), 0)?;
        control.bump()?;
        control.counts(0, "with argument 0")?;
    }
    Ok(())
}

fn tracking_on_while_outdated_counts_at_once(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.untracked()?;
    let generation = control.bump()?;
    control.counts(0, "before")?;
    watcher.track(true)?;
    control.counts(1, "once it is on")?;
    watcher.acknowledge(generation)?;
    control.counts(0, "after the acknowledgement")
}

fn tracking_on_while_current_counts_later(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.untracked()?;
    watcher.track(true)?;
    control.counts(0, "once it is on")?;
    control.bump()?;
    control.counts(1, "after a change")
}

fn tracking_off_stops_counting(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let other = node.tracked()?;
    let generation = control.bump()?;
    control.counts(2, "before")?;
    watcher.track(false)?;
    control.counts(1, "once it is off")?;
    // It is as outdated as before, and that is seen when it comes back.
    gives("its read", watcher.generation(), generation)?;
    watcher.track(true)?;
    control.counts(2, "once it is on again")?;
    watcher.track(false)?;
    watcher.acknowledge(generation)?;
    control.counts(1, "after it acknowledged while it is off")?;
    watcher.track(true)?;
    control.counts(1, "once it is on again")?;
    drop(other);
    control.counts(0, "at the end")
}

fn tracking_off_releases_waiters(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        let control = node.control()?;
        let laggard = node.tracked()?;
        control.bump()?;
        let waiter = node.tracked()?;
        let wait = Call::blocked(name, move || waiter.ioctl(request, 0))?;
        laggard.track(false)?;
        gives(name, wait.answer()?, 0)?;
    }
    Ok(())
}

fn tracking_twice_is_once(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.untracked()?;
    let other = node.tracked()?;
    for _ in 0..2 {
        for _ in 0..3 {
            watcher.track(true)?;
        }
        let generation = control.bump()?;
        control.counts(2, "on, and on again")?;
        watcher.track(true)?;
        control.counts(2, "on again while outdated")?;
        for _ in 0..3 {
            watcher.track(false)?;
            control.counts(1, "off, and off again")?;
        }
        other.acknowledge(generation)?;
        control.counts(0, "after the other one acknowledged")?;
        watcher.track(false)?;
        control.counts(0, "off again while none is counted")?;
    }
    Ok(())
}

fn tracking_of_a_read_only_watcher_is_ebadf(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDONLY)?;
    for state in ["current", "outdated"] {
        fails(state, watcher.track(true), Errno::BADF)?;
        control.bump()?;
        control.counts(0, "after a change")?;
    }
    drop(watcher);
    // One that can only write can acknowledge.
    let watcher = node.open(OFlags::WRONLY)?;
    watcher.track(true)?;
    control.bump()?;
    control.counts(1, "with a write-only watcher")
}

fn tracking_of_a_read_only_watcher_can_be_switched_off(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDONLY)?;
    for _ in 0..2 {
        gives("off", watcher.track(false), ())?;
        control.counts(0, "once it is off")?;
        control.bump()?;
        control.counts(0, "after a change")?;
    }
    Ok(())
}
