// SPDX-License-Identifier: MIT OR Apache-2.0

//! A value that belongs to one generation.

mod shared;

use std::cell::{self, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use sysgenid_core::Generation;
use thread_local::ThreadLocal;

use crate::guarded::shared::Shared;
use crate::probe::{Probe, Stamp};

/// A value that belongs to one generation of the machine, and is rebuilt before its first use in a new one.
///
/// It needs no thread, no event loop and no permission to acknowledge: each [`get`](Self::get) looks at the probe.
/// Where nothing has changed that is all it does, and threads do not disturb each other. Where the machine was
/// restored, the first caller rebuilds and the others wait for it.
///
/// The value is made at the first use, so a `Guarded` is cheap to make and fits into a
/// [`LazyLock`](std::sync::LazyLock).
///
/// # What is kept
///
/// Each thread keeps the value that it used last, for speed. So an old value is dropped when every thread that had
/// it has called again, or when the `Guarded` is dropped: an idle thread of a pool keeps it for as long as it is idle.
/// It is never *returned* again after a change. Whoever must see to it that old keys are wiped uses
/// [`get_owned`](Guarded::get_owned) alone, which keeps nothing for a thread.
///
/// # In asynchronous programs
///
/// A [`Ref`] cannot be kept across an `await`; an [`Owned`] can. Where the value must be rebuilt, `get` blocks the
/// thread for as long as that takes, and for up to a second more on a machine with a vmclock device
/// ([`Probe::stamp_for_rebuild`]). That happens once a restore.
///
/// # Example
///
/// ```
/// use std::sync::LazyLock;
/// use sysgenid::{Guarded, Probe};
///
/// # fn draw_key() -> [u8; 32] { [4; 32] }
/// static KEY: LazyLock<Guarded<[u8; 32]>> = LazyLock::new(|| {
///     let probe = Probe::open_or_never().expect("the node is there and cannot be used");
///     Guarded::new(probe, |_generation| draw_key())
/// });
///
/// fn sign(message: &[u8]) -> u8 {
///     let key = KEY.get();
///     key[0] ^ message.len() as u8
/// }
/// # sign(b"hello");
/// ```
pub struct Guarded<T: Send + Sync, E = Infallible> {
    shared: Shared<T, E, Probe>,
    /// The value that each thread used last.
    cache: ThreadLocal<RefCell<Option<Cached<T>>>>,
}

struct Cached<T> {
    stamp: Stamp,
    value: Arc<T>,
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self {
            stamp: self.stamp,
            value: Arc::clone(&self.value),
        }
    }
}

impl<T: Send + Sync> Guarded<T> {
    /// A value that `rebuild` makes for each generation, which it is told.
    ///
    /// `rebuild` must not use this value itself: it would wait for itself for ever. If the machine is restored while
    /// it runs, what it made may be made of old randomness, and it is called again.
    pub fn new(probe: Probe, rebuild: impl Fn(Generation) -> T + Send + Sync + 'static) -> Self {
        Self::fallible(probe, move |generation| Ok(rebuild(generation)))
    }

    /// The value of the current generation.
    pub fn get(&self) -> Ref<'_, T> {
        match self.try_get() {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    /// The same to keep for longer, in another thread or across an `await`. It does not change any more, so one that is
    /// kept is to be checked by [`Owned::is_current`] before use.
    pub fn get_owned(&self) -> Owned<T> {
        match self.try_get_owned() {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }
}

impl<T: Send + Sync, E> Guarded<T, E> {
    /// A value that `rebuild` may fail to make. See [`new`](Guarded::new).
    pub fn fallible(
        probe: Probe,
        rebuild: impl Fn(Generation) -> Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Shared::new(probe, rebuild),
            cache: ThreadLocal::new(),
        }
    }

    /// The value of the current generation.
    ///
    /// # Errors
    ///
    /// What `rebuild` returns. The old value is gone then, and the next call tries again.
    #[inline]
    pub fn try_get(&self) -> Result<Ref<'_, T>, E> {
        let own = self.cache.get().and_then(|slot| slot.try_borrow().ok());
        match own.and_then(|own| cell::Ref::filter_map(own, |own| self.current(own)).ok()) {
            Some(cached) => Ok(Ref {
                value: Value::Own(cached),
                probe: self.probe(),
            }),
            None => self.fetch(),
        }
    }

