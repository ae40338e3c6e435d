// SPDX-License-Identifier: MIT OR Apache-2.0

//! Another processor, and the other way in which a machine has a generation ID: by its device tree. All of it is
//! emulated, the modules and programs are cross-built.

use anyhow::Result;
use anyhow::ensure;

use crate::environment::Environment;
use crate::front_end;
use crate::front_end::FrontEnd;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::test::Context;
use crate::test::Test;
use crate::test::client;
use crate::test::daemon::guests as daemon;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::module::conformance;
use crate::test::module::restore;

pub(crate) const TESTS: &[Test] = &[
    Test::long("arm64: both nodes conform", |context| {
        let mut guest = boot(context, context.arm64()?, &[])?;
        conformance::both_conform(&mut guest)?;
        guest.finish()
    }),
    Test::long(
        "arm64: the library and the command line work on the module's nodes",
        |context| {
            let mut guest = boot_with_modules(context, &[])?;
            client::in_a_guest(&mut guest)?;
            guest.finish()
        },
    ),
    Test::long(
        "arm64: each restore bumps once, by the device tree's interrupt",
        |context| {
            let mut guest = boot_with_modules(context, &[])?;
            expect_thread(&mut guest, false)?;
            restore::each_restore_bumps_once(guest)
        },
    ),
    Test::long(
        "arm64: each restore bumps once, by the device tree's interrupt in a thread",
        |context| {
            let mut guest = boot_with_modules(context, &[THREADS])?;
            expect_thread(&mut guest, true)?;
            restore::each_restore_bumps_once(guest)
        },
    ),
    Test::long(
        "arm64: the RNG is fed before anybody wakes, by the device tree's interrupt",
        |context| restore::rng_is_fed_first(boot_with_modules(context, &[])?),
    ),
    Test::long(
        "arm64: the RNG is fed before anybody wakes, by the device tree's interrupt in a thread",
        |context| restore::rng_is_fed_first(boot_with_modules(context, &[THREADS])?),
    ),
    Test::long(
        "arm64: the daemon's nodes conform on Debian's own kernel",
        |context| daemon::conform(context, context.arm64_stock()?),
    ),
    Test::long(
        "arm64: the library and the command line work on the daemon's nodes, on Debian's own kernel",
        |context| {
            let mut guest = boot(context, context.arm64_stock()?, &[])?;
            FrontEnd::Daemon.start(&mut guest)?;
            client::in_a_guest(&mut guest)?;
            front_end::stop_daemon(&mut guest)?;
            guest.finish()
        },
    ),
    Test::long(
        "arm64: each restore bumps the daemon once, as Debian's own kernel counts them",
        |context| daemon::by_kprobe(context, context.arm64_stock()?),
    ),
    Test::long(
        "arm64: each restore bumps the daemon once, by the log of Debian's own kernel",
        |context| daemon::by_kmsg(context, context.arm64_stock()?),
    ),
];

/// Has the kernel handle interrupts in threads, where it may sleep. Without this it may not.
const THREADS: &str = "threadirqs";

/// Boots a machine with a generation ID.
fn boot<'a>(
    context: &Context<'_>,
    environment: &'a Environment,
    append: &[&str],
) -> Result<Guest<'a>> {
    let machine = Machine {
        append: append.iter().map(ToString::to_string).collect(),
        ..environment.machine_with_guid()?
    };
    Guest::boot_in(context, environment, machine)
}

fn boot_with_modules<'a>(context: &'a Context<'_>, append: &[&str]) -> Result<Guest<'a>> {
    let mut guest = boot(context, context.arm64()?, append)?;
    guest.run(Backend::Vmfork.load(), PATIENCE)?;
    Ok(guest)
}

/// Fails unless the kernel's driver has the interrupt, and a thread for it or not.
fn expect_thread(guest: &mut Guest<'_>, expected: bool) -> Result<()> {
    let interrupts = guest.run("cat /proc/interrupts", PATIENCE)?;
    ensure!(
        interrupts.lines().any(|line| line.ends_with("vmgenid")),
        "the kernel's driver has no interrupt:\n{interrupts}"
    );
    let found = guest.outcome("grep -qE '^irq/[0-9]+-vmgenid$' /proc/*/comm", PATIENCE)?;
    ensure!(
        (found.status == 0) == expected,
        "the driver's interrupt {} a thread",
        if expected { "has not" } else { "has" }
    );
    Ok(())
}
