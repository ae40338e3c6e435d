// SPDX-License-Identifier: MIT OR Apache-2.0

//! Malformed firmware: a clear error for each device, and no harm.

use std::fmt::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::progress;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Guest;
use crate::test::guest::WITHOUT_STOCK_DRIVER;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "malformed firmware gets a clear error, well-formed firmware works",
    malformed_firmware,
)];

/// A device that claims to be a generation counter.
struct Device {
    /// What is special about it.
    about: &'static str,
    /// Its `ADDR`, in ACPI's source language.
    address: &'static str,
    /// Whether a driver can work with that.
    works: bool,
}

/// Halves of more than 32 bits are not among them: the revision of QEMU's DSDT makes all integers 32 bits.
const DEVICES: &[Device] = &[
    Device {
        about: "no ADDR",
        address: "",
        works: false,
    },
    Device {
        about: "ADDR is an integer",
        address: "Name (ADDR, 0xF0000)",
        works: false,
    },
    Device {
        about: "ADDR is a string",
        address: "Name (ADDR, \"F0000\")",
        works: false,
    },
    Device {
        about: "a package of none",
        address: "Name (ADDR, Package () {})",
        works: false,
    },
    Device {
        about: "a package of one",
        address: "Name (ADDR, Package () { 0xF0000 })",
        works: false,
    },
    Device {
        about: "a package of three",
        address: "Name (ADDR, Package () { 0xF0000, 0, 0 })",
        works: false,
    },
    Device {
        about: "a package with a string",
        address: "Name (ADDR, Package () { 0xF0000, \"0\" })",
        works: false,
    },
    Device {
        about: "address 0",
        address: "Name (ADDR, Package () { 0, 0 })",
        works: false,
    },
    Device {
        about: "an address beyond the processor's",
        address: "Name (ADDR, Package () { 0xFFFFFFF8, 0xFFFFFFFF })",
        works: false,
    },
    Device {
        about: "ADDR that fails when called",
        address: "Method (ADDR) { Return (DerefOf (Index (Package () { 1 }, 7))) }",
        works: false,
    },
    // In the firmware's own memory, which is as good as any: the test only reads it.
    Device {
        about: "well-formed",
        address: "Name (ADDR, Package () { 0xF0000, 0 })",
        works: true,
    },
];

fn malformed_firmware(context: &Context<'_>) -> Result<()> {
    let environment = context.environment()?;
    let folder = context.cache.temporary_folder()?;
    let table = compile(context, folder.path())?;
    let mut guest = Guest::boot_machine(
        context,
        Machine {
            append: vec![WITHOUT_STOCK_DRIVER.to_owned()],
            acpi_tables: vec![table],
            ..environment.machine()
        },
    )?;
    guest.run("modprobe sysgenid && modprobe sysgenid_acpi", PATIENCE)?;
    let log = guest.run("dmesg", PATIENCE)?;
    let bound = guest.run("ls /sys/bus/platform/drivers/sysgenid_acpi", PATIENCE)?;
    for (index, device) in DEVICES.iter().enumerate() {
        let name = platform_name(index);
        let is_bound = bound.lines().any(|line| line == name);
        ensure!(
            is_bound == device.works,
            "{}: the driver {} it",
            device.about,
            if is_bound { "took" } else { "did not take" }
        );
        let complained = log.lines().any(|line| {
            line.contains("sysgenid_acpi")
                && line.contains(&name)
                && line.contains("firmware error")
        });
        ensure!(
            complained != device.works,
            "{}: the driver {}; the log says:\n{log}",
            device.about,
            if complained {
                "complained"
            } else {
                "did not say what is wrong"
            }
        );
    }
    guest.run("rmmod sysgenid_acpi && rmmod sysgenid", PATIENCE)?;
    guest.finish()
}

/// The name under which Linux shows a device of the table.
fn platform_name(index: usize) -> String {
    format!("GENT{index:04X}:00")
}

/// A table with all the devices, in ACPI's source language.
fn source() -> Result<String> {
    let mut text =
        String::from("DefinitionBlock (\"\", \"SSDT\", 2, \"GENID\", \"GENTEST\", 1) {\n");
    for (index, device) in DEVICES.iter().enumerate() {
        writeln!(
            text,
            "    // {}\n    Device (\\_SB.G{index:03X}) {{\n        Name (_HID, \"GENT{index:04X}\")\n        \
             Name (_CID, \"VM_GEN_COUNTER\")\n        {}\n    }}",
            device.about, device.address
        )?;
    }
    text.push_str("}\n");
    Ok(text)
}

fn compile(context: &Context<'_>, folder: &Path) -> Result<PathBuf> {
    let source_file = folder.join("devices.asl");
    std::fs::write(&source_file, source()?)?;
    let mut command = context.environment()?.tree.command("iasl");
    // The errors are the point; the compiler is to let them pass.
    command.args(["-f", "-p"]);
    command.arg(folder.join("devices")).arg(&source_file);
    progress::run_into(&context.cache.log("iasl")?, &mut command, &mut |_| ())
        .context("cannot compile the ACPI table")?;
    Ok(folder.join("devices.aml"))
}
