// SPDX-License-Identifier: MIT OR Apache-2.0

//! `write`.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::node::Node;
use crate::outcome::{Outcome, fails, gives, same};

pub(super) const CASES: &[Case] = &[
    case(
        "write-of-the-current-generation-acknowledges-it",
        &["write-acknowledges", "native-endian"],
        write_acknowledges,
    ),
    case(
        "write-needs-no-read-before-it",
        &["write-acknowledges"],
        write_needs_no_read,
    ),
    case(
        "write-of-other-than-4-bytes-is-EINVAL-and-changes-nothing",
        &["write-size"],
        write_of_a_wrong_size,
    ),
    case(
        "write-of-0-bytes-is-EINVAL-and-changes-nothing",
        &["write-size"],
        write_of_0_bytes,
    ),
    case(
        "write-of-another-value-is-EINVAL-and-changes-nothing",
        &["write-value"],
        write_of_another_value,
    ),
    case(
        "write-by-a-current-watcher-is-harmless",
        &["write-again"],
        write_again_is_harmless,
    ),
];

fn write_acknowledges(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR | OFlags::NONBLOCK)?;
    watcher.track(true)?;
    let generation = control.bump()?;
    same("the generation read", watcher.generation()?, generation)?;
    gives("write", watcher.write(&generation.to_ne_bytes()), 4)?;
    fails("read afterwards", watcher.generation(), Errno::AGAIN)?;
    same("what poll says", watcher.is_readable()?, false)?;
    control.counts(0, "after the acknowledgement")
}

fn write_needs_no_read(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::WRONLY)?;
    watcher.track(true)?;
    let generation = control.bump()?;
    control.counts(1, "after a change")?;
    gives("write", watcher.write(&generation.to_ne_bytes()), 4)?;
    control.counts(0, "after the acknowledgement")
}

fn write_of_a_wrong_size(node: &Node) -> Outcome {
    wrong_sizes(node, &[1, 2, 3, 5, 8, 4096, 10_000])
}

fn write_of_0_bytes(node: &Node) -> Outcome {
    wrong_sizes(node, &[0])
}

fn wrong_sizes(node: &Node, sizes: &[usize]) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let generation = control.bump()?;
    let bytes = generation.to_ne_bytes().repeat(2500);
    // All of it begins with the right value.
    for &size in sizes {
        let what = format!("write of {size} bytes");
        fails(&what, watcher.write(&bytes[..size]), Errno::INVAL)?;
        control.counts(1, &format!("after {what}"))?;
        same("the watcher is outdated", watcher.is_readable()?, true)?;
    }
    watcher.acknowledge(generation)?;
    for &size in sizes {
        let what = format!("write of {size} bytes by a current watcher");
        fails(&what, watcher.write(&bytes[..size]), Errno::INVAL)?;
        same("the watcher is outdated", watcher.is_readable()?, false)?;
    }
    control.counts(0, "at the end")
}

fn write_of_another_value(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let before = control.generation()?;
    let generation = control.bump()?;
    let others = [
        before,
        generation.wrapping_add(1),
        generation.swap_bytes(),
        !generation,
        0,
        u32::MAX,
    ];
    let others = others.into_iter().filter(|other| *other != generation);
    for other in others.clone() {
        let what = format!("write of {other} at generation {generation}");
        fails(&what, watcher.acknowledge(other), Errno::INVAL)?;
        control.counts(1, &format!("after {what}"))?;
        same("the watcher is outdated", watcher.is_readable()?, true)?;
    }
    watcher.acknowledge(generation)?;
    for other in others {
        let what = format!("write of {other} by a watcher that is current at {generation}");
        fails(&what, watcher.acknowledge(other), Errno::INVAL)?;
        same("the watcher is outdated", watcher.is_readable()?, false)?;
    }
    control.counts(0, "at the end")
}

fn write_again_is_harmless(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let other = node.tracked()?;
    let generation = control.bump()?;
    control.counts(2, "after a change")?;
    for _ in 0..3 {
        watcher.acknowledge(generation)?;
        // Counted down once, not three times.
        control.counts(1, "after an acknowledgement")?;
    }
    other.acknowledge(generation)?;
    control.counts(0, "after both have acknowledged")
}
