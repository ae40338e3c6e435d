// SPDX-License-Identifier: MIT OR Apache-2.0

//! Restores: each new GUID is one change, everybody hears of it, and the random number generator was
//! fed first.

use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use sysgenid_guest::event::What;

use crate::cast;
use crate::cast::MAPPER;
use crate::cast::TRACKED;
use crate::qemu::PATIENCE;
use crate::qemu::Vm;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::guest::Snapshot;
use crate::trace;

pub(crate) const TESTS: &[Test] = &[
    Test::new("each restore bumps once (sysgenid_vmfork)", |context| {
        each_restore_bumps_once(Guest::boot(context, Backend::Vmfork, &[])?)
    }),
    Test::new("each restore bumps once (sysgenid_acpi)", |context| {
        each_restore_bumps_once(Guest::boot(context, Backend::Acpi, &[])?)
    }),
    Test::new(
        "the RNG is fed before anybody wakes (sysgenid_vmfork)",
        |context| rng_is_fed_first(Guest::boot(context, Backend::Vmfork, &[])?),
    ),
    Test::new(
        "the RNG is fed before anybody wakes (sysgenid_acpi)",
        |context| rng_is_fed_first(Guest::boot(context, Backend::Acpi, &[])?),
    ),
    Test::new(
        "nobody who is told of a restore keeps programs from knowing of it",
        programs_know_before_others,
    ),
    Test::new("a change looks for no file (sysgenid_vmfork)", |context| {
        needs_no_file(context, Backend::Vmfork)
    }),
    Test::new("a change looks for no file (sysgenid_acpi)", |context| {
        needs_no_file(context, Backend::Acpi)
    }),
];

/// How long a guest that is the same machine as before is watched. That nothing happens can only be seen for a
/// time; a change was noticed within a few tenths of a second.
const WATCHED: Duration = Duration::from_secs(3);

/// Restores a guest with a front end twice as a new machine and once as the same.
pub(crate) fn each_restore_bumps_once(mut guest: Guest<'_>) -> Result<()> {
    let programs = [&TRACKED[..], &[MAPPER]].concat();
    cast::start(&mut guest, &programs)?;
    for generation in 1..=2 {
        guest = guest.snapshot()?.restore()?;
        // Each reports after it acknowledged, so that the others' word says nothing of its report.
        for program in &programs {
            let report = cast::report_of(program);
            guest
                .run(
                    &format!(
                        "sysgenid-guest await {} '\"generation\":{generation}'",
                        report.display()
                    ),
                    PATIENCE,
                )
                .with_context(|| format!("the {program} did not report {generation}"))?;
        }
        check_events(&mut guest, &programs, generation)?;
    }
    guest = guest.snapshot()?.restore_unchanged()?;
    std::thread::sleep(WATCHED);
    check_events(&mut guest, &programs, 2).context("after a restore as the same machine")?;
    guest.finish()
}

/// Each program noticed each generation up to this one once, and acknowledged it if it is one that
/// does; the node itself is there, too, and has nobody outdated.
fn check_events(vm: &mut Vm, programs: &[&str], last: u32) -> Result<()> {
    for program in programs {
        let events = cast::events(vm, program)?;
        let of = |what: What| -> Vec<u32> {
            let matching = events.iter().filter(|event| event.what == what);
            matching.map(|event| event.generation).collect()
        };
        let expected: Vec<u32> = (1..=last).collect();
        let noticed = of(What::Noticed);
        ensure!(
            noticed == expected,
            "the {program} noticed the generations {noticed:?} instead of {expected:?}"
        );
        let acknowledged = of(What::Acknowledged);
        ensure!(
            !TRACKED.contains(program) || acknowledged == expected,
            "the {program} acknowledged the generations {acknowledged:?} instead of {expected:?}"
        );
    }
    let generation = vm.run("sysgenid-guest generation /dev/sysgenid", PATIENCE)?;
    ensure!(
        generation.trim() == last.to_string(),
        "the generation is {} instead of {last}",
        generation.trim()
    );
    Ok(())
}

