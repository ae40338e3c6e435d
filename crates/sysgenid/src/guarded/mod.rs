// SPDX-License-Identifier: MIT OR Apache-2.0

//! A value that belongs to one generation.

mod shared;

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::ptr;
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
/// Each thread keeps the value that it used last, for speed. So an old value is dropped when every thread that had it
/// has called again, or when the `Guarded` is dropped. An idle thread of a pool keeps it for as long as it is idle; for
/// one that has ended it is kept until a new thread that takes its place has called. It is never *returned* again after
/// a change. Whoever must see to it that old keys are wiped uses [`get_owned`](Guarded::get_owned) alone, which keeps
/// nothing for a thread.
///
/// A thread that uses the value in two places at once, one inside of the other, takes a lock for the second. In the
/// destructor of a thread local use `get_owned`: what a thread keeps may be gone by then, and `get` panics.
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
    slots: ThreadLocal<Slot<T>>,
}

/// A value of some generation.
type Made<T> = shared::Made<T, Stamp>;

/// Where a thread keeps the value that it used last. Each use takes it out and puts it back, which is less work than to
/// count the uses.
struct Slot<T>(Cell<Option<Arc<Made<T>>>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Cell::new(None))
    }
}

impl<T> Slot<T> {
    /// Keeps a value after use.
    #[inline]
    fn put_back(&self, made: Arc<Made<T>>, probe: &Probe) {
        if let Some(other) = self.0.replace(Some(made)) {
            self.keep_one(other, probe);
        }
    }

    /// One was here already, for the thread has used the value in two places at once: keeps the one that is current.
    #[cold]
    #[inline(never)]
    fn keep_one(&self, other: Arc<Made<T>>, probe: &Probe) {
        if !probe.has_changed(&other.stamp) {
            drop(self.0.replace(Some(other)));
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
            slots: ThreadLocal::new(),
        }
    }

    /// The value of the current generation.
    ///
    /// # Errors
    ///
    /// What `rebuild` returns. The old value is gone then, and the next call tries again.
    #[inline]
    pub fn try_get(&self) -> Result<Ref<'_, T>, E> {
        let slot = self.slots.get_or_default();
        let made = match slot.0.take() {
            Some(made) if !self.probe().has_changed(&made.stamp) => made,
            outdated => self.fetch(outdated)?,
        };
        Ok(Ref {
            made: Some(made),
            slot,
            slots: &self.slots,
            probe: self.probe(),
        })
    }

    /// As [`get_owned`](Guarded::get_owned).
    ///
    /// # Errors
    ///
    /// As [`try_get`](Self::try_get).
    pub fn try_get_owned(&self) -> Result<Owned<T>, E> {
        Ok(Owned {
            made: self.shared.current()?,
            probe: self.probe().clone(),
        })
    }

    /// The probe that is asked.
    pub fn probe(&self) -> &Probe {
        self.shared.source()
    }

    /// Gets the value that all threads share, and has it rebuilt if it must be.
    #[cold]
    #[inline(never)]
    fn fetch(&self, outdated: Option<Arc<Made<T>>>) -> Result<Arc<Made<T>>, E> {
        // First, so that it is gone even if no other can be made.
        drop(outdated);
        self.shared.current()
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
pub struct Ref<'a, T: Send + Sync> {
    /// Some until it is dropped.
    made: Option<Arc<Made<T>>>,
    slot: &'a Slot<T>,
    slots: &'a ThreadLocal<Slot<T>>,
    probe: &'a Probe,
}

impl<T: Send + Sync> Ref<'_, T> {
    /// Whether the machine is still in the generation that the value was made for.
    ///
    /// Ask *after* use where what was made of the value must not leave a clone: a restore can come between the
    /// [`get`](Guarded::get) and the use.
    #[inline]
    pub fn is_current(&self) -> bool {
        !self.probe.has_changed(&self.made().stamp)
    }

    /// The generation that the value was made for.
    pub fn generation(&self) -> Generation {
        self.made().stamp.generation()
    }

    /// What the probe saw when the value was made.
    pub fn stamp(&self) -> Stamp {
        self.made().stamp
    }

    #[inline]
    fn made(&self) -> &Made<T> {
        match &self.made {
            Some(made) => made,
            None => unreachable!("it is taken out at the end alone"),
        }
    }
}

impl<T: Send + Sync> Deref for Ref<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.made().value
    }
}

impl<T: Send + Sync> Drop for Ref<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            // One that is kept in a thread local may outlast what its thread has here, which is another thread's then.
            let own = self.slots.get();
            if own.is_some_and(|own| ptr::eq(own, self.slot)) {
                self.slot.put_back(made, self.probe);
            }
        }
        // There is nothing left, and the compiler sees it here: so it needs no code to drop the field, and no memory
        // for it either, which would take as long as all the rest.
        mem::forget(self.made.take());
    }
}

