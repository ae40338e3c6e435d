// SPDX-License-Identifier: GPL-2.0-only

//! Declaring the ACPI ids of a driver, for the kernel crate of this and of the previous release.
//!
//! Since Linux 7.3 the macro of the kernel crate chooses the name that modpost looks for.

#[cfg(not(before_linux_7_3))]
macro_rules! acpi_id_table {
    ($name:ident, $info:ty, $ids:tt) => {
        kernel::acpi_device_table!($name, $info, $ids);
    };
}

#[cfg(before_linux_7_3)]
macro_rules! acpi_id_table {
    ($name:ident, $info:ty, $ids:tt) => {
        kernel::acpi_device_table!($name, MODULE_ACPI_TABLE, $info, $ids);
    };
}
