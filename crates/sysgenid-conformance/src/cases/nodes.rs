// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the two nodes share.

use super::{Case, case};
use crate::abi::WAITS;
use crate::call::Call;
use crate::node::Node;
use crate::outcome::{Outcome, fails, gives, same};

use rustix::io::Errno;

pub(super) const CASES: &[Case] = &[
    case(
        "both-nodes-show-one-generation",
        &["nodes"],
        both_nodes_show_one_generation,
    ),
    case(
        "both-nodes-count-and-wait-for-the-watchers-of-each-other",
        &["nodes"],
        both_nodes_share_their_watchers,
    ),
];

fn both_nodes_show_one_generation(node: &Node) -> Outcome {
    let other = node.sibling()?;
    for (changed, seen) in [(node, &other), (&other, node)] {
        let control = changed.control()?;
        let watcher = seen.untracked()?;
        let mapping = seen.map()?;
        let reader = watcher.duplicate()?;
        let read = Call::blocked("read", move || reader.generation())?;
        let generation = control.bump()?;
        same("the mapping", mapping.generation(), generation)?;
        gives("the blocked read", read.answer()?, generation)?;
        same("what poll says", watcher.is_readable()?, true)?;
        watcher.acknowledge(generation)?;
    }
    Ok(())
}

fn both_nodes_share_their_watchers(node: &Node) -> Outcome {
    let other = node.sibling()?;
    for (waiting, lagging) in [(node, &other), (&other, node)] {
        let control = waiting.control()?;
        let laggard = lagging.tracked()?;
        let own = waiting.tracked()?;
        let generation = control.bump()?;
        control.counts(2, "with one watcher of each node")?;
        gives("the count on the other node", laggard.outdated(), 2)?;
        own.acknowledge(generation)?;
        let (name, request) = WAITS[0];
        fails("wait", own.ioctl(request, 1), Errno::TIME)?;
        let wait = Call::blocked(name, move || own.ioctl(request, 0))?;
        laggard.acknowledge(generation)?;
        gives(name, wait.answer()?, 0)?;
        control.counts(0, "at the end")?;
    }
    Ok(())
}
