// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's own notice that this virtual machine was forked.
//!
//! C headers: [`include/linux/random.h`](srctree/include/linux/random.h),
//! `kernel/sysgenid_vmfork/context.h`

use core::marker::PhantomData;
use kernel::{
    bindings,
    container_of,
    error::to_result,
    ffi::{
        c_int,
        c_ulong,
        c_void, //
    },
    prelude::*,
    static_lock_class,
    types::Opaque, //
};

extern "C" {
    fn sysgenid_in_hardirq() -> bool;
}

/// What to do after a fork.
pub(crate) trait VmFork {
    /// Called after the kernel has reseeded its random number generator. May sleep.
    ///
    /// Forks that follow each other closely may lead to one call.
    fn forked();
}

/// A registered notifier.
///
/// The notifier chain may sleep, but on device tree machines the kernel's driver runs it in a hard
/// interrupt handler. Only there the call is left to a work item, for until it is made programs go on
/// using what they must not, and a work item may have to wait for a worker.
///
/// # Invariants
///
/// `block` is registered, and `work` is initialised.
#[pin_data(PinnedDrop)]
pub(crate) struct VmForkNotifier<T: VmFork> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    #[pin]
    work: Opaque<bindings::work_struct>,
    _handler: PhantomData<fn() -> T>,
}

// SAFETY: Notifier and work item may be given up on another thread than they were set up on.
unsafe impl<T: VmFork> Send for VmForkNotifier<T> {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl<T: VmFork> Sync for VmForkNotifier<T> {}

impl<T: VmFork> VmForkNotifier<T> {
    /// Registers the notifier.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        // INVARIANT: `block` is initialised last, and an error of the registration ends the
        // initialisation.
        try_pin_init!(Self {
            work <- Opaque::ffi_init(|slot: *mut bindings::work_struct| {
                // SAFETY: The slot is valid for writes, and name and key live for ever.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(Self::work_callback),
                        false,
                        c"sysgenid_vmfork".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    )
                };
            }),
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                let block = bindings::notifier_block {
                    notifier_call: Some(Self::notifier_callback),
                    ..pin_init::zeroed()
                };
                // SAFETY: The slot is valid for writes.
                unsafe { slot.write(block) };
                // SAFETY: The block stays in place until the destructor has unregistered it.
                to_result(unsafe { bindings::register_random_vmfork_notifier(slot) })
            }),
            _handler: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `block` must be that of a [`VmForkNotifier<T>`].
    unsafe extern "C" fn notifier_callback(
        block: *mut bindings::notifier_block,
        _action: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: The function may be called in any context.
        if !unsafe { sysgenid_in_hardirq() } {
            T::forked();
            return bindings::NOTIFY_DONE as c_int;
        }
        let block = Opaque::cast_from(block);
        // SAFETY: The caller passes the block of a `VmForkNotifier<T>`.
        let notifier = unsafe { container_of!(block, Self, block) };
        // SAFETY: By the type invariants the work item is initialised, and the destructor flushes it
        // after the last call of this function. The work queue is static.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_highpri_wq,
                (*notifier).work.get(),
            )
        };
        bindings::NOTIFY_DONE as c_int
    }

    extern "C" fn work_callback(_work: *mut bindings::work_struct) {
        T::forked();
    }
}

#[pinned_drop]
impl<T: VmFork> PinnedDrop for VmForkNotifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the block is registered. When this returns, no call of it
        // is running or to come.
        unsafe { bindings::unregister_random_vmfork_notifier(self.block.get()) };
        // Flushed rather than cancelled: a fork that was noticed is passed on.
        //
        // SAFETY: By the type invariants the work item is initialised, and nobody queues it any more.
        unsafe { bindings::flush_work(self.work.get()) };
    }
}
