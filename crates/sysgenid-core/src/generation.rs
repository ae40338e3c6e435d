// SPDX-License-Identifier: MIT OR Apache-2.0

//! The number that programs see, and the identity of a change behind it.

use core::fmt;

/// The counter that programs see: it starts at 0 and changes at every restore.
///
/// It may jump (a software trigger names a minimum) and wraps from `u32::MAX` to 1, because 0 always
/// means "no change since the start". Two equal generations are therefore not proof that nothing
/// happened between them; [`Epoch`] is what the state machine compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Generation(u32);

impl Generation {
    /// The generation of a machine that has not changed since the start.
    pub const START: Self = Self(0);

    /// Wraps the raw number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw number, as programs see it.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The generation as a node exchanges it: 4 bytes in the machine's own order.
    pub const fn to_ne_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// Reads what [`to_ne_bytes`](Self::to_ne_bytes) wrote.
    pub const fn from_ne_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The one after this: never 0, and never equal to `self`.
    pub const fn next(self) -> Self {
        match self.0.checked_add(1) {
            Some(next) => Self(next),
            None => Self(1),
        }
    }

    /// The one after this that is at least `minimum`: never 0, and never equal to `self`.
    ///
    /// Across the wrap the larger of `minimum` and the wrapped successor is taken. Only where the
    /// minimum is `u32::MAX` and that is already the current generation can it not be honoured; then
    /// the counter wraps.
    pub fn next_at_least(self, minimum: Self) -> Self {
        let next = self.next();
        if minimum.0 > next.0 && minimum != self {
            minimum
        } else {
            next
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a generation change: it counts changes and never wraps or jumps.
///
/// One change a nanosecond would take 584 years to exhaust it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch before the first change.
    pub const START: Self = Self(0);

    /// The epoch after this many changes, for a front end that kept it in storage.
    pub const fn new(changes: u64) -> Self {
        Self(changes)
    }

    /// The number of changes since the start.
    pub const fn get(self) -> u64 {
        self.0
    }

    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_never_reached_again() {
        assert_eq!(Generation::new(u32::MAX).next(), Generation::new(1));
        assert_eq!(Generation::START.next(), Generation::new(1));
    }

    #[test]
    fn a_minimum_is_honoured_also_across_the_wrap() {
        let at = |current, minimum| {
            Generation::new(current)
                .next_at_least(Generation::new(minimum))
                .get()
        };
        assert_eq!(at(5, 0), 6);
        assert_eq!(at(5, 6), 6);
        assert_eq!(at(5, 100), 100);
        assert_eq!(at(5, u32::MAX), u32::MAX);
        assert_eq!(at(u32::MAX, 0), 1);
        assert_eq!(at(u32::MAX, 7), 7);
        assert_eq!(at(u32::MAX - 1, u32::MAX), u32::MAX);
    }

    #[test]
    fn a_bump_always_changes_the_number() {
        for current in [0, 1, 7, u32::MAX - 1, u32::MAX] {
            for minimum in [0, 1, 6, 7, 8, u32::MAX - 1, u32::MAX] {
                let current = Generation::new(current);
                let next = current.next_at_least(Generation::new(minimum));
                assert_ne!(next, current);
                assert_ne!(next, Generation::START);
            }
        }
    }
}
