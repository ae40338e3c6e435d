// SPDX-License-Identifier: GPL-2.0-only

//! The generation of this machine: its accounts, and everybody who sleeps on them.
//!
//! [`Registry`] decides; this adds the lock, the page and the wake-ups. A change is stored in the
//! page while the lock is held, so that the page never goes back, and everybody is woken after the
//! lock is released, so that whoever wakes sees the new generation in the page and the lock free.
//!
//! What is asked most often is answered from [copies](Glance) without the lock.
//!
//! Restores may be told of in an interrupt, so the lock keeps interrupts off, for a few instructions. Whom
//! to wake is walked with interrupts off by the kernel's wait queues themselves, all at once. `cargo xtask
//! bench` measures for how long, in an emulated machine that is slower than any hardware: 60 to 90 ms with
//! 100 000 descriptors in one epoll or one `poll`, or with 2000 threads asleep in `read`, and as long with a
//! plain driver in C. A user may have as many as he may open files and start threads, here as of any file
//! that can be polled.

use crate::{
    glance::Glance,
    randomness::Generator,
    sysgenid_core::{
        abi,
        Change,
        Error,
        History,
        PageWord,
        Registry,
        Wake, //
    },
    timed_wait_queue::TimedWaitQueue,
    uevent::Uevents,
    word_page::WordPage, //
};
use kernel::{
    new_poll_condvar,
    new_spinlock_irq,
    optional_name,
    prelude::*,
    static_lock_class,
    sync::{
        poll::PollCondVar,
        LockedBy,
        SpinLockIrq,
        SpinLockIrqGuard, //
    },
    time::{
        BootTime,
        ClockSource, //
    }, //
};

/// The generation of this machine.
#[pin_data]
pub(crate) struct Instance {
    /// The accounts. It also orders the stores to the page, and protects every watcher.
    #[pin]
    pub(crate) registry: SpinLockIrq<Registry>,
    /// When the latest changes happened, in nanoseconds of `CLOCK_BOOTTIME`.
    pub(crate) history: LockedBy<History<{ abi::FDINFO_TIMES_KEPT }>, Registry>,
    /// Where those sleep who poll.
    #[pin]
    pub(crate) changed: PollCondVar,
    /// Where those sleep who read.
    ///
    /// Not with a condition variable: that queues a sleeper while it holds the lock, which nobody could
    /// take then for as long as somebody else walks the queue.
    #[pin]
    pub(crate) readers: TimedWaitQueue,
    /// Where those sleep who wait for all tracked watchers.
    #[pin]
    pub(crate) settled: TimedWaitQueue,
    /// What user space maps.
    pub(crate) page: WordPage,
    /// What can be seen without the lock.
    pub(crate) glance: Glance,
    /// How many backends are registered.
    backends: LockedBy<usize, Registry>,
    /// What is reseeded before a change that the kernel has not noticed.
    generator: Generator,
    /// What tells udev of changes, if it is to be told.
    uevents: Option<Uevents>,
}

impl Instance {
    /// An instance at generation 0 that tells of changes through `uevents`.
    pub(crate) fn new(uevents: Option<Uevents>) -> impl PinInit<Self, kernel::error::Error> {
        try_pin_init!(Self {
            registry <- new_spinlock_irq!(Registry::new(), "sysgenid_registry"),
            history: LockedBy::new(&registry, History::new()),
            changed <- new_poll_condvar!("sysgenid_changed"),
            readers <- TimedWaitQueue::new(
                optional_name!("sysgenid_readers"),
                static_lock_class!(),
            ),
            settled <- TimedWaitQueue::new(
                optional_name!("sysgenid_settled"),
                static_lock_class!(),
            ),
            page: WordPage::new(page_word(&Registry::new(), 0).to_word())?,
            glance: Glance::new(),
            backends: LockedBy::new(&registry, 0),
            generator: Generator::new(),
            uevents,
        })
    }

    /// A backend noticed a change, and the kernel's random number generator has been reseeded. Waits
    /// for nobody, in any context in which spin locks may be taken.
    pub(crate) fn bump(&self) {
        let mut registry = self.registry.lock();
        let change = registry.bump();
        self.announce(registry, change);
    }

    /// Reseeds the kernel's random number generator. May sleep.
    pub(crate) fn reseed(&self) {
        self.generator.reseed();
    }

    /// The machine was resumed from a copy of its memory on disk, maybe one of many. May sleep.
    pub(crate) fn resumed(&self) {
        self.reseed();
        self.bump();
    }

    /// What can be prepared for a change, while there is time. May sleep.
    pub(crate) fn prepare(&self) {
        self.generator.prepare();
    }

    /// A backend notices restores from now on. May sleep.
    pub(crate) fn add_backend(&self) {
        self.prepare();
        let mut registry = self.registry.lock();
        *self.backends.access_mut(&mut registry) += 1;
        self.store_page(&registry);
    }

    /// A backend notices no restores any more.
    pub(crate) fn remove_backend(&self) {
        let mut registry = self.registry.lock();
        *self.backends.access_mut(&mut registry) -= 1;
        self.store_page(&registry);
    }

    /// Software asks for a change to at least `minimum`. May sleep.
    pub(crate) fn trigger(&self, capable: bool, minimum: u64) -> Result<(), Error> {
        // Not for everybody who asks, or for nothing.
        if capable && minimum <= u64::from(u32::MAX) {
            self.prepare();
            self.reseed();
        }
        let mut registry = self.registry.lock();
        let change = registry.trigger(capable, minimum)?;
        self.announce(registry, change);
        Ok(())
    }

    /// Wakes whom a change in the accounts concerns.
    pub(crate) fn wake(&self, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Waiters => self.settled.wake_all(),
        }
    }

    /// Notes when a change happened, stores it in the page, releases the lock, wakes everybody, and then
    /// has udev told.
    fn announce(&self, mut registry: SpinLockIrqGuard<'_, Registry>, change: Change) {
        let epoch = registry.epoch();
        // Under the lock, so that a later change has a later time and a later event.
        let now = BootTime::ktime_get().unsigned_abs();
        self.history.access_mut(&mut registry).note(epoch, now);
        self.glance.begin_change(&registry);
        self.store_page(&registry);
        self.glance.end_change(&registry);
        if let Some(uevents) = &self.uevents {
            uevents.note(change.generation.get());
        }
        drop(registry);
        self.readers.wake_all();
        self.changed.notify_all();
        self.settled.wake_all();
        if let Some(uevents) = &self.uevents {
            uevents.send();
        }
    }

    /// Stores what the accounts say. Under the lock, so that the page never goes back.
    fn store_page(&self, registry: &SpinLockIrqGuard<'_, Registry>) {
        let backends = *self.backends.access(registry);
        self.page.store(page_word(registry, backends).to_word());
    }
}

/// What the page says. It is live for as long as there is an instance: whoever maps it keeps this
/// module loaded.
fn page_word(registry: &Registry, backends: usize) -> PageWord {
    PageWord {
        generation: registry.generation(),
        live: true,
        noticed: backends > 0,
    }
}
