// SPDX-License-Identifier: MIT OR Apache-2.0

//! What all threads share of a guarded value: who rebuilds, who waits, and what is left when it fails.
//!
//! The rest, in the module above, is private to each thread. So this is what loom explores.

#[cfg(not(loom))]
use std::sync::Mutex;
use std::sync::{Arc, PoisonError};

#[cfg(loom)]
use loom::sync::Mutex;
use sysgenid_core::Generation;

use crate::probe::{Probe, Stamp};
use crate::process::PerProcess;

/// Where to ask whether the machine was restored. There is one, [`Probe`]; tests have another.
pub(crate) trait Source {
    /// What was seen at some moment.
    type Stamp: Copy;

    /// What there is to see now.
    fn stamp(&self) -> Self::Stamp;

    /// The stamp under which to make a new value, now that `since` is over.
    fn stamp_for_rebuild(&self, since: &Self::Stamp) -> Self::Stamp;

    /// Whether nothing was restored since.
    fn is_current(&self, stamp: &Self::Stamp) -> bool;

    /// The generation at that moment.
    fn generation(stamp: &Self::Stamp) -> Generation;
}

impl Source for Probe {
    type Stamp = Stamp;

    fn stamp(&self) -> Stamp {
        self.stamp()
    }

    fn stamp_for_rebuild(&self, since: &Stamp) -> Stamp {
        self.stamp_for_rebuild(since)
    }

    fn is_current(&self, stamp: &Stamp) -> bool {
        !self.has_changed(stamp)
    }

    fn generation(stamp: &Stamp) -> Generation {
        stamp.generation()
    }
}

type Rebuild<T, E> = Box<dyn Fn(Generation) -> Result<T, E> + Send + Sync>;

/// A value, who makes it, and the stamp that it belongs to.
pub(super) struct Shared<T, E, S: Source> {
    source: S,
    rebuild: Rebuild<T, E>,
    state: PerProcess<Mutex<State<T, S::Stamp>>>,
}

struct State<T, Stamp> {
    /// The last stamp under which a value was to be made.
    stamp: Stamp,
    /// What was made under it. None before the first, and after a failure.
    made: Option<Arc<Made<T, Stamp>>>,
}

/// A value, and the stamp under which it was made.
pub(super) struct Made<T, Stamp> {
    pub(super) stamp: Stamp,
    pub(super) value: T,
}

impl<T, E, S: Source> Shared<T, E, S> {
    pub(super) fn new(
        source: S,
        rebuild: impl Fn(Generation) -> Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        let stamp = source.stamp();
        Self {
            source,
            rebuild: Box::new(rebuild),
            state: PerProcess::new(Mutex::new(State { stamp, made: None })),
        }
    }

    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// The value of the current generation. One caller rebuilds it if need be, and the others wait. A forked child has
    /// none at first.
    pub(super) fn current(&self) -> Result<Arc<Made<T, S::Stamp>>, E> {
        let nothing = || {
            Mutex::new(State {
                stamp: self.source.stamp(),
                made: None,
            })
        };
        self.state.with(nothing, |state| self.current_of(state))
    }

    fn current_of(&self, state: &Mutex<State<T, S::Stamp>>) -> Result<Arc<Made<T, S::Stamp>>, E> {
        // Dropped after the lock is released, for what they do then is their own affair.
        let _stale;
        let mut spoilt = Vec::new();
        // Whoever panicked while it was rebuilt has left no value.
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &state.made {
            if self.source.is_current(&made.stamp) {
                return Ok(Arc::clone(made));
            }
        }
        // Gone, whatever happens.
        _stale = state.made.take();
        loop {
            let stamp = self.source.stamp_for_rebuild(&state.stamp);
            state.stamp = stamp;
            let value = (self.rebuild)(S::generation(&stamp))?;
            // If the machine was restored meanwhile, both clones may have made the same.
            if !self.source.is_current(&stamp) {
                spoilt.push(value);
                continue;
            }
            let made = Arc::new(Made { stamp, value });
            state.made = Some(Arc::clone(&made));
            return Ok(made);
        }
    }
}

