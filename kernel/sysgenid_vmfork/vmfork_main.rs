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
    VmForkNotifier, //
};

#[path = "../support/generation.rs"]
mod generation;
#[path = "../support/vmfork_notifier.rs"]
mod vmfork_notifier;

module! {
    type: SysgenidVmfork,
    name: "sysgenid_vmfork",
    authors: ["The sysgenid developers"],
    description: "System generation counter: virtual machine fork backend",
    license: "GPL",
}

struct BumpGeneration;

impl VmFork for BumpGeneration {
    fn forked() {
        generation::bump();
    }
}

struct SysgenidVmfork {
    // The order is that of unloading.
    _backend: Backend,
    _notifier: Pin<KBox<VmForkNotifier<BumpGeneration>>>,
}

impl kernel::Module for SysgenidVmfork {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let notifier = KBox::pin_init(VmForkNotifier::new(), GFP_KERNEL)?;
        Ok(Self {
            _backend: Backend::register(),
            _notifier: notifier,
        })
    }
}
