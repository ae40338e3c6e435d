// SPDX-License-Identifier: MIT OR Apache-2.0

//! The one clock of all times that a guest reports, and how long it stood still.

use rustix::time::ClockId;
use rustix::time::clock_gettime;

/// `CLOCK_MONOTONIC` in nanoseconds. It stands still while the machine is stopped.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// How long the machine has slept, suspended or hibernated, since it was first started. In nanoseconds.
pub(crate) fn slept_ns() -> u64 {
    // In this order, what passes between the two only makes it less: it never seems to have slept when it has not.
    let boottime = nanoseconds(ClockId::Boottime);
    boottime.saturating_sub(nanoseconds(ClockId::Monotonic))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // These clocks start at 0 when the kernel does, so neither part is ever negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
