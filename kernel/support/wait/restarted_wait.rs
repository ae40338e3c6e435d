// SPDX-License-Identifier: GPL-2.0-only

//! The deadline of a wait that goes on after its caller was stopped, frozen or traced.
//!
//! What ends an interruptible sleep need be no signal to the program. A call that then returns
//! `ERESTARTNOHAND` is made again, with the same arguments, unless a signal handler runs. Its time-out
//! must not begin anew.
//!
//! The kernel's own calls have a function in the restart block of the task go on with their deadline.
//! A module must not: nothing keeps it loaded until the task calls the function. This keeps the
//! deadline in the same place beside the function that restarts nothing, and looks for it when a call
//! is made.
//!
//! Limits: if a handler runs in the end though none was pending when the wait was interrupted (the
//! program was stopped first), and the next call of the thread is the very same wait again, that is
//! taken for the one before and has its deadline. Any other call [forgets](forget) it.
//!
//! C headers: [`include/linux/restart_block.h`](srctree/include/linux/restart_block.h),
//! `kernel/sysgenid/pending.h`

use kernel::{
    bindings,
    current,
    prelude::*,
    time::{
        ClockSource,
        Monotonic, //
    }, //
};

extern "C" {
    fn sysgenid_handler_is_pending() -> bool;
}

/// What tells one wait of a task from its other calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaitKey {
    /// The address of what is waited on, never followed.
    object: usize,
    nanoseconds: i64,
}

/// Says that what is in a restart block was put there by [`interrupt`].
const KEPT: u32 = u32::from_ne_bytes(*b"sgid");

impl WaitKey {
    /// A wait on `object` with this time-out.
    pub(crate) fn new<T>(object: &T, nanoseconds: i64) -> Self {
        Self {
            object: core::ptr::from_ref(object).addr(),
            nanoseconds,
        }
    }
}

/// The deadline of a wait that begins, in nanoseconds of `CLOCK_MONOTONIC`; if it is one that was
/// [interrupted](interrupt) and goes on, the one that it had.
pub(crate) fn deadline(key: WaitKey) -> i64 {
    match take() {
        Some((kept, deadline)) if kept == key => deadline,
        _ => Monotonic::ktime_get().saturating_add(key.nanoseconds),
    }
}

/// The calling thread makes another call than the wait that it was interrupted in.
pub(crate) fn forget() {
    take();
}

/// The error of a wait whose sleep was ended by something that may be no signal to the program, with
/// the deadline that it had. It becomes `EINTR` if a handler runs, else the call is made again.
pub(crate) fn interrupt(limit: Option<(WaitKey, i64)>) -> Error {
    if let Some((key, deadline)) = limit {
        // SAFETY: The function may be called in process context at any time.
        if !unsafe { sysgenid_handler_is_pending() } {
            keep(key, deadline);
        }
    }
    ERESTARTNOHAND
}

fn keep(key: WaitKey, deadline: i64) {
    let task = current!().as_ptr();
    let nanoseconds = key.nanoseconds as u64;
    let kept = bindings::restart_block__bindgen_ty_1__bindgen_ty_1 {
        uaddr: core::ptr::without_provenance_mut(key.object),
        val: nanoseconds as u32,
        flags: (nanoseconds >> 32) as u32,
        bitset: KEPT,
        time: deadline,
        // A child is born with a copy of this.
        uaddr2: task.cast(),
    };
    // SAFETY: No other task uses the restart block of the current one. With the function that every
    // task begins with, nobody else looks at what is beside it.
    unsafe {
        let block = &raw mut (*task).restart_block;
        (*block).fn_ = restart_nothing();
        (*block).__bindgen_anon_1.futex = kept;
    }
}

/// Takes out what was [kept](keep), if nothing else has taken its place.
fn take() -> Option<(WaitKey, i64)> {
    let task = current!().as_ptr();
    // SAFETY: No other task uses the restart block of the current one.
    let block = unsafe { &mut (*task).restart_block };
    // SAFETY: Any bytes are a valid value, and all of a task's are initialised.
    let kept = unsafe { &mut block.__bindgen_anon_1.futex };
    // The quickest to see comes first: hardly ever is anything kept.
    if kept.bitset != KEPT || kept.uaddr2 != task.cast() {
        return None;
    }
    let address = |function: RestartFunction| function.map(|function| function as *const ());
    if address(block.fn_) != address(restart_nothing()) {
        return None;
    }
    kept.bitset = 0;
    let key = WaitKey {
        object: kept.uaddr.addr(),
        nanoseconds: (u64::from(kept.flags) << 32 | u64::from(kept.val)) as i64,
    };
    Some((key, kept.time))
}

/// The function of a restart block that restarts nothing. Modules cannot name it, but the first task
/// has it for ever.
fn restart_nothing() -> RestartFunction {
    // SAFETY: The first task is static and never restarts a system call.
    unsafe { (*&raw const bindings::init_task).restart_block.fn_ }
}

type RestartFunction =
    Option<unsafe extern "C" fn(*mut bindings::restart_block) -> kernel::ffi::c_long>;