#[cfg(all(test, loom))]
mod exploration {
    //! `RUSTFLAGS="--cfg loom" cargo test --package sysgenid --lib --release`

    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread;

    use super::*;

    /// A page, as loom sees it.
    struct Page(Arc<AtomicU32>);

    impl Source for Page {
        type Stamp = u32;

        fn stamp(&self) -> u32 {
            self.0.load(Ordering::Acquire)
        }

        fn stamp_for_rebuild(&self, _since: &u32) -> u32 {
            self.stamp()
        }

        fn is_current(&self, stamp: &u32) -> bool {
            self.0.load(Ordering::Relaxed) == *stamp
        }

        fn generation(stamp: &u32) -> Generation {
            Generation::new(*stamp)
        }
    }

    struct Machine {
        page: Arc<AtomicU32>,
        /// The kernel's generator: it has been reseeded before the page changes.
        entropy: Arc<AtomicU32>,
        made: Arc<AtomicU32>,
    }

    impl Machine {
        fn new() -> Self {
            Self {
                page: Arc::new(AtomicU32::new(0)),
                entropy: Arc::new(AtomicU32::new(0)),
                made: Arc::new(AtomicU32::new(0)),
            }
        }

        fn restore(&self) {
            let next = self.page.load(Ordering::Relaxed) + 1;
            self.entropy.store(next, Ordering::Relaxed);
            self.page.store(next, Ordering::Release);
        }

        /// A value that is what it drew from the generator. It fails where `fails` says so.
        fn value(&self, fails: fn(u32) -> bool) -> Arc<Shared<u32, u32, Page>> {
            let (entropy, made) = (Arc::clone(&self.entropy), Arc::clone(&self.made));
            Arc::new(Shared::new(Page(Arc::clone(&self.page)), move |_| {
                let call = made.fetch_add(1, Ordering::Relaxed);
                if fails(call) {
                    return Err(call);
                }
                Ok(entropy.load(Ordering::Relaxed))
            }))
        }
    }

    #[test]
    fn nobody_who_sees_the_new_generation_gets_an_old_value() {
        loom::model(|| {
            let machine = Machine::new();
            let value = machine.value(|_| false);
            let _ = value.current();
            let reader = {
                let (value, page) = (Arc::clone(&value), Arc::clone(&machine.page));
                thread::spawn(move || {
                    let seen = page.load(Ordering::Acquire);
                    let made = value.current().unwrap();
                    let (stamp, drawn) = (made.stamp, made.value);
                    assert!(stamp >= seen && drawn >= stamp, "{seen} {stamp} {drawn}");
                })
            };
            // The second may come while the first is dealt with.
            machine.restore();
            machine.restore();
            let made = value.current().unwrap();
            assert_eq!((made.stamp, made.value), (2, 2));
            reader.join().unwrap();
        });
    }

    #[test]
    fn concurrent_callers_rebuild_once() {
        loom::model(|| {
            let machine = Machine::new();
            let value = machine.value(|_| false);
            let _ = value.current();
            machine.restore();
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let value = Arc::clone(&value);
                    thread::spawn(move || assert_eq!(value.current().unwrap().value, 1))
                })
                .collect();
            assert_eq!(value.current().unwrap().value, 1);
            for other in others {
                other.join().unwrap();
            }
            assert_eq!(machine.made.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn a_failure_is_one_callers_and_the_next_rebuilds() {
        loom::model(|| {
            let machine = Machine::new();
            let value = machine.value(|call| call == 1);
            let _ = value.current();
            machine.restore();
            let other = {
                let value = Arc::clone(&value);
                thread::spawn(move || value.current().map(|made| made.value))
            };
            let mine = value.current().map(|made| made.value);
            let mut both = [mine, other.join().unwrap()];
            both.sort_unstable();
            assert_eq!(both, [Ok(1), Err(1)]);
        });
    }
}
