// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a forked child must not share with its parent: a lock that another thread of the parent held at the fork is never
//! released in the child.

pub(crate) use imp::PerProcess;

#[cfg(not(loom))]
mod imp {
    use std::fmt;
    use std::sync::Arc;

    use arc_swap::ArcSwap;

    use crate::sys::epoch::Epoch;

    /// A value of which each process has one of its own.
    pub(crate) struct PerProcess<T>(ArcSwap<Owned<T>>);

    struct Owned<T> {
        process: u64,
        value: T,
    }

    impl<T> PerProcess<T> {
        /// The value of this process.
        pub(crate) fn new(value: T) -> Self {
            Self(ArcSwap::from_pointee(Owned {
                process: Epoch::process(),
                value,
            }))
        }

        /// Does something with the value of this process, which is made anew in a child that has none yet.
        pub(crate) fn with<R>(&self, make: impl Fn() -> T, work: impl FnOnce(&T) -> R) -> R {
            loop {
                let current = self.0.load();
                let process = Epoch::process();
                if current.process == process {
                    return work(&current.value);
                }
                // The parent's is never dropped here: one of its threads may have been changing it.
                std::mem::forget(Arc::clone(&current));
                let own = Owned {
                    process,
                    value: make(),
                };
                self.0.compare_and_swap(&current, Arc::new(own));
            }
        }
    }

    impl<T> fmt::Debug for PerProcess<T> {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.debug_struct("PerProcess").finish_non_exhaustive()
        }
    }
}

#[cfg(loom)]
mod imp {
    /// A value of the one process that there is.
    pub(crate) struct PerProcess<T>(T);

    impl<T> PerProcess<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(value)
        }

        pub(crate) fn with<R>(&self, _make: impl Fn() -> T, work: impl FnOnce(&T) -> R) -> R {
            work(&self.0)
        }
    }
}
