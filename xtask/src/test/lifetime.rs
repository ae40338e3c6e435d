// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading, unloading, and memory.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::qemu::Vm;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::guest::PATIENCE;
use crate::test::guest::WITHOUT_STOCK_DRIVER;

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "unloading while a node is open or mapped is refused",
        refuse_unloading,
    ),
    Test::new(
        "a hundred rounds of load, use and unload leave memory flat",
        load_and_unload,
    ),
    Test::new("100 000 opens and bumps leave memory flat", churn),
];

/// How much memory may seem to be lost, in KiB: what the kernel keeps in reserve varies that much.
/// Of 10^5 opens or bumps, 16 lost bytes each would show; of 100 loads, a few pages each.
const TOLERANCE_KIB: i64 = 1536;

/// How long the long loops may take.
const LONG: Duration = Duration::from_secs(900);

fn refuse_unloading(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot_bare(context, &[])?;
    for option in ["", "--mapped"] {
        for node in ["/dev/vmgenid", "/dev/sysgenid"] {
            guest.run("modprobe sysgenid", PATIENCE)?;
            guest.run(
                &format!(
                    "sysgenid-guest hold {option} {node} > /run/holder 2>&1 & \
                     echo $! > /run/holder.pid; sysgenid-guest await /run/holder ready"
                ),
                PATIENCE,
            )?;
            let refused = guest.outcome("rmmod sysgenid", PATIENCE)?;
            ensure!(
                refused.status != 0 && refused.output.contains("Resource temporarily unavailable"),
                "with {node} in use ({option}) rmmod ended with {} and said: {}",
                refused.status,
                refused.output
            );
            // The last reference goes when the process is gone, not when the signal was sent.
            guest.run(
                "kill -9 $(cat /run/holder.pid); \
                 while [ -d /proc/$(cat /run/holder.pid) ]; do usleep 10000; done; \
                 rm /run/holder; rmmod sysgenid",
                PATIENCE,
            )?;
        }
    }
    guest.finish()
}

fn load_and_unload(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot_bare(context, &[WITHOUT_STOCK_DRIVER])?;
    let rounds = |count: u32| {
        format!(
            "set -e; for round in $(seq {count}); do \
             modprobe sysgenid; modprobe sysgenid_vmfork; modprobe sysgenid_acpi; \
             sysgenid-guest exercise /dev/vmgenid; sysgenid-guest exercise /dev/sysgenid; \
             rmmod sysgenid_acpi; rmmod sysgenid_vmfork; rmmod sysgenid; done"
        )
    };
    // The first rounds fill caches that the kernel keeps.
    guest.run(&rounds(20), LONG)?;
    stays_flat(&mut guest, &rounds(100))?;
    let left = guest.run(
        "ls /dev | grep genid || true; lsmod | grep sysgenid || true",
        PATIENCE,
    )?;
    ensure!(left.trim().is_empty(), "unloading left behind: {left}");
    guest.finish()
}

fn churn(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot(context, Backend::Vmfork, &[])?;
    for node in ["/dev/vmgenid", "/dev/sysgenid"] {
        guest.run(&format!("sysgenid-guest churn {node} 2000"), LONG)?;
    }
    for node in ["/dev/vmgenid", "/dev/sysgenid"] {
        stays_flat(&mut guest, &format!("sysgenid-guest churn {node} 100000"))
            .with_context(|| format!("after 100 000 opens and bumps of {node}"))?;
    }
    guest.finish()
}

/// Fails if each of several runs of a command leaves less memory than there was before it. What leaks
/// does so every time; what the kernel puts by for itself once in a while does not.
fn stays_flat(vm: &mut Vm, command: &str) -> Result<()> {
    const RUNS: usize = 3;
    let mut before = Memory::of(vm)?;
    let mut last = Ok(());
    for _ in 0..RUNS {
        vm.run(command, LONG)?;
        let now = Memory::of(vm)?;
        last = before.compare(&now);
        if last.is_ok() {
            break;
        }
        before = now;
    }
    last
}

/// What the kernel uses, from `/proc/meminfo`, in KiB.
struct Memory(BTreeMap<String, i64>);

impl Memory {
    fn of(vm: &mut Vm) -> Result<Self> {
        let text = vm.run(
            "sync; echo 3 > /proc/sys/vm/drop_caches; sleep 1; cat /proc/meminfo",
            PATIENCE,
        )?;
        let fields = text
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.split_once(':')?;
                let value = rest.trim().split(' ').next()?.parse().ok()?;
                Some((name.to_owned(), value))
            })
            .collect();
        Ok(Self(fields))
    }

    fn field(&self, name: &str) -> Result<i64> {
        let value = self.0.get(name).copied();
        value.with_context(|| format!("/proc/meminfo has no {name}"))
    }

    /// Fails if the kernel uses notably more now.
    fn compare(&self, now: &Self) -> Result<()> {
        for (name, sign) in [("MemFree", -1), ("SUnreclaim", 1), ("VmallocUsed", 1)] {
            let growth = sign * (now.field(name)? - self.field(name)?);
            ensure!(
                growth < TOLERANCE_KIB,
                "{name} is worse by {growth} KiB: {} before, {} after",
                self.field(name)?,
                now.field(name)?
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(free: i64, slab: i64) -> Memory {
        let fields = [("MemFree", free), ("SUnreclaim", slab), ("VmallocUsed", 0)];
        Memory(fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    #[test]
    fn growth_is_noticed_in_either_direction() {
        let before = memory(100_000, 10_000);
        assert!(before.compare(&memory(99_500, 10_100)).is_ok());
        assert!(before.compare(&memory(90_000, 10_000)).is_err());
        assert!(before.compare(&memory(100_000, 20_000)).is_err());
    }
}
