// SPDX-License-Identifier: MIT OR Apache-2.0

//! What applications and operators hold in their hands: the library, the command line, the examples. The same tests
//! run on the daemon of this machine and on the module in a guest.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::crates;
use crate::host_daemon::HostDaemon;
use crate::host_packages;
use crate::host_packages::Needed;
use crate::host_packages::needed;
use crate::programs;
use crate::progress;
use crate::qemu::Machine;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::sighting;
use crate::test::skip;
use crate::tree::Tree;
use crate::vmclock::Vmclock;

/// What needs no guest.
pub(crate) const HOST_TESTS: &[Test] = &[
    Test::new(
        "the library and the command line work on this machine's daemon",
        |context| on_this_machine(context, true),
    ),
    Test::new(
        "the library and the command line work on this machine's daemon without passthrough",
        |context| on_this_machine(context, false),
    ),
    Test::new(
        "what an operator installs is whole: program, manual pages, completions, hooks, units",
        installation,
    ),
    Test::new(
        "the examples do on this machine's daemon what they are there to show",
        examples,
    ),
];

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "the library and the command line work on the module's nodes",
        on_the_module,
    ),
    Test::new(
        "by the hypervisor's page a probe knows of a restore before the notice, and waits for it to draw",
        by_vmclock,
    ),
    Test::new(
        "the library builds with the oldest compiler that it is for",
        oldest_compiler,
    ),
];

/// The library's `rust-version`, which is what Debian's release has.
const OLDEST_COMPILER: &str = "1.85";

/// How long a program of tests may take in a guest.
const PATIENCE: Duration = Duration::from_secs(300);

/// The programs of tests.
const PROGRAMS: [&str; 2] = [programs::LIBRARY_TESTS, programs::COMMAND_LINE_TESTS];

fn on_this_machine(context: &Context<'_>, passthrough: bool) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    let programs = context.programs()?;
    let config = format!("passthrough = {passthrough}\n");
    let daemon = HostDaemon::start(context.cache, programs, &config)?;
    for node in ["sysgenid", "vmgenid"] {
        for program in PROGRAMS {
            progress::run_logged(
                &format!("{program} on {node}"),
                &context.cache.log(&format!("{program}-{node}"))?,
                daemon
                    .command(program)
                    .args(["--ignored", "--test-threads=1"])
                    .env("SYSGENID_PATH", daemon.file(node))
                    .env("SYSGENIDD", programs.file(programs::DAEMON))
                    .env("SYSGENCTL", programs.file(programs::COMMAND_LINE)),
            )?;
        }
    }
    daemon.stop()
}

fn on_the_module(context: &Context<'_>) -> Result<()> {
    let mut guest = Guest::boot(context, Backend::Vmfork, &[])?;
    in_a_guest(&mut guest)?;
    guest.finish()
}

/// Runs the programs of tests on whatever serves the nodes in a guest.
pub(crate) fn in_a_guest(guest: &mut Guest<'_>) -> Result<()> {
    for node in ["sysgenid", "vmgenid"] {
        for program in PROGRAMS {
            let outcome = guest.outcome(
                &format!(
                    "SYSGENID_PATH=/dev/{node} SYSGENIDD=/bin/{daemon} SYSGENCTL=/bin/{command_line} \
                     {program} --ignored --test-threads=1",
                    daemon = programs::DAEMON,
                    command_line = programs::COMMAND_LINE,
                ),
                PATIENCE,
            )?;
            ensure!(
                outcome.status == 0,
                "{program} on {node}: exit status {}:\n{}",
                outcome.status,
                outcome.output
            );
        }
    }
    Ok(())
}

/// How many clones there are at most until two of them saw a restore by the page first.
const CLONES: u32 = 8;

/// Clones of a machine whose hypervisor counts restores in its vmclock page, and gives notice of them too.
fn by_vmclock(context: &Context<'_>) -> Result<()> {
    let machine = Machine {
        vmclock: Some(Vmclock::Silent),
        ..context.environment()?.machine_with_guid()?
    };
    let mut guest = Guest::boot_machine(context, machine)?;
    guest.run(Backend::Vmfork.load(), PATIENCE)?;
    guest.run("modprobe ptp_vmclock && ls /dev/vmclock0", PATIENCE)?;
    // Whoever looks has the other processor. Some interrupts cannot be moved, and are not that of the notice.
    guest.run(
        "for each in /proc/irq/*/smp_affinity_list; do echo 0 > $each || true; done 2> /dev/null",
        PATIENCE,
    )?;
    // A page without a counter, which is what QEMU has, is not looked at.
    sighting::look(&mut guest, "look", "without a vmclock")?;
    guest.run("kill $(cat /run/looker)", PATIENCE)?;
    guest.count_generations()?;
    sighting::look(&mut guest, "look", "with /dev/vmclock0")?;

    let mut snapshot = guest.snapshot()?;
    let mut drawn = BTreeSet::new();
    let mut seen_by_the_page = 0;
    for clones in 1.. {
        let mut clone = snapshot.clone_machine()?;
        let sighting = sighting::report(&mut clone)?;
        ensure!(
            sighting.drawn_in_generation == 1 && sighting.drawn_ns > sighting.seen_ns,
            "it did not wait for the notice: {sighting:?}"
        );
        if sighting.seen_in_generation == 0 {
            seen_by_the_page += 1;
        }
        ensure!(
            drawn.insert(sighting.drawn.clone()),
            "another clone drew it, too: {sighting:?}"
        );
        clone.power_off()?;
        if seen_by_the_page == 2 {
            break;
        }
        // The machine that runs both processors may have let the one wait.
        ensure!(
            clones < CLONES,
            "in {clones} clones the page was faster than the notice {seen_by_the_page} times"
        );
    }
    Ok(())
}

