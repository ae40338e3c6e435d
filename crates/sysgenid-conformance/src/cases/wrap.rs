// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of the numbers. These cases run last: they use all of them up.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::abi::successor;
use crate::node::{Control, Node, Watcher};
use crate::outcome::{Outcome, fails, gives, same};

pub(super) const CASES: &[Case] = &[
    case(
        "the-generation-after-u32-max-is-1",
        &["generation-wraps"],
        the_generation_after_u32_max_is_1,
    ),
    case(
        "at-the-wrap-a-minimum-counts-from-1",
        &["generation-wraps", "trigger"],
        at_the_wrap_a_minimum_counts_from_1,
    ),
    case(
        "a-watcher-is-outdated-also-where-its-number-comes-back",
        &["outdated-by-change"],
        a_watcher_is_outdated_where_its_number_comes_back,
    ),
    case(
        "a-number-read-before-it-came-back-is-EINVAL-once",
        &["write-stale-read"],
        a_number_read_before_it_came_back,
    ),
    case(
        "a-number-read-after-it-came-back-acknowledges",
        &["write-stale-read"],
        a_number_read_after_it_came_back,
    ),
    case(
        "the-accounts-hold-across-the-wrap",
        &["generation-wraps", "count"],
        the_accounts_hold_across_the_wrap,
    ),
];

/// Goes to the last number.
fn go_to_the_end(control: &Control) -> Outcome {
    if control.generation()? == u32::MAX {
        // A minimum of this would wrap.
        control.bump()?;
    }
    same("the last generation", control.raise(u32::MAX)?, u32::MAX)
}

fn the_generation_after_u32_max_is_1(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let mapping = watcher.map()?;
    go_to_the_end(&control)?;
    gives("read", watcher.generation(), u32::MAX)?;
    same("the mapping", mapping.generation(), u32::MAX)?;
    watcher.acknowledge(u32::MAX)?;
    same("the generation after it", control.bump()?, 1)?;
    gives("read", watcher.generation(), 1)?;
    same("the mapping", mapping.generation(), 1)?;
    watcher.acknowledge(1)?;
    same("the generation after that", control.bump()?, 2)
}

fn at_the_wrap_a_minimum_counts_from_1(node: &Node) -> Outcome {
    let control = node.control()?;
    for minimum in [0, 1, 2, 7, 70_000, u32::MAX] {
        go_to_the_end(&control)?;
        let what = format!("the generation after a minimum of {minimum}");
        same(&what, control.raise(minimum)?, successor(u32::MAX, minimum))?;
    }
    Ok(())
}

fn a_watcher_is_outdated_where_its_number_comes_back(node: &Node) -> Outcome {
    let control = node.control()?;
    let number = control.leave_room(100)? + 50;
    control.raise(number)?;
    let watcher = node.tracked()?;
    go_to_the_end(&control)?;
    control.bump()?;
    same("the generation", control.raise(number)?, number)?;
    // It looks as if nothing had happened.
    control.counts(1, "with the same number as before")?;
    same("what poll says", watcher.is_readable()?, true)?;
    gives("read", watcher.generation(), number)?;
    watcher.acknowledge(number)?;
    control.counts(0, "after the acknowledgement")
}

/// A watcher that has read this number, before it came back.
fn with_a_stale_read(node: &Node, control: &Control) -> Outcome<(Watcher, u32)> {
    let number = control.leave_room(100)? + 50;
    let watcher = node.tracked()?;
    control.raise(number)?;
    gives("read", watcher.generation(), number)?;
    go_to_the_end(control)?;
    same("the generation", control.raise(number)?, number)?;
    Ok((watcher, number))
}

fn a_number_read_before_it_came_back(node: &Node) -> Outcome {
    let control = node.control()?;
    let (watcher, number) = with_a_stale_read(node, &control)?;
    let stale = watcher.acknowledge(number);
    fails("a write of what was read before", stale, Errno::INVAL)?;
    control.counts(1, "after it")?;
    same("what poll says", watcher.is_readable()?, true)?;
    // The program knows now that it has to look again, wherever it looks.
    watcher.acknowledge(number)?;
    control.counts(0, "after the acknowledgement")?;
    same("what poll says", watcher.is_readable()?, false)
}

fn a_number_read_after_it_came_back(node: &Node) -> Outcome {
    let control = node.control()?;
    let (watcher, number) = with_a_stale_read(node, &control)?;
    gives("read", watcher.generation(), number)?;
    watcher.acknowledge(number)?;
    control.counts(0, "after the acknowledgement")
}

fn the_accounts_hold_across_the_wrap(node: &Node) -> Outcome {
    let control = node.control()?;
    go_to_the_end(&control)?;
    let acknowledges = node.tracked()?;
    let lags = node.tracked()?;
    let generation = control.bump()?;
    control.counts(2, "after the wrap")?;
    acknowledges.acknowledge(generation)?;
    control.counts(1, "after an acknowledgement")?;
    control.bump()?;
    control.counts(2, "after another change")?;
    drop(lags);
    control.counts(1, "after a close")
}
