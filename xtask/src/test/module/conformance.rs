// SPDX-License-Identifier: MIT OR Apache-2.0

//! The conformance suite on both nodes, on an ordinary kernel and on one that looks for bugs.

use anyhow::Result;

use crate::qemu::PATIENCE;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::guest::WITHOUT_STOCK_DRIVER;
use crate::test::module::restore;
use crate::test::suite;

pub(crate) const TESTS: &[Test] = &[
    Test::new("both nodes conform", |context| {
        let mut guest = Guest::boot_bare(context, &[])?;
        both_conform(&mut guest)?;
        guest.finish()
    }),
    Test::new(
        "the page says whether a backend is there",
        notice_comes_and_goes,
    ),
    Test::new("a kernel that looks for bugs finds none", find_bugs),
];

/// What the stock kernel offers for finding bugs: red zones, poison and consistency checks around
/// every object, freed memory overwritten, a fence around sampled objects, and a panic at the first
/// complaint.
pub(crate) const BUG_FINDERS: &[&str] = &[
    "slub_debug=FZPU",
    "init_on_alloc=1",
    "init_on_free=1",
    "page_poison=1",
    "kfence.sample_interval=20",
    "panic_on_warn=1",
    "oops=panic",
    "softlockup_panic=1",
];

/// The cases that may be skipped: the node, and what the suite says.
const EXPECTED_SKIPS: &[(&str, &str)] = &[
    // These two are each other's opposite, and each is about one node.
    ("/dev/vmgenid", "vmgenid is for root only"),
    ("/dev/sysgenid", "sysgenid is for everybody"),
];

/// Of the cases about uevents, one is for a module that sends them and one for a module that does not.
const UEVENTS_ON: &str = "uevents are on";
const UEVENTS_OFF: &str = "uevents are turned off";

/// Examines both nodes. Each is examined on a module that nobody has used, for the generation of a new
/// node is part of the contract.
pub(crate) fn both_conform(guest: &mut Guest<'_>) -> Result<()> {
    for node in ["/dev/vmgenid", "/dev/sysgenid"] {
        conform(guest, node, "", "--fresh", UEVENTS_ON)?;
        conform(
            guest,
            node,
            "uevents=0",
            "--fresh --no-uevents uevent",
            UEVENTS_OFF,
        )?;
    }
    Ok(())
}

/// Backends come and go beside a module that stays.
fn notice_comes_and_goes(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot_bare(context, &[WITHOUT_STOCK_DRIVER])?;
    guest.run("modprobe sysgenid", PATIENCE)?;
    let device = "QEMUVGID:00";
    let driver = "/sys/bus/platform/drivers/sysgenid_acpi";
    for step in [
        "true".to_owned(),
        "modprobe sysgenid_vmfork".to_owned(),
        "rmmod sysgenid_vmfork".to_owned(),
        format!("modprobe sysgenid_acpi && test -e {driver}/{device}"),
        "modprobe sysgenid_vmfork".to_owned(),
        format!("echo {device} > {driver}/unbind"),
        "rmmod sysgenid_vmfork".to_owned(),
        format!("echo {device} > {driver}/bind"),
        "rmmod sysgenid_acpi".to_owned(),
    ] {
        guest.run(&step, PATIENCE)?;
        // Told that the node is fresh, it leaves the page as it is until this case has looked at it.
        let outcome = guest.outcome(
            "sysgenid-conformance --node /dev/sysgenid --fresh page-noticed",
            suite::PATIENCE,
        )?;
        suite::check(
            &format!("/dev/sysgenid, after {step:?}"),
            Some(outcome.status),
            &outcome.output,
            |_| false,
        )?;
    }
    guest.finish()
}

/// Loads the modules, runs the suite with some options, and unloads them. Beside the skips that are
/// always expected, one for a reason that depends on how the module was loaded is.
fn conform(
    guest: &mut Guest<'_>,
    node: &str,
    parameters: &str,
    options: &str,
    expected_skip: &str,
) -> Result<()> {
    guest.run(
        &format!("modprobe sysgenid {parameters} && modprobe sysgenid_vmfork"),
        PATIENCE,
    )?;
    let outcome = guest.outcome(
        &format!("sysgenid-conformance --node {node} {options}"),
        suite::PATIENCE,
    )?;
    suite::check(
        &format!("{node}, examined with {options}"),
        Some(outcome.status),
        &outcome.output,
        |reason| reason == expected_skip || EXPECTED_SKIPS.contains(&(node, reason)),
    )?;
    guest.run("rmmod sysgenid_vmfork && rmmod sysgenid", PATIENCE)?;
    Ok(())
}

fn find_bugs(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot_bare(context, BUG_FINDERS)?;
    both_conform(&mut guest)?;
    guest.finish()?;
    for backend in [Backend::Vmfork, Backend::Acpi] {
        restore::each_restore_bumps_once(Guest::boot(context, backend, BUG_FINDERS)?)?;
    }
    Ok(())
}
