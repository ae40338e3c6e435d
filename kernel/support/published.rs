// SPDX-License-Identifier: GPL-2.0-only

//! A static through which functions that a module exports reach its state.

use core::ptr;
use kernel::sync::{
    atomic::{
        ordering::{
            Acquire,
            Full, //
        },
        Atomic, //
    },
    rcu,
    Arc,
    ArcBorrow, //
};

/// A static slot for the state of a module: empty until the module has started, and again once it
/// is being unloaded.
///
/// # Invariants
///
/// The pointer is null, or came from `Arc::into_raw` and stands for one reference count. That count
/// is given up no earlier than one grace period after the pointer has left the slot.
pub(crate) struct Published<T: Send + Sync + 'static>(Atomic<*mut T>);

impl<T: Send + Sync + 'static> Published<T> {
    /// An empty slot.
    pub(crate) const fn new() -> Self {
        // INVARIANT: The pointer is null.
        Self(Atomic::new(ptr::null_mut()))
    }

    /// Fills the slot until the returned value is dropped. There is to be one such value at a time:
    /// dropping any of them empties the slot.
    pub(crate) fn publish(&'static self, state: Arc<T>) -> Publication<T> {
        // INVARIANT: The pointer stands for the reference count that `into_raw` leaves behind.
        let pointer = Arc::into_raw(state).cast_mut();
        drop(self.take_and_store(pointer));
        Publication(self)
    }

    /// Does something to the state, if there is any. Unlike with [`get`](Self::get), no reference is given up
    /// then, which would drop the state if it were the last.
    ///
    /// `work` must not sleep, as nothing may between [`rcu::read_lock`] and its end.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        let _guard = rcu::read_lock();
        // Pairs with the full ordering in `take_and_store`.
        let pointer = self.0.load(Acquire);
        if pointer.is_null() {
            return None;
        }
        // SAFETY: By the type invariants the pointer came from `Arc::into_raw`, and its count is not
        // given up before this read-side critical section ends.
        Some(work(unsafe { &*pointer }))
    }

    /// The state, if there is any.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        // Pairs with the full ordering in `take_and_store`.
        let pointer = self.0.load(Acquire);
        if pointer.is_null() {
            return None;
        }
        // SAFETY: By the type invariants the pointer came from `Arc::into_raw`, and its count is not
        // given up before this read-side critical section ends.
        Some(unsafe { ArcBorrow::from_raw(pointer) }.into())
    }

    /// Replaces the pointer and returns the state that it stood for.
    fn take_and_store(&self, pointer: *mut T) -> Option<Arc<T>> {
        let previous = self.0.xchg(pointer, Full);
        if previous.is_null() {
            return None;
        }
        rcu::synchronize_rcu();
        // SAFETY: By the type invariants the pointer stands for one count. It has left the slot, so
        // that count is this function's, and a grace period has passed.
        Some(unsafe { Arc::from_raw(previous) })
    }
}

/// Keeps a [`Published`] slot filled.
pub(crate) struct Publication<T: Send + Sync + 'static>(&'static Published<T>);

impl<T: Send + Sync + 'static> Drop for Publication<T> {
    fn drop(&mut self) {
        drop(self.0.take_and_store(ptr::null_mut()));
    }
}
