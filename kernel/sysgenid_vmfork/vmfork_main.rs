// SPDX-License-Identifier: GPL-2.0-only

//! Backend for the system generation counter: the kernel's own notice of a virtual machine fork.
//!
//! Wherever the kernel's `vmgenid` driver serves the hardware, it feeds the random number generator
//! and then calls a notifier chain. This bumps the generation from there, so it works beside that
//! driver whatever the hardware is.

use generation::Backend;
use kernel::prelude::*;
use vmfork_notifier::{
    VmFork,
    VmForkModule, //
};

#[path = "../support/generation.rs"]
mod generation;
#[path = "../support/random/vmfork_notifier.rs"]
mod vmfork_notifier;

module! {
    type: VmForkModule<BumpGeneration>,
    name: "sysgenid_vmfork",
    authors: ["The sysgenid developers"],
    description: "System generation counter: virtual machine fork backend",
    license: "GPL",
}

struct BumpGeneration {
    _backend: Backend,
}

impl VmFork for BumpGeneration {
    fn started() -> Self {
        Self {
            _backend: Backend::register(),
        }
    }

    fn forked() {
        generation::bump();
    }
}
