// SPDX-License-Identifier: MIT OR Apache-2.0

//! From open to the last close: what a watcher is, and when it ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::{Case, case};
use crate::abi::{SYSGENID_WAIT_WATCHERS, WAITS};
use crate::call::{Call, wait_until_process_blocks};
use crate::node::{Node, Watcher};
use crate::outcome::{Outcome, fail, gives, same};
use crate::process::{Event, Process};

pub(super) const CASES: &[Case] = &[
    case(
        "a-closed-watcher-stops-counting-at-once",
        &["close"],
        a_closed_watcher_stops_counting,
    ),
    case(
        "a-mapping-keeps-its-watcher",
        &["close-mapping"],
        a_mapping_keeps_its_watcher,
    ),
    case(
        "a-duplicate-is-the-same-watcher",
        &["description", "close"],
        a_duplicate_is_the_same_watcher,
    ),
    case(
        "a-second-open-is-another-watcher",
        &["description"],
        a_second_open_is_another_watcher,
    ),
    case(
        "a-forked-child-has-the-same-watcher",
        &["description", "close"],
        a_forked_child_has_the_same_watcher,
    ),
    case(
        "a-watcher-survives-exec-without-O_CLOEXEC",
        &["description", "close"],
        a_watcher_survives_exec,
    ),
    case(
        "a-watcher-ends-at-exec-with-O_CLOEXEC",
        &["close"],
        a_watcher_ends_at_exec,
    ),
    case(
        "a-process-that-exits-stops-counting-at-once",
        &["close", "death"],
        a_process_that_exits_stops_counting,
    ),
    case(
        "SIGKILL-ends-a-blocked-reader",
        &["read-interrupted", "death"],
        sigkill_ends_a_blocked_reader,
    ),
    case(
        "SIGKILL-ends-a-blocked-waiter",
        &["wait-interrupted", "death"],
        sigkill_ends_a_blocked_waiter,
    ),
    case(
        "SIGKILL-of-the-last-outdated-watcher-releases-waiters",
        &["death", "wait"],
        sigkill_of_the_last_releases_waiters,
    ),
];

/// The name under which this program executes itself to hold descriptors.
pub(crate) const HOLD: &str = "sysgenid-conformance-hold";

/// How soon a process must be gone that is killed in a call: far more than it takes, also in an
/// emulated machine, and far less than a time-out.
const PROMPTLY: Duration = Duration::from_secs(3);

fn a_closed_watcher_stops_counting(node: &Node) -> Outcome {
    let control = node.control()?;
    let current = node.tracked()?;
    let mut watchers = Vec::new();
    for _ in 0..4 {
        watchers.push(node.tracked()?);
    }
    let generation = control.bump()?;
    current.acknowledge(generation)?;
    for left in (0..4).rev() {
        watchers.pop();
        control.counts(left, "after a close")?;
    }
    drop(current);
    control.counts(0, "after the close of one that was current")?;
    control.bump()?;
    control.counts(0, "after a change with nobody there")
}

fn a_mapping_keeps_its_watcher(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let mapping = watcher.map()?;
    let second = watcher.map()?;
    drop(watcher);
    let generation = control.bump()?;
    control.counts(1, "with two mappings")?;
    drop(second);
    control.counts(1, "with one mapping")?;
    same("the mapping", mapping.generation(), generation)?;
    drop(mapping);
    control.counts(0, "with none")
}

fn a_duplicate_is_the_same_watcher(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let duplicate = watcher.duplicate()?;
    let generation = control.bump()?;
    control.counts(1, "with two descriptors")?;
    duplicate.acknowledge(generation)?;
    control.counts(0, "after an acknowledgement through one")?;
    same("the other is outdated", watcher.is_readable()?, false)?;
    duplicate.track(false)?;
    control.bump()?;
    control.counts(0, "after it was switched off through one")?;
    watcher.track(true)?;
    control.counts(1, "after it was switched on through the other")?;
    drop(watcher);
    control.counts(1, "after one was closed")?;
    drop(duplicate);
    control.counts(0, "after both were closed")
}

fn a_second_open_is_another_watcher(node: &Node) -> Outcome {
    let control = node.control()?;
    let first = node.tracked()?;
    let second = node.tracked()?;
    let generation = control.bump()?;
    control.counts(2, "with two")?;
    first.acknowledge(generation)?;
    control.counts(1, "after one acknowledged")?;
    same("the other is outdated", second.is_readable()?, true)
}

