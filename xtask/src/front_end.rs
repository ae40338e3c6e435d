// SPDX-License-Identifier: MIT OR Apache-2.0

//! What serves the nodes in a guest: the kernel modules, or the daemon where no module can be loaded.

use std::fmt;

use anyhow::Context;
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::qemu::PATIENCE;
use crate::qemu::Vm;

/// What serves the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FrontEnd {
    /// The kernel modules, on a kernel with Rust
    Module,
    /// The daemon sysgenidd, on any kernel
    Daemon,
}

impl FrontEnd {
    /// Starts it in a guest, and returns once its nodes are there.
    pub(crate) fn start(self, vm: &mut Vm) -> Result<()> {
        match self {
            Self::Module => vm
                .run("modprobe sysgenid && modprobe sysgenid_vmfork", PATIENCE)
                .map(drop),
            Self::Daemon => start_daemon(vm),
        }
    }
}

impl fmt::Display for FrontEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Module => "the driver",
            Self::Daemon => "sysgenidd",
        })
    }
}

/// What the daemon in a guest says of itself.
const DAEMON_LOG: &str = "/run/sysgenidd.log";

/// The file in a guest with the daemon's process ID.
const DAEMON_PID: &str = "/run/sysgenidd.pid";

fn start_daemon(vm: &mut Vm) -> Result<()> {
    vm.run(
        &format!(
            "sysgenidd --publish=always > {DAEMON_LOG} 2>&1 & echo $! > {DAEMON_PID}; \
             sysgenid-guest await {DAEMON_LOG} ready"
        ),
        PATIENCE,
    )
    .map(drop)
    .context("the daemon did not start")
}

/// Ends the daemon in a guest cleanly, and returns once it is gone. Of its pages nothing is left, so that the
/// next one begins at generation 0, as after a boot: nobody in the guest maps them.
pub(crate) fn stop_daemon(vm: &mut Vm) -> Result<()> {
    vm.run(
        &format!(
            "pid=$(cat {DAEMON_PID}); kill -INT $pid; \
             while [ -d /proc/$pid ]; do usleep 10000; done; rm -r /run/sysgenid/.keep; cat {DAEMON_LOG}"
        ),
        PATIENCE,
    )
    .map(drop)
    .context("the daemon did not end")
}
