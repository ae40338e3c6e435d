// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon on this machine itself, in a mount namespace of its own.

use anyhow::Result;
use anyhow::ensure;

use crate::host_daemon::HostDaemon;
use crate::programs;
use crate::progress;
use crate::test::Context;
use crate::test::Test;
use crate::test::known_limits;
use crate::test::skip;
use crate::test::suite;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the daemon's nodes conform on this machine", |context| {
        conform(context, true)
    }),
    Test::new(
        "the daemon's nodes conform on this machine without passthrough",
        |context| conform(context, false),
    ),
];

fn conform(context: &Context<'_>, passthrough: bool) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    for node in ["vmgenid", "sysgenid"] {
        let config = format!("passthrough = {passthrough}\n");
        let daemon = HostDaemon::start(context.cache, context.programs()?, &config)?;
        let log = context.cache.log(&format!("conformance-{node}"))?;
        let mut output = String::new();
        let result = progress::run_into(
            &log,
            daemon
                .command(programs::SUITE)
                .arg("--node")
                .arg(daemon.file(node))
                .arg("--fresh")
                .args(known_limits::options(passthrough)),
            &mut |line| output.push_str(line),
        );
        suite::check(
            &format!("{node} (passthrough = {passthrough})"),
            result.is_ok().then_some(0),
            &output,
            |reason| known_limits::is_expected_skip(node, reason),
        )?;
        let status = daemon.status()?;
        let mapping = if passthrough { "passthrough" } else { "store" };
        ensure!(
            status.lines().any(|line| {
                line.strip_prefix("mapping:")
                    .is_some_and(|value| value.trim().starts_with(mapping))
            }),
            "the daemon was to map its page by way of {mapping}:\n{status}"
        );
        daemon.stop()?;
    }
    Ok(())
}
