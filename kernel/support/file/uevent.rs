// SPDX-License-Identifier: GPL-2.0-only

//! Events for udev.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use crate::workqueue::Errand;
use core::mem;
use kernel::{
    bindings,
    device::Device,
    error::to_result,
    impl_has_delayed_work,
    new_delayed_work,
    new_mutex,
    new_spinlock_irq,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        Arc,
        Mutex,
        SpinLockIrq, //
    },
    workqueue::{
        DelayedWork,
        WorkItem, //
    }, //
};

/// How many events may be to come. If more are wanted, the oldest are left out.
const PENDING: usize = 64;

/// Sends `change` events of a device, each with one variable. This is the half of those who want events.
///
/// Sending may sleep, for as long as memory is short, so it is left to a work item: who wants an event
/// does not wait for it.
pub(crate) struct Uevents(Errand<Sender>);

/// The half of the one device that events are of.
pub(crate) struct DeviceEvents(Arc<Sender>);

/// Values that wait to be sent, the oldest first.
struct Pending {
    values: [u32; PENDING],
    /// Where the oldest is.
    first: usize,
    count: usize,
}

/// # Invariants
///
/// A device that is in here is registered.
#[pin_data]
struct Sender {
    variable: &'static str,
    #[pin]
    pending: SpinLockIrq<Pending>,
    #[pin]
    device: Mutex<Option<ARef<Device>>>,
    #[pin]
    work: DelayedWork<Sender>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Sender { self.work }
}

impl Uevents {
    /// Events with the variable `variable`, of no device yet.
    pub(crate) fn new(variable: &'static str) -> Result<(Self, DeviceEvents)> {
        let sender = pin_init!(Sender {
            variable,
            pending <- new_spinlock_irq!(Pending::NONE, "sysgenid_uevents"),
            // INVARIANT: There is no device.
            device <- new_mutex!(None),
            work <- new_delayed_work!("sysgenid_uevents"),
        });
        let sender = Arc::pin_init(sender, GFP_KERNEL)?;
        let events = DeviceEvents(sender.clone());
        let errand = Errand::new(c"sysgenid_uevents", sender)?;
        Ok((Self(errand), events))
    }

    /// Notes that an event with this value is to be sent, after those that were noted before.
    ///
    /// This and [`send`](Self::send) wait for nobody, in any context in which spin locks may be taken.
    pub(crate) fn note(&self, value: u32) {
        self.0.pending.lock().push(value);
    }

    /// Has everything sent that was noted. Each who noted something calls it: whoever did so first may be kept from it.
    pub(crate) fn send(&self) {
        // If that is to come already, it finds what was noted since.
        self.0.run_soon();
    }
}

impl DeviceEvents {
    /// From now on events are sent of `device`.
    ///
    /// # Safety
    ///
    /// The device must be registered, and stay so until [`stop`](Self::stop) has returned.
    pub(crate) unsafe fn start(&self, device: &Device) {
        // INVARIANT: The caller promises it.
        *self.0.device.lock() = Some(device.into());
    }

    /// From now on no events are sent, and none is being sent when this returns.
    pub(crate) fn stop(&self) {
        *self.0.device.lock() = None;
    }
}

impl Pending {
    const NONE: Self = Self {
        values: [0; PENDING],
        first: 0,
        count: 0,
    };

    fn push(&mut self, value: u32) {
        if self.count == PENDING {
            self.first = (self.first + 1) % PENDING;
            self.count -= 1;
        }
        self.values[(self.first + self.count) % PENDING] = value;
        self.count += 1;
    }

    /// All values, the oldest first.
    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (self.first..self.first + self.count).map(|index| self.values[index % PENDING])
    }
}

impl WorkItem for Sender {
    type Pointer = Arc<Self>;

    fn run(sender: Arc<Self>) {
        loop {
            let pending = mem::replace(&mut *sender.pending.lock(), Pending::NONE);
            if pending.count == 0 {
                return;
            }
            for value in pending.iter() {
                if let Err(error) = sender.send(value) {
                    pr_warn!("no uevent with {}={value}: {error:?}\n", sender.variable);
                }
            }
        }
    }
}

impl Sender {
    /// Sends an event, if there is a device; else it does not even allocate memory for it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or what the kernel's own filters of events return.
    fn send(&self, value: u32) -> Result {
        let device = self.device.lock();
        let Some(device) = &*device else {
            return Ok(());
        };
        let variable = CString::try_from_fmt(fmt!("{}={value}", self.variable))?;
        // `Device` is a transparent wrapper of `struct device`.
        let device = core::ptr::from_ref::<Device>(device)
            .cast_mut()
            .cast::<bindings::device>();
        let mut environment = [
            variable.as_char_ptr().cast_mut(),
            core::ptr::null_mut(), //
        ];
        // SAFETY: By the type invariants the device is registered, and it stays so while the lock is
        // held. The environment is a null-terminated array of strings that are only read.
        to_result(unsafe {
            bindings::kobject_uevent_env(
                &raw mut (*device).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
                environment.as_mut_ptr(),
            )
        })
    }
}
