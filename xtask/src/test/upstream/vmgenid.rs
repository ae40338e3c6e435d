// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fixes of the kernel's own driver, in guests: built as a module, which is loaded instead of the one that the
//! kernel has built in. The driver without the fixes shows that each defect can be seen in this way.
//!
//! What is not seen: the thread of the interrupt, for these machines have no device tree; and overlapping
//! notifications.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::progress;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::series;
use crate::test::Context;
use crate::test::guest::Guest;
use crate::test::guest::WITHOUT_STOCK_DRIVER;

/// What the kernel says when the driver has told it of a new ID.
const NOTICED: &str = "crng reseeded due to virtual machine fork";

/// How long a machine is watched that must not notice anything.
const WATCHED: Duration = Duration::from_secs(3);

/// In bytes.
const DISK_SIZE: u64 = 512 << 20;

/// Where the driver's devices are bound.
const DRIVER: &str = "/sys/bus/platform/drivers/vmgenid";

/// The driver, as a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Original,
    Fixed,
}

impl Driver {
    fn module(self) -> &'static str {
        match self {
            Self::Original => "vmgenid_original",
            Self::Fixed => "vmgenid_fixed",
        }
    }
}

pub(super) fn fixes_mend(context: &Context<'_>) -> Result<()> {
    let folder = context.cache.temporary_folder()?;
    let initramfs = folder.path().join("initramfs");
    prepare(context, &initramfs)?;

    let original = rebind(context, &initramfs, Driver::Original)?;
    ensure!(
        original.is_err(),
        "the original driver can be bound again: the test proves nothing any more"
    );
    rebind(context, &initramfs, Driver::Fixed)??;

    for (driver, expected) in [(Driver::Original, false), (Driver::Fixed, true)] {
        let disk = folder.path().join(driver.module());
        let noticed = resume(context, &initramfs, &disk, driver)?;
        ensure!(
            noticed == [expected; 2],
            "{driver:?}: two machines that resumed from one disk noticed it: {noticed:?}"
        );
    }
    Ok(())
}

/// Builds the driver with and without the fixes, and packs both for guests.
fn prepare(context: &Context<'_>, initramfs: &Path) -> Result<()> {
    let environment = context.environment()?;
    let build_folder = &environment.modules()?.build_folder;
    let place = context.cache.repository().join("target/series/vmgenid");
    std::fs::create_dir_all(place.join("root/lib"))?;
    let source = build_folder.source().join("drivers/virt/vmgenid.c");
    let name = |driver: Driver| place.join(driver.module()).with_extension("c");
    std::fs::copy(&source, name(Driver::Original))?;
    let files = series::files(context.cache, &environment.tree, build_folder)?;
    std::fs::copy(files.join("drivers/virt/vmgenid.c"), name(Driver::Fixed))?;
    std::fs::write(place.join("shim.h"), include_str!("shim.h"))?;
    std::fs::write(
        place.join("Kbuild"),
        "obj-m := vmgenid_original.o vmgenid_fixed.o\nccflags-y := -include $(src)/shim.h\n",
    )?;
    progress::run_logged(
        "build vmgenid.c, with its fixes and without",
        &context.cache.log("vmgenid")?,
        build_folder
            .make_command(&environment.tree)
            .arg("-C")
            .arg(build_folder.build())
            .arg(format!("M={}", place.display()))
            .arg("modules"),
    )?;
    for driver in [Driver::Original, Driver::Fixed] {
        let module = format!("{}.ko", driver.module());
        std::fs::copy(place.join(&module), place.join("root/lib").join(&module))?;
    }
    // The kernel unpacks one archive after the other.
    let mut archives = std::fs::read(environment.machine().initramfs)?;
    archives.extend(super::pack(&environment.tree, &place.join("root"))?);
    File::create(initramfs)?.write_all(&archives)?;
    Ok(())
}

/// Boots a machine with the driver, whose device is still free.
fn boot<'a>(
    context: &'a Context<'_>,
    initramfs: &Path,
    disk: Option<PathBuf>,
) -> Result<Guest<'a>> {
    let machine = Machine {
        initramfs: initramfs.to_owned(),
        append: vec![WITHOUT_STOCK_DRIVER.to_owned(), "loglevel=6".to_owned()],
        disk,
        ..context.environment()?.machine_with_guid()?
    };
    Guest::boot_machine(context, machine)
}

/// Takes the device from the driver and gives it back, with a restore before, in between and after. The inner
/// error is that of the driver.
fn rebind(context: &Context<'_>, initramfs: &Path, driver: Driver) -> Result<Result<()>> {
    let mut guest = boot(context, initramfs, None)?;
    guest.run(
        &format!(
            "modprobe sysgenid && modprobe sysgenid_vmfork && insmod /lib/{}.ko && ls -d {DRIVER}/*:*",
            driver.module()
        ),
        PATIENCE,
    )?;
    guest = guest.snapshot()?.restore()?;
    await_generation(&mut guest, 1)?;
    let device = guest.run(&format!("basename $(ls -d {DRIVER}/*:*)"), PATIENCE)?;
    let device = device.trim();
    guest.run(&format!("echo {device} > {DRIVER}/unbind"), PATIENCE)?;
    if driver == Driver::Fixed {
        // The other one follows a null pointer now, and the machine is lost for what comes after.
        guest = guest.snapshot()?.restore()?;
        std::thread::sleep(WATCHED);
        let generation = guest.run("sysgenid-guest generation /dev/sysgenid", PATIENCE)?;
        ensure!(generation.trim() == "1", "who has no device was told");
    }
    let outcome = guest.outcome(&format!("echo {device} > {DRIVER}/bind"), PATIENCE)?;
    if outcome.status != 0 {
        return Ok(Err(anyhow::anyhow!(
            "the device cannot be bound again: {}",
            outcome.output.trim()
        )));
    }
    guest = guest.snapshot()?.restore()?;
    await_generation(&mut guest, 2)?;
    guest.finish()?;
    Ok(Ok(()))
}

fn await_generation(guest: &mut Guest<'_>, generation: u32) -> Result<()> {
    guest
        .run(
            &format!(
                "for i in $(seq 100); do \
                 test $(sysgenid-guest generation /dev/sysgenid) = {generation} && exit; sleep 0.1; \
                 done; exit 1"
            ),
            PATIENCE,
        )
        .with_context(|| format!("generation {generation} does not come"))?;
    Ok(())
}

/// Hibernates a machine, resumes two from copies of its disk with IDs of their own, and says whether each noticed.
fn resume(
    context: &Context<'_>,
    initramfs: &Path,
    disk: &Path,
    driver: Driver,
) -> Result<[bool; 2]> {
    File::create(disk)?.set_len(DISK_SIZE)?;
    let mut guest = boot(context, initramfs, Some(disk.to_owned()))?;
    guest.run(
        &format!(
            "insmod /lib/{}.ko && mkswap /dev/vda && swapon /dev/vda && echo shutdown > /sys/power/disk && \
             touch /run/hibernated",
            driver.module()
        ),
        PATIENCE,
    )?;
    guest.hibernate()?;
    let mut noticed = [false; 2];
    for (index, noticed) in noticed.iter_mut().enumerate() {
        let copy = disk.with_extension(index.to_string());
        std::fs::copy(disk, &copy)?;
        let mut clone = boot(context, initramfs, Some(copy))?;
        clone
            .run("test -e /run/hibernated", PATIENCE)
            .context("the machine did not resume")?;
        *noticed = clone.run("dmesg", PATIENCE)?.contains(NOTICED);
        clone.finish()?;
    }
    Ok(noticed)
}
