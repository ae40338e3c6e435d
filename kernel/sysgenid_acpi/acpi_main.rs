// SPDX-License-Identifier: GPL-2.0-only

//! Backend for the system generation counter: the ACPI Virtual Machine Generation ID device.
//!
//! The hypervisor keeps a GUID in guest memory and notifies the guest when it has changed, which
//! means that the machine was cloned or rolled back. This feeds the random number generator and then
//! bumps the generation.
//!
//! It is for kernels whose own `vmgenid` driver does not take the device; where that driver does, use
//! `sysgenid_vmfork`. The GUID is an input of the random number generator: it never leaves the
//! kernel, and no error message shows it.
//!
//! Specification: "Virtual Machine Generation ID", Microsoft, 2012.

use acpi_device::{
    AcpiDevice,
    Notify, //
};
use firmware_memory::FirmwareMemory;
use generation::Backend;
use kernel::{
    acpi,
    device::{
        Bound,
        Core,
        Device, //
    },
    devres,
    new_mutex,
    platform,
    prelude::*,
    sync::Mutex, //
};

#[path = "../support/acpi/acpi_device.rs"]
mod acpi_device;
#[path = "../support/random/entropy.rs"]
mod entropy;
#[path = "../support/acpi/firmware_memory.rs"]
mod firmware_memory;
#[path = "../support/generation.rs"]
mod generation;

/// The size of a GUID in bytes.
const GUID_SIZE: usize = 16;

/// The GUID of a virtual machine, and the one that was seen last.
#[pin_data]
struct VmGenerationId {
    firmware: FirmwareMemory<GUID_SIZE>,
    #[pin]
    seen: Mutex<[u8; GUID_SIZE]>,
}

impl VmGenerationId {
    fn new(firmware: FirmwareMemory<GUID_SIZE>) -> impl PinInit<Self, Error> {
        let guid = firmware.read();
        entropy::mix(&guid);
        try_pin_init!(Self {
            firmware,
            seen <- new_mutex!(guid),
        })
    }
}

impl Notify for VmGenerationId {
    fn notify(&self) {
        let mut seen = self.seen.lock();
        let guid = self.firmware.read();
        if guid == *seen {
            return;
        }
        *seen = guid;
        // A program that is woken by the bump may ask for random bytes at once.
        entropy::mix(&guid);
        generation::reseed();
        generation::bump();
    }
}

/// What this keeps of a device: nothing, for all that listens belongs to the device itself.
#[pin_data]
struct Listener {}

struct AcpiDriver;

kernel::acpi_device_table!(
    ACPI_TABLE,
    <AcpiDriver as platform::Driver>::IdInfo,
    [
        (acpi::DeviceId::new(c"VMGENCTR"), ()),
        (acpi::DeviceId::new(c"VM_GEN_COUNTER"), ()),
    ]
);

impl platform::Driver for AcpiDriver {
    type IdInfo = ();
    type Data<'bound> = Listener;

    const ACPI_ID_TABLE: Option<acpi::IdTable<Self::IdInfo>> = Some(&ACPI_TABLE);

    fn probe<'bound>(
        platform_device: &'bound platform::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pin_init::pin_init_scope(move || {
            let device: &'bound Device<Bound> = platform_device.as_ref();
            let companion = AcpiDevice::of(device).ok_or(ENODEV)?;
            let guid = FirmwareMemory::locate(&companion, c"ADDR").map_err(|error| {
                dev_err!(
                    device,
                    "firmware error: ADDR does not lead to a GUID: {error}\n"
                );
                EINVAL
            })?;
            companion.listen(VmGenerationId::new(guid))?;
            // What is registered last goes first.
            devres::register(device, Backend::register(), GFP_KERNEL)?;
            Ok(try_pin_init!(Listener {}? Error))
        })
    }
}

kernel::module_platform_driver! {
    type: AcpiDriver,
    name: "sysgenid_acpi",
    authors: ["The sysgenid developers"],
    description: "System generation counter: ACPI VM Generation ID backend",
    license: "GPL",
}