    /// As [`get_owned`](Guarded::get_owned).
    ///
    /// # Errors
    ///
    /// As [`try_get`](Self::try_get).
    pub fn try_get_owned(&self) -> Result<Owned<T>, E> {
        let (stamp, value) = self.shared.current()?;
        Ok(Owned {
            cached: Cached { stamp, value },
            probe: self.probe().clone(),
        })
    }

    /// The probe that is asked.
    pub fn probe(&self) -> &Probe {
        self.shared.source()
    }

    /// What a thread has, if it is of the current generation.
    #[inline]
    fn current<'a>(&self, own: &'a Option<Cached<T>>) -> Option<&'a Cached<T>> {
        own.as_ref()
            .filter(|own| !self.probe().has_changed(&own.stamp))
    }

    /// Gets the value that all threads share, has it rebuilt if it must be, and keeps it for this thread.
    #[cold]
    fn fetch(&self) -> Result<Ref<'_, T>, E> {
        let (stamp, value) = self.shared.current()?;
        let slot = self.cache.get_or_default();
        // The thread may be using an older value right now, further up on its stack.
        if let Ok(mut own) = slot.try_borrow_mut() {
            *own = Some(Cached {
                stamp,
                value: Arc::clone(&value),
            });
        }
        Ok(Ref {
            value: Value::Shared(Cached { stamp, value }),
            probe: self.probe(),
        })
    }
}

impl<T: Send + Sync, E> fmt::Debug for Guarded<T, E> {
    /// Without the value, which may be a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Guarded")
            .field("probe", self.shared.source())
            .finish_non_exhaustive()
    }
}

/// The value of a [`Guarded`], for as long as this is kept.
pub struct Ref<'a, T> {
    value: Value<'a, T>,
    probe: &'a Probe,
}

enum Value<'a, T> {
    /// What the thread keeps.
    Own(cell::Ref<'a, Cached<T>>),
    /// A reference of its own to what all threads share.
    Shared(Cached<T>),
}

