// SPDX-License-Identifier: GPL-2.0-only

//! A wait queue with time-outs finer than a tick.
//!
//! [`kernel::sync::CondVar`] counts in jiffies and rides on the timer wheel, which makes a wait of
//! 200 ms one of 204 to 240. This one uses a high-resolution timer.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use kernel::{
    bindings,
    current,
    ffi::c_int,
    prelude::*,
    sync::{
        barrier::{
            smp_mb,
            Full, //
        },
        LockClassKey, //
    },
    types::Opaque, //
};

/// What ended a sleep other than being woken.
#[derive(Clone, Copy)]
pub(crate) enum Ended {
    /// A signal is pending, or the caller is to be stopped, frozen or traced.
    Signal,
    /// The time-out has passed.
    TimeOut,
}

/// A wait queue.
#[pin_data]
pub(crate) struct TimedWaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A `wait_queue_head` may be used from any thread.
unsafe impl Send for TimedWaitQueue {}
// SAFETY: A `wait_queue_head` has a lock of its own.
unsafe impl Sync for TimedWaitQueue {}

impl TimedWaitQueue {
    /// Creates a wait queue, whose lock belongs to the class `key`.
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot| {
                // SAFETY: The slot is valid for writes, and name and key live for ever.
                unsafe {
                    bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
                }
            }),
        })
    }

    /// Sleeps until `attempt` returns something, and returns that.
    ///
    /// `attempt` runs at once, before the first sleep and after each wake-up. Before each sleep it runs
    /// while the caller is queued, so that no wake-up in between is missed. It may take spin locks but
    /// must not sleep. The deadline is in nanoseconds of `CLOCK_MONOTONIC`; `None` is never.
    ///
    /// # Errors
    ///
    /// What ended the sleep, if that was not a wake-up. `attempt` has then last run before it.
    pub(crate) fn wait<R>(
        &self,
        mut deadline: Option<i64>,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Result<R, Ended> {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: The entry is writable, and off every queue again when this returns.
        unsafe { bindings::init_wait(entry.get()) };
        // Freezable: suspending the machine does not end the sleep as a signal would.
        let state = (bindings::TASK_INTERRUPTIBLE | bindings::TASK_FREEZABLE) as c_int;

        let result = loop {
            // SAFETY: Queue and entry are initialised and stay in place until `finish_wait`.
            unsafe { bindings::prepare_to_wait(self.head.get(), entry.get(), state) };
            if let Some(value) = attempt() {
                break Ok(value);
            }
            if current!().signal_pending() {
                break Err(Ended::Signal);
            }
            let expires = deadline
                .as_mut()
                .map_or(core::ptr::null_mut(), core::ptr::from_mut);
            // SAFETY: `expires` is null, for no time-out, or points to a time that outlives the call.
            let woken = unsafe {
                bindings::schedule_hrtimeout_range(
                    expires,
                    0,
                    bindings::hrtimer_mode_HRTIMER_MODE_ABS,
                )
            } != 0;
            if !woken {
                break Err(Ended::TimeOut);
            }
        };
        // SAFETY: Queue and entry are initialised; the entry may be queued or not.
        unsafe { bindings::finish_wait(self.head.get(), entry.get()) };
        result
    }

    /// Wakes everybody who waits. What their attempts look at was changed before.
    pub(crate) fn wake_all(&self) {
        if !self.has_sleeper() {
            return;
        }
        // SAFETY: The queue is initialised.
        unsafe {
            bindings::__wake_up(
                self.head.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            )
        };
    }

    /// Whether anybody may wait, as `wq_has_sleeper()` says it. Where nobody does, that is less than to take
    /// the queue's lock.
    fn has_sleeper(&self) -> bool {
        // Pairs with the barrier in `prepare_to_wait`: who is not in the queue yet makes an attempt after
        // this, and sees what was changed.
        smp_mb(Full);
        let head = self.head.get();
        // SAFETY: The queue is initialised. This is what `READ_ONCE()` does: others may be changing it.
        let (list, first) = unsafe {
            let list = &raw mut (*head).head;
            (list, (&raw const (*list).next).read_volatile())
        };
        first != list
    }
}
