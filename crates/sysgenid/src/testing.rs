// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine that can be restored at will, for the tests of programs that use this library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sysgenid_core::Generation;

use crate::probe::Probe;
use crate::sys::word::{Word32, Word64};

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
#[derive(Debug, Default)]
pub struct SimulatedMachine {
    generation: Arc<AtomicU32>,
    counter: Arc<AtomicU64>,
}

impl SimulatedMachine {
    /// A machine that was never restored.
    pub fn new() -> Self {
        Self::default()
    }

    /// A probe of it.
    pub fn probe(&self) -> Probe {
        Probe::simulated(
            Word32::in_memory(&self.generation),
            Word64::in_memory(&self.counter),
        )
    }

    /// Restores it, all at once. Returns the new generation.
    pub fn restore(&self) -> Generation {
        self.count_restore();
        self.notice()
    }

    /// The hypervisor counts a restore in the machine's vmclock page, which is the first that can be seen of it.
    pub fn count_restore(&self) {
        self.counter.fetch_add(1, Ordering::Release);
    }

    /// The kernel has reseeded its generator, and the generation changes.
    pub fn notice(&self) -> Generation {
        let current = Generation::new(self.generation.load(Ordering::Relaxed));
        let next = current.next();
        self.generation.store(next.get(), Ordering::Release);
        next
    }
}
