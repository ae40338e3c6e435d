// SPDX-License-Identifier: GPL-2.0-only

//! The generation of this machine: its accounts, and everybody who sleeps on them.
//!
//! [`Registry`] decides; this adds the lock, the page and the wake-ups. A change is stored in the
//! page while the lock is held, so that the page never goes back, and everybody is woken after the
//! lock is released, so that whoever wakes sees the new generation in the page and the lock free.

use crate::{
    counter_page::CounterPage,
    sysgenid_core::{
        abi,
        Change,
        Error,
        Generation,
        Registry,
        Wake, //
    },
    timed_wait_queue::TimedWaitQueue,
    uevent, //
};
use kernel::{
    device::Device,
    new_poll_condvar,
    new_spinlock,
    optional_name,
    prelude::*,
    static_lock_class,
    str::CString,
    sync::{
        aref::ARef,
        poll::PollCondVar,
        SetOnce,
        SpinLock, //
    }, //
};

/// The generation of this machine.
#[pin_data]
pub(crate) struct Instance {
    /// The accounts. It also orders the stores to the page, and protects every watcher.
    #[pin]
    pub(crate) registry: SpinLock<Registry>,
    /// Where those sleep who read or poll.
    #[pin]
    pub(crate) changed: PollCondVar,
    /// Where those sleep who wait for all tracked watchers.
    #[pin]
    pub(crate) settled: TimedWaitQueue,
    /// What user space maps.
    pub(crate) page: CounterPage,
    /// The device whose uevents tell of changes; none while uevents are off.
    uevents: SetOnce<ARef<Device>>,
}

impl Instance {
    /// An instance at generation 0 that sends no uevents.
    pub(crate) fn new() -> impl PinInit<Self, kernel::error::Error> {
        try_pin_init!(Self {
            registry <- new_spinlock!(Registry::new(), "sysgenid_registry"),
            changed <- new_poll_condvar!("sysgenid_changed"),
            settled <- TimedWaitQueue::new(
                optional_name!("sysgenid_settled"),
                static_lock_class!(),
            ),
            page: CounterPage::new()?,
            uevents: SetOnce::new(),
        })
    }

    /// From now on each change sends a uevent of `device`.
    pub(crate) fn send_uevents(&self, device: &Device) {
        self.uevents.populate(device.into());
    }

    /// A backend noticed a change. May sleep.
    pub(crate) fn bump(&self) {
        let mut registry = self.registry.lock();
        let change = registry.bump();
        self.page.store(change.generation.get());
        drop(registry);
        self.announce(change);
    }

    /// Software asks for a change to at least `minimum`. May sleep.
    pub(crate) fn trigger(&self, capable: bool, minimum: u64) -> Result<(), Error> {
        let mut registry = self.registry.lock();
        let change = registry.trigger(capable, minimum)?;
        self.page.store(change.generation.get());
        drop(registry);
        self.announce(change);
        Ok(())
    }

    /// Wakes whom a change in the accounts concerns.
    pub(crate) fn wake(&self, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Waiters => self.settled.wake_all(),
        }
    }

    /// Wakes everybody, then tells udev.
    fn announce(&self, change: Change) {
        self.changed.notify_all();
        self.settled.wake_all();
        if let Some(device) = self.uevents.as_ref() {
            if let Err(error) = send_uevent(device, change.generation) {
                let generation = change.generation.get();
                pr_warn!("no uevent for generation {generation}: {error:?}\n");
            }
        }
    }
}

fn send_uevent(device: &Device, generation: Generation) -> Result {
    let variable = CString::try_from_fmt(fmt!("{}={}", abi::UEVENT_VARIABLE, generation.get()))?;
    uevent::change(device, &variable)
}
