// SPDX-License-Identifier: MIT OR Apache-2.0

//! The conformance suite on both nodes, on an ordinary kernel and on one that looks for bugs.

use std::time::Duration;

use anyhow::Result;
use anyhow::bail;

use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::restore;

pub(crate) const TESTS: &[Test] = &[
    Test::new("both nodes conform", |context| {
        let mut guest = Guest::boot(context, Backend::Vmfork, &[])?;
        conform(&mut guest, "/dev/vmgenid")?;
        conform(&mut guest, "/dev/sysgenid")?;
        guest.finish()
    }),
    Test::new("a kernel that looks for bugs finds none", find_bugs),
];

/// What the stock kernel offers for finding bugs: red zones, poison and consistency checks around
/// every object, freed memory overwritten, a fence around sampled objects, and a panic at the first
/// complaint.
const BUG_FINDERS: &[&str] = &[
    "slub_debug=FZPU",
    "init_on_alloc=1",
    "init_on_free=1",
    "page_poison=1",
    "kfence.sample_interval=20",
    "panic_on_warn=1",
    "oops=panic",
    "softlockup_panic=1",
];

/// How long the suite may take on one node.
const PATIENCE: Duration = Duration::from_secs(900);

fn conform(guest: &mut Guest<'_>, node: &str) -> Result<()> {
    let outcome = guest.outcome(&format!("sysgenid-conformance --node {node}"), PATIENCE)?;
    let passed = outcome
        .output
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    let failed: Vec<&str> = outcome
        .output
        .lines()
        .filter(|line| line.starts_with("not ok"))
        .collect();
    if outcome.status != 0 || passed == 0 || !failed.is_empty() {
        bail!(
            "{node}: {passed} cases passed, exit status {}:\n{}",
            outcome.status,
            outcome.output
        );
    }
    Ok(())
}

fn find_bugs(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot(context, Backend::Vmfork, BUG_FINDERS)?;
    conform(&mut guest, "/dev/vmgenid")?;
    conform(&mut guest, "/dev/sysgenid")?;
    guest.finish()?;
    for backend in [Backend::Vmfork, Backend::Acpi] {
        restore::each_restore_bumps_once(context, backend, BUG_FINDERS)?;
    }
    Ok(())
}
