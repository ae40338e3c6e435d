// SPDX-License-Identifier: MIT OR Apache-2.0

//! That nobody who has been told sees the old value in the mapping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Case, case};
use crate::abi;
use crate::call::look_again_soon;
use crate::node::{Node, Watcher};
use crate::outcome::{Outcome, fail, name_of};
use crate::sys::Mapping;

pub(super) const CASES: &[Case] = &[
    case(
        "whoever-returns-from-a-trigger-sees-the-new-generation-in-the-mapping",
        &["mmap-coherent"],
        after_a_trigger,
    ),
    case(
        "whoever-returns-from-read-or-poll-sees-the-new-generation-in-the-mapping",
        &["mmap-coherent"],
        after_read_or_poll,
    ),
];

/// How often the generation is changed at most. It must not wrap meanwhile.
const CHANGES: u32 = 20_000;

/// How long a case hammers.
const TIME: Duration = Duration::from_secs(2);

fn after_a_trigger(node: &Node) -> Outcome {
    let control = node.control()?;
    control.leave_room(4 * (CHANGES + 1))?;
    let deadline = Instant::now() + TIME;
    let mut threads = Vec::new();
    for number in 0..4 {
        let watcher = node.untracked()?;
        let mapping = watcher.map()?;
        // From here on it is outdated, so a read always tells it the current generation.
        control.bump()?;
        let request = match number % 2 {
            0 => abi::VMGENID_FORCE_GEN_UPDATE,
            _ => abi::SYSGENID_TRIGGER_GEN_UPDATE,
        };
        threads.push(thread::spawn(move || -> Outcome {
            for _ in 0..CHANGES {
                // Not the mapping alone: one that always lags behind rises at each change as well.
                let read = watcher.generation()?;
                let before = mapping.generation().max(read);
                watcher.ioctl(request, 0)?;
                let after = mapping.generation();
                if after <= before {
                    return fail(format!(
                        "the mapping shows {after} after a trigger, and {before} was seen before it"
                    ));
                }
                if Instant::now() > deadline {
                    break;
                }
            }
            Ok(())
        }));
    }
    for thread in threads {
        match thread.join() {
            Ok(outcome) => outcome?,
            Err(_) => return fail("a thread panicked"),
        }
    }
    Ok(())
}

fn after_read_or_poll(node: &Node) -> Outcome {
    let control = node.control()?;
    control.leave_room(CHANGES)?;
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for number in 0..6 {
        let watcher = node.untracked()?;
        let mapping = watcher.map()?;
        let over = Arc::clone(&over);
        let look: fn(&Watcher, &Mapping, u32) -> Outcome<u32> = match number % 2 {
            0 => look_after_read,
            _ => look_after_poll,
        };
        threads.push(thread::spawn(move || -> Outcome {
            let mut last = mapping.generation();
            while !over.load(Ordering::SeqCst) {
                last = look(&watcher, &mapping, last)?;
                match watcher.acknowledge(last) {
                    // It has changed since.
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(errno) => return fail(format!("write: {}", name_of(errno))),
                }
            }
            Ok(())
        }));
    }
    let deadline = Instant::now() + TIME;
    for _ in 0..CHANGES / 2 {
        control.bump()?;
        if Instant::now() > deadline {
            break;
        }
    }
    over.store(true, Ordering::SeqCst);
    // Whoever blocks is waiting for one more change.
    while threads.iter().any(|thread| !thread.is_finished()) {
        control.bump()?;
        look_again_soon();
    }
    for thread in threads {
        match thread.join() {
            Ok(outcome) => outcome?,
            Err(_) => return fail("a thread panicked"),
        }
    }
    Ok(())
}

/// Returns what a read and the mapping after it show.
fn look_after_read(watcher: &Watcher, mapping: &Mapping, last: u32) -> Outcome<u32> {
    let read = watcher.generation()?;
    let mapped = mapping.generation();
    if read < last || mapped < read {
        return fail(format!(
            "read returned {read} after {last}, and the mapping showed {mapped} after that"
        ));
    }
    Ok(mapped)
}

/// Returns what the mapping shows after poll. The last generation may not have been acknowledged, in
/// which case it may be shown again.
fn look_after_poll(watcher: &Watcher, mapping: &Mapping, last: u32) -> Outcome<u32> {
    let was_current = !watcher.is_readable()?;
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(watcher, PollFlags::IN)], Some(&limit))? {
        0 => return fail("poll did not return within 10 s of changes"),
        _ if was_current => {}
        _ => return Ok(mapping.generation()),
    }
    let mapped = mapping.generation();
    if mapped <= last {
        return fail(format!(
            "the mapping shows {mapped} after a poll that waited for the change after {last}"
        ));
    }
    Ok(mapped)
}
