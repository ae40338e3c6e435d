// SPDX-License-Identifier: MIT OR Apache-2.0

//! When a restored guest ran on, on the guest's own clock.
//!
//! No clock tells a guest that it stood still: its `CLOCK_MONOTONIC` stands still with it. But the host
//! knows when it stopped the guest, and a comparison of the clocks just before turns that into the
//! guest's time: that is also the guest's time at which each clone runs on. The other way round, a
//! comparison made in a clone turns the time at which the host let it run on into the guest's. The two
//! know nothing of each other, so how far they are apart tells whether to believe either.

use anyhow::Context;
use anyhow::Result;
use serde::Serialize;

use crate::agent::Correlation;

/// A moment on the guest's clock.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Moment {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub(crate) guest_ns: u64,
    /// How far it may be off, either way.
    pub(crate) uncertainty_ns: u64,
}

/// How fast the guest's clock runs against the host's, minus one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drift(f64);

impl Drift {
    /// From two comparisons in the same guest, the further apart the better.
    pub(crate) fn between(first: Correlation, second: Correlation) -> Self {
        let host = difference(second.host_ns, first.host_ns);
        let guest = difference(second.guest_ns, first.guest_ns);
        Self(if host == 0.0 { 0.0 } else { guest / host - 1.0 })
    }
}

/// Translates something that happened on the host between two times to the guest's clock.
pub(crate) fn translate(
    earliest_host_ns: u64,
    latest_host_ns: u64,
    comparison: Correlation,
    drift: Drift,
) -> Result<Moment> {
    let width = latest_host_ns
        .checked_sub(earliest_host_ns)
        .context("the host's real-time clock was set back; try again")?;
    let middle = earliest_host_ns + width / 2;
    let since_comparison = difference(middle, comparison.host_ns) * (1.0 + drift.0);
    // A difference of host times within one run: far below what a float or an i64 loses.
    #[allow(clippy::cast_possible_truncation)]
    let guest_ns = comparison
        .guest_ns
        .checked_add_signed(since_comparison.round() as i64)
        .context("the guest's clock would be negative")?;
    Ok(Moment {
        guest_ns,
        uncertainty_ns: width / 2 + comparison.uncertainty_ns,
    })
}

// Times of one run differ by seconds: in nanoseconds a float holds them exactly.
#[allow(clippy::cast_precision_loss)]
fn difference(later: u64, earlier: u64) -> f64 {
    if later >= earlier {
        (later - earlier) as f64
    } else {
        -((earlier - later) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(host_ns: u64, guest_ns: u64) -> Correlation {
        Correlation {
            host_ns,
            guest_ns,
            uncertainty_ns: 10,
        }
    }

    #[test]
    fn a_time_between_two_others_is_known_to_half_their_distance() {
        let moment = translate(2_000, 2_100, comparison(1_000, 500), Drift::default()).unwrap();
        assert_eq!((moment.guest_ns, moment.uncertainty_ns), (1_550, 60));
    }

    #[test]
    fn a_time_before_the_comparison_is_translated_too() {
        let moment = translate(900, 900, comparison(1_000, 500), Drift::default()).unwrap();
        assert_eq!(moment.guest_ns, 400);
    }

    #[test]
    fn drift_is_taken_into_account() {
        let drift = Drift::between(comparison(0, 0), comparison(1_000_000, 1_001_000));
        let moment = translate(2_000_000, 2_000_000, comparison(1_000_000, 0), drift).unwrap();
        assert_eq!(moment.guest_ns, 1_001_000);
    }
}
