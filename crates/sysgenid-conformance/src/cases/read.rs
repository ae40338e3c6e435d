// SPDX-License-Identifier: MIT OR Apache-2.0

//! `read`.

use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use super::{Case, case};
use crate::call::{Call, look_again_soon};
use crate::node::Node;
use crate::outcome::{Outcome, fail, fails, gives, same};
use crate::process::PATIENCE;
use crate::sys;

pub(super) const CASES: &[Case] = &[
    case(
        "read-of-0-bytes-returns-0",
        &["read-empty"],
        read_of_0_bytes_returns_0,
    ),
    case(
        "read-of-fewer-than-4-bytes-is-EINVAL",
        &["read-short"],
        read_of_fewer_than_4_bytes_is_einval,
    ),
    case(
        "read-returns-4-bytes-whatever-the-size-of-the-buffer",
        &["read-outdated", "native-endian"],
        read_returns_4_bytes,
    ),
    case(
        "read-returns-the-current-generation-until-it-is-acknowledged",
        &["read-outdated", "read-repeats"],
        read_repeats_until_acknowledged,
    ),
    case(
        "read-by-a-current-watcher-blocks-until-the-generation-changes",
        &["read-blocks"],
        read_blocks,
    ),
    case(
        "all-blocked-readers-are-woken-by-one-change",
        &["read-blocks"],
        all_blocked_readers_are_woken,
    ),
    case(
        "read-with-O_NONBLOCK-by-a-current-watcher-is-EAGAIN",
        &["read-nonblock"],
        read_with_o_nonblock_is_eagain,
    ),
    case(
        "a-signal-ends-a-blocked-read-with-EINTR",
        &["read-interrupted"],
        a_signal_ends_a_blocked_read,
    ),
    case(
        "a-blocked-read-goes-on-after-a-handler-with-SA_RESTART",
        &["read-restarted"],
        a_blocked_read_goes_on_after_sa_restart,
    ),
];

fn read_of_0_bytes_returns_0(node: &Node) -> Outcome {
    let control = node.control()?;
    // It must not block either.
    let watcher = node.open(OFlags::RDWR)?;
    gives("by a current watcher", watcher.read(&mut []), 0)?;
    let generation = control.bump()?;
    gives("by an outdated watcher", watcher.read(&mut []), 0)?;
    gives("the read after it", watcher.generation(), generation)
}

fn read_of_fewer_than_4_bytes_is_einval(node: &Node) -> Outcome {
    let control = node.control()?;
    // It must not block either.
    let watcher = node.open(OFlags::RDWR)?;
    for state in ["current", "outdated"] {
        for length in 1..4 {
            let what = format!("read of {length} bytes by a watcher that is {state}");
            fails(&what, watcher.read(&mut [0; 4][..length]), Errno::INVAL)?;
        }
        control.bump()?;
    }
    Ok(())
}

fn read_returns_4_bytes(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    // A number whose bytes differ in every order.
    let generation = control.leave_room(0x0102_0304)? + 0x0102_0304;
    same("the generation", control.raise(generation)?, generation)?;
    for size in [4, 5, 8, 4096, 10_000] {
        let what = format!("read into a buffer of {size} bytes");
        let mut buffer = vec![0xa5; size];
        gives(&what, watcher.read(&mut buffer), 4)?;
        same(&what, &buffer[..4], &generation.to_ne_bytes())?;
        let rest_is_untouched = buffer[4..].iter().all(|byte| *byte == 0xa5);
        same("the rest is untouched", rest_is_untouched, true)?;
    }
    Ok(())
}

fn read_repeats_until_acknowledged(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR | OFlags::NONBLOCK)?;
    // The second change comes while the first is not acknowledged.
    for _ in 0..2 {
        let generation = control.bump()?;
        for _ in 0..3 {
            gives("read", watcher.generation(), generation)?;
        }
    }
    watcher.acknowledge(control.generation()?)?;
    fails(
        "read after the acknowledgement",
        watcher.generation(),
        Errno::AGAIN,
    )
}

fn read_blocks(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = Arc::new(node.open(OFlags::RDWR)?);
    // Once as it was opened, once after an acknowledgement.
    for _ in 0..2 {
        let reader = Arc::clone(&watcher);
        let read = Call::blocked("read", move || reader.generation())?;
        let generation = control.bump()?;
        gives("the blocked read", read.answer()?, generation)?;
        watcher.acknowledge(generation)?;
    }
    Ok(())
}

fn all_blocked_readers_are_woken(node: &Node) -> Outcome {
    let control = node.control()?;
    let mut reads = Vec::new();
    for _ in 0..8 {
        let watcher = Arc::new(node.open(OFlags::RDWR)?);
        // Two wait for the same watcher.
        for reader in [Arc::clone(&watcher), watcher] {
            reads.push(Call::blocked("read", move || reader.generation())?);
        }
    }
    let generation = control.bump()?;
    for read in reads {
        gives("a blocked read", read.answer()?, generation)?;
    }
    Ok(())
}

fn read_with_o_nonblock_is_eagain(node: &Node) -> Outcome {
    let control = node.control()?;
    for opened_so in [true, false] {
        let watcher = if opened_so {
            node.open(OFlags::RDWR | OFlags::NONBLOCK)?
        } else {
            let watcher = node.open(OFlags::RDWR)?;
            fcntl_setfl(&watcher, OFlags::NONBLOCK)?;
            watcher
        };
        fails("read", watcher.generation(), Errno::AGAIN)?;
        let generation = control.bump()?;
        gives("read when outdated", watcher.generation(), generation)?;
        watcher.acknowledge(generation)?;
        fails(
            "read when current again",
            watcher.generation(),
            Errno::AGAIN,
        )?;
    }
    Ok(())
}

fn a_signal_ends_a_blocked_read(node: &Node) -> Outcome {
    let control = node.control()?;
    sys::handle_signal(false)?;
    let watcher = Arc::new(node.tracked()?);
    let reader = Arc::clone(&watcher);
    let read = Call::blocked("read", move || reader.generation())?;
    read.signal()?;
    fails("the blocked read", read.answer()?, Errno::INTR)?;
    same("signals handled", sys::signals_handled(), 1)?;

    // It is a watcher like any other afterwards.
    let generation = control.bump()?;
    control.counts(1, "after a change")?;
    gives("the next read", watcher.generation(), generation)
}

fn a_blocked_read_goes_on_after_sa_restart(node: &Node) -> Outcome {
    let control = node.control()?;
    sys::handle_signal(true)?;
    let watcher = node.open(OFlags::RDWR)?;
    let read = Call::blocked("read", move || watcher.generation())?;
    for signals in 1..=3 {
        read.signal()?;
        let deadline = Instant::now() + PATIENCE;
        while sys::signals_handled() < signals {
            if Instant::now() > deadline {
                return fail("the blocked read does not let its thread handle a signal");
            }
            look_again_soon();
        }
        read.wait_until_blocked()?;
    }
    let generation = control.bump()?;
    gives("the restarted read", read.answer()?, generation)
}
