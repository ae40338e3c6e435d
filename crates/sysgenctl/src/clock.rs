// SPDX-License-Identifier: MIT OR Apache-2.0

//! Times, as the kernel counts them and as people read them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, ZonedDateTime};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_BOOTTIME`, as the initial time namespace has it.
pub(crate) fn boottime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let here = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    let offsets = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    u64::try_from(here - offset_of_boottime(&offsets)).unwrap_or(0)
}

/// How far the clock of this time namespace is ahead of the initial one's.
fn offset_of_boottime(offsets: &str) -> i128 {
    offsets
        .lines()
        .find_map(|line| {
            let mut words = line.split_whitespace();
            // Older kernels have the number of the clock.
            if !matches!(words.next()?, "boottime" | "7") {
                return None;
            }
            let seconds: i128 = words.next()?.parse().ok()?;
            let nanoseconds: i128 = words.next()?.parse().ok()?;
            Some(seconds * 1_000_000_000 + nanoseconds)
        })
        .unwrap_or(0)
}

/// How long ago a moment was, at another; both of [`boottime`].
pub(crate) fn age(moment: u64, now: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(moment))
}

/// The time of day of so long ago, for programs.
pub(crate) fn timestamp(age: Duration) -> String {
    let moment = moment(age);
    format!("{moment:.3}")
}

/// The same for people, where they are.
pub(crate) fn local_time(age: Duration) -> String {
    let zoned = ZonedDateTime::new(moment(age), jiff::tz::TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

fn moment(age: Duration) -> Timestamp {
    let now = Timestamp::now();
    SignedDuration::try_from(age)
        .ok()
        .and_then(|age| now.checked_sub(age).ok())
        .unwrap_or(now)
}

/// A length of time in its two largest units.
pub(crate) fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_found_by_name_and_by_number() {
        assert_eq!(offset_of_boottime(""), 0);
        let named = "monotonic           5         0\nboottime          -10         5\n";
        assert_eq!(offset_of_boottime(named), -9_999_999_995);
        assert_eq!(offset_of_boottime("1 5 0\n7 2 0\n"), 2_000_000_000);
    }

    #[test]
    fn a_length_has_at_most_two_units() {
        let texts = [
            (0.25, "0.2 s"),
            (59.0, "59.0 s"),
            (61.0, "1 min 1 s"),
            (7320.0, "2 h 2 min"),
            (180_000.0, "2 d 2 h"),
        ];
        for (seconds, text) in texts {
            assert_eq!(length(Duration::from_secs_f64(seconds)), text);
        }
    }
}
