// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/proc/PID/fdinfo/FD`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use super::open::must_be_fresh;
use super::{Case, case};
use crate::abi::{FDINFO_FIELDS, FDINFO_TIMES, FDINFO_TIMES_KEPT};
use crate::node::{Control, Node, Watcher};
use crate::outcome::{Outcome, fail, holds, same, skip};

pub(super) const CASES: &[Case] = &[
    case(
        "fdinfo-shows-the-state-of-the-watcher",
        &["fdinfo"],
        fdinfo_shows_the_state,
    ),
    case(
        "fdinfo-says-when-the-generation-changed-and-since-when-the-watcher-is-outdated",
        &["fdinfo-times"],
        fdinfo_says_since_when,
    ),
    case(
        "fdinfo-of-a-watcher-that-missed-many-changes-shows-the-oldest-time-known",
        &["fdinfo-times-kept"],
        fdinfo_after_many_changes,
    ),
];

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

/// Runs among the cases that come before any change.
pub(super) fn a_fresh_node_never_changed(node: &Node) -> Outcome {
    must_be_fresh(node)?;
    let watcher = node.open(OFlags::RDONLY)?;
    same("the times", Times::of(node, &watcher)?, Times::default())
}

fn fdinfo_says_since_when(node: &Node) -> Outcome {
    let control = node.control()?;
    let earlier = node.open(OFlags::RDWR)?;
    let watcher = node.open(OFlags::RDWR)?;
    let since = |watcher| Times::of(node, watcher).map(|times| times.outdated_since);
    same("outdated_since of a new watcher", since(&watcher)?, 0)?;

    let (_, first) = bump(node, &control, &watcher)?;
    same("outdated_since after a change", since(&watcher)?, first)?;
    let (generation, second) = bump(node, &control, &watcher)?;
    same("outdated_since after another", since(&watcher)?, first)?;

    watcher.acknowledge(generation)?;
    let current = Times {
        changed: second,
        outdated_since: 0,
    };
    same(
        "the times when current",
        Times::of(node, &watcher)?,
        current,
    )?;
    let later = node.open(OFlags::RDWR)?;
    same("those of a new watcher", Times::of(node, &later)?, current)?;

    let (_, third) = bump(node, &control, &watcher)?;
    same("outdated_since after a third", since(&watcher)?, third)?;
    same("that of who missed only it", since(&later)?, third)?;
    same("that of who missed all", since(&earlier)?, first)
}

fn fdinfo_after_many_changes(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let mut changes = Vec::new();
    for missed in 1..=3 * FDINFO_TIMES_KEPT {
        let (_, changed) = bump(node, &control, &watcher)?;
        changes.push(changed);
        // Those of which the time may be shown: the first, and whatever may have been forgotten.
        let candidates = &changes[..=missed.saturating_sub(FDINFO_TIMES_KEPT)];
        let since = Times::of(node, &watcher)?.outdated_since;
        holds(
            &format!("outdated_since ({since}) after {missed} changes is one of {candidates:?}"),
            candidates.contains(&since),
        )?;
    }
    Ok(())
}

/// Bumps the generation. Returns the new one, and when it changed as the watcher shows it.
fn bump(node: &Node, control: &Control, watcher: &Watcher) -> Outcome<(u32, u64)> {
    let before = now();
    let generation = control.bump()?;
    let after = now();
    let changed = Times::of(node, watcher)?.changed;
    holds(
        &format!("changed ({changed}) is from {before} to {after}, when the change was made"),
        (before..=after).contains(&changed),
    )?;
    Ok((generation, changed))
}

/// Nanoseconds of the clock that the times are of.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    // Neither part is ever negative, and the sum lasts for 584 years.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The fields that are times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    changed: u64,
    outdated_since: u64,
}

impl Times {
    /// Those of a watcher. All fields must be there, in their order.
    fn of(node: &Node, watcher: &Watcher) -> Outcome<Self> {
        let names: Vec<&str> = FDINFO_FIELDS.into_iter().chain(FDINFO_TIMES).collect();
        let lines = lines(node, watcher, &names)?;
        let fields: Vec<(&str, &str)> = lines
            .iter()
            .map(|line| line.split_once(":\t").unwrap_or((line, "")))
            .collect();
        let found: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        same("the names of the fields", found, names)?;
        let time = |place: usize| match fields[place].1.parse() {
            Ok(time) => Ok(time),
            Err(_) => fail(format!("no number of nanoseconds: {:?}", lines[place])),
        };
        Ok(Self {
            changed: time(FDINFO_FIELDS.len())?,
            outdated_since: time(FDINFO_FIELDS.len() + 1)?,
        })
    }
}

/// Checks the values of the fields, which must be there in their order, one a line.
fn shows(node: &Node, watcher: &Watcher, expected: [u32; 4]) -> Outcome {
    let expected: Vec<String> = FDINFO_FIELDS
        .iter()
        .zip(expected)
        .map(|(name, value)| format!("{name}:\t{value}"))
        .collect();
    same(
        "the fields",
        lines(node, watcher, &FDINFO_FIELDS)?,
        expected,
    )
}

/// The lines of the fields with these names.
fn lines(node: &Node, watcher: &Watcher, names: &[&str]) -> Outcome<Vec<String>> {
    let fd = watcher.as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let lines: Vec<String> = text
        .lines()
        .filter(|line| {
            line.split_once(':')
                .is_some_and(|(name, _)| names.contains(&name))
        })
        .map(str::to_owned)
        .collect();
    if !lines.is_empty() {
        return Ok(lines);
    }
    if node.is_char_device() {
        fail(format!("none of the fields is in fdinfo:\n{text}"))
    } else {
        skip("the node is not a character device, and its server cannot add to fdinfo")
    }
}
