// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading, unloading, and memory.

use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::qemu::PATIENCE;
use crate::qemu::Vm;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::guest::WITHOUT_STOCK_DRIVER;

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "unloading while a node is open or mapped is refused",
        refuse_unloading,
    ),
    Test::new(
        "150 rounds of load, use and unload leak no page each",
        load_and_unload,
    ),
    Test::new("100 000 opens and bumps leave memory flat", churn),
];

/// How many rounds of load, use and unload are measured.
const ROUNDS: u32 = 150;

/// How many pages (4 KiB) may seem to be lost in [`ROUNDS`] rounds, or in 100 000 opens or bumps: half a
/// page a round, or three bytes an open. The kernel itself takes a fifth of a page a round, and its
/// counts are settled to within some ten pages. So one page that each round leaks is seen, and a few
/// bytes that each open or bump leaks; what is leaked once, or less than half a page a round, is not.
const TOLERANCE: i64 = 75;

/// How often free memory is looked at until it has settled.
const LOOKS: u32 = 40;

/// By how many pages two looks may differ for it to have settled.
const SETTLED: i64 = 3;

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
    stays_flat(&mut guest, &rounds(ROUNDS))?;
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
    let mut lost = Vec::new();
    let mut before = free_pages(vm)?;
    for _ in 0..RUNS {
        vm.run(command, LONG)?;
        let now = free_pages(vm)?;
        lost.push(before - now);
        if before - now < TOLERANCE {
            return Ok(());
        }
        before = now;
    }
    bail!("each run loses memory, in pages: {lost:?}; fewer than {TOLERANCE} would be right")
}

/// How many pages are free once nothing is about to be freed any more.
fn free_pages(vm: &mut Vm) -> Result<i64> {
    let mut last = None;
    for _ in 0..LOOKS {
        let text = vm.run(
            "sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/stat_refresh; \
             cat /proc/zoneinfo",
            PATIENCE,
        )?;
        let now = count_free(&text);
        ensure!(now > 0, "/proc/zoneinfo names no free pages: {text}");
        if last.is_some_and(|last: i64| (now - last).abs() <= SETTLED) {
            return Ok(now);
        }
        last = Some(now);
    }
    bail!("free memory does not settle")
}

/// The free pages in `/proc/zoneinfo`, and those that the processors hold ready: they are as free, but
/// no sum in `/proc/meminfo` has them, and their number varies by thousands.
fn count_free(zoneinfo: &str) -> i64 {
    zoneinfo
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next()?, "nr_free_pages" | "count:").then_some(words.next()?)
        })
        .filter_map(|number| number.parse::<i64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_a_processor_holds_ready_are_free() {
        let zoneinfo = "Node 0, zone      DMA\n  pages free     2304\n      \
             nr_free_pages 2304\n      nr_free_pages_blocks 2048\n  pagesets\n    cpu: 0\n              \
             count:    12\n              high:     14\n";
        assert_eq!(count_free(zoneinfo), 2316);
    }
}