impl<T> Ref<'_, T> {
    /// Whether the machine is still in the generation that the value was made for.
    ///
    /// Ask *after* use where what was made of the value must not leave a clone: a restore can come between the
    /// [`get`](Guarded::get) and the use.
    #[inline]
    pub fn is_current(&self) -> bool {
        !self.probe.has_changed(&self.cached().stamp)
    }

    /// The generation that the value was made for.
    pub fn generation(&self) -> Generation {
        self.cached().stamp.generation()
    }

    /// What the probe saw when the value was made.
    pub fn stamp(&self) -> Stamp {
        self.cached().stamp
    }

    #[inline]
    fn cached(&self) -> &Cached<T> {
        match &self.value {
            Value::Own(cached) => cached,
            Value::Shared(cached) => cached,
        }
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.cached().value
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

/// The value of a [`Guarded`], to be kept for as long as one likes.
pub struct Owned<T> {
    cached: Cached<T>,
    probe: Probe,
}

impl<T> Owned<T> {
    /// Whether the machine is still in the generation that the value was made for; see [`Ref::is_current`].
    #[inline]
    pub fn is_current(&self) -> bool {
        !self.probe.has_changed(&self.cached.stamp)
    }

    /// The generation that the value was made for.
    pub fn generation(&self) -> Generation {
        self.cached.stamp.generation()
    }

    /// What the probe saw when the value was made.
    pub fn stamp(&self) -> Stamp {
        self.cached.stamp
    }
}

impl<T> Clone for Owned<T> {
    fn clone(&self) -> Self {
        Self {
            cached: self.cached.clone(),
            probe: self.probe.clone(),
        }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.cached.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Owned<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::testing::SimulatedMachine;

    /// A value that counts how often it was made.
    fn counted(machine: &SimulatedMachine) -> (Guarded<u32>, Arc<AtomicU32>) {
        let made = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&made);
        let guarded = Guarded::new(machine.probe(), move |_| {
            counter.fetch_add(1, Ordering::Relaxed) + 1
        });
        (guarded, made)
    }

    #[test]
    fn a_value_is_made_once_a_generation_and_not_before_it_is_used() {
        let machine = SimulatedMachine::new();
        let (guarded, made) = counted(&machine);
        assert_eq!(made.load(Ordering::Relaxed), 0);
        assert_eq!(
            (*guarded.get(), *guarded.get(), *guarded.get_owned()),
            (1, 1, 1)
        );
        machine.restore();
        machine.restore();
        assert_eq!(
            (*guarded.get(), *guarded.get(), *guarded.get_owned()),
            (2, 2, 2)
        );
    }

    #[test]
    fn a_value_that_is_in_use_is_not_pulled_away_and_says_that_it_is_outdated() {
        let machine = SimulatedMachine::new();
        let (guarded, _) = counted(&machine);
        drop(guarded.get());
        let old = guarded.get();
        assert!(old.is_current());
        machine.restore();
        let (new, owned) = (guarded.get(), guarded.get_owned());
        assert_eq!((*old, *new, *owned), (1, 2, 2));
        assert!(!old.is_current() && new.is_current() && owned.is_current());
        assert_eq!(new.stamp(), owned.stamp());
        let kept = std::thread::spawn(move || owned).join().unwrap();
        assert_eq!((*kept, kept.generation().get()), (2, 1));
        assert_eq!((old.generation().get(), new.generation().get()), (0, 1));
        drop((old, new));
        assert_eq!(*guarded.get(), 2);
    }

    #[test]
    fn a_rebuild_that_fails_leaves_no_stale_value_behind_and_is_tried_again() {
        let machine = SimulatedMachine::new();
        let value = Arc::new(());
        let kept = Arc::clone(&value);
        let attempts = AtomicU32::new(0);
        let guarded = Guarded::fallible(machine.probe(), move |_| {
            match attempts.fetch_add(1, Ordering::Relaxed) {
                1 => Err("no randomness"),
                _ => Ok(Arc::clone(&kept)),
            }
        });
        let guarded = Arc::new(guarded);
        // In a thread that ends, so that nothing is kept for it.
        let other = Arc::clone(&guarded);
        std::thread::spawn(move || drop(other.try_get_owned().unwrap()))
            .join()
            .unwrap();
        assert_eq!(Arc::strong_count(&value), 3);
        machine.restore();
        assert_eq!(guarded.try_get().unwrap_err(), "no randomness");
        assert_eq!(Arc::strong_count(&value), 2, "the old value is still there");
        assert!(guarded.try_get().is_ok());
    }

    #[test]
    fn a_rebuild_that_panics_leaves_no_stale_value_behind() {
        let machine = SimulatedMachine::new();
        let calls = AtomicU32::new(0);
        let guarded = Guarded::new(machine.probe(), move |_| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            assert_ne!(call, 1, "the second call fails");
            call
        });
        assert_eq!(*guarded.get(), 0);
        machine.restore();
        let get = std::panic::AssertUnwindSafe(|| *guarded.get());
        assert!(std::panic::catch_unwind(get).is_err());
        assert_eq!(*guarded.get(), 2);
    }

    #[test]
    fn what_a_restore_in_the_middle_of_a_rebuild_has_spoilt_is_never_seen() {
        let machine = Arc::new(SimulatedMachine::new());
        let restored = Arc::clone(&machine);
        let guarded = Guarded::new(machine.probe(), move |generation| {
            if generation.get() < 3 {
                restored.restore();
            }
            generation.get()
        });
        assert_eq!(*guarded.get(), 3);
    }

    #[test]
    fn concurrent_callers_rebuild_once() {
        const THREADS: usize = 8;
        const ROUNDS: u32 = 50;
        let machine = SimulatedMachine::new();
        let (guarded, made) = counted(&machine);
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (machine, guarded, barrier) = (&machine, &guarded, &barrier);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        barrier.wait();
                        assert_eq!(*guarded.get(), round);
                        barrier.wait();
                        if thread == 0 {
                            machine.restore();
                        }
                    }
                });
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), ROUNDS);
    }

    #[test]
    fn nothing_of_the_value_is_printed() {
        let machine = SimulatedMachine::new();
        let guarded = Guarded::new(machine.probe(), |_| "secret");
        drop(guarded.get());
        assert!(!format!("{guarded:?}").contains("secret"));
    }
}
