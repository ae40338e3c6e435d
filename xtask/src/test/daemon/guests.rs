// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon in guests with Debian's stock kernels, where nothing of ours is in the kernel.

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::environment::Environment;
use crate::front_end;
use crate::front_end::FrontEnd;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Guest;
use crate::test::known_limits;
use crate::test::module::restore;
use crate::test::suite;
use crate::vmclock::Vmclock;

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "each restore bumps the daemon once, as Debian's own kernel counts them",
        |context| by_kprobe(context, context.stock()?),
    ),
    Test::new(
        "each restore bumps the daemon once, as the newest kernel counts them",
        |context| by_kprobe(context, context.without_driver()?),
    ),
    Test::new(
        "each restore bumps the daemon once, by the log of Debian's own kernel",
        |context| by_kmsg(context, context.stock()?),
    ),
    Test::new(
        "each restore bumps the daemon once, by the newest kernel's log",
        |context| by_kmsg(context, context.without_driver()?),
    ),
    Test::new(
        "each restore bumps the daemon once, by the hypervisor's page alone",
        by_vmclock,
    ),
    Test::new(
        "each restore bumps the daemon once, by the hypervisor's page and the kernel's count at once",
        by_vmclock_and_kprobe,
    ),
    Test::new(
        "the daemon's nodes conform on Debian's own kernel",
        |context| conform(context, context.stock()?),
    ),
    Test::new(
        "the daemon's nodes conform on the newest kernel",
        |context| conform(context, context.without_driver()?),
    ),
];

/// What the daemon says of itself.
const STATUS: &str = "/run/sysgenid/host/status";

pub(crate) fn by_kprobe(context: &Context<'_>, environment: &Environment) -> Result<()> {
    let mut guest = Guest::boot_in(context, environment, environment.machine_with_guid()?)?;
    FrontEnd::Daemon.start(&mut guest)?;
    expect_backends(&mut guest, &["kprobe"])?;
    restore::each_restore_bumps_once(guest)
}

/// Where the kernel cannot be probed, which here is the configuration's wish.
pub(crate) fn by_kmsg(context: &Context<'_>, environment: &Environment) -> Result<()> {
    let mut guest = Guest::boot_in(context, environment, environment.machine_with_guid()?)?;
    guest.run(
        "mkdir -p /etc/sysgenid && \
         printf '[backends]\\nuse = [\"vmclock\", \"kmsg\"]\\n' > /etc/sysgenid/sysgenidd.toml",
        PATIENCE,
    )?;
    FrontEnd::Daemon.start(&mut guest)?;
    expect_backends(&mut guest, &["kmsg"])?;
    restore::each_restore_bumps_once(guest)
}

/// In a machine without a generation ID, where the kernel itself notices nothing. The hypervisor sends no
/// notification either, so it is the daemon that has to look from time to time.
fn by_vmclock(context: &Context<'_>) -> Result<()> {
    let environment = context.without_driver()?;
    let mut guest = boot_with_vmclock(context, environment, environment.machine())?;
    guest.count_generations()?;
    FrontEnd::Daemon.start(&mut guest)?;
    expect_backends(&mut guest, &["vmclock"])?;
    restore::each_restore_bumps_once(guest)
}

fn by_vmclock_and_kprobe(context: &Context<'_>) -> Result<()> {
    let environment = context.without_driver()?;
    let mut guest = boot_with_vmclock(context, environment, environment.machine_with_guid()?)?;
    // A page without a counter, which is what QEMU has, is no backend.
    FrontEnd::Daemon.start(&mut guest)?;
    expect_backends(&mut guest, &["kprobe"])?;
    front_end::stop_daemon(&mut guest)?;
    guest.count_generations()?;
    FrontEnd::Daemon.start(&mut guest)?;
    expect_backends(&mut guest, &["vmclock", "kprobe"])?;
    restore::each_restore_bumps_once(guest)
}

fn boot_with_vmclock<'a>(
    context: &Context<'_>,
    environment: &'a Environment,
    machine: Machine,
) -> Result<Guest<'a>> {
    let machine = Machine {
        vmclock: Some(Vmclock::Silent),
        ..machine
    };
    let mut guest = Guest::boot_in(context, environment, machine)?;
    guest
        .run("modprobe ptp_vmclock && ls /dev/vmclock0", PATIENCE)
        .context("the kernel has no driver for vmclock, or does not see the device")?;
    Ok(guest)
}

/// Fails unless exactly these backends are in use, beside the software one, which always is.
fn expect_backends(guest: &mut Guest<'_>, expected: &[&str]) -> Result<()> {
    let status = guest.run(&format!("cat {STATUS}"), PATIENCE)?;
    let found = backends(&status);
    ensure!(
        found == [expected, &["software"]].concat(),
        "the daemon uses {found:?} instead of {expected:?} and the software trigger:\n{status}"
    );
    Ok(())
}

/// The backends that the daemon's status says are in use, in order.
fn backends(status: &str) -> Vec<&str> {
    status
        .lines()
        .filter_map(|line| line.strip_prefix("backend:")?.trim().split_once(": "))
        .filter(|(_, state)| !state.starts_with("not in use"))
        .map(|(name, _)| name)
        .collect()
}

/// Examines both nodes of the daemon. Each is examined on a daemon that nobody has used, for the
/// generation of a new node is part of the contract.
pub(crate) fn conform(context: &Context<'_>, environment: &Environment) -> Result<()> {
    let mut guest = Guest::boot_in(context, environment, environment.machine_with_guid()?)?;
    for node in ["vmgenid", "sysgenid"] {
        FrontEnd::Daemon.start(&mut guest)?;
        let outcome = guest.outcome(
            &format!(
                "sysgenid-conformance --node /dev/{node} --fresh {}",
                known_limits::options(true).join(" ")
            ),
            suite::PATIENCE,
        )?;
        suite::check(
            &format!("/dev/{node}"),
            Some(outcome.status),
            &outcome.output,
            |reason| known_limits::is_expected_skip(node, reason),
        )?;
        front_end::stop_daemon(&mut guest)?;
    }
    guest
        .run(
            "! [ -L /dev/sysgenid ] && ! [ -L /dev/vmgenid ] && ! grep fuse /proc/mounts",
            PATIENCE,
        )
        .context("the daemon left something behind")?;
    guest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_does_not_work_is_not_in_use() {
        let status = "instance:    host\n\
                      backend:     vmclock: not in use: there is no /dev/vmclock0\n\
                      backend:     kmsg: the kernel's log\n\
                      backend:     software: the trigger ioctl; always there\n";
        assert_eq!(backends(status), ["kmsg", "software"]);
    }
}
