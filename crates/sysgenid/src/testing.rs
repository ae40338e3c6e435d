// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine that can be restored at will, for the tests of programs that use this library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sysgenid_core::{Generation, PageWord};

use crate::probe::Probe;

/// A machine in this process, which needs no node, no privilege and no hypervisor.
///
/// # Example
///
/// ```
/// use sysgenid::Guarded;
/// use sysgenid::testing::SimulatedMachine;
///
/// let machine = SimulatedMachine::new();
/// let generation = Guarded::new(machine.probe(), |generation| generation.get());
/// assert_eq!(*generation.get(), 0);
/// machine.restore();
/// assert_eq!(*generation.get(), 1);
/// ```
#[derive(Debug)]
pub struct SimulatedMachine {
    page: Arc<AtomicU64>,
    counter: Arc<AtomicU64>,
}

impl Default for SimulatedMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl SimulatedMachine {
    /// A machine that was never restored.
    pub fn new() -> Self {
        let page = PageWord {
            generation: Generation::START,
            live: true,
            noticed: true,
        };
        Self {
            page: Arc::new(AtomicU64::new(page.to_word())),
            counter: Arc::default(),
        }
    }

    /// A probe of it.
    pub fn probe(&self) -> Probe {
        Probe::simulated(&self.page, &self.counter)
    }

    /// Restores it, all at once. Returns the new generation.
    pub fn restore(&self) -> Generation {
        self.count_restore();
        self.notice()
    }

    #[cfg(test)]
    pub(crate) fn set_noticed(&self, noticed: bool) {
        let mut page = PageWord::from_word(self.page.load(Ordering::Relaxed));
        page.noticed = noticed;
        self.page.store(page.to_word(), Ordering::Release);
    }

    /// The hypervisor counts a restore in the machine's vmclock page, which is the first that can be seen of it.
    pub fn count_restore(&self) {
        self.counter.fetch_add(1, Ordering::Release);
    }

    /// The kernel has reseeded its generator, and the generation changes.
    pub fn notice(&self) -> Generation {
        let mut page = PageWord::from_word(self.page.load(Ordering::Relaxed));
        page.generation = page.generation.next();
        self.page.store(page.to_word(), Ordering::Release);
        page.generation
    }
}
