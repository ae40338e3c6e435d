// SPDX-License-Identifier: MIT OR Apache-2.0

//! Identifiers that no two clones hand out.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::Rng;
use rand::rngs::StdRng;
use uuid::{Builder, Uuid};

use crate::probe::Probe;
use crate::process::PerProcess;
use crate::rng::{ReseedError, SnapSafeRng};

/// How many bits of a v7 identifier count those of one millisecond (`rand_a` of RFC 9562).
const COUNTER_BITS: u32 = 12;

/// Makes v4 and v7 identifiers ([RFC 9562](https://www.rfc-editor.org/rfc/rfc9562)) from a [`SnapSafeRng`], so that
/// two clones of one snapshot do not make the same.
///
/// It is `Sync`: one serves all threads, under a lock. A forked child makes other identifiers than its parent.
///
/// # Example
///
/// ```
/// use sysgenid::{Probe, UuidGenerator};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let probe = sysgenid::testing::SimulatedMachine::new().probe();
/// // let probe = Probe::open_or_never()?;
/// let ids = UuidGenerator::new(probe)?;
/// let (first, second) = (ids.v7(), ids.v7());
/// assert!(first < second);
/// assert_ne!(ids.v4(), ids.v4());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct UuidGenerator {
    probe: Probe,
    state: PerProcess<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    rng: SnapSafeRng<StdRng>,
    /// The time of the last v7 identifier, in milliseconds since 1970.
    milliseconds: u64,
    /// Its number within that millisecond.
    counter: u16,
}

impl UuidGenerator {
    /// A generator that asks this probe.
    ///
    /// # Errors
    ///
    /// If the operating system gives no randomness.
    pub fn new(probe: Probe) -> Result<Self, ReseedError> {
        let state = State::new(&probe)?;
        Ok(Self {
            probe,
            state: PerProcess::new(Mutex::new(state)),
        })
    }

    /// A random identifier.
    ///
    /// # Panics
    ///
    /// If the machine was restored and the operating system gives no randomness.
    pub fn v4(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.with_state(|state| state.rng.fill_bytes(&mut bytes));
        Builder::from_random_bytes(bytes).into_uuid()
    }

    /// An identifier that sorts by time: after each one before it of this generator, and by the millisecond among
    /// those of others.
    ///
    /// It has a counter that begins at a random number in each millisecond, and 62 random bits (RFC 9562, section 6.2,
    /// method 1).
    ///
    /// # Panics
    ///
    /// As [`v4`](Self::v4).
    pub fn v7(&self) -> Uuid {
        let mut random = [0; 10];
        let (milliseconds, counter) = self.with_state(|state| {
            let tick = state.tick(now());
            state.rng.fill_bytes(&mut random);
            tick
        });
        random[..2].copy_from_slice(&counter.to_be_bytes());
        Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid()
    }

    fn with_state<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let new = || match State::new(&self.probe) {
            Ok(state) => Mutex::new(state),
            Err(error) => panic!("{error}"),
        };
        self.state.with(new, |state| {
            // A draw that panics changes nothing.
            work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }
}

impl State {
    fn new(probe: &Probe) -> Result<Self, ReseedError> {
        Ok(Self {
            rng: SnapSafeRng::new(probe.clone())?,
            milliseconds: 0,
            counter: 0,
        })
    }

    /// The time and the number of the next identifier: greater than the last one's, also where the clock has gone
    /// back.
    fn tick(&mut self, now: u64) -> (u64, u16) {
        if now > self.milliseconds {
            self.milliseconds = now;
            self.counter = self.first_counter();
        } else if self.counter + 1 < 1 << COUNTER_BITS {
            self.counter += 1;
        } else {
            self.milliseconds += 1;
            self.counter = self.first_counter();
        }
        (self.milliseconds, self.counter)
    }

    /// A random number that leaves half of the numbers for counting.
    fn first_counter(&mut self) -> u16 {
        let mut bytes = [0; 2];
        self.rng.fill_bytes(&mut bytes);
        u16::from_ne_bytes(bytes) >> (16 - (COUNTER_BITS - 1))
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SimulatedMachine;

    fn generator() -> (SimulatedMachine, UuidGenerator) {
        let machine = SimulatedMachine::new();
        let generator = UuidGenerator::new(machine.probe()).unwrap();
        (machine, generator)
    }

    #[test]
    fn versions_and_variant_are_right() {
        let (_machine, generator) = generator();
        for (id, version) in [(generator.v4(), 4), (generator.v7(), 7)] {
            assert_eq!(id.get_version_num(), version);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        }
    }

    #[test]
    fn v7_has_the_time_and_grows_also_within_a_millisecond() {
        let (machine, generator) = generator();
        let before = now();
        let mut last = generator.v7();
        let milliseconds = u64::try_from(last.as_u128() >> 80).unwrap();
        assert!((before..=now()).contains(&milliseconds));
        for round in 0..100_000 {
            if round % 1000 == 0 {
                machine.restore();
            }
            let next = generator.v7();
            assert!(next > last);
            last = next;
        }
    }

    #[test]
    fn v7_grows_also_if_the_clock_goes_back_and_when_a_millisecond_is_full() {
        let mut state = State::new(&Probe::never()).unwrap();
        let mut last = state.tick(1000);
        for now in [999, 1000].into_iter().cycle().take(20_000) {
            let next = state.tick(now);
            assert!(next > last && next.1 < 1 << COUNTER_BITS);
            last = next;
        }
    }
}
