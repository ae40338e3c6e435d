// SPDX-License-Identifier: MIT OR Apache-2.0

//! `VMGENID_FORCE_GEN_UPDATE` and `SYSGENID_TRIGGER_GEN_UPDATE`.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::abi::{self, successor};
use crate::node::Node;
use crate::outcome::{Outcome, fails, gives, same};

pub(super) const CASES: &[Case] = &[
    case("force-bumps-by-one", &["force"], force_bumps_by_one),
    case(
        "force-ignores-its-argument",
        &["force"],
        force_ignores_its_argument,
    ),
    case(
        "trigger-goes-to-the-next-generation-where-the-minimum-is-not-above-it",
        &["trigger"],
        trigger_below_or_at_the_next,
    ),
    case(
        "trigger-goes-to-the-minimum-where-that-is-above-the-next-generation",
        &["trigger"],
        trigger_above_the_next,
    ),
    case(
        "trigger-with-a-minimum-beyond-u32-is-EINVAL-and-changes-nothing",
        &["trigger-beyond-u32"],
        trigger_beyond_u32,
    ),
    case(
        "a-change-makes-every-watcher-outdated-also-the-one-who-asked-for-it",
        &["bump"],
        a_change_makes_every_watcher_outdated,
    ),
];

fn force_bumps_by_one(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = control.watcher();
    for _ in 0..5 {
        let generation = control.generation()?;
        let force = watcher.ioctl(abi::VMGENID_FORCE_GEN_UPDATE, 0);
        gives("FORCE_GEN_UPDATE", force, 0)?;
        let expected = successor(generation, 0);
        same("the generation", control.generation()?, expected)?;
    }
    Ok(())
}

fn force_ignores_its_argument(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = control.watcher();
    let mut expected = control.leave_room(100)?;
    for argument in [1, u64::from(expected) + 50, 0xffff_ffff, 1 << 32, u64::MAX] {
        let force = watcher.ioctl(abi::VMGENID_FORCE_GEN_UPDATE, argument);
        gives("FORCE_GEN_UPDATE", force, 0)?;
        expected = successor(expected, 0);
        let what = format!("the generation after FORCE_GEN_UPDATE with {argument}");
        same(&what, control.generation()?, expected)?;
    }
    Ok(())
}

fn trigger_below_or_at_the_next(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = control.watcher();
    let mut generation = control.leave_room(100)?;
    for from_current in [None, Some(-1), Some(0), Some(1)] {
        let minimum = match from_current {
            None => 0,
            Some(difference) => generation.saturating_add_signed(difference),
        };
        let trigger = watcher.ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, u64::from(minimum));
        let what = format!("TRIGGER_GEN_UPDATE with minimum {minimum} at {generation}");
        gives(&what, trigger, 0)?;
        generation += 1;
        same(&what, control.generation()?, generation)?;
    }
    Ok(())
}

fn trigger_above_the_next(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = control.watcher();
    let mut generation = control.leave_room(1_000_000)?;
    for difference in [2, 3, 1000, 70_000] {
        let minimum = generation + difference;
        let trigger = watcher.ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, u64::from(minimum));
        let what = format!("TRIGGER_GEN_UPDATE with minimum {minimum} at {generation}");
        gives(&what, trigger, 0)?;
        same(&what, control.generation()?, minimum)?;
        generation = minimum;
    }
    Ok(())
}

fn trigger_beyond_u32(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let generation = control.generation()?;
    for minimum in [
        1 << 32,
        (1 << 32) + u64::from(generation) + 1,
        1 << 63,
        u64::MAX,
    ] {
        let trigger = watcher.ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, minimum);
        let what = format!("TRIGGER_GEN_UPDATE with minimum {minimum:#x}");
        fails(&what, trigger, Errno::INVAL)?;
        same("the generation", control.generation()?, generation)?;
        same("anybody is outdated", watcher.is_readable()?, false)?;
        control.counts(0, &what)?;
    }
    Ok(())
}

fn a_change_makes_every_watcher_outdated(node: &Node) -> Outcome {
    for request in [
        abi::VMGENID_FORCE_GEN_UPDATE,
        abi::SYSGENID_TRIGGER_GEN_UPDATE,
    ] {
        let control = node.control()?;
        let asking = node.tracked()?;
        let other = node.tracked()?;
        let untracked = node.untracked()?;
        let read_only = node.open(OFlags::RDONLY)?;
        asking.ioctl(request, 0)?;
        let generation = control.generation()?;
        for watcher in [&asking, &other, &untracked, &read_only] {
            gives("read", watcher.generation(), generation)?;
        }
        control.counts(2, "after the change")?;
    }
    Ok(())
}
