// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the rest of a system meets: modprobe, udev, 32-bit programs.

use anyhow::Result;
use anyhow::ensure;

use crate::modules;
use crate::qemu::PATIENCE;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::guest::WITHOUT_STOCK_DRIVER;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the ACPI backend loads by modalias", load_by_modalias),
    Test::new("each change sends a uevent, unless they are off", uevents),
    Test::new("32-bit programs make all ioctls", |context| {
        let mut guest = Guest::boot(context, Backend::Vmfork, &[])?;
        for node in ["/dev/vmgenid", "/dev/sysgenid"] {
            guest.run(&format!("sysgenid-guest compat {node}"), PATIENCE)?;
        }
        guest.finish()
    }),
    Test::new(
        "every module has a licence, a description and no unresolved symbol",
        module_info,
    ),
];

/// The device as ACPI names it under QEMU.
const DEVICE: &str = "/sys/bus/acpi/devices/QEMUVGID:00";

fn load_by_modalias(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot_bare(context, &[WITHOUT_STOCK_DRIVER])?;
    guest.run(&format!("modprobe \"$(cat {DEVICE}/modalias)\""), PATIENCE)?;
    let driver = guest.run(
        &format!("basename $(readlink -f {DEVICE}/physical_node/driver)"),
        PATIENCE,
    )?;
    ensure!(
        driver.trim() == "sysgenid_acpi",
        "the device has the driver {}",
        driver.trim()
    );
    guest.finish()
}

fn uevents(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot(context, Backend::Vmfork, &[])?;
    let listen = "sysgenid-guest uevents > /run/uevents 2>&1 & \
                  echo $! > /run/listener; sysgenid-guest await /run/uevents ready";
    // The module sends its own soon after a change, not in it.
    let await_both = "sysgenid-guest await /run/uevents SYSGENID_GENERATION=2; cat /run/uevents";
    // That nothing comes is no event, so this takes its time.
    let mark = "sleep 1; echo change > /sys/class/misc/sysgenid/uevent; \
                sysgenid-guest await /run/uevents SYNTH_UUID; cat /run/uevents";
    guest.run(listen, PATIENCE)?;
    guest.run("sysgenid-guest bump /dev/vmgenid 2", PATIENCE)?;
    let seen = guest.run(await_both, PATIENCE)?;
    for generation in 1..=2 {
        let wanted = format!("SYSGENID_GENERATION={generation}");
        ensure!(
            seen.lines()
                .any(|line| line.contains(&wanted) && line.contains("ACTION=change")),
            "no change uevent with {wanted}, only:\n{seen}"
        );
    }
    guest.run(
        "kill $(cat /run/listener); rmmod sysgenid_vmfork; rmmod sysgenid; \
         modprobe sysgenid uevents=0",
        PATIENCE,
    )?;
    guest.run(listen, PATIENCE)?;
    guest.run("sysgenid-guest bump /dev/vmgenid 2", PATIENCE)?;
    let seen = guest.run(mark, PATIENCE)?;
    ensure!(
        !seen.contains("SYSGENID_GENERATION"),
        "with uevents=0 there were:\n{seen}"
    );
    guest.finish()
}

fn module_info(context: &Context<'_>) -> Result<()> {
    let environment = context.environment()?;
    let modules = environment.modules()?;
    for name in modules::NAMES {
        let file = modules.file(name);
        let file = file.to_string_lossy();
        let field = |field| environment.tree.output("modinfo", &["-F", field, &file]);
        ensure!(
            field("license")?.trim() == "GPL",
            "{name} is not marked GPL"
        );
        ensure!(
            !field("description")?.trim().is_empty(),
            "{name} has no description"
        );
        ensure!(
            field("vermagic")?.starts_with(&environment.kernel.version.release),
            "{name} is built for another kernel"
        );
    }
    let file = modules.file("sysgenid_acpi");
    let aliases = environment
        .tree
        .output("modinfo", &["-F", "alias", &file.to_string_lossy()])?;
    for id in ["VMGENCTR", "VM_GEN_COUNTER"] {
        ensure!(
            aliases
                .lines()
                .any(|alias| alias.starts_with("acpi*:") && alias.contains(id)),
            "sysgenid_acpi has no alias for {id}, only:\n{aliases}"
        );
    }
    Ok(())
}
