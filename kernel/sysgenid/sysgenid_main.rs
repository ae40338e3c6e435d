// SPDX-License-Identifier: GPL-2.0-only

//! System generation counter.
//!
//! Serves `/dev/vmgenid` and `/dev/sysgenid`: a counter that changes whenever this machine is cloned
//! or rolled back to a snapshot, so that programs can throw away what must not be used twice, and
//! operators can wait until all of them have. The contract is in `docs/sysgenid.rst`.
//!
//! This module knows no hardware. Backends register themselves and call the exported
//! `sysgenid_bump_generation()`, and privileged programs may trigger a change by ioctl.
//!
//! Limits: there is one instance, that of the machine; containers have none of their own.

use core::borrow::Borrow;
use instance::Instance;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use node::{
    Description,
    NodeData, //
};
use published::Published;
use sysgenid_core::Node;
use uevent::Uevents;

#[path = "../support/capability.rs"]
mod capability;
mod instance;
#[path = "../support/miscdevice.rs"]
mod miscdevice;
mod node;
#[path = "../support/published.rs"]
mod published;
#[path = "../support/restarted_wait.rs"]
mod restarted_wait;
mod sysgenid_core;
#[path = "../support/timed_wait_queue.rs"]
mod timed_wait_queue;
#[path = "../support/uevent.rs"]
mod uevent;
#[path = "../support/vma.rs"]
mod vma;
#[path = "../support/word_page.rs"]
mod word_page;

module! {
    type: Sysgenid,
    name: "sysgenid",
    authors: ["The sysgenid developers"],
    description: "System generation counter",
    license: "GPL",
    params: {
        uevents: u8 {
            default: 1,
            description: "Send a change uevent with SYSGENID_GENERATION at each change: 1 (default) or 0",
        },
    },
}

/// Where backends find the instance.
static INSTANCE: Published<Instance> = Published::new();

/// Tells every program that this machine was cloned or rolled back.
///
/// For backends. When it returns, the new generation is visible in every mapping and all sleepers
/// have been woken. A backend must have fed the kernel's random number generator before. Process
/// context; may sleep.
#[no_mangle]
pub extern "C" fn sysgenid_bump_generation() {
    if let Some(instance) = INSTANCE.get() {
        instance.bump();
    }
}

/// From now on something notices restores, which the page says to every program at once.
///
/// For backends, once they can notice one. Each call is to be taken back by one of
/// `sysgenid_unregister_backend()`. Process context.
#[no_mangle]
pub extern "C" fn sysgenid_register_backend() {
    if let Some(instance) = INSTANCE.get() {
        instance.add_backend();
    }
}

/// Takes a call of `sysgenid_register_backend()` back. Process context.
#[no_mangle]
pub extern "C" fn sysgenid_unregister_backend() {
    if let Some(instance) = INSTANCE.get() {
        instance.remove_backend();
    }
}

/// The module parameter. Before Linux 7.3 there are none of type `bool`, and the accessor returns a
/// reference, hence the number and the borrow.
fn uevents_wanted() -> bool {
    let value = module_parameters::uevents.value();
    *Borrow::<u8>::borrow(&value) != 0
}

struct Sysgenid {
    // The order is that of unloading: no backend can call any more, then the nodes go. Nobody has
    // them open by then, for an open node pins this module.
    _publication: published::Publication<Instance>,
    _vmgenid: Pin<KBox<miscdevice::Registration<Description>>>,
    _sysgenid: Option<Pin<KBox<miscdevice::Registration<Description>>>>,
}

impl kernel::Module for Sysgenid {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let uevents = Arc::pin_init(Uevents::new(), GFP_KERNEL)?;
        let instance = Arc::pin_init(Instance::new(uevents.clone()), GFP_KERNEL)?;
        let register = |node| {
            let data = NodeData {
                node,
                instance: instance.clone(),
            };
            let registration = miscdevice::Registration::new(node::options(node), data);
            KBox::pin_init(registration, GFP_KERNEL)
        };
        let vmgenid = register(Node::Vmgenid)?;
        // Somebody may have the first node open by now, so from here on nothing may fail.
        let mut sysgenid = register(Node::Sysgenid)
            .inspect_err(|error| pr_err!("there is no /dev/sysgenid: {error:?}\n"))
            .ok();
        if let Some(sysgenid) = &mut sysgenid {
            if uevents_wanted() {
                sysgenid.as_mut().start_uevents(uevents);
            }
        }
        Ok(Self {
            _publication: INSTANCE.publish(instance),
            _vmgenid: vmgenid,
            _sysgenid: sysgenid,
        })
    }
}
