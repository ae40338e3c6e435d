// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be checked without a guest, without root and without network.

use std::process::Command;

use anyhow::Result;

use crate::progress;
use crate::test::Context;
use crate::test::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the sources are formatted", |context| {
        cargo(context, "fmt", &["fmt", "--all", "--check"])
    }),
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
];

fn cargo(context: &Context<'_>, log: &str, arguments: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    progress::run_logged(
        &format!("cargo {}", arguments.join(" ")),
        &context.cache.log(log)?,
        Command::new(program)
            .current_dir(context.cache.repository())
            .args(arguments),
    )
}
