// SPDX-License-Identifier: MIT OR Apache-2.0

//! The modules on kernels that look for bugs, and those kernels on bugs that were planted.

use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::kernel::debug::Hunt;
use crate::qemu::PATIENCE;
use crate::qemu::Vm;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::guest::Snapshot;
use crate::test::guest::WITHOUT_STOCK_DRIVER;
use crate::test::guest::check_log;
use crate::test::module::conformance;
use crate::test::module::fuzz;
use crate::test::module::hibernation;
use crate::test::module::restore;

/// The same tests on one kernel.
macro_rules! tests_on {
    ($hunt:expr, $kernel:literal) => {
        [
            Test::long(
                concat!($kernel, " finds the bugs that were planted"),
                |context| find_planted(context, $hunt),
            ),
            Test::long(
                concat!($kernel, " finds none in the conformance suite"),
                |context| {
                    let mut guest = boot(context, $hunt, &[])?;
                    conformance::both_conform(&mut guest)?;
                    finish(guest, $hunt)
                },
            ),
            Test::long(concat!($kernel, " finds none in restores"), |context| {
                restores(context, $hunt)
            }),
            Test::long(
                concat!(
                    $kernel,
                    " finds none in churn, and in backends that come and go"
                ),
                |context| churn(context, $hunt),
            ),
            Test::long(concat!($kernel, " finds none in random calls"), |context| {
                random_calls(context, $hunt)
            }),
            Test::long(concat!($kernel, " finds none in hibernation"), |context| {
                let environment = context.debug_kernel($hunt)?;
                hibernation::each_resume_is_a_change(context, environment, DISK_SIZE)
            }),
        ]
    };
}

pub(crate) const MEMORY_TESTS: &[Test] =
    &tests_on!(Hunt::Memory, "a kernel that looks at memory and locks");

pub(crate) const RACE_TESTS: &[Test] = &tests_on!(Hunt::Races, "a kernel that looks for races");

pub(crate) const REALTIME_TESTS: &[Test] = &tests_on!(Hunt::Realtime, "a real-time kernel");

/// A bug that a kernel is to find.
struct Planted {
    /// How it is made to happen.
    load: &'static str,
    /// What the kernel says of it.
    complaint: &'static str,
    /// Who finds it.
    found_by: &'static [Hunt],
}

const fn planted(
    load: &'static str,
    complaint: &'static str,
    found_by: &'static [Hunt],
) -> Planted {
    Planted {
        load,
        complaint,
        found_by,
    }
}

const ALL: &[Hunt] = &[Hunt::Memory, Hunt::Races, Hunt::Realtime];
const LOCKS: &[Hunt] = &[Hunt::Memory, Hunt::Realtime];

const PLANTED: &[Planted] = &[
    planted("defects kind=order", "possible circular locking", LOCKS),
    planted("defects kind=twice", "possible recursive locking", LOCKS),
    planted(
        "defects kind=interrupt",
        "inconsistent lock state",
        &[Hunt::Memory],
    ),
    planted("defects kind=context", "Invalid wait context", LOCKS),
    planted("defects kind=rcu", "suspicious RCU usage", LOCKS),
    planted("defects kind=sleep", "sleeping function called", ALL),
    planted("defects kind=schedule", "scheduling while atomic", ALL),
    planted("defects kind=list-del", "list_del corruption", ALL),
    planted("defects kind=list-add", "list_add corruption", ALL),
    planted("defects kind=refcount", "refcount_t", ALL),
    planted("defects kind=hang", "INFO: task", ALL),
    planted("defects kind=timer", "ODEBUG", &[Hunt::Memory]),
    planted(
        "defects kind=free",
        "KASAN: slab-use-after-free",
        &[Hunt::Memory],
    ),
    planted(
        "defects kind=leak",
        "suspected memory leaks",
        &[Hunt::Memory],
    ),
    planted(
        "defects kind=race",
        "KCSAN: data-race in race",
        &[Hunt::Races],
    ),
    planted(
        "defects_rust kind=1",
        "KASAN: slab-use-after-free",
        &[Hunt::Memory],
    ),
    planted("defects_rust kind=2", "KCSAN: data-race in", &[Hunt::Races]),
    planted("defects_rust kind=3", "attempt to add with overflow", ALL),
    planted("defects_rust kind=4", "as was wanted", ALL),
];

/// How long the long loops may take.
const LONG: Duration = Duration::from_secs(1800);

/// In bytes: the memory, and room to spare. Most of it is never written.
const DISK_SIZE: u64 = 2 << 30;

/// How many restores there are while backends come and go.
const RESTORES: u32 = 5;

/// How long backends come and go after each of them.
const COMING_AND_GOING: Duration = Duration::from_secs(10);

/// How many bumps there are of each node.
const BUMPS: u32 = 50_000;

fn boot<'a>(context: &'a Context<'_>, hunt: Hunt, append: &[&str]) -> Result<Guest<'a>> {
    let environment = context.debug_kernel(hunt)?;
    let mut machine = environment.machine_with_guid()?;
    let append = append.iter().map(ToString::to_string);
    machine.append.extend(append);
    let mut guest = Guest::boot_in(context, environment, machine)?;
    // Nothing here waits so long by itself.
    guest.run(
        "mount -t debugfs debugfs /sys/kernel/debug; \
         echo 20 > /proc/sys/kernel/hung_task_timeout_secs",
        PATIENCE,
    )?;
    Ok(guest)
}

