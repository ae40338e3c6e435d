// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program in a guest that looks without a pause until it sees that the machine was restored.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use sysgenid_guest::event::Sighting;

use crate::qemu::Vm;

/// What it reports to.
const REPORT: &str = "/run/sighting";

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts such a program, which says something of itself before it looks. Its process is in `/run/looker`.
pub(crate) fn look(vm: &mut Vm, program: &str, expected: &str) -> Result<()> {
    vm.run(
        &format!(
            "sysgenid-guest {program} > {REPORT} 2>&1 & echo $! > /run/looker; \
             sysgenid-guest await {REPORT} '{expected}'"
        ),
        PATIENCE,
    )?;
    Ok(())
}

/// What it saw, once it did.
pub(crate) fn report(vm: &mut Vm) -> Result<Sighting> {
    let report = vm.run(
        &format!("sysgenid-guest await {REPORT} drawn && tail -n 1 {REPORT}"),
        PATIENCE,
    )?;
    serde_json::from_str(report.trim())
        .with_context(|| format!("the program that looks reported: {report}"))
}
