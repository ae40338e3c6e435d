// SPDX-License-Identifier: MIT OR Apache-2.0

//! QEMU's vmclock device, and the generation counter that it lacks.
//!
//! The device's page has a place for a generation counter, but QEMU 10.0 leaves it and its flag alone, so
//! there is no hypervisor at hand that counts. This writes them where a hypervisor would, and when it
//! would: while the machine stands still. All the rest is the real thing: the device, the kernel's driver
//! of it, and QEMU's own change of the page at each restore.

use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

use crate::qemu::Vm;

/// Where QEMU puts the page, its `VMCLOCK_ADDR`.
const PAGE: u64 = 0xfeff_b000;

/// Where the flags are in the page, `struct vmclock_abi` of `linux/vmclock-abi.h`.
const FLAGS: u64 = 0x18;

/// Where the counter is.
const COUNTER: u64 = 0x68;

/// The flag that says that there is a counter.
const VM_GEN_COUNTER_PRESENT: u64 = 1 << 8;

/// What the page says of generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Vmclock {
    /// Nothing, as QEMU makes it.
    Silent,
    /// The counter's value.
    Counting(u64),
}

impl Vmclock {
    /// Another generation, if this says anything of it.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Silent => Self::Silent,
            Self::Counting(counter) => Self::Counting(counter + 1),
        }
    }

    /// Writes this to a machine's page while the machine stands still, and lets it run.
    pub(crate) fn write(self, vm: &mut Vm) -> Result<()> {
        if let Self::Counting(counter) = self {
            let mut debugger = vm.debugger()?;
            debugger.write(PAGE + COUNTER, &counter.to_le_bytes())?;
            debugger.write(PAGE + FLAGS, &VM_GEN_COUNTER_PRESENT.to_le_bytes())?;
        }
        vm.qmp.resume().map(drop)
    }
}
