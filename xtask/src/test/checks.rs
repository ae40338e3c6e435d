// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be checked without a guest, without root and without network.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;

use crate::progress;
use crate::test::Context;
use crate::test::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the sources are formatted", |context| {
        cargo(context, "fmt", &["fmt", "--all", "--check"])?;
        modules_are_formatted(context)
    }),
    Test::new("the drivers contain no unsafe", drivers_are_safe),
    Test::new("clippy has nothing to say", |context| {
        cargo(
            context,
            "clippy",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        )
    }),
    Test::new("unit, property and documentation tests pass", |context| {
        cargo(context, "cargo-test", &["test", "--workspace"])
    }),
    Test::new(
        "no order of threads gives an old value of a guarded one",
        explore,
    ),
];

/// The files from which the modules are built; they name the others.
const MODULES: [&str; 3] = [
    "sysgenid/sysgenid_main.rs",
    "sysgenid_vmfork/vmfork_main.rs",
    "sysgenid_acpi/acpi_main.rs",
];

fn modules_are_formatted(context: &Context<'_>) -> Result<()> {
    progress::run_logged(
        "format the modules",
        &context.cache.log("rustfmt")?,
        Command::new("rustfmt")
            .current_dir(context.cache.repository().join("kernel"))
            .args(["--edition", "2021", "--check"])
            .args(MODULES),
    )
}

/// Everything unsafe in the modules stands in `kernel/support`.
fn drivers_are_safe(context: &Context<'_>) -> Result<()> {
    for module in MODULES {
        let main = context.cache.repository().join("kernel").join(module);
        let folder = main.parent().context("a file is in a folder")?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            let found = text.lines().position(|line| line.contains("unsafe"));
            if let Some(line) = found {
                bail!(
                    "{}:{}: unsafe belongs in kernel/support",
                    path.display(),
                    line + 1
                );
            }
        }
    }
    Ok(())
}

/// With loom, which takes the place of the standard library's locks; so with a target folder of its own.
fn explore(context: &Context<'_>) -> Result<()> {
    let target = context.cache.repository().join("target/loom");
    context.cargo(
        "loom",
        &[
            "test",
            "--release",
            "--package",
            "sysgenid",
            "--lib",
            "--target-dir",
            &target.to_string_lossy(),
            "exploration",
        ],
        &[("RUSTFLAGS", OsStr::new("--cfg loom"))],
    )
}

fn cargo(context: &Context<'_>, log: &str, arguments: &[&str]) -> Result<()> {
    context.cargo(log, arguments, &[])
}
