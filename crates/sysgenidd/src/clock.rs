// SPDX-License-Identifier: MIT OR Apache-2.0

//! The clocks that time-outs and ages are measured by. They are the same for a successor.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Nanoseconds of the monotonic clock, which stands still while the machine sleeps: for time-outs.
pub(crate) fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds of the clock that goes on while the machine sleeps: for when something happened.
pub(crate) fn boottime() -> u64 {
    nanoseconds(ClockId::Boottime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither part is ever negative, and the sum lasts for 584 years.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The same for a timer. Time 0 would turn a timer off.
pub(crate) fn timespec(nanoseconds: u64) -> Timespec {
    let nanoseconds = nanoseconds.max(1);
    Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
        // Less than 1000 million.
        #[allow(clippy::cast_possible_wrap)]
        tv_nsec: (nanoseconds % 1_000_000_000) as _,
    }
}
