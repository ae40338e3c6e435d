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
        |context| rng_is_fed_first(context, Backend::Vmfork),
    ),
    Test::new(
        "the RNG is fed before anybody wakes (sysgenid_acpi)",
        |context| rng_is_fed_first(context, Backend::Acpi),
    ),
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
fn rng_is_fed_first(context: &Context<'_>, backend: Backend) -> Result<()> {
    let mut guest = Guest::boot(context, backend, &[])?;
    guest.run(
        "sysgenid-guest draw-on-change /dev/vmgenid > /run/drawer 2>&1 & \
         sysgenid-guest await /run/drawer ready",
        PATIENCE,
    )?;
    trace::start(&mut guest)?;
    let mut snapshot = guest.snapshot()?;
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let mut clone = snapshot.clone_machine()?;
        clone.run("sysgenid-guest await /run/drawer drew", PATIENCE)?;
        let events = trace::stop(&mut clone)?;
        let first = |what: &str| {
            let found = events.iter().find(|event| event.what == what);
            found.map(|event| event.monotonic_ns)
        };
        let fed = first("fed").context("the kernel did not reseed its generator")?;
        let woken = first("waking drawer").context("the kernel did not wake the program")?;
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
