// SPDX-License-Identifier: MIT OR Apache-2.0

//! Dying at a chosen point, to prove that a successor loses nothing.
//!
//! Without the feature `fault-injection` a [`point`] is nothing at all.

/// A point at which the daemon may die: between any two steps whose order matters.
#[cfg(not(feature = "fault-injection"))]
#[inline]
pub(crate) fn point() {}

/// A point at which the daemon may die. It kills itself, as by SIGKILL from outside, at the point with the
/// number in the environment's `SYSGENIDD_DIE_AT`, counted from 1 since the start of the process;
/// `SYSGENIDD_DIE_WITHIN` draws that number at random from 1 to the given one.
#[cfg(feature = "fault-injection")]
pub(crate) fn point() {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static LAST: OnceLock<u64> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let last = *LAST.get_or_init(|| {
        let variable = |name| {
            std::env::var(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        };
        let drawn = |bound: u64| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            // Fibonacci hashing spreads what differs only in the lowest digits.
            let hash = now
                .tv_nsec
                .unsigned_abs()
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                >> 32;
            1 + hash % bound.max(1)
        };
        variable("SYSGENIDD_DIE_AT")
            .or_else(|| variable("SYSGENIDD_DIE_WITHIN").map(drawn))
            .unwrap_or(u64::MAX)
    });
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == last {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