/// Proves the order in two ways, in two clones of one snapshot, where a program sleeps in `read` and
/// draws from the kernel's generator as soon as it is woken.
///
/// The kernel's own record shows, on one clock, that the reseed had *returned* before the first wake-up
/// of the program was even begun: this is the proof. The bytes that the program drew differ between
/// the clones: this alone would prove nothing, for the kernel mixes in other things as well, but if the
/// bytes were the same the order would be wrong whatever the record shows.
pub(crate) fn rng_is_fed_first(guest: Guest<'_>) -> Result<()> {
    let mut snapshot = sleep_and_draw(guest)?;
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let mut clone = snapshot.clone_machine()?;
        let [fed, woken] = first_times(&mut clone, ["fed", "waking drawer"])?;
        if fed > woken {
            bail!(
                "the program was woken {} µs before the generator was fed",
                (fed - woken) / 1000
            );
        }
        drawn.push(clone.run("grep drew /run/drawer", PATIENCE)?);
        let log = std::fs::read_to_string(clone.console_log())?;
        guest::check_log(&log)?;
    }
    ensure!(
        drawn[0] != drawn[1],
        "two clones drew the same bytes after they were woken: {}",
        drawn[0].trim()
    );
    Ok(())
}

/// WireGuard is told of restores as the module is, and waits for locks that others hold. It is loaded first
/// here, so of two with the same priority it would be the first to be told.
fn programs_know_before_others(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot_machine(context, context.environment()?.machine_with_guid()?)?;
    guest.run("modprobe wireguard", PATIENCE)?;
    guest.run(Backend::Vmfork.load(), PATIENCE)?;
    let mut snapshot = sleep_and_draw(guest)?;
    let mut clone = snapshot.clone_machine()?;
    let [woken, wireguard] = first_times(&mut clone, ["waking drawer", "wireguard"])?;
    ensure!(
        woken < wireguard,
        "the program was woken {} µs after WireGuard was told",
        (woken - wireguard) / 1000
    );
    let log = std::fs::read_to_string(clone.console_log())?;
    guest::check_log(&log)
}

/// Stops a guest in which a program sleeps that draws from the kernel's generator as soon as it is woken, and
/// the kernel records what it does.
fn sleep_and_draw(mut guest: Guest<'_>) -> Result<Snapshot<'_>> {
    guest.run(
        "sysgenid-guest draw-on-change /dev/vmgenid > /run/drawer 2>&1 & \
         sysgenid-guest await /run/drawer ready",
        PATIENCE,
    )?;
    trace::start(&mut guest)?;
    guest.snapshot()
}

/// When each of these happened first in a clone, once its program has drawn.
fn first_times<const N: usize>(clone: &mut Vm, what: [&str; N]) -> Result<[u64; N]> {
    clone.run("sysgenid-guest await /run/drawer drew", PATIENCE)?;
    let events = trace::stop(clone)?;
    let mut times = [0; N];
    for (time, what) in times.iter_mut().zip(what) {
        let found = events.iter().find(|event| event.what == what);
        *time = found
            .with_context(|| format!("the kernel did not record: {what}"))?
            .monotonic_ns;
    }
    Ok(times)
}

/// Whoever provides a path may be slow, gone, or a hostile file system: what a change needs was found before.
fn needs_no_file(context: &Context<'_>, backend: Backend) -> Result<()> {
    let mut guest = Guest::boot(context, backend, &[])?;
    guest.run(
        "touch /run/nothing && mount --bind /run/nothing /dev/urandom && ! [ -c /dev/urandom ] && \
         sysgenid-guest bump /dev/sysgenid",
        PATIENCE,
    )?;
    guest = guest.snapshot()?.restore()?;
    guest.run(
        "timeout 20 sh -c 'until [ $(sysgenid-guest generation /dev/sysgenid) = 2 ]; do usleep 100000; done'",
        PATIENCE,
    )?;
    // The module would say in the log that it cannot reseed.
    guest.finish()
}
