// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hibernation: whoever copies the disk of a machine that is hibernated copies its memory. Each machine that resumes
//! from it was booted, so that no hypervisor gives it notice.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::environment::Environment;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::sighting;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "two machines that resume from one hibernated disk each have a new generation before any program runs on",
    |context| each_resume_is_a_change(context, context.environment()?, DISK_SIZE),
)];

/// In bytes: the memory, and room to spare. Most of it is never written.
const DISK_SIZE: u64 = 512 << 20;

/// One program spins, and so is among the first to run on; another sleeps in `read`, and acknowledges.
pub(crate) fn each_resume_is_a_change(
    context: &Context<'_>,
    environment: &Environment,
    disk_size: u64,
) -> Result<()> {
    let folder = context.cache.temporary_folder()?;
    let disk = folder.path().join("disk");
    File::create(&disk)?.set_len(disk_size)?;
    let mut guest = boot(context, environment, &disk)?;
    guest.run(Backend::Vmfork.load(), PATIENCE)?;
    guest.run(
        "mkswap /dev/vda && swapon /dev/vda && echo shutdown > /sys/power/disk",
        PATIENCE,
    )?;
    guest.run(
        "sysgenid-guest draw-on-change /dev/vmgenid > /run/drawer 2>&1 & \
         sysgenid-guest await /run/drawer ready",
        PATIENCE,
    )?;
    sighting::look(&mut guest, "look-for-resume", "ready")?;
    guest.hibernate()?;

    let mut clones = Vec::new();
    let mut sightings = Vec::new();
    for name in ["first", "second"] {
        let copy = folder.path().join(name);
        std::fs::copy(&disk, &copy)?;
        let mut clone = boot(context, environment, &copy)?;
        sightings.push(sighting::report(&mut clone).context("the machine did not resume")?);
        clones.push(clone);
    }
    ensure!(
        sightings
            .iter()
            .all(|sighting| (sighting.seen_in_generation, sighting.drawn_in_generation) == (1, 1)),
        "a program ran on before the generation changed: {sightings:?}"
    );
    ensure!(
        sightings[0].drawn != sightings[1].drawn,
        "both machines drew the same bytes: {sightings:?}"
    );
    let mut drawn = Vec::new();
    for mut clone in clones {
        drawn.push(clone.run(
            "sysgenid-guest await /run/drawer drew && grep drew /run/drawer",
            PATIENCE,
        )?);
        let generation = clone.run("sysgenid-guest generation /dev/sysgenid", PATIENCE)?;
        ensure!(
            generation.trim() == "1",
            "the generation is {} in the end",
            generation.trim()
        );
        clone.finish()?;
    }
    ensure!(
        drawn[0] != drawn[1],
        "both machines drew the same bytes after they were woken: {}",
        drawn[0].trim()
    );
    Ok(())
}

/// Boots a machine that has a generation ID of its own, and a disk. It resumes from that if it can.
fn boot<'a>(context: &Context<'_>, environment: &'a Environment, disk: &Path) -> Result<Guest<'a>> {
    let machine = Machine {
        disk: Some(disk.to_owned()),
        ..environment.machine_with_guid()?
    };
    Guest::boot_in(context, environment, machine)
}
