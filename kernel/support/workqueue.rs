// SPDX-License-Identifier: GPL-2.0-only

//! Work that is done soon, on a work queue of its own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    container_of,
    ffi::c_int,
    prelude::*,
    str::CStr,
    sync::Arc,
    workqueue::{
        HasDelayedWork,
        Queue,
        Work,
        WorkItem, //
    }, //
};

/// How long a worker is not woken after it was asked for, in jiffies.
const DELAY: usize = 1;

/// A work item with a work queue of its own, which needs no memory to carry it out.
///
/// # Invariants
///
/// The pointer is that of a work queue that nobody else destroys. Nothing is queued on it but `item`.
pub(crate) struct Errand<T: HasDelayedWork<T> + Send + Sync + 'static> {
    queue: NonNull<bindings::workqueue_struct>,
    item: Arc<T>,
}

// SAFETY: A work queue may be used and destroyed on any thread.
unsafe impl<T: HasDelayedWork<T> + Send + Sync + 'static> Send for Errand<T> {}
// SAFETY: As above.
unsafe impl<T: HasDelayedWork<T> + Send + Sync + 'static> Sync for Errand<T> {}

impl<T: HasDelayedWork<T> + Send + Sync + 'static> Errand<T> {
    /// Creates a queue whose worker shows `name`, which must contain no `%`.
    pub(crate) fn new(name: &'static CStr, item: Arc<T>) -> Result<Self> {
        if name.to_bytes().contains(&b'%') {
            return Err(EINVAL);
        }
        // SAFETY: The name is a format without arguments, as was just seen.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                name.as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM,
                1 as c_int,
            )
        };
        // INVARIANT: It was just made.
        let queue = NonNull::new(queue).ok_or(ENOMEM)?;
        Ok(Self { queue, item })
    }

    /// Has the item carried out within some milliseconds, and at least once after this was called.
    ///
    /// It is not done at once because waking a worker takes longer than all that callers in a hurry have
    /// to do themselves. This waits for nobody, in any context in which spin locks may be taken.
    pub(crate) fn run_soon(&self)
    where
        T: WorkItem<Pointer = Arc<T>>,
    {
        // SAFETY: By the type invariants the queue is valid for as long as `self` is.
        let queue = unsafe { Queue::from_raw(self.queue.as_ptr()) };
        // If it is queued already, it has yet to begin.
        let _ = queue.enqueue_delayed(self.item.clone(), DELAY);
    }
}

impl<T: HasDelayedWork<T> + Send + Sync + 'static> Deref for Errand<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: HasDelayedWork<T> + Send + Sync + 'static> Drop for Errand<T> {
    /// Waits until the item has been carried out, if that is to come.
    fn drop(&mut self) {
        // SAFETY: A pointer into an `Arc` points at a valid value.
        let work = unsafe { T::raw_get_work(Arc::as_ptr(&self.item).cast_mut()) };
        // SAFETY: As above.
        let work = unsafe { Work::raw_get(work) };
        // SAFETY: By its safety requirements, `HasDelayedWork` returns what is in a `delayed_work`.
        let delayed = unsafe { container_of!(work, bindings::delayed_work, work) };
        // SAFETY: The item is initialised. By the type invariants the queue is there, has nothing but
        // this item, and nobody can queue it there any more.
        unsafe {
            // Its timer would outlive the queue.
            bindings::flush_delayed_work(delayed);
            bindings::destroy_workqueue(self.queue.as_ptr());
        }
    }
}
