// SPDX-License-Identifier: MIT OR Apache-2.0

//! `VMGENID_GET_OUTDATED_WATCHERS`.

use rustix::fs::OFlags;

use super::{Case, case};
use crate::abi;
use crate::node::Node;
use crate::outcome::{Outcome, gives};

pub(super) const CASES: &[Case] = &[
    case(
        "the-count-is-of-the-tracked-watchers-that-are-outdated",
        &["count"],
        the_count_is_exact,
    ),
    case(
        "the-count-ignores-its-argument-and-who-asks",
        &["count", "count-argument"],
        the_count_ignores_its_argument,
    ),
];

fn the_count_is_exact(node: &Node) -> Outcome {
    let control = node.control()?;
    let mut tracked = Vec::new();
    let mut others = Vec::new();
    for number in 1..=5 {
        tracked.push(node.tracked()?);
        others.push(node.untracked()?);
        control.counts(0, "while all are current")?;
        control.bump()?;
        control.counts(number, "after a change")?;
        let generation = control.bump()?;
        // A watcher that misses two changes is one watcher.
        control.counts(number, "after a second change")?;
        for other in &others {
            other.acknowledge(generation)?;
        }
        control.counts(number, "after those acknowledged that do not count")?;
        for (watcher, left) in tracked.iter().zip((0..number).rev()) {
            watcher.acknowledge(generation)?;
            control.counts(left, "after one more acknowledgement")?;
        }
    }
    Ok(())
}

fn the_count_ignores_its_argument(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let _other = node.tracked()?;
    control.bump()?;
    let read_only = node.open(OFlags::RDONLY)?;
    for argument in [0, 1, 2, 1 << 32, u64::MAX] {
        let count = |watcher: &crate::node::Watcher| {
            watcher.ioctl(abi::VMGENID_GET_OUTDATED_WATCHERS, argument)
        };
        gives("the count to one that is counted", count(&watcher), 2)?;
        gives("the count to one that is current", count(&read_only), 2)?;
    }
    Ok(())
}