fn a_forked_child_has_the_same_watcher(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let generation = control.bump()?;
    let (acknowledged, may_end) = (Event::new()?, Event::new()?);
    let child = Process::spawn(|| {
        let result = watcher.acknowledge(generation);
        acknowledged.set()?;
        result?;
        may_end.wait("the parent's close")
    })?;
    acknowledged.wait("the child's acknowledgement")?;
    control.counts(0, "after the child acknowledged")?;
    same("the parent's is outdated", watcher.is_readable()?, false)?;
    control.bump()?;
    control.counts(1, "after a change")?;
    drop(watcher);
    control.counts(1, "after the parent closed it")?;
    may_end.set()?;
    child.join("the child")?;
    control.counts(0, "after the child's exit")
}

/// Starts a program that holds what it inherits. It runs when this returns.
fn holder() -> Outcome<Child> {
    let mut child = Command::new("/proc/self/exe")
        .arg0(HOLD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = [0; 4];
    match &mut child.stdout {
        Some(output) => output.read_exact(&mut said)?,
        None => return fail("the program has no output"),
    }
    same("what the program said", &said, b"here")?;
    Ok(child)
}

/// Lets the program end, and waits for that.
fn end(mut child: Child) -> Outcome {
    drop(child.stdin.take());
    same("the program succeeded", child.wait()?.success(), true)
}

fn a_watcher_survives_exec(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    fcntl_setfd(&watcher, FdFlags::empty())?;
    control.bump()?;
    let child = holder()?;
    drop(watcher);
    control.counts(1, "while the program has it")?;
    end(child)?;
    control.counts(0, "after its exit")
}

fn a_watcher_ends_at_exec(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    control.bump()?;
    let child = holder()?;
    drop(watcher);
    control.counts(0, "while the program runs")?;
    end(child)
}

fn a_process_that_exits_stops_counting(node: &Node) -> Outcome {
    let control = node.control()?;
    let (ready, may_end) = (Event::new()?, Event::new()?);
    let child = Process::spawn(|| {
        let opened: Result<Vec<Watcher>, Errno> = (0..5).map(|_| node.tracked()).collect();
        ready.set()?;
        may_end.wait("the count")?;
        // They are not closed, but left.
        std::mem::forget(opened?);
        Ok(())
    })?;
    ready.wait("the child's opens")?;
    control.bump()?;
    control.counts(5, "while it lives")?;
    may_end.set()?;
    child.join("the child")?;
    control.counts(0, "after its exit")
}

fn sigkill_ends_a_blocked_reader(node: &Node) -> Outcome {
    let control = node.control()?;
    let ready = Event::new()?;
    let child = Process::spawn(|| {
        let watcher = node.tracked()?;
        ready.set()?;
        let read = watcher.generation();
        fail(format!("the child's read returned {read:?}"))
    })?;
    ready.wait("the child's open")?;
    wait_until_process_blocks(child.pid(), "the child's read")?;
    child.kill_within(PROMPTLY)?;
    control.bump()?;
    control.counts(0, "after the death of the reader and a change")
}

fn sigkill_ends_a_blocked_waiter(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        let control = node.control()?;
        let laggard = node.tracked()?;
        control.bump()?;
        let ready = Event::new()?;
        let child = Process::spawn(|| {
            let watcher = node.tracked()?;
            ready.set()?;
            let wait = watcher.ioctl(request, 0);
            fail(format!("the child's {name} returned {wait:?}"))
        })?;
        ready.wait("the child's open")?;
        wait_until_process_blocks(child.pid(), name)?;
        child.kill_within(PROMPTLY)?;
        control.bump()?;
        control.counts(1, "after the death of the waiter and a change")?;
        drop(laggard);
    }
    Ok(())
}

fn sigkill_of_the_last_releases_waiters(node: &Node) -> Outcome {
    let control = node.control()?;
    let ready = Event::new()?;
    let child = Process::spawn(|| {
        let _watcher = node.tracked()?;
        ready.set()?;
        Event::new()?.wait("its death")
    })?;
    ready.wait("the child's open")?;
    control.bump()?;
    control.counts(1, "while the child lives")?;
    let waiter = node.tracked()?;
    let wait = Call::blocked("wait", move || waiter.ioctl(SYSGENID_WAIT_WATCHERS, 0))?;
    child.kill_within(PROMPTLY)?;
    gives("the wait", wait.answer()?, 0)
}
