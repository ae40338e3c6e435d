// SPDX-License-Identifier: MIT OR Apache-2.0

//! The three numbers that a probe looks at. They stay where they are, whatever page is shown there, so that a look is
//! no more than three loads.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io;
use sysgenid_core::PageWord;

use crate::sys::epoch::{self, Epoch};
use crate::sys::mapping::{Mapping, Place};

/// The numbers, and what else is shared by all who look at them.
///
/// # Invariants
///
/// The pointers are valid and aligned for as long as `shared` is kept, and what they point at is only accessed
/// atomically.
pub(crate) struct Words<T> {
    page: NonNull<AtomicU64>,
    counter: NonNull<AtomicU64>,
    epoch: NonNull<AtomicU64>,
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    memory: Memory,
    data: T,
}

/// Where the numbers are.
enum Memory {
    /// In pages of others.
    Mapped {
        page: Place,
        counter: Place,
        epoch: Epoch,
    },
    /// In this process.
    Simulated {
        page: Arc<AtomicU64>,
        counter: Arc<AtomicU64>,
    },
    /// They never change.
    Constant,
}

/// What is seen of a machine that is never restored.
static NEVER: AtomicU64 = AtomicU64::new(
    PageWord {
        generation: sysgenid_core::Generation::START,
        live: true,
        noticed: false,
    }
    .to_word(),
);

static ZERO: AtomicU64 = AtomicU64::new(0);

impl Memory {
    /// Which page is shown to which process.
    fn epoch(&self) -> &Epoch {
        match self {
            Self::Mapped { epoch, .. } => epoch,
            Self::Simulated { .. } | Self::Constant => Epoch::of_process(),
        }
    }
}

// SAFETY: The numbers are atomics, which all threads may use, and their keeper goes along.
unsafe impl<T: Send + Sync> Send for Words<T> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync> Sync for Words<T> {}

impl<T> Clone for Words<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            ..*self
        }
    }
}

impl<T> Words<T> {
    /// Numbers that never change.
    pub(crate) fn constant(data: T) -> Self {
        Self::of(Memory::Constant, data)
    }

    /// Numbers in this process.
    pub(crate) fn simulated(page: &Arc<AtomicU64>, counter: &Arc<AtomicU64>, data: T) -> Self {
        let memory = Memory::Simulated {
            page: Arc::clone(page),
            counter: Arc::clone(counter),
        };
        Self::of(memory, data)
    }

    /// Numbers in pages that are [shown](Self::show) one after the other. There is none yet, which reads as a page that
    /// is not live.
    pub(crate) fn mapped(counter_offset: usize, data: T) -> io::Result<Self> {
        let memory = Memory::Mapped {
            page: Place::new()?,
            counter: Place::new()?,
            epoch: Epoch::new()?,
        };
        let mut this = Self::of(memory, data);
        if let Memory::Mapped { counter, .. } = &this.shared.memory {
            // INVARIANT: The word is in the place.
            this.counter = counter.word(counter_offset);
        }
        Ok(this)
    }

    fn of(memory: Memory, data: T) -> Self {
        // INVARIANT: The places, the memory that is shared and the statics stay where they are for as long as `shared` is
        // kept.
        let (page, counter) = match &memory {
            Memory::Mapped { page, counter, .. } => (page.word(0), counter.word(0)),
            Memory::Simulated { page, counter } => {
                (NonNull::from(&**page), NonNull::from(&**counter))
            }
            Memory::Constant => (NonNull::from(&NEVER), NonNull::from(&ZERO)),
        };
        Self {
            page,
            counter,
            epoch: memory.epoch().word(),
            shared: Arc::new(Shared { memory, data }),
        }
    }

    /// What is shared.
    pub(crate) fn data(&self) -> &T {
        &self.shared.data
    }

    /// Generation and flags. This and the others are loaded without an order; a fence makes one, which memory for reading
    /// only allows as well.
    #[inline]
    pub(crate) fn page(&self) -> u64 {
        // SAFETY: By the type's invariant. The other side writes the word as a whole.
        unsafe { self.page.as_ref() }.load(Ordering::Relaxed)
    }

    /// What the hypervisor has counted; 0 where it does not count.
    #[inline]
    pub(crate) fn counter(&self) -> u64 {
        // SAFETY: As above.
        unsafe { self.counter.as_ref() }.load(Ordering::Relaxed)
    }

    /// Which page is shown to which process. In a child that has not [settled](Self::settle), look at nothing else: the
    /// page may be gone.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        // SAFETY: As above.
        unsafe { self.epoch.as_ref() }.load(Ordering::Relaxed)
    }

    /// In a child that has not looked yet: gives it an epoch of its own, and has its pages stay.
    pub(crate) fn settle(&self) {
        if self.epoch() != epoch::CHILD {
            return;
        }
        let memory = &self.shared.memory;
        if let Memory::Mapped { page, counter, .. } = memory {
            for place in [page, counter] {
                // Without memory for a page of zeroes there is nothing better to show.
                let _ = place.keep();
            }
        }
        memory.epoch().settle();
    }

    /// See [`Epoch::confirm`].
    pub(crate) fn confirm(&self) {
        self.shared.memory.epoch().confirm();
    }

    /// Shows another page, and the hypervisor's counter if there is one, which is a new epoch. Nothing for numbers that
    /// are in no pages.
    pub(crate) fn show(&self, shown: Mapping, counted: Option<Mapping>) -> io::Result<()> {
        let Memory::Mapped {
            page,
            counter,
            epoch,
        } = &self.shared.memory
        else {
            return Ok(());
        };
        if let Some(counted) = counted {
            counter.show(counted)?;
        }
        page.show(shown)?;
        // Last: who sees the epoch sees what it is of.
        epoch.advance();
        Ok(())
    }
}
