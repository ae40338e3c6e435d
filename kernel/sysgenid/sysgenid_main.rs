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

use instance::Instance;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use miscdevice::{
    MiscModule,
    Options,
    Serve, //
};
use node::{
    Description,
    NodeData, //
};
use published::{
    Publication,
    Published, //
};
use sysgenid_core::{
    abi,
    Node, //
};
use uevent::{
    DeviceEvents,
    Uevents, //
};

#[path = "../support/capability.rs"]
mod capability;
#[path = "../support/random/entropy.rs"]
mod entropy;
mod glance;
mod instance;
#[path = "../support/file/miscdevice.rs"]
mod miscdevice;
mod node;
#[path = "../support/published.rs"]
mod published;
#[path = "../support/random/randomness.rs"]
mod randomness;
#[path = "../support/wait/restarted_wait.rs"]
mod restarted_wait;
mod sysgenid_core;
#[path = "../support/wait/timed_wait_queue.rs"]
mod timed_wait_queue;
#[path = "../support/file/uevent.rs"]
mod uevent;
#[path = "../support/file/user_copy.rs"]
mod user_copy;
#[path = "../support/file/vma.rs"]
mod vma;
#[path = "../support/file/word_page.rs"]
mod word_page;
#[path = "../support/workqueue.rs"]
mod workqueue;

module! {
    type: MiscModule<Sysgenid>,
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
/// have been woken. A backend must have fed the kernel's random number generator before. Waits for
/// nobody, in any context in which spin locks may be taken; not for NMIs.
#[no_mangle]
pub extern "C" fn sysgenid_bump_generation() {
    INSTANCE.with(Instance::bump);
}

/// Reseeds the kernel's random number generator, so that what was mixed into its pool comes into effect.
///
/// For backends whose notice comes from elsewhere than the kernel. Process context; may sleep, but waits
/// for nothing in user space.
#[no_mangle]
pub extern "C" fn sysgenid_reseed() {
    if let Some(instance) = INSTANCE.get() {
        instance.reseed();
    }
}

/// From now on something notices restores, which the page says to every program at once.
///
/// For backends, once they can notice one. Each call is to be taken back by one of
/// `sysgenid_unregister_backend()`. Process context; may sleep.
#[no_mangle]
pub extern "C" fn sysgenid_register_backend() {
    if let Some(instance) = INSTANCE.get() {
        instance.add_backend();
    }
}

/// Takes a call of `sysgenid_register_backend()` back. Any context, as above.
#[no_mangle]
pub extern "C" fn sysgenid_unregister_backend() {
    INSTANCE.with(Instance::remove_backend);
}

struct Sysgenid {
    // The order is that of unloading: no backend can call any more, then the nodes go. Nobody has
    // them open by then, for an open node pins this module.
    _publication: Publication<Instance>,
    instance: Arc<Instance>,
    events: Option<DeviceEvents>,
}

impl Serve for Sysgenid {
    type Device = Description;

    fn start() -> Result<Self> {
        let (uevents, events) = if module_parameters::uevents.value() == 0 {
            (None, None)
        } else {
            let (uevents, events) = Uevents::new(abi::UEVENT_VARIABLE)?;
            (Some(uevents), Some(events))
        };
        let instance = Arc::pin_init(Instance::new(uevents), GFP_KERNEL)?;
        Ok(Self {
            _publication: INSTANCE.publish(instance.clone()),
            instance,
            events,
        })
    }

    fn devices(&mut self) -> impl IntoIterator<Item = Options<Description>> {
        let vmgenid = Options {
            // One of them is enough.
            resumed: Some(|data: &NodeData| data.instance.resumed()),
            ..node::options(Node::Vmgenid, self.instance.clone())
        };
        let sysgenid = Options {
            events: self.events.take(),
            ..node::options(Node::Sysgenid, self.instance.clone())
        };
        [vmgenid, sysgenid]
    }
}
