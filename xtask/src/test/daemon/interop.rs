// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon on this machine, with programs that others wrote: AWS-LC, container runtimes, CRIU, systemd.

use anyhow::Result;

use crate::host_daemon::HostDaemon;
use crate::host_packages;
use crate::host_packages::Needed;
use crate::host_packages::needed;
use crate::test::Context;
use crate::test::Test;
use crate::test::skip;
use crate::tree::Tree;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "AWS-LC, containers, CRIU and systemd use the daemon as they are",
    with_others,
)];

const PACKAGES: &[Needed] = &[
    needed("crun", "crun"),
    needed("podman", "podman"),
    needed("newuidmap", "uidmap"),
    needed("jq", "jq"),
    needed("systemctl", "systemd"),
    // What the hooks of operators call, and what examines them.
    needed("ssh-keygen", "openssh-client"),
    needed("chronyd", "chrony"),
    needed("hostname", "hostname"),
    needed("ip", "iproute2"),
    // Packages of programs alone: none of the next four starts a service, or has one.
    needed("dhcpcd", "dhcpcd-base"),
    needed("dhclient", "isc-dhcp-client"),
    needed("dnsmasq", "dnsmasq-base"),
    needed("dbus-daemon", "dbus-daemon"),
    needed("shellcheck", "shellcheck"),
];

fn with_others(context: &Context<'_>) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    host_packages::install(context.cache, PACKAGES)?;
    let tree = Tree::prepare(context.cache)?;
    context.cargo(
        "build-programs",
        &["build", "--package", "sysgenidd", "--package", "sysgenctl"],
        &[],
    )?;
    context.cargo(
        "interop",
        &["test", "--package", "sysgenid-interop", "--", "--ignored"],
        &[("CRIU_TREE", tree.root().as_os_str())],
    )
}
