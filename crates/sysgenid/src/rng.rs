// SPDX-License-Identifier: MIT OR Apache-2.0

//! A generator that no two clones draw the same from.

use std::convert::Infallible;
use std::fmt;
use std::io;

use rand::rand_core::{TryCryptoRng, TryRng};
use rand::{CryptoRng, Rng, SeedableRng};

use crate::probe::{Probe, Stamp};
use crate::random::fill_random;

/// Any seedable generator of [`rand`], seeded by the kernel ([`fill_random`]), and again before the first draw of a new
/// generation.
///
/// What such a generator has buffered is part of every snapshot, so each draw looks at the probe: before it where it is
/// a number, after it where bytes are filled, which are filled anew if need be. It costs three loads.
///
/// A forked child draws something else than its parent: a fork is a change.
///
/// # Example
///
/// ```
/// use rand::RngExt;
/// use rand::rngs::StdRng;
/// use sysgenid::{Probe, SnapSafeRng};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let probe = sysgenid::testing::SimulatedMachine::new().probe();
/// // let probe = Probe::open_or_never()?;
/// let mut rng = SnapSafeRng::<StdRng>::new(probe)?;
/// let session: u128 = rng.random();
/// # let _ = session;
/// # Ok(())
/// # }
/// ```
pub struct SnapSafeRng<R> {
    generator: R,
    probe: Probe,
    stamp: Stamp,
}

/// The operating system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no randomness: {0}")]
pub struct ReseedError(io::Error);

impl<R: SeedableRng> SnapSafeRng<R> {
    /// A generator that asks this probe.
    ///
    /// # Errors
    ///
    /// If the operating system gives no randomness.
    pub fn new(probe: Probe) -> Result<Self, ReseedError> {
        let (stamp, generator) = seed(&probe, probe.stamp())?;
        Ok(Self {
            generator,
            probe,
            stamp,
        })
    }

    /// Seeds it anew now, if the machine was restored since it was seeded last. Each draw does so; but this tells if
    /// the operating system gave no randomness, where a draw has to panic.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new). The old seed is not used any more then.
    #[inline]
    pub fn refresh(&mut self) -> Result<(), ReseedError> {
        if self.probe.has_changed(&self.stamp) {
            self.reseed()?;
        }
        Ok(())
    }

    /// Whether the machine is still in the generation that it was seeded for: that of all that it has given, if nothing was
    /// drawn since. Ask after use where what was drawn must not leave a clone.
    #[inline]
    pub fn is_current(&self) -> bool {
        !self.probe.has_changed(&self.stamp)
    }

    #[cold]
    fn reseed(&mut self) -> Result<(), ReseedError> {
        (self.stamp, self.generator) = seed(&self.probe, self.stamp)?;
        Ok(())
    }

    /// The generator, seeded for this generation.
    ///
    /// # Panics
    ///
    /// If the machine was restored and the operating system gives no randomness: anything else would be to draw the
    /// same as another clone.
    #[inline]
    fn current(&mut self) -> &mut R {
        if self.probe.has_changed(&self.stamp) {
            self.reseed_or_panic();
        }
        &mut self.generator
    }

    #[cold]
    #[inline(never)]
    fn reseed_or_panic(&mut self) {
        if let Err(error) = self.reseed() {
            panic!("{error}");
        }
    }
}

/// The kernel's generator, as `rand` wants it.
struct Kernel;

impl TryRng for Kernel {
    type Error = io::Error;

    fn try_next_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        fill_random(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        fill_random(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        fill_random(bytes)
    }
}

/// A generator that was seeded after `since`, wholly in one generation.
fn seed<R: SeedableRng>(probe: &Probe, since: Stamp) -> Result<(Stamp, R), ReseedError> {
    let mut stamp = since;
    loop {
        stamp = probe.stamp_for_rebuild(&stamp);
        let generator = R::try_from_rng(&mut Kernel).map_err(ReseedError)?;
        if !probe.has_changed(&stamp) {
            return Ok((stamp, generator));
        }
    }
}

impl<R: SeedableRng + Rng> TryRng for SnapSafeRng<R> {
    type Error = Infallible;

    #[inline]
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.current().next_u32())
    }

    #[inline]
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.current().next_u64())
    }

    #[inline]
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        loop {
            self.generator.fill_bytes(bytes);
            // What was filled before a restore, or across one, is the same in every clone.
            if self.is_current() {
                return Ok(());
            }
            // If there is no new seed, nobody is to find them.
            bytes.fill(0);
            self.reseed_or_panic();
        }
    }
}

impl<R: SeedableRng + CryptoRng> TryCryptoRng for SnapSafeRng<R> {}

impl<R> fmt::Debug for SnapSafeRng<R> {
    /// Without the state, which is a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SnapSafeRng")
            .field("probe", &self.probe)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use rand::rngs::StdRng;

    use super::*;
    use crate::testing::SimulatedMachine;

    /// A generator that repeats its seed, so that each seeding can be seen.
    struct Seed(u64);

    impl SeedableRng for Seed {
        type Seed = [u8; 8];

        fn from_seed(seed: [u8; 8]) -> Self {
            Self(u64::from_ne_bytes(seed))
        }
    }

    impl TryRng for Seed {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unimplemented!()
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            Ok(self.0)
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            bytes.copy_from_slice(&self.0.to_ne_bytes()[..bytes.len()]);
            Ok(())
        }
    }

    #[test]
    fn it_is_seeded_again_before_the_first_draw_of_a_generation_and_only_then() {
        let machine = SimulatedMachine::new();
        let mut rng = SnapSafeRng::<Seed>::new(machine.probe()).unwrap();
        let first = rng.next_u64();
        assert_eq!(rng.next_u64(), first);
        machine.restore();
        let second = rng.next_u64();
        assert_ne!(second, first);
        assert_eq!(rng.next_u64(), second);
        machine.restore();
        let mut bytes = [0; 8];
        rng.fill_bytes(&mut bytes);
        assert_ne!(u64::from_ne_bytes(bytes), second);
        machine.restore();
        rng.refresh().unwrap();
        assert_ne!(rng.next_u64(), u64::from_ne_bytes(bytes));
    }

    #[test]
    fn what_was_buffered_before_a_restore_is_not_drawn_after_it() {
        let machine = SimulatedMachine::new();
        let mut rng = SnapSafeRng::<StdRng>::new(machine.probe()).unwrap();
        // A block generator: these are in its buffer together.
        rng.generator = StdRng::from_seed([4; 32]);
        let mut other_clone = StdRng::from_seed([4; 32]);
        let first: u32 = rng.random();
        assert_eq!(first, other_clone.next_u32());
        let expected: [u32; 4] = std::array::from_fn(|_| other_clone.next_u32());
        machine.restore();
        let drawn: [u32; 4] = std::array::from_fn(|_| rng.random());
        assert_ne!(drawn, expected);
    }

    #[test]
    fn it_is_as_fit_for_cryptography_as_what_it_wraps() {
        fn fit(_: &impl CryptoRng) {}
        fit(&SnapSafeRng::<StdRng>::new(Probe::never()).unwrap());
    }
}
