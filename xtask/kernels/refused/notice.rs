// SPDX-License-Identifier: GPL-2.0-only

//! A driver that listens to its device, as one is written; and, line by line, what must not compile.

use acpi_device::{
    AcpiDevice,
    Notify, //
};
use firmware_memory::FirmwareMemory;
use kernel::{
    acpi,
    device::{
        Bound,
        Core,
        Device, //
    },
    platform,
    prelude::*, //
};

#[path = "../support/acpi/acpi_device.rs"]
mod acpi_device;
#[path = "../support/acpi/firmware_memory.rs"]
mod firmware_memory;

struct Local;

impl Local {
    fn touch(&self) {}
}

struct Listens(Local);

impl Notify for Listens {
    fn notify(&self) {
        self.0.touch();
    }
}

struct Borrows<'a>(&'a Local);

// What a leaked handler would use when it is gone.
impl Notify for Borrows<'_> { fn notify(&self) { self.0.touch() } } // refused: E0478

struct Driver;

kernel::acpi_device_table!(
    ACPI_TABLE,
    <Driver as platform::Driver>::IdInfo,
    [(acpi::DeviceId::new(c"NOTHING1"), ())]
);

impl platform::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Self;

    const ACPI_ID_TABLE: Option<acpi::IdTable<Self::IdInfo>> = Some(&ACPI_TABLE);

    fn probe<'bound>(
        platform_device: &'bound platform::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self, Error> + 'bound {
        let device: &'bound Device<Bound> = platform_device.as_ref();
        if let Some(companion) = AcpiDevice::of(device) {
            let _ = companion.listen::<Listens>(Ok(Listens(Local)));
            // A handler that somebody owns, and so may leak.
            let _ = acpi_device::Handler::<Listens>::new(todo!(), Ok(Listens(Local))); // refused: E0603
            let _ = FirmwareMemory::<16>::locate(&companion, c"ADDR").map(|memory| memory.read());
            // More than a page.
            let _ = FirmwareMemory::<5000>::locate(&companion, c"ADDR"); // refused: E0080
        }
        Ok::<Self, Error>(Self)
    }
}

kernel::module_platform_driver! {
    type: Driver,
    name: "notice",
    authors: ["The sysgenid developers"],
    description: "A driver of which some lines must not compile",
    license: "GPL",
}
