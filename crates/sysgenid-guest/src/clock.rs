// SPDX-License-Identifier: MIT OR Apache-2.0

//! The one clock of all times that a guest reports.

use rustix::time::ClockId;
use rustix::time::clock_gettime;

/// `CLOCK_MONOTONIC` in nanoseconds. It stands still while the machine is stopped.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The clock starts at 0 when the kernel does, so neither part is ever negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
