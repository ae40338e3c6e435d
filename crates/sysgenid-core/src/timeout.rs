// SPDX-License-Identifier: MIT OR Apache-2.0

//! How long a wait may take.

/// How long a wait may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timeout {
    /// Until every tracked watcher has acknowledged, however long that takes.
    Never,
    /// At most this long.
    Milliseconds(u64),
}

impl Timeout {
    /// Reads the argument of a wait ioctl: milliseconds, 0 is for ever.
    pub const fn from_argument(argument: u64) -> Self {
        match argument {
            0 => Timeout::Never,
            milliseconds => Timeout::Milliseconds(milliseconds),
        }
    }

    /// The time-out in nanoseconds, `None` for ever. It saturates at `i64::MAX` (292 years), the
    /// longest that a kernel time (`ktime_t`) holds.
    pub fn nanoseconds(self) -> Option<i64> {
        match self {
            Timeout::Never => None,
            Timeout::Milliseconds(milliseconds) => {
                let nanoseconds = milliseconds.saturating_mul(1_000_000);
                Some(i64::try_from(nanoseconds).unwrap_or(i64::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_for_ever() {
        assert_eq!(Timeout::from_argument(0).nanoseconds(), None);
    }

    #[test]
    fn a_huge_time_out_saturates_instead_of_firing_at_once() {
        for argument in [u64::MAX, u64::MAX / 1_000_000 + 1, i64::MAX.unsigned_abs()] {
            assert_eq!(
                Timeout::from_argument(argument).nanoseconds(),
                Some(i64::MAX)
            );
        }
        assert_eq!(Timeout::from_argument(200).nanoseconds(), Some(200_000_000));
    }
}