/// Ends a guest in which the kernel must have found nothing at all.
fn finish(mut guest: Guest<'_>, hunt: Hunt) -> Result<()> {
    if hunt == Hunt::Memory {
        look_for_leaks(&mut guest)?;
    }
    guest.finish()
}

/// What was forgotten counts only when it is some seconds old, and has been seen unchanged in several looks.
fn look_for_leaks(guest: &mut Vm) -> Result<()> {
    guest
        .run(
            "sleep 6; for look in 1 2 3 4 5 6 7 8; do echo scan > /sys/kernel/debug/kmemleak; done",
            LONG,
        )
        .map(drop)
}

fn find_planted(context: &Context<'_>, hunt: Hunt) -> Result<()> {
    // From one snapshot, for after its first complaint about locks the kernel does not look at them any more.
    let mut snapshot = boot(context, hunt, &[])?.snapshot()?;
    let mut missed = Vec::new();
    for planted in PLANTED {
        if !planted.found_by.contains(&hunt) {
            continue;
        }
        let mut guest = snapshot.clone_machine()?;
        if !is_found(&mut guest, planted)? {
            missed.push(planted.load);
        }
    }
    if !missed.is_empty() {
        bail!("the kernel did not find, or the tests did not see: {missed:?}");
    }
    Ok(())
}

/// Whether the kernel finds a bug and says so in words that the tests look for.
fn is_found(guest: &mut Vm, planted: &Planted) -> Result<bool> {
    // Some bugs are the end of whoever makes them.
    guest.run(
        &format!("modprobe {} > /dev/null 2>&1 &", planted.load),
        PATIENCE,
    )?;
    if planted.complaint.contains("leak") {
        look_for_leaks(guest)?;
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < deadline {
        let log = std::fs::read_to_string(guest.console_log())?;
        if log.contains(planted.complaint) && check_log(&log).is_err() {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(false)
}

fn restores(context: &Context<'_>, hunt: Hunt) -> Result<()> {
    for backend in [Backend::Vmfork, Backend::Acpi] {
        let append: &[&str] = match backend {
            Backend::Vmfork => &[],
            Backend::Acpi => &[WITHOUT_STOCK_DRIVER],
        };
        let mut guest = boot(context, hunt, append)?;
        guest.run(backend.load(), PATIENCE)?;
        restore::each_restore_bumps_once(guest).with_context(|| format!("with {backend:?}"))?;
    }
    Ok(())
}

fn churn(context: &Context<'_>, hunt: Hunt) -> Result<()> {
    for backend in [Backend::Vmfork, Backend::Acpi] {
        let append: &[&str] = match backend {
            Backend::Vmfork => &[],
            Backend::Acpi => &[WITHOUT_STOCK_DRIVER],
        };
        let mut guest = boot(context, hunt, append)?;
        guest.run(backend.load(), PATIENCE)?;
        guest.run(
            &format!(
                "sysgenid-guest churn /dev/vmgenid {BUMPS} & \
                 sysgenid-guest churn /dev/sysgenid {BUMPS} && wait $!"
            ),
            LONG,
        )?;
        guest = come_and_go(guest, backend)?;
        finish(guest, hunt)?;
    }
    Ok(())
}

/// Has the backend come and go, and programs come and go, while the machine is restored again and again.
fn come_and_go(mut guest: Guest<'_>, backend: Backend) -> Result<Guest<'_>> {
    let module = backend.module();
    guest.run(
        &format!(
            "(rounds=0; while ! [ -e /run/enough ]; do \
                 rmmod {module} && modprobe {module} && rounds=$((rounds + 1)); \
                 echo $rounds > /run/rounds; done) > /dev/null 2>&1 & \
             (while ! [ -e /run/enough ]; do sysgenid-guest churn /dev/sysgenid 100; done) > /dev/null 2>&1 &"
        ),
        PATIENCE,
    )?;
    for round in 0..RESTORES {
        std::thread::sleep(COMING_AND_GOING);
        guest = guest
            .snapshot()
            .and_then(Snapshot::restore)
            .with_context(|| format!("restore {round}"))?;
    }
    std::thread::sleep(COMING_AND_GOING);
    guest.run("touch /run/enough; wait", PATIENCE)?;
    let rounds = guest.run("cat /run/rounds", PATIENCE)?;
    let rounds: u32 = rounds.trim().parse()?;
    ensure!(
        rounds > RESTORES,
        "the backend came and went {rounds} times only in {RESTORES} restores"
    );
    Ok(guest)
}

fn random_calls(context: &Context<'_>, hunt: Hunt) -> Result<()> {
    let mut guest = boot(context, hunt, &[])?;
    guest.run(Backend::Vmfork.load(), PATIENCE)?;
    fuzz::random_calls(&context.random_calls, fuzz::MANY, &mut guest)?;
    finish(guest, hunt)
}
