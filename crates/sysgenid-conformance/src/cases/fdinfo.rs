// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/proc/PID/fdinfo/FD`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::OFlags;

use super::{Case, case};
use crate::abi::FDINFO_FIELDS;
use crate::node::{Node, Watcher};
use crate::outcome::{Outcome, fail, same, skip};

pub(super) const CASES: &[Case] = &[case(
    "fdinfo-shows-the-state-of-the-watcher",
    &["fdinfo"],
    fdinfo_shows_the_state,
)];

fn fdinfo_shows_the_state(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let tracked = u32::from(node.kind.tracks_new_watchers());
    let before = control.generation()?;
    shows(node, &watcher, [before, before, tracked, 0])?;
    let generation = control.bump()?;
    shows(node, &watcher, [generation, before, tracked, 1])?;
    watcher.track(true)?;
    shows(node, &watcher, [generation, before, 1, 1])?;
    watcher.acknowledge(generation)?;
    shows(node, &watcher, [generation, generation, 1, 0])?;
    watcher.track(false)?;
    shows(node, &watcher, [generation, generation, 0, 0])?;
    let last = control.bump()?;
    shows(node, &watcher, [last, generation, 0, 1])
}

/// Checks the values of the fields, which must be there in their order, one a line.
fn shows(node: &Node, watcher: &Watcher, expected: [u32; 4]) -> Outcome {
    let fd = watcher.as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            line.split_once(':')
                .is_some_and(|(name, _)| FDINFO_FIELDS.contains(&name))
        })
        .collect();
    if lines.is_empty() {
        return if node.is_char_device() {
            fail(format!("none of the fields is in fdinfo:\n{text}"))
        } else {
            skip("the node is not a character device, and its server cannot add to fdinfo")
        };
    }
    let expected: Vec<String> = FDINFO_FIELDS
        .iter()
        .zip(expected)
        .map(|(name, value)| format!("{name}:\t{value}"))
        .collect();
    same(
        "the fields",
        lines,
        expected.iter().map(String::as_str).collect(),
    )
}
