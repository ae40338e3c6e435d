// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo's programs in a guest: starts them, and reads what they report.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use sysgenid_guest::event::Event;

use crate::qemu::PATIENCE;
use crate::qemu::Vm;

/// The program that hands out tokens.
pub(crate) const TOKEN_SERVER: &str = "token-server";

/// The program that waits for everybody.
pub(crate) const ORCHESTRATOR: &str = "orchestrator";

/// The program that only maps the generation.
pub(crate) const MAPPER: &str = "mapper";

/// The programs that acknowledge.
pub(crate) const TRACKED: [&str; 3] = ["watchdog", "event-loop", ORCHESTRATOR];

/// Starts programs in the background and waits until each is ready.
pub(crate) fn start(vm: &mut Vm, programs: &[&str]) -> Result<()> {
    for program in programs {
        let report = report_of(program);
        vm.run(
            &format!(
                "sysgenid-guest play {program} > {report} 2>&1 & \
                 sysgenid-guest await {report} started",
                report = report.display()
            ),
            PATIENCE,
        )
        .with_context(|| format!("the {program} did not start"))?;
    }
    Ok(())
}

/// All that a program reported until now.
pub(crate) fn events(vm: &mut Vm, program: &str) -> Result<Vec<Event>> {
    let text = vm.run(&format!("cat {}", report_of(program).display()), PATIENCE)?;
    text.lines()
        .map(|line| {
            serde_json::from_str(line)
                .with_context(|| format!("the {program} reported something else: {line}"))
        })
        .collect()
}

/// The file in the guest to which a program reports.
pub(crate) fn report_of(program: &str) -> PathBuf {
    Path::new("/run").join(format!("{program}.report"))
}
