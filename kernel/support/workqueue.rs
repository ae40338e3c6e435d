// SPDX-License-Identifier: GPL-2.0-only

//! A work queue of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_int,
    prelude::*,
    str::CStr,
    workqueue::{
        Queue,
        RawWorkItem, //
    }, //
};

/// A work queue that carries out one item at a time and needs no memory to do so.
///
/// # Invariants
///
/// The pointer is that of a work queue that nobody else destroys.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue may be used and destroyed on any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a queue whose worker shows `name`, which must contain no `%`.
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
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
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }

    /// Queues an item, to be carried out soon. There is none to be carried out later: the timer of such an
    /// item would outlive the queue.
    pub(crate) fn enqueue<W>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<0> + Send + 'static,
    {
        // SAFETY: By the type invariants the queue is valid for as long as `self` is.
        unsafe { Queue::from_raw(self.0.as_ptr()) }.enqueue(item)
    }
}

impl Drop for OwnedQueue {
    /// Waits until everything that was queued has been done.
    fn drop(&mut self) {
        // SAFETY: By the type invariants the queue is there, and nobody can queue on it any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