/// What must be there once it is installed, among others.
const INSTALLED: &[&str] = &[
    "usr/bin/sysgenctl",
    "usr/share/man/man1/sysgenctl.1",
    "usr/share/man/man1/sysgenctl-run-hooks.1",
    "usr/share/bash-completion/completions/sysgenctl",
    "usr/share/zsh/vendor-completions/_sysgenctl",
    "usr/share/fish/vendor_completions.d/sysgenctl.fish",
    "usr/share/sysgenid/hooks/30-ssh-host-keys",
    "usr/lib/sysgenid/hooks.d/50-chrony-makestep",
    "usr/lib/systemd/system/sysgenid-hooks.service",
    "usr/lib/systemd/system/sysgenid-settled.target",
    "usr/lib/udev/rules.d/60-sysgenid.rules",
    "usr/lib/sysusers.d/sysgenid.conf",
    "usr/sbin/sysgenidd",
    "usr/share/man/man8/sysgenidd.8",
];

/// By the script for packagers, into a folder.
fn installation(context: &Context<'_>) -> Result<()> {
    let folder = context.cache.temporary_folder()?;
    let assets = folder.path().join("assets");
    context.cargo(
        "build-to-install",
        &["build", "--package", "sysgenctl", "--package", "sysgenidd"],
        &[("SYSGENCTL_ASSETS", assets.as_os_str())],
    )?;
    let root = folder.path().join("root");
    let repository = context.cache.repository();
    progress::run_logged(
        "install into a folder",
        &context.cache.log("install")?,
        Command::new("sh")
            .arg(repository.join("packaging/install.sh"))
            .env("DESTDIR", &root)
            .env("BUILD", repository.join("target/debug"))
            .env("ASSETS", &assets),
    )?;
    for file in INSTALLED {
        ensure!(root.join(file).is_file(), "there is no {file}");
    }
    progress::run_logged(
        "load the completions for bash",
        &context.cache.log("completions")?,
        Command::new("bash")
            .args(["-euc", r#"source "$1"; complete -p sysgenctl"#, "bash"])
            .arg(root.join("usr/share/bash-completion/completions/sysgenctl")),
    )
}

/// The packages with examples, whose tests start them as a user would.
const EXAMPLES: [&str; 2] = ["sysgenid-c", "sysgenid-examples"];

/// What the examples in C and Python are built and run with, beside the C compiler.
const TOOLS: &[Needed] = &[
    needed("c++", "g++"),
    needed("make", "make"),
    needed("pkg-config", "pkgconf"),
    needed("python3", "python3"),
];

fn examples(context: &Context<'_>) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    host_packages::install(context.cache, TOOLS)?;
    let daemon = HostDaemon::start(context.cache, context.programs()?, "")?;
    for package in EXAMPLES {
        let cargo = std::env::var_os("CARGO").context("cargo runs this program")?;
        let mut command: Command = daemon.enter(cargo);
        command
            .current_dir(context.cache.repository())
            .args(["test", "--package", package, "--manifest-path"])
            .arg(context.cache.repository().join("Cargo.toml"))
            .args(["--", "--include-ignored", "--test-threads=1"])
            .env("SYSGENID_PATH", daemon.file("sysgenid"))
            .env("SYSGENIDD", context.programs()?.file(programs::DAEMON));
        progress::run_logged(
            &format!("run the examples of {package}"),
            &context.cache.log(&format!("examples-{package}"))?,
            &mut command,
        )?;
    }
    daemon.stop()
}

/// With Debian's own compiler, in the tree. There is no network there: the crates are those of this machine.
fn oldest_compiler(context: &Context<'_>) -> Result<()> {
    let tree = Tree::prepare(context.cache)?;
    let version = tree.output("cargo", &["--version"])?;
    ensure!(
        version.starts_with(&format!("cargo {OLDEST_COMPILER}.")),
        "Debian's cargo is {}, which proves nothing of {OLDEST_COMPILER}",
        version.trim()
    );
    let home = crates::copy(context.cache)?;
    progress::run_logged(
        "build the library with Debian's compiler",
        &context.cache.log("oldest-compiler")?,
        tree.command("env")
            .arg(format!("CARGO_HOME={}", home.display()))
            .args(["cargo", "check", "--offline", "--locked", "--all-features"])
            .args(["--package", "sysgenid", "--manifest-path"])
            .arg(context.cache.repository().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(context.cache.repository().join("target/oldest-compiler")),
    )
}
