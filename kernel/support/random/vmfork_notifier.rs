// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's own notice that this virtual machine was forked.
//!
//! Limits: on device tree machines the kernel's driver (as of Linux 7.3) tells of a fork in the handler of
//! an interrupt, by a chain whose lock may sleep, and takes that lock only where somebody has registered,
//! be it this or WireGuard. A kernel that looks for such things complains, and a fork at the very moment
//! at which somebody registers or leaves may hang the machine. That is the driver's to mend.
//!
//! C header: [`include/linux/random.h`](srctree/include/linux/random.h)

use core::marker::PhantomData;
use kernel::{
    bindings,
    error::to_result,
    ffi::{
        c_int,
        c_ulong,
        c_void, //
    },
    prelude::*,
    types::Opaque, //
};

/// A module that is there for the notice of a fork.
pub(crate) trait VmFork: Send + Sync + 'static {
    /// Called once forks are noticed. What it returns is dropped before they no longer are.
    fn started() -> Self;

    /// Called after the kernel has reseeded its random number generator, and before anybody else is
    /// told.
    ///
    /// On device tree machines the kernel's driver tells of forks in the handler of an interrupt, which
    /// may or may not be a thread. So this must not sleep, and may take only spin locks that keep
    /// interrupts off.
    fn forked();
}

/// A module with a registered notifier.
///
/// It is meant to be what a module *is*, the type that `module!` names: there the kernel drops it before
/// the code of the notifier goes, which nobody can keep it from, as one who owned it could.
#[pin_data]
pub(crate) struct VmForkModule<T: VmFork> {
    // The order is that of unloading.
    handler: T,
    #[pin]
    notifier: Notifier<T>,
}

impl<T: VmFork> kernel::InPlaceModule for VmForkModule<T> {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            notifier <- Notifier::new(),
            handler: T::started(),
        })
    }
}

/// # Invariants
///
/// `block` is registered.
#[pin_data(PinnedDrop)]
struct Notifier<T: VmFork> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    _handler: PhantomData<fn() -> T>,
}

// SAFETY: A notifier may be given up on another thread than it was set up on.
unsafe impl<T: VmFork> Send for Notifier<T> {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl<T: VmFork> Sync for Notifier<T> {}

impl<T: VmFork> Notifier<T> {
    fn new() -> impl PinInit<Self, Error> {
        // INVARIANT: `block` is initialised last, and an error of the registration ends the
        // initialisation.
        try_pin_init!(Self {
            _handler: PhantomData,
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                let block = bindings::notifier_block {
                    notifier_call: Some(Self::notifier_callback),
                    // First of all: it waits for nobody, and others, such as WireGuard, may.
                    priority: c_int::MAX,
                    ..pin_init::zeroed()
                };
                // SAFETY: The slot is valid for writes.
                unsafe { slot.write(block) };
                // SAFETY: The block stays in place until the destructor has unregistered it.
                to_result(unsafe { bindings::register_random_vmfork_notifier(slot) })
            }),
        })
    }

    extern "C" fn notifier_callback(
        _block: *mut bindings::notifier_block,
        _action: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        T::forked();
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<T: VmFork> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the block is registered. When this returns, no call of it
        // is running or to come.
        unsafe { bindings::unregister_random_vmfork_notifier(self.block.get()) };
    }
}