impl<T: fmt::Debug + Send + Sync> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

/// The value of a [`Guarded`], to be kept for as long as one likes.
pub struct Owned<T> {
    made: Arc<Made<T>>,
    probe: Probe,
}

impl<T> Owned<T> {
    /// Whether the machine is still in the generation that the value was made for; see [`Ref::is_current`].
    #[inline]
    pub fn is_current(&self) -> bool {
        !self.probe.has_changed(&self.made.stamp)
    }

    /// The generation that the value was made for.
    pub fn generation(&self) -> Generation {
        self.made.stamp.generation()
    }

    /// What the probe saw when the value was made.
    pub fn stamp(&self) -> Stamp {
        self.made.stamp
    }
}

impl<T> Clone for Owned<T> {
    fn clone(&self) -> Self {
        Self {
            made: Arc::clone(&self.made),
            probe: self.probe.clone(),
        }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.made.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Owned<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Barrier, Mutex, Weak};
    use std::time::Duration;

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
    fn a_thread_keeps_one_value_and_not_the_old_one_whichever_use_ends_first() {
        let machine = SimulatedMachine::new();
        let values = Arc::new(Mutex::new(Vec::new()));
        let made = Arc::clone(&values);
        let guarded = Guarded::new(machine.probe(), move |_| {
            let value = Arc::new(());
            made.lock().unwrap().push(Arc::downgrade(&value));
            value
        });
        let alive = || -> Vec<_> {
            let values = values.lock().unwrap();
            values
                .iter()
                .map(|value| value.strong_count() > 0)
                .collect()
        };
        let first = guarded.get();
        machine.restore();
        let second = guarded.get();
        drop(first);
        drop(second);
        assert_eq!(alive(), [false, true]);
        let second = guarded.get();
        machine.restore();
        let third = guarded.get();
        drop(third);
        drop(second);
        assert_eq!(alive(), [false, false, true]);
        // And two of one generation are the same.
        drop((guarded.get(), guarded.get()));
        assert_eq!(alive(), [false, false, true]);
        drop(guarded);
        assert_eq!(alive(), [false, false, false]);
    }

    #[test]
    fn a_use_that_outlasts_its_thread_leaves_nothing_to_another() {
        /// What a thread holds until it has ended but for this.
        struct Held {
            value: Option<Ref<'static, Arc<()>>>,
            tell_ended: Sender<()>,
            told_taken: Receiver<()>,
        }

        impl Drop for Held {
            fn drop(&mut self) {
                self.tell_ended.send(()).unwrap();
                self.told_taken.recv().unwrap();
                drop(self.value.take());
            }
        }

        thread_local! {
            static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
        }

        let machine = SimulatedMachine::new();
        let guarded = Guarded::new(machine.probe(), |_| Arc::new(()));
        let guarded: &'static Guarded<Arc<()>> = Box::leak(Box::new(guarded));
        let (tell_ended, told_ended) = channel();
        let (tell_taken, told_taken) = channel();
        let (tell_old, told_old) = channel();
        let first = std::thread::spawn(move || {
            // Before the first use, so that it ends after what the thread keeps.
            HELD.with(|held| held.replace(None));
            let value = guarded.get();
            tell_old.send(Arc::downgrade(&value)).unwrap();
            let held = Held {
                value: Some(value),
                tell_ended,
                told_taken,
            };
            HELD.with(|place| place.replace(Some(held)));
        });
        let old = told_old.recv().unwrap();
        told_ended.recv().unwrap();
        machine.restore();
        // This one takes the place of the first.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _used = guarded.get();
                tell_taken.send(()).unwrap();
                first.join().unwrap();
                assert_eq!(old.strong_count(), 0, "it was put into another's place");
            });
        });
    }

    #[test]
    fn a_value_that_a_restore_has_spoilt_may_ask_for_the_next_one_when_it_is_dropped() {
        struct Asking(Weak<Guarded<Asking>>, bool);

        impl Drop for Asking {
            fn drop(&mut self) {
                if let (true, Some(guarded)) = (self.1, self.0.upgrade()) {
                    drop(guarded.get_owned());
                }
            }
        }

        let machine = Arc::new(SimulatedMachine::new());
        let guarded = Arc::new_cyclic(|this: &Weak<Guarded<Asking>>| {
            let (this, machine) = (this.clone(), Arc::clone(&machine));
            Guarded::new(machine.probe(), move |generation| {
                let is_first = generation == Generation::START;
                if is_first {
                    machine.restore();
                }
                Asking(this.clone(), is_first)
            })
        });
        let (tell, told) = channel();
        std::thread::spawn(move || {
            drop(guarded.get_owned());
            tell.send(()).unwrap();
        });
        told.recv_timeout(Duration::from_secs(20)).unwrap();
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
