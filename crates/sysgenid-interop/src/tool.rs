// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that a test needs on the machine.

use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

/// A program, and what to do where it is missing.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// What it is called.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// Runs containers by their OCI bundle.
pub const CRUN: Tool = Tool {
    program: "crun",
    package: "crun",
};

/// Runs containers without root.
pub const PODMAN: Tool = Tool {
    program: "podman",
    package: "podman",
};

/// Lets an unprivileged user have more than one user id in a user namespace. Podman calls it.
pub const NEWUIDMAP: Tool = Tool {
    program: "newuidmap",
    package: "uidmap",
};

/// Reads JSON in shell scripts, such as the OCI hook.
pub const JQ: Tool = Tool {
    program: "jq",
    package: "jq",
};

/// Dumps and restores processes.
pub const CRIU: Tool = Tool {
    program: "criu",
    package: "criu",
};

/// Makes SSH keys.
pub const SSH_KEYGEN: Tool = Tool {
    program: "ssh-keygen",
    package: "openssh-client",
};

/// Sets the clock by what it measures, when it is told to.
pub const CHRONYD: Tool = Tool {
    program: "chronyd",
    package: "chrony",
};

/// Gives out addresses by DHCP.
pub const DNSMASQ: Tool = Tool {
    program: "dnsmasq",
    package: "dnsmasq-base",
};

/// A client of DHCP.
pub const DHCPCD: Tool = Tool {
    program: "dhcpcd",
    package: "dhcpcd-base",
};

/// Another, which has no command to renew.
pub const DHCLIENT: Tool = Tool {
    program: "dhclient",
    package: "isc-dhcp-client",
};

/// Carries what the services of systemd are asked for.
pub const DBUS_DAEMON: Tool = Tool {
    program: "dbus-daemon",
    package: "dbus-daemon",
};

/// Finds faults in shell scripts.
pub const SHELLCHECK: Tool = Tool {
    program: "shellcheck",
    package: "shellcheck",
};

impl Tool {
    /// Fails if the machine lacks this program.
    pub fn require(self) -> Result<()> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&paths).any(|folder| folder.join(self.program).exists()) {
            return Ok(());
        }
        bail!(
            "{} is missing; install it: apt-get install {}",
            self.program,
            self.package
        )
    }
}

/// Runs a command to its end. Says what it printed; what it complained of, if it failed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
