// SPDX-License-Identifier: GPL-2.0-only

//! System generation counter.
//!
//! Serves `/dev/sysgenid`: a counter that changes whenever this machine is cloned or rolled back to a
//! snapshot, so that programs can throw away what must not be used twice, and operators can wait until
//! all of them have. The contract is in `Documentation/userspace-api/sysgenid.rst`.
//!
//! This module knows no hardware. Drivers that notice a restore call `sysgenid_bump_generation()`, and
//! privileged programs may trigger a change by ioctl.
//!
//! Limits: there is one instance, that of the machine; containers have none of their own.

use instance::Instance;
use kernel::{
    miscdevice::mapped::{
        MiscModule,
        Options,
        Serve, //
    },
    prelude::*,
    sync::{
        published::{
            Publication,
            Published, //
        },
        Arc, //
    }, //
};
use node::Description;

mod glance;
mod instance;
mod node;
mod sysgenid_core;

module! {
    type: SysgenidModule,
    name: "sysgenid",
    authors: ["@NAME@"],
    description: "System generation counter",
    license: "GPL",
}

/// Where drivers that notice a restore find the instance.
static INSTANCE: Published<Instance> = Published::new();

/// Tells every program that this machine was cloned or rolled back.
///
/// When it returns, the new generation is visible in every mapping and all sleepers have been woken. The
/// caller must have had the random number generator reseeded before. Waits for nobody, in any context in
/// which spin locks may be taken; not for NMIs.
///
/// # Safety
///
/// Always safe to call; `#[export]` wants it to be declared so.
#[export]
pub unsafe extern "C" fn sysgenid_bump_generation() {
    INSTANCE.with(Instance::bump);
}

/// From now on something notices restores, which the page says to every program at once.
///
/// Each call is to be taken back by one of `sysgenid_unregister_backend()`. Context: as above.
///
/// # Safety
///
/// Always safe to call; `#[export]` wants it to be declared so.
#[export]
pub unsafe extern "C" fn sysgenid_register_backend() {
    INSTANCE.with(Instance::add_backend);
}

/// Takes a call of `sysgenid_register_backend()` back. Context: as above.
///
/// # Safety
///
/// Always safe to call; `#[export]` wants it to be declared so.
#[export]
pub unsafe extern "C" fn sysgenid_unregister_backend() {
    INSTANCE.with(Instance::remove_backend);
}

struct SysgenidModule {
    _module: MiscModule<Sysgenid>,
}

impl kernel::Module for SysgenidModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _module: MiscModule::init(module)?,
        })
    }
}

struct Sysgenid {
    // The order is that of unloading: no other driver can call any more, then the node goes. Nobody has
    // it open by then, for an open node pins this module.
    _publication: Publication<Instance>,
    instance: Arc<Instance>,
}

impl Serve for Sysgenid {
    type Device = Description;

    fn start() -> Result<Self> {
        let instance = Arc::pin_init(Instance::new(), GFP_KERNEL)?;
        Ok(Self {
            _publication: INSTANCE.publish(instance.clone()),
            instance,
        })
    }

    fn devices(&mut self) -> impl IntoIterator<Item = Options<Description>> {
        [node::options(self.instance.clone())]
    }
}
